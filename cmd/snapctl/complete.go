package main

import (
	"context"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

// completeRef offers the references that begin with what was typed: names, and
// ids once something was typed.
func (a *app) completeRef(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	snapshots := a.snapshotsToComplete(cmd.Context())
	var all []cobra.Completion
	offer := func(ref, about string) {
		if strings.HasPrefix(ref, typed) && ui.IsPrintable(ref) && !slices.Contains(args, ref) {
			all = append(all, cobra.CompletionWithDesc(ref, about))
		}
	}
	if len(snapshots) > 0 {
		offer("latest", a.aboutSnapshot(snapshots[0]))
	}
	seen := make(map[string]bool)
	for _, s := range snapshots {
		if s.Name != "" && !seen[s.Name] {
			seen[s.Name] = true
			offer(s.Name, a.aboutSnapshot(s))
		}
	}
	if typed != "" {
		for _, s := range snapshots {
			offer(s.ID.String(), a.aboutSnapshot(s))
		}
	}
	return all, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
}

func (a *app) completeFirstRef(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeRef(cmd, args, typed)
}

func (a *app) completeName(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var names []cobra.Completion
	for _, s := range a.snapshotsToComplete(cmd.Context()) {
		if s.Name != "" && strings.HasPrefix(s.Name, typed) && ui.IsPrintable(s.Name) && !slices.Contains(names, s.Name) {
			names = append(names, s.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func completeDir(wanted bool) ([]cobra.Completion, cobra.ShellCompDirective) {
	if !wanted {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveFilterDirs
}

func (a *app) snapshotsToComplete(ctx context.Context) []*engine.Snapshot {
	ctx, cancel := context.WithTimeout(ctx, a.menuPatience)
	defer cancel()
	a.secrets.Terminal = nil
	a.ui.Console = ui.NewConsole(io.Discard) // as would be a warning
	a.ui.Quiet = true                        // a retry's message would land in the middle of the user's line
	snapshots, _ := a.snapshots(ctx, nil)    // an error has no place in a shell's menu
	return snapshots
}

func (a *app) aboutSnapshot(s *engine.Snapshot) string {
	return a.ui.Relative(s.CreatedAt) + ", " + ui.Printable(s.Dir)
}

// noCompletions says that a flag's value is not a file's name.
func noCompletions(cmd *cobra.Command, flags ...string) {
	for _, flag := range flags {
		mustComplete(cmd, flag, cobra.NoFileCompletions)
	}
}

func mustComplete(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // there is no such flag
	}
}

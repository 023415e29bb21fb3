package main

import (
	"context"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

// A completer offers a shell what could come next on a command line. An error has no place
// in its menu.
type completer struct{ repos *repositories }

// ref offers the references that begin with what was typed: names, and
// ids once something was typed.
func (c *completer) ref(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	snapshots := c.snapshots(cmd.Context())
	var all []cobra.Completion
	offer := func(ref, about string) {
		if strings.HasPrefix(ref, typed) && ui.IsPrintable(ref) && !slices.Contains(args, ref) {
			all = append(all, cobra.CompletionWithDesc(ref, about))
		}
	}
	if len(snapshots) > 0 {
		offer("latest", c.about(snapshots[0]))
	}
	seen := make(map[string]bool)
	for _, s := range snapshots {
		if s.Name != "" && !seen[s.Name] {
			seen[s.Name] = true
			offer(s.Name, c.about(s))
		}
	}
	if typed != "" {
		for _, s := range snapshots {
			offer(s.ID.String(), c.about(s))
		}
	}
	return all, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
}

func (c *completer) firstRef(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.ref(cmd, args, typed)
}

func (c *completer) name(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var names []cobra.Completion
	for _, s := range c.snapshots(cmd.Context()) {
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

func (c *completer) snapshots(ctx context.Context) []*engine.Snapshot {
	ctx, cancel := context.WithTimeout(ctx, c.repos.env.menuPatience)
	defer cancel()
	c.repos.secrets.Terminal = nil
	c.repos.ui.Console = ui.NewConsole(io.Discard) // as would be a warning
	c.repos.ui.Quiet = true                        // a retry's message would land in the middle of the user's line
	snapshots, _ := c.repos.snapshots(ctx, nil)    // an error has no place in a shell's menu
	return snapshots
}

func (c *completer) about(s *engine.Snapshot) string {
	return c.repos.ui.Relative(s.CreatedAt) + ", " + ui.Printable(s.Dir)
}

// maxCompletions bounds what is offered of a directory.
const maxCompletions = 1000

// refPath offers references, and behind one and a colon what is in the
// snapshot.
func (c *completer) refPath(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	p := splitRefPath(typed)
	if !p.hasPath || p.ref == "-" {
		return c.ref(cmd, args, typed)
	}
	dir, base := path.Split(p.path)
	ctx, cancel := context.WithTimeout(cmd.Context(), c.repos.env.menuPatience)
	defer cancel()
	c.repos.ui.Quiet = true
	var all []cobra.Completion
	directive := cobra.ShellCompDirectiveNoFileComp
	_ = c.repos.withFS(ctx, p, func(s *engine.SnapshotFS) error { // an error has no place in a shell's menu
		f, err := s.OpenPath(dir)
		if err != nil {
			return err
		}
		defer f.Close()
		d, ok := f.(fs.ReadDirFile)
		if !ok {
			return nil
		}
		for len(all) < maxCompletions {
			entries, err := d.ReadDir(maxCompletions)
			for _, e := range entries {
				if !strings.HasPrefix(e.Name(), base) || !ui.IsPrintable(e.Name()) {
					continue
				}
				word := p.ref + ":" + dir + e.Name()
				if e.IsDir() {
					word += "/"
					directive |= cobra.ShellCompDirectiveNoSpace
				}
				all = append(all, word)
			}
			if err != nil {
				break
			}
		}
		return nil
	})
	return all, directive
}

func (c *completer) firstRefPath(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.refPath(cmd, args, typed)
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

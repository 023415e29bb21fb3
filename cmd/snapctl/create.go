package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

// createOutput is what create --json prints: the snapshot's fields and these.
type createOutput struct {
	*engine.Snapshot
	DurationMs int64    `json:"durationMs"`
	Problems   []string `json:"problems,omitempty"`
	LeftOut    []string `json:"leftOut,omitempty"`
}

func createCommand(a *app) *cobra.Command {
	opts := engine.CreateOptions{Tags: make(map[string]string)}
	var ttl ttlFlag
	var leaveOut excludes
	cmd := &cobra.Command{
		Use:   "create DIR",
		Short: "Take a snapshot of a directory",
		Long: `Takes a snapshot of DIR and prints its id. What the repository holds already is
not stored again, and files that have not changed since the last snapshot of
DIR are not read again.

Prints one line, the id; with --json one object: the fields that show --json
prints, durationMs, problems, the files that are not in the snapshot as they
should be, and leftOut. If there are problems, each is named on standard error
and the exit code is 3; the snapshot holds everything else.

What snapctl itself keeps below DIR, the repository and this machine's cache and
state, is left out, and the summary and leftOut name it.

An interrupted create leaves no snapshot. What it had uploaded is reused by the
next one.

Patterns are those of .gitignore, relative to DIR: "node_modules" anywhere,
"/dist" at the top, "*.log", "!keep.log" to include again. A later one
overrides an earlier one.

--gitignore leaves out what "git ls-files --others --ignored --exclude-standard"
names: untracked files that match .gitignore files (those above DIR in its work
tree included), .git/info/exclude, or the file core.excludesFile. Tracked files
stay, and so does .git: "--exclude .git" leaves that out. Repositories in DIR,
submodules and further work trees go by their own rules. It does not need git.`,
		Example: `  snapctl create .
  snapctl create --name app --ttl 7d --tag branch=main ~/work/app
  snapctl create --gitignore --exclude '*.log' --exclude '!keep.log' .
  id=$(snapctl create --quiet .)
  snapctl create --json . | snapctl restore - /tmp/copy`,
		Args: takes("DIR"),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return completeDir(len(args) == 0)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.TTL = time.Duration(ttl)
			var err error
			if opts.Excludes, err = leaveOut.patterns(a.env.stdin); err != nil {
				return err
			}
			if opts.Parent != "" {
				if opts.Parent, err = a.refs.ref(cmd, opts.Parent); err != nil {
					return err
				}
			}
			return runCreate(cmd.Context(), a, args[0], opts)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&opts.Name, "name", "", "call it `NAME`; several snapshots may have the same")
	flags.Var(&ttl, "ttl", "let it expire after `DURATION`: 90m, 72h, 7d, 2w (default: never)")
	flags.Var(tagsFlag(opts.Tags), "tag", "tag it `KEY=VALUE`; may be repeated")
	flags.Var(excludeFlag{&leaveOut}, "exclude", "leave out what matches `GLOB`; may be repeated")
	flags.Var(excludeFromFlag{&leaveOut}, "exclude-from", "leave out what matches a line of `FILE`, - for standard input; may be repeated")
	flags.BoolVar(&opts.Gitignore, "gitignore", false, "leave out what git ignores")
	flags.BoolVar(&opts.OneFileSystem, "one-file-system", false, "leave out what is mounted below DIR")
	flags.StringVar(&opts.Parent, "parent", "", "take unchanged files from snapshot `REF` (default: the last one of DIR)")
	noCompletions(cmd, "name", "ttl", "tag", "exclude")
	mustComplete(cmd, "parent", a.complete.ref)
	return cmd
}

func runCreate(ctx context.Context, a *app, dir string, opts engine.CreateOptions) error {
	repo, err := a.repos.openOrMake(ctx)
	if err != nil {
		return err
	}
	defer a.repos.close(repo)

	p := a.ui.StartProgress()
	opts.Progress = p
	result, err := repo.Create(ctx, dir, &opts)
	if err != nil {
		p.Stop(nil)
		if errors.Is(context.Cause(ctx), errInterrupted) {
			return &hintError{err: err, hint: "no snapshot was made; run the same command again, and it reuses what was uploaded"}
		}
		return err
	}
	p.Stop(result.Problems)

	if a.ui.JSON {
		err = a.ui.PrintJSON(createOutput{
			Snapshot:   &result.Snapshot,
			DurationMs: result.Duration.Milliseconds(),
			Problems:   messages(result.Problems),
			LeftOut:    result.LeftOut,
		})
	} else {
		err = a.ui.Print(result.ID.String() + "\n")
		a.ui.Say(createSummary(result))
	}
	if err == nil && result.Incomplete {
		err = fmt.Errorf("create: snapshot %s is %w: %s, named above", result.ID, errIncomplete, ui.Plural(int64(len(result.Problems)), "problem"))
	}
	return err
}

func createSummary(r *engine.CreateResult) string {
	s := fmt.Sprintf("snapshot of %s: %s, %s; %s new, stored in %s; took %s",
		ui.Quoted(r.Dir), ui.Plural(r.Files, "file"), ui.Size(r.Bytes), ui.Size(r.NewBytes), ui.Size(r.StoredBytes), ui.Round(r.Duration))
	if r.Skipped > 0 {
		s += fmt.Sprintf("; %s skipped", ui.Plural(r.Skipped, "socket"))
	}
	if len(r.LeftOut) > 0 {
		s += "; left out, as snapctl's own: " + quotedList(r.LeftOut)
	}
	if r.ExpiresAt != nil {
		s += "; expires " + ui.LocalTime(*r.ExpiresAt)
	}
	return s
}

// messages are the texts of errors, for JSON.
func messages(errs []error) []string {
	var all []string
	for _, err := range errs {
		all = append(all, err.Error())
	}
	return all
}

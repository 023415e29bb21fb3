package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/listing"
	"github.com/snapctl/snapctl/engine"
)

// diffOptions are the flags of diff.
type diffOptions struct {
	engine              engine.DiffOptions
	namesOnly, exitCode bool
}

func diffCommand(a *app) *cobra.Command {
	var opts diffOptions
	cmd := &cobra.Command{
		Use:   "diff A B [PATH]",
		Short: "Show what differs between two snapshots",
		Long: `Shows what differs from snapshot A to snapshot B, in all of them or at PATH and
below, by comparing their trees where they differ: no file is read. How to write
a REF, which A and B are: snapctl help references.

Prints a line for each path from the root of the snapshots, the entries of a
directory before those of the directories in it:
  + PATH                  it is in B alone
  - PATH                  it is in A alone
  M PATH (content, mode)  it is in both, and these differ: content (of a symlink
                          its target, of a device its number), mode, owner,
                          xattrs, links (of which file it is a hard link), times
  T PATH (file, symlink)  it is in both, of these types

The root itself is "."; names with special characters are quoted. Times of
modification count with --times only: those of a directory change with whatever
comes and goes in it. What was moved is a "-" and a "+". A change of a file with
several names is shown at the first of them alone. No symbolic link is followed.

How many there are is told on standard error. With --json, prints an array of
objects with the fields path, kind (added, removed or modified), changed (type,
content, mode, owner, xattrs, links, times), and old and new, which are objects
such as ls --json prints. A path that is not UTF-8 is also there as pathBytes,
in base64.`,
		Example: `  snapctl diff app~1 app
  snapctl diff app~1 app node_modules/react
  snapctl diff --exit-code --times app~1 app src`,
		Args: takes("A", "B", "[PATH]"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 1 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.complete.ref(cmd, args, typed)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.ui.JSON && opts.namesOnly {
				return usagef(cmd, "diff: --json and --name-only do not go together")
			}
			refs := make([]string, 2)
			for i := range refs {
				var err error
				if refs[i], err = a.refs.ref(cmd, args[i]); err != nil {
					return err
				}
			}
			path := ""
			if len(args) > 2 {
				if path = args[2]; strings.ContainsRune(path, 0) {
					return usagef(cmd, "diff: a NUL in a path")
				}
			}
			return runDiff(cmd.Context(), a, refs[0], refs[1], path, &opts)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVar(&opts.engine.Times, "times", false, "times of modification count too")
	flags.BoolVar(&opts.namesOnly, "name-only", false, "print paths alone, as they are, one a line")
	flags.BoolVar(&opts.exitCode, "exit-code", false, "exit code 1 if there are differences")
	return cmd
}

func runDiff(ctx context.Context, a *app, old, new, path string, opts *diffOptions) error {
	repo, err := a.repos.openFor(ctx, old)
	if err != nil {
		return about(old, err)
	}
	defer a.repos.close(repo)
	p := listing.NewChanges(a.ui, opts.namesOnly)
	err = p.Finish(repo.Diff(ctx, old, new, path, &opts.engine, p.Print), nil)
	if err == nil {
		a.ui.Say(p.Summary())
	}
	if err == nil && opts.exitCode && p.Any() {
		err = errDifferences
	}
	return err
}

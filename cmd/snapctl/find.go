package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/listing"
	"github.com/snapctl/snapctl/engine"
)

// findOptions are the flags of find.
type findOptions struct {
	all, long, null bool
	types           string
}

func findCommand(a *app) *cobra.Command {
	var opts findOptions
	cmd := &cobra.Command{
		Use:   "find {REF | --all} GLOB...",
		Short: "Find files in one snapshot or in all",
		Long: `Prints the paths of what matches one of the patterns in a snapshot or, with
--all, in all that have not expired, newest first, as ID:PATH, which ls, cat and
dump take. Only what can match is read of the snapshot. How to write a REF:
snapctl help references.

Patterns are those of .gitignore: one without a slash matches a name anywhere,
one with a slash the whole path from the root of the snapshot; "*" and "?" match
no slash, "**" crosses directories, a slash at the end means directories only,
and "!" at the beginning takes back what a pattern before it matched. Unlike
there, what is below a directory that matches does not match with it. Quote them
for the shell.

Prints one path a line; on a terminal, and with -l, which shows what ls -l
shows, those with special characters are quoted. With --json, prints an array of
objects with the fields snapshot (with --all),
` + listing.FileFields + `.`,
		Example: `  snapctl find app '*.tsx'
  snapctl find app '/src/**/*_test.go' '!**/vendor/**'
  snapctl find --all package.json
  snapctl find -0 --type f app /dist/ '/dist/**' | xargs -0 ls -d`,
		Args: func(cmd *cobra.Command, args []string) error {
			if opts.all {
				return takes("GLOB...")(cmd, args)
			}
			return takes("REF", "GLOB...")(cmd, args)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if opts.all {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.complete.firstRef(cmd, args, typed)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if i := strings.IndexFunc(opts.types, func(r rune) bool { return !strings.ContainsRune(listing.TypeLetters, r) }); i >= 0 {
				return usagef(cmd, "find: --type %q: not of f, d, l, p, c and b", opts.types)
			}
			if a.ui.JSON && opts.null {
				return usagef(cmd, "find: --json and --null do not go together")
			}
			if opts.all {
				return findAll(cmd.Context(), a, args, opts)
			}
			ref, err := a.refs.ref(cmd, args[0])
			if err != nil {
				return err
			}
			return a.repos.withFS(cmd.Context(), refPath{ref: ref}, func(s *engine.SnapshotFS) error {
				l := listing.NewFiles(a.ui, opts.long, opts.null)
				return l.Finish(s.Find(args[1:], func(i *engine.FileInfo) error {
					if !opts.wants(i) {
						return nil
					}
					return l.Print("", i.Path(), i)
				}))
			})
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVar(&opts.all, "all", false, "look in all snapshots; there is no REF then")
	flags.StringVar(&opts.types, "type", "", "only files of `TYPES`: any of f, d, l, p, c, b, as find(1) has them, together as in fl")
	flags.BoolVarP(&opts.long, "long", "l", false, "show more than paths")
	flags.BoolVarP(&opts.null, "null", "0", false, "end each path with a NUL instead of a newline, for xargs -0")
	noCompletions(cmd, "type")
	return cmd
}

func (o *findOptions) wants(i *engine.FileInfo) bool {
	return o.types == "" || listing.HasType(i.Mode(), o.types)
}

func findAll(ctx context.Context, a *app, globs []string, opts findOptions) error {
	l := listing.NewFiles(a.ui, opts.long, opts.null)
	repo, err := a.repos.open(ctx)
	if err != nil {
		return fmt.Errorf("find: %w", err)
	}
	defer a.repos.close(repo)
	return l.Finish(repo.FindAll(ctx, globs, func(s *engine.Snapshot, i *engine.FileInfo) error {
		if !opts.wants(i) {
			return nil
		}
		return l.Print(s.ID.String(), i.Path(), i)
	}))
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/engine"
)

// restoreOutput is what restore --json prints: the receipt's fields and these.
type restoreOutput struct {
	*engine.Receipt
	DurationMs int64    `json:"durationMs"`
	Problems   []string `json:"problems,omitempty"`
}

func (a *app) restoreCommand() *cobra.Command {
	var opts engine.RestoreOptions
	var lazy engine.ForkOptions
	isLazy := false
	cmd := &cobra.Command{
		Use:   "restore REF [DIR]",
		Short: "Write a snapshot out to a directory",
		Long: `Writes a snapshot out to DIR, or to the directory that it was made of, and
prints the path. How to write a REF: snapctl help references.

The snapshot is written beside the target and takes its place in one step:
whoever looks sees the old tree or the new one, and an interrupted restore
leaves the old one. So the target must be missing or an empty directory, unless
a flag says what to do with what it holds:
  --delete         replace it
  --into           change what differs in place, and keep what else it holds
  --into --delete  change what differs in place, and delete what else it holds

With --into, what cannot take its place (a directory that is not empty is where
the snapshot has a file, say) is named and left out, and the rest is restored.

Every byte is checked against the snapshot's digest before it is written.
Owners are restored by root only.

With --lazy nothing is written out: DIR becomes a fork of the snapshot, at once,
whose files are fetched when they are read (snapctl help fork). With --force DIR
may hold something, which is hidden, not replaced, until snapctl unfork DIR.

Prints one line, the path; with --json one object, the receipt: snapshot,
target, files, dirs, bytes, fetchedBytes, digest, verified, durationMs, and
problems, what could not be restored as it was. If there are any, each is named
on standard error and the exit code is 3.

Patterns are those of .gitignore: "/src" at the top, "*.json" anywhere.`,
		Example: `  snapctl restore latest /tmp/copy
  snapctl restore --delete app
  snapctl restore --include /package.json --include /src app~1 /tmp/old
  cd "$(snapctl restore --quiet app /tmp/work)"`,
		Args: takes("REF", "[DIR]"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return a.completeRef(cmd, args, toComplete)
			}
			return completeDir(len(args) == 1)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := ""
			if len(args) > 1 {
				if dir = args[1]; dir == "" {
					return usagef(cmd, "restore: DIR is empty")
				}
			}
			ref, err := a.ref(cmd, args[0])
			if err != nil {
				return err
			}
			if isLazy {
				for _, name := range []string{"into", "delete", "include", "no-owner", "verify"} {
					if cmd.Flags().Changed(name) {
						return usagef(cmd, "restore: --lazy and --%s do not go together", name)
					}
				}
				return a.restoreLazily(cmd.Context(), ref, dir, lazy)
			}
			if lazy.Force {
				return usagef(cmd, "restore: --force goes with --lazy")
			}
			return a.restore(cmd.Context(), ref, dir, opts)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVar(&opts.Into, "into", false, "write into a directory that holds something, and keep what the snapshot does not hold")
	flags.BoolVar(&opts.Delete, "delete", false, "delete what the snapshot does not hold")
	flags.StringArrayVar(&opts.Include, "include", nil, "restore only what matches `GLOB`; may be repeated")
	flags.BoolVar(&opts.NoOwner, "no-owner", false, "leave all files to whoever restores (always so, but for root)")
	flags.BoolVar(&opts.Verify, "verify", false, "read every file back from the target after it was written")
	flags.BoolVar(&isLazy, "lazy", false, "make DIR a fork of the snapshot instead (on Linux)")
	flags.BoolVar(&lazy.Force, "force", false, "with --lazy: over a directory that holds something, which is hidden meanwhile")
	noCompletions(cmd, "include")
	return cmd
}

// restoreLazily makes a fork in the place of a restore.
func (a *app) restoreLazily(ctx context.Context, ref, dir string, opts engine.ForkOptions) error {
	if dir == "" {
		repo, err := a.openFor(ctx, ref)
		if err != nil {
			return about(ref, err)
		}
		s, err := repo.Get(ctx, ref)
		a.closeRepo(repo)
		if err != nil {
			return err
		}
		ref, dir = s.ID.String(), s.Dir
	}
	return a.fork(ctx, ref, dir, opts)
}

func (a *app) restore(ctx context.Context, ref, dir string, opts engine.RestoreOptions) error {
	repo, err := a.openFor(ctx, ref)
	if err != nil {
		return about(ref, err)
	}
	defer a.closeRepo(repo)

	p := a.startProgress()
	opts.Progress = p
	receipt, err := repo.Restore(ctx, ref, dir, &opts)
	if err != nil {
		p.stop(nil)
		return restoreHint(ctx, err, dir, opts)
	}
	p.stop(receipt.Problems)

	if a.json {
		err = a.printJSON(restoreOutput{
			Receipt:    receipt,
			DurationMs: receipt.Duration.Milliseconds(),
			Problems:   messages(receipt.Problems),
		})
	} else {
		err = a.printLine(receipt.Target)
		a.say(restoreSummary(receipt))
	}
	if err == nil && len(receipt.Problems) > 0 {
		err = fmt.Errorf("restore: %s is %w: %s, named above", quoted(receipt.Target), errIncomplete, plural(int64(len(receipt.Problems)), "problem"))
	}
	return err
}

// restoreHint adds what to do, where that is known.
func restoreHint(ctx context.Context, err error, dir string, opts engine.RestoreOptions) error {
	switch {
	case errors.Is(err, engine.ErrExists):
		if target, err := os.Stat(dir); err == nil && !target.IsDir() {
			break // no flag helps
		}
		return &hintError{err: err, hint: "--delete replaces it, --into writes into it; see: snapctl restore --help"}
	case errors.Is(context.Cause(ctx), errInterrupted) && opts.Into:
		return &hintError{err: err, hint: "the target is partly written; run the same command again"}
	case errors.Is(context.Cause(ctx), errInterrupted):
		return &hintError{err: err, hint: "the target is as it was"}
	}
	return err
}

func restoreSummary(r *engine.Receipt) string {
	s := fmt.Sprintf("restored %s: %s, %s, of which %s fetched; took %s; digest %s",
		r.Snapshot.ID, plural(r.Files, "file"), size(r.Bytes), size(r.Fetched), round(r.Duration), r.Digest)
	if r.Verified {
		s += "; read back and verified"
	}
	if r.Snapshot.Incomplete {
		s += fmt.Sprintf("; the snapshot itself is incomplete: %s could not be read when it was made", plural(r.Snapshot.Unreadable, "file"))
	}
	return s
}

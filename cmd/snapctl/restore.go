package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

// restoreOutput is what restore --json prints: the receipt's fields and these.
type restoreOutput struct {
	*engine.Receipt
	DurationMs int64    `json:"durationMs"`
	Problems   []string `json:"problems,omitempty"`
}

const restoreHelp = `Writes a snapshot out to DIR, and prints the path. How to write a REF: snapctl
help references. Without DIR it is the directory that a handle names ("restore
-"), or else the one that the snapshot was made of, if that is missing or empty.

Into a directory that is missing or empty the snapshot is written as it is, and
an interrupted restore leaves it missing or empty. If it holds something, a flag
says what becomes of that:
  --delete         replace it
  --into           change what differs in place, and keep what else it holds
  --into --delete  change what differs in place, and delete what else it holds
No flag is needed where all of it was written by a restore of this machine, or
is a fork, and nothing was changed since: that is replaced.

What is replaced is so in one step: whoever looks sees the old tree or the new
one, and an interrupted restore leaves the old one. Where that cannot be it is
changed in place, and the summary says why: a mount point, a directory in which
a process works or that is mounted elsewhere too, or one that holds what snapctl
itself keeps on this machine, or a symbolic link that leads to it. Neither is
deleted or replaced.

In place, what is as the snapshot has it is left alone: files of its size and
time are taken for the same, unless --verify has them read. With --dry-run
nothing is changed, and what would be is printed as snapctl diff prints it; what
could not be restored is named, and the exit code is that of the restore.

Restores of one DIR take turns, by a lock on it (flock), and say so after a
second. One that another program holds for a minute is an error. A dry run takes
none.

With --into, what cannot take its place (a directory that is not empty is where
the snapshot has a file, say) is named and left out, and the rest is restored.

Every byte is checked against the snapshot's digest before it is written.
Owners are restored by root only.

With --lazy nothing is written out: DIR becomes a fork of the snapshot, at once,
whose files are fetched when they are read (snapctl help fork). A fork that is
there gives way if nothing was changed in it, and with --delete in any case; one
of the same snapshot stays as it is. With --force DIR may hold something else,
which is hidden, not replaced, until snapctl unfork DIR.

Prints one line, the path; with --json one object, the receipt: snapshot,
target, files, dirs, bytes, fetchedBytes, digest, verified, durationMs, changes
(how much was written, adjusted, which is other metadata alone, deleted and left
unchanged: where another directory takes the place of DIR, all that is in the
one is written and all in the other deleted), inPlace (why, if it was not asked
for), kept (what is snapctl's own in the target), and problems, what could not
be restored as it was. If there are any, each is named on standard error and the
exit code is 3. With --dry-run the object has snapshot, target, dryRun, paths,
as diff --json prints them, changes, inPlace, kept and problems.

Patterns are those of .gitignore: "/src" at the top, "*.json" anywhere.`

func restoreCommand(a *app) *cobra.Command {
	var opts engine.RestoreOptions
	var lazy engine.ForkOptions
	isLazy := false
	cmd := &cobra.Command{
		Use:   "restore REF [DIR]",
		Short: "Write a snapshot out to a directory",
		Long:  restoreHelp,
		Example: `  snapctl restore latest /tmp/copy
  snapctl restore --delete app ~/work/app
  snapctl restore --into --dry-run app ~/work/app
  snapctl restore --include /package.json --include /src app~1 /tmp/old
  cd "$(snapctl restore --quiet app /tmp/work)"`,
		Args: takes("REF", "[DIR]"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return a.complete.ref(cmd, args, toComplete)
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
			h, err := a.refs.handle(cmd, args[0])
			if err != nil {
				return err
			}
			if dir == "" {
				dir = h.dir
			}
			if !isLazy {
				if lazy.Force {
					return usagef(cmd, "restore: --force goes with --lazy")
				}
				return runRestore(cmd.Context(), a, h.ref, dir, opts)
			}
			for _, name := range []string{"into", "include", "no-owner", "verify"} {
				if cmd.Flags().Changed(name) {
					return usagef(cmd, "restore: --lazy and --%s do not go together", name)
				}
			}
			return restoreLazily(cmd.Context(), a, h.ref, dir, lazy, opts)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVar(&opts.Into, "into", false, "write into a directory that holds something, and keep what the snapshot does not hold")
	flags.BoolVar(&opts.Delete, "delete", false, "delete what the snapshot does not hold")
	flags.StringArrayVar(&opts.Include, "include", nil, "restore only what matches `GLOB`; may be repeated")
	flags.BoolVar(&opts.NoOwner, "no-owner", false, "leave all files to whoever restores (always so, but for root)")
	flags.BoolVar(&opts.DryRun, "dry-run", false, "change nothing, and print what would change")
	flags.BoolVar(&opts.Verify, "verify", false, "read every file back from the target after it was written")
	flags.BoolVar(&isLazy, "lazy", false, "make DIR a fork of the snapshot instead (on Linux)")
	flags.BoolVar(&lazy.Force, "force", false, "with --lazy: over a directory that holds something, which is hidden meanwhile")
	noCompletions(cmd, "include")
	return cmd
}

func runRestore(ctx context.Context, a *app, ref, dir string, opts engine.RestoreOptions) error {
	repo, err := a.repos.openFor(ctx, ref)
	if err != nil {
		return about(ref, err)
	}
	defer a.repos.close(repo)

	if opts.DryRun {
		return previewRestore(ctx, a.ui, repo, ref, dir, opts)
	}
	p := a.ui.StartProgress()
	opts.Progress = p
	receipt, err := repo.Restore(ctx, ref, dir, &opts)
	if err != nil {
		p.Stop(nil)
		return restoreHint(ctx, repo, err, ref, dir, opts)
	}
	p.Stop(receipt.Problems)

	if a.ui.JSON {
		err = a.ui.PrintJSON(restoreOutput{
			Receipt:    receipt,
			DurationMs: receipt.Duration.Milliseconds(),
			Problems:   messages(receipt.Problems),
		})
	} else {
		err = a.ui.PrintLine(receipt.Target)
		a.ui.Say(restoreSummary(receipt))
	}
	if err == nil && len(receipt.Problems) > 0 {
		err = fmt.Errorf("restore: %s is %w: %s, named above", ui.Quoted(receipt.Target), errIncomplete, ui.Plural(int64(len(receipt.Problems)), "problem"))
	}
	return err
}

// restoreHint adds what to do, where that is known: the commands that work.
func restoreHint(ctx context.Context, repo *engine.Repository, err error, ref, dir string, opts engine.RestoreOptions) error {
	implied := dir == ""
	if implied && errors.Is(err, engine.ErrNotEmpty) {
		s, serr := repo.Get(ctx, ref)
		if serr != nil {
			return err
		}
		dir = s.Dir
	}
	again := func(flags string) string {
		return "snapctl restore " + flags + ui.ShellQuote(ref) + " " + ui.ShellQuote(dir)
	}
	switch {
	case errors.Is(err, engine.ErrNotEmpty):
		if (opts.Delete || opts.Into) && !implied {
			break // the error says what helps
		}
		if len(opts.Include) > 0 {
			return &hintError{err: err, hint: "with --into a part is written into it, and what else it holds is kept"}
		}
		if implied {
			return &hintError{err: err, hint: "to another directory: snapctl restore " + ui.ShellQuote(ref) + " DIR; to that one, replacing what it holds: " + again("--delete ")}
		}
		return &hintError{err: err, hint: "to replace it: " + again("--delete ") + "; to keep what else it holds: " + again("--into ")}
	case errors.Is(err, engine.ErrPartlyWritten):
		return &hintError{err: err, hint: "the target is partly written; run the same command again"}
	case errors.Is(context.Cause(ctx), errInterrupted):
		return &hintError{err: err, hint: "the target is as it was"}
	}
	return err
}

func restoreSummary(r *engine.Receipt) string {
	s := fmt.Sprintf("restored %s: %s, %s, of which %s fetched; took %s; digest %s",
		r.Snapshot.ID, ui.Plural(r.Files, "file"), ui.Size(r.Bytes), ui.Size(r.Fetched), ui.Round(r.Duration), r.Digest)
	if r.Verified {
		s += "; read back and verified"
	}
	if c := r.Changes; c.Adjusted+c.Deleted+c.Unchanged > 0 {
		s += "; " + changesText(c)
	}
	if r.InPlace != "" {
		s += "; in place, since " + r.InPlace
	}
	if len(r.Kept) > 0 {
		s += "; left alone, as snapctl's own: " + quotedList(r.Kept)
	}
	if r.Snapshot.Incomplete {
		s += fmt.Sprintf("; the snapshot itself is incomplete: %s could not be read when it was made", ui.Plural(r.Snapshot.Unreadable, "file"))
	}
	return s
}

// changesText says how much was changed.
func changesText(c engine.RestoreChanges) string {
	return fmt.Sprintf("%s written, %s adjusted, %s deleted, %s unchanged",
		humanize.Comma(c.Written), humanize.Comma(c.Adjusted), humanize.Comma(c.Deleted), humanize.Comma(c.Unchanged))
}

// quotedList is paths, as text.
func quotedList(paths []string) string {
	var all []string
	for _, p := range paths {
		all = append(all, ui.Quoted(p))
	}
	return strings.Join(all, ", ")
}

package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/secret"
	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
	"github.com/snapctl/snapctl/remote"
)

// copyOutput is what copy --json prints of a snapshot: its fields and these.
type copyOutput struct {
	*engine.Copied
	DurationMs int64 `json:"durationMs"`
}

func copyCommand(a *app) *cobra.Command {
	var to, plain string
	cmd := &cobra.Command{
		Use:   "copy REF... --to URL",
		Short: "Copy snapshots to another repository",
		Long: `Copies snapshots of the repository, --repo or SNAPCTL_REPO, to the one at URL,
and prints their ids, which are the same there. Name, tags, times and when it
expires are the same too. Only what is not there yet is read and uploaded, and a
snapshot that is there already is left as it is. Unless every REF names one
snapshot that has not expired, none is copied. How to write a REF: snapctl help
references; - reads several from standard input, one a line or as JSON.

With --json, prints one object per snapshot, a line each: the fields that show
--json prints, existed, whether it was there already, copiedBytes, of contents
that were not, putBytes, what that took, and durationMs. newBytes and
storedBytes tell of the making of the snapshot, and not of the copy.

An interrupted copy leaves whole the snapshots that were done, and no part of
others. The same command continues where it was. Both repositories may be in use
meanwhile, also by gc. What mounts have recorded of a snapshot is not copied.

For both repositories, credentials and what opens encrypted ones come from the
environment: snapctl help repositories, snapctl help encryption. If that says
what opens encrypted ones, one that is not is refused, but for --unencrypted.`,
		Example: `  snapctl copy app --to r2://ACCOUNT/bucket/prefix
  snapctl list --json --tag keep=yes | snapctl copy - --to /mnt/disk/snapshots
  snapctl copy --repo s3://bucket/prefix 0193a5b2-7c1e --to ~/.local/share/snapctl`,
		Args:              takes("REF..."),
		ValidArgsFunction: a.complete.ref,
		RunE: func(cmd *cobra.Command, args []string) error {
			if to == "" {
				return usagef(cmd, "copy: --to is missing")
			}
			if plain != "" && plain != "from" && plain != "to" {
				return usagef(cmd, "copy: --unencrypted is %s, not from or to", ui.Quoted(plain))
			}
			if _, err := remote.ParseURL(to); err != nil {
				return &hintError{err: &usageError{err: err}, hint: "see: snapctl help repositories"}
			}
			refs, err := a.refs.all(cmd, args)
			if err != nil {
				return err
			}
			if len(refs) == 0 { // standard input may hold an empty array
				return nil
			}
			return runCopy(cmd.Context(), a, refs, to, plain)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&to, "to", "", "copy to the repository at `URL`, which snapctl init has made")
	flags.StringVar(&plain, "unencrypted", "", "the one that is copied `from|to` is not encrypted, the other is")
	noCompletions(cmd, "unencrypted")
	return cmd
}

func runCopy(ctx context.Context, a *app, refs []string, url, plain string) error {
	from, err := a.repos.openWith(ctx, func(opts *engine.Options) {
		opts.Ref = refs[0]
		if plain == "from" {
			secret.Withhold(opts)
		}
	})
	if err != nil {
		return about(refs[0], err)
	}
	defer a.repos.close(from)
	opts := a.repos.optionsFor(url)
	if plain == "to" {
		secret.Withhold(opts)
	}
	opts.Store = nil // it would be the source's
	to, err := engine.Open(ctx, url, opts)
	if errors.Is(err, engine.ErrNotInitialised) {
		return &hintError{err: err, hint: "make one with: snapctl init --repo " + ui.ShellQuote(url)}
	}
	if err != nil {
		return err
	}
	defer a.repos.close(to)

	p := a.ui.StartProgress()
	result, err := from.Copy(ctx, to, refs, &engine.CopyOptions{Progress: p})
	p.Stop(nil)
	if err != nil && errors.Is(context.Cause(ctx), errInterrupted) {
		err = &hintError{err: err, hint: "run the same command again, and it continues"}
	}
	// Some may be there though others failed.
	return errors.Join(printCopied(a.ui, result, to.URL()), err)
}

func printCopied(out *ui.Streams, result *engine.CopyResult, url string) error {
	var text strings.Builder
	for _, s := range result.Snapshots {
		line := s.ID.String() + "\n"
		if out.JSON {
			var err error
			if line, err = ui.JSONLine(copyOutput{s, s.Duration.Milliseconds()}); err != nil {
				return err
			}
		}
		text.WriteString(line)
	}
	if err := out.Print(text.String()); err != nil || out.JSON {
		return err
	}
	for _, s := range result.Snapshots {
		out.Say(copySummary(s, url))
	}
	return nil
}

func copySummary(s *engine.Copied, url string) string {
	what := s.ID.String() + ": " + ui.Plural(s.Files, "file") + ", " + ui.Size(s.Bytes)
	if s.Existed {
		return what + "; it was in " + url + " already"
	}
	return "copied " + what + ", to " + url + "; " + ui.Size(s.CopiedBytes) + " new there, stored in " + ui.Size(s.PutBytes) + "; took " + ui.Round(s.Duration).String()
}

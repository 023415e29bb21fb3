package main

import (
	"context"
	"errors"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

func listCommand(a *app) *cobra.Command {
	opts := engine.ListOptions{Tags: make(map[string]string)}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List snapshots, newest first",
		Long: `Lists the snapshots that have not expired, newest first, in the columns id,
created, name, tags, files, size, expires and dir. Where standard output is no
terminal, times are in UTC as 2026-11-23T15:04:05Z instead of relative. A field
without a value is "-"; one with spaces or special characters is quoted; expires
is "pinned" for what snapctl pin keeps. With --json, prints an array of the
objects that show --json prints.`,
		Example: `  snapctl list --name app --limit 5
  snapctl list --tag branch=main --tag ci=yes
  snapctl list --json --tag scratch=yes | snapctl rm -`,
		Args:              takes(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.Limit < 0 {
				return usagef(cmd, "list: --limit is negative")
			}
			return runList(cmd.Context(), a, &opts)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&opts.Name, "name", "", "only those called `NAME`")
	flags.Var(tagsFlag(opts.Tags), "tag", "only those tagged `KEY=VALUE`; with all of them, if repeated")
	flags.IntVar(&opts.Limit, "limit", 0, "the newest `N` only (default: all)")
	flags.BoolVar(&opts.Expired, "expired", false, "also those that have expired and are not collected yet")
	noCompletions(cmd, "tag", "limit")
	mustComplete(cmd, "name", a.complete.name)
	return cmd
}

func runList(ctx context.Context, a *app, opts *engine.ListOptions) error {
	snapshots, err := a.repos.snapshots(ctx, opts)
	if err != nil && !errors.Is(err, engine.ErrIntegrity) {
		return err
	}
	// A damaged snapshot is an error, which does not hide the others.
	return errors.Join(printList(a.ui, snapshots), err)
}

func printList(out *ui.Streams, snapshots []*engine.Snapshot) error {
	switch {
	case out.JSON && snapshots == nil:
		return out.PrintJSON([]*engine.Snapshot{}) // [], not null
	case out.JSON:
		return out.PrintJSON(snapshots)
	case len(snapshots) == 0:
		return nil
	}
	return out.Print(snapshotTable(out, snapshots).String())
}

// snapshots gives what List gives, some snapshots together with an error too.
func (r *repositories) snapshots(ctx context.Context, opts *engine.ListOptions) ([]*engine.Snapshot, error) {
	repo, err := r.openToList(ctx)
	if errors.Is(err, errNothingYet) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer r.close(repo)
	return repo.List(ctx, opts)
}

func snapshotTable(out *ui.Streams, snapshots []*engine.Snapshot) *ui.Table {
	when := out.When()
	t := &ui.Table{Right: []bool{4: true, 5: true, 7: false}}
	t.Add("ID", "CREATED", "NAME", "TAGS", "FILES", "SIZE", "EXPIRES", "DIR")
	for _, s := range snapshots {
		expires := "-"
		switch {
		case s.Pinned:
			expires = "pinned"
		case s.ExpiresAt != nil:
			expires = when(*s.ExpiresAt)
		}
		t.Add(s.ID.String(), when(s.CreatedAt), ui.Cell(s.Name), ui.Cell(ui.TagList(s.Tags, ",")),
			humanize.Comma(s.Files), ui.Size(s.Bytes), expires, ui.Cell(s.Dir))
	}
	return t
}

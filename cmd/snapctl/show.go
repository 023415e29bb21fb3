package main

import (
	"context"
	"fmt"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

func showCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show REF",
		Short: "Show what is known of a snapshot",
		Long: `Shows what is known of a snapshot. How to write a REF: snapctl help references.

With --json, prints one object with the fields id, dir, name, tags, parent,
createdAt, expiresAt, pinned, host, user, version, files, dirs, bytes, newBytes,
storedBytes, skipped, unreadable and incomplete; those without a value are left
out. Sizes are in bytes.`,
		Example: `  snapctl show latest
  snapctl show app~1
  snapctl show --json 0193a5b2-7c1e`,
		Args:              takes("REF"),
		ValidArgsFunction: a.complete.firstRef,
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := a.refs.ref(cmd, args[0])
			if err != nil {
				return err
			}
			return runShow(cmd.Context(), a, ref)
		},
	}
}

func runShow(ctx context.Context, a *app, ref string) error {
	repo, err := a.repos.openFor(ctx, ref)
	if err != nil {
		return about(ref, err)
	}
	defer a.repos.close(repo)
	s, err := repo.Get(ctx, ref)
	if err != nil {
		return err
	}
	if a.ui.JSON {
		return a.ui.PrintJSON(s)
	}
	return a.ui.Print(describeSnapshot(a.ui, s))
}

func describeSnapshot(out *ui.Streams, s *engine.Snapshot) string {
	t := ui.Table{Right: []bool{false, false}}
	t.Add("id", s.ID.String())
	t.Add("dir", ui.Quoted(s.Dir))
	if s.Name != "" {
		t.Add("name", ui.Quoted(s.Name))
	}
	if len(s.Tags) > 0 {
		t.Add("tags", ui.Quoted(ui.TagList(s.Tags, ", ")))
	}
	t.Add("created", ui.LocalTime(s.CreatedAt)+" ("+out.Relative(s.CreatedAt)+")")
	if s.ExpiresAt != nil {
		t.Add("expires", ui.LocalTime(*s.ExpiresAt)+" ("+out.Relative(*s.ExpiresAt)+")")
	}
	if s.Pinned {
		t.Add("pinned", "never expires, and prune keeps it")
	}
	if s.Parent != nil {
		t.Add("parent", s.Parent.String())
	}
	if s.User != "" || s.Host != "" {
		t.Add("by", ui.Quoted(s.User+"@"+s.Host))
	}
	if s.Version != "" {
		t.Add("snapctl", ui.Quoted(s.Version))
	}
	t.Add("files", humanize.Comma(s.Files))
	t.Add("directories", humanize.Comma(s.Dirs))
	t.Add("size", ui.Size(s.Bytes))
	t.Add("new", fmt.Sprintf("%s, stored in %s", ui.Size(s.NewBytes), ui.Size(s.StoredBytes)))
	if s.Skipped > 0 {
		t.Add("skipped", ui.Plural(s.Skipped, "socket"))
	}
	if s.Incomplete {
		t.Add("incomplete", ui.Plural(s.Unreadable, "file")+" could not be read")
	}
	return t.String()
}

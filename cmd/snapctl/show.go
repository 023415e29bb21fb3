package main

import (
	"context"
	"fmt"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/engine"
)

func (a *app) showCommand() *cobra.Command {
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
		ValidArgsFunction: a.completeFirstRef,
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := a.ref(cmd, args[0])
			if err != nil {
				return err
			}
			return a.show(cmd.Context(), ref)
		},
	}
}

func (a *app) show(ctx context.Context, ref string) error {
	repo, err := a.openFor(ctx, ref)
	if err != nil {
		return about(ref, err)
	}
	defer a.closeRepo(repo)
	s, err := repo.Get(ctx, ref)
	if err != nil {
		return err
	}
	if a.ui.json {
		return a.ui.printJSON(s)
	}
	return a.ui.print(a.describeSnapshot(s))
}

func (a *app) describeSnapshot(s *engine.Snapshot) string {
	t := table{right: []bool{false, false}}
	t.add("id", s.ID.String())
	t.add("dir", quoted(s.Dir))
	if s.Name != "" {
		t.add("name", quoted(s.Name))
	}
	if len(s.Tags) > 0 {
		t.add("tags", quoted(tagList(s.Tags, ", ")))
	}
	t.add("created", localTime(s.CreatedAt)+" ("+a.ui.relative(s.CreatedAt)+")")
	if s.ExpiresAt != nil {
		t.add("expires", localTime(*s.ExpiresAt)+" ("+a.ui.relative(*s.ExpiresAt)+")")
	}
	if s.Pinned {
		t.add("pinned", "never expires, and prune keeps it")
	}
	if s.Parent != nil {
		t.add("parent", s.Parent.String())
	}
	if s.User != "" || s.Host != "" {
		t.add("by", quoted(s.User+"@"+s.Host))
	}
	if s.Version != "" {
		t.add("snapctl", quoted(s.Version))
	}
	t.add("files", humanize.Comma(s.Files))
	t.add("directories", humanize.Comma(s.Dirs))
	t.add("size", size(s.Bytes))
	t.add("new", fmt.Sprintf("%s, stored in %s", size(s.NewBytes), size(s.StoredBytes)))
	if s.Skipped > 0 {
		t.add("skipped", plural(s.Skipped, "socket"))
	}
	if s.Incomplete {
		t.add("incomplete", plural(s.Unreadable, "file")+" could not be read")
	}
	return t.String()
}

package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

func logCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "log REF",
		Short: "List a snapshot and what it was made from",
		Long: `Lists a snapshot, its parent, the parent of that and so on, newest first, in the
columns that list has. The parent is the snapshot that unchanged files were
taken from. Where it was removed, its id is the last line, with "removed" for
the time; what came before it is not known. Those that have expired are shown as
long as they are there. How to write a REF: snapctl help references.

With --json, prints an array of the objects that show --json prints. If the last
one has a parent, that was removed.`,
		Example: `  snapctl log app
  snapctl log --json app | jq -r '.[].createdAt'`,
		Args:              takes("REF"),
		ValidArgsFunction: a.complete.firstRef,
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := a.refs.ref(cmd, args[0])
			if err != nil {
				return err
			}
			return runLog(cmd.Context(), a, ref)
		},
	}
}

func runLog(ctx context.Context, a *app, ref string) error {
	repo, err := a.repos.openFor(ctx, ref)
	if err != nil {
		return about(ref, err)
	}
	defer a.repos.close(repo)
	h, err := repo.Log(ctx, ref)
	if h == nil {
		return err
	}
	// A damaged ancestor does not hide those before it.
	return errors.Join(printHistory(a.ui, h), err)
}

func printHistory(out *ui.Streams, h *engine.History) error {
	if out.JSON {
		return out.PrintJSON(h.Snapshots)
	}
	t := snapshotTable(out, h.Snapshots)
	if h.Removed != nil {
		t.Add(h.Removed.String(), "removed", "-", "-", "-", "-", "-", "-")
	}
	return out.Print(t.String())
}

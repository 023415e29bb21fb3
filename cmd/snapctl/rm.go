package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

func rmCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rm REF...",
		Short: "Remove snapshots",
		Long: `Removes snapshots and prints their ids; with --json, an array of the objects
that show --json prints. Unless every REF names one snapshot, none is removed.
How to write a REF: snapctl help references; - reads several from standard
input, one a line or as JSON.

The space of what no other snapshot holds is freed by snapctl gc.`,
		Example: `  snapctl rm 0193a5b2-7c1e app~3
  snapctl list --json --tag scratch=yes | snapctl rm -`,
		Args:              takes("REF..."),
		ValidArgsFunction: a.complete.ref,
		RunE: func(cmd *cobra.Command, args []string) error {
			refs, err := a.refs.all(cmd, args)
			if err != nil {
				return err
			}
			return runRm(cmd.Context(), a, refs)
		},
	}
}

func runRm(ctx context.Context, a *app, refs []string) error {
	removed := []*engine.Snapshot{}
	var err error
	if len(refs) > 0 { // standard input may hold an empty array
		removed, err = removeSnapshots(ctx, a.repos, refs)
	}
	return printChanged(a.ui, removed, "removed "+ui.Plural(int64(len(removed)), "snapshot"), err)
}

func removeSnapshots(ctx context.Context, repos *repositories, refs []string) ([]*engine.Snapshot, error) {
	repo, err := repos.openFor(ctx, refs[0])
	if err != nil {
		return nil, about(refs[0], err)
	}
	defer repos.close(repo)
	return repo.Remove(ctx, refs...)
}

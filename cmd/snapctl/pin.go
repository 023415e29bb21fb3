package main

import (
	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/engine"
)

func pinCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "pin REF...",
		Short: "Keep snapshots for ever",
		Long: `Has snapshots never expire, and be kept by snapctl prune whatever its rules are;
snapctl rm removes them still. Prints their ids; with --json, an array of the
objects that show --json prints. Unless every REF names one snapshot, none is
changed.

To end it: snapctl unpin, or snapctl extend, which has them expire again.`,
		Example: `  snapctl pin app
  snapctl list --json --tag release=yes | snapctl pin -`,
		Args:              takes("REF..."),
		ValidArgsFunction: a.complete.ref,
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeSnapshots(a, cmd, args, &engine.Changes{Pin: true}, "pinned")
		},
	}
}

func unpinCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "unpin REF...",
		Short: "End that snapshots are pinned",
		Long: `Has snapctl prune choose among these snapshots too. They still do not expire:
for that, snapctl extend. What is not pinned stays as it is. Prints the ids;
with --json, an array of the objects that show --json prints.`,
		Example:           `  snapctl unpin app~3`,
		Args:              takes("REF..."),
		ValidArgsFunction: a.complete.ref,
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeSnapshots(a, cmd, args, &engine.Changes{Unpin: true}, "unpinned")
		},
	}
}

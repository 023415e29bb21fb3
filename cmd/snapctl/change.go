package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

// changeSnapshots is what the commands do that change what is said of snapshots: it
// changes them and prints their ids. did says what was done to them.
func changeSnapshots(a *app, cmd *cobra.Command, args []string, c *engine.Changes, did string) error {
	refs, err := a.refs.all(cmd, args)
	if err != nil {
		return err
	}
	changed := []*engine.Snapshot{}
	if len(refs) > 0 { // standard input may hold an empty array
		changed, err = applyChanges(cmd.Context(), a.repos, refs, c)
	}
	if len(changed) > 0 && (c.TTL != 0 || !c.Until.IsZero()) {
		did += " on " + ui.LocalTime(*changed[0].ExpiresAt)
	}
	return printChanged(a.ui, changed, ui.Plural(int64(len(changed)), "snapshot")+" "+did, err)
}

// printChanged prints the ids of snapshots to which something was done, and says what. err is
// why it was not done to all: some may be done though others failed.
func printChanged(out *ui.Streams, all []*engine.Snapshot, did string, err error) error {
	if err != nil && len(all) == 0 {
		return err
	}
	if out.JSON {
		return errors.Join(err, out.PrintJSON(all))
	}
	var ids strings.Builder
	for _, s := range all {
		ids.WriteString(s.ID.String() + "\n")
	}
	err = errors.Join(err, out.Print(ids.String()))
	out.Say(did)
	return err
}

func applyChanges(ctx context.Context, repos *repositories, refs []string, c *engine.Changes) ([]*engine.Snapshot, error) {
	repo, err := repos.openFor(ctx, refs[0])
	if err != nil {
		return nil, about(refs[0], err)
	}
	defer repos.close(repo)
	return repo.Change(ctx, c, refs...)
}

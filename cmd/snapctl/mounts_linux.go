package main

import (
	"context"
	"errors"
	"slices"
	"strconv"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

func mountsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "mounts",
		Short: "List what is mounted",
		Long: `Lists mounted snapshots in the columns dir, snapshot, name, since, state, pid,
keeper, restarts, requests, fetched, hits and errors: the process that serves
it; the one that replaces it if it dies, or "none" if nothing does; how often
the server took the place of one that had died, how many requests it sent to the
repository (or operations on its files), how much it fetched, how many reads the
cache answered, and how many reads failed. Mounts of one snapshot with one pid
share all that. A field without a value is "-". What forks lie over is in the
list too, at a directory in the state folder. With --json,
prints an array of objects: dir, snapshot (as show --json prints),
repository, since, pid, restarts, keeper, unkept (true: there is no keeper, and
if the server dies the mount is dead), state, registered (in this state folder),
lower (it is what forks lie over), and stats.

States:
  serving    it can be used
  silent     its process is there, and does not answer within a second
  covered    something else is mounted over it, which has to be unmounted first
  dead       its process is gone; umount clears it away, and mount too
  detached   it is unmounted, and its process there while somebody uses it
  elsewhere  it is mounted in another mount namespace, such as a container's
  unknown    this state folder does not know of it
  lost       it was mounted when the machine was stopped; umount forgets it`,
		Example: `  snapctl mounts
  snapctl mounts --json | jq -r '.[] | select(.state == "dead") | .dir'`,
		Args:              takes(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runMounts(cmd.Context(), a) },
	}
}

func runMounts(ctx context.Context, a *app) error {
	mounts, err := engine.Mounts(ctx, a.repos.state())
	var perr error
	switch {
	case a.ui.JSON && mounts == nil:
		perr = a.ui.PrintJSON([]*engine.MountStatus{}) // [], not null
	case a.ui.JSON:
		perr = a.ui.PrintJSON(mounts)
	case len(mounts) > 0:
		perr = a.ui.Print(mountTable(a.ui, mounts))
	}
	return errors.Join(err, perr)
}

func mountTable(out *ui.Streams, mounts []*engine.MountStatus) string {
	when := out.When()
	t := ui.Table{Right: []bool{5: true, 6: true, 7: true, 8: true, 9: true, 10: true, 11: true}}
	t.Add("DIR", "SNAPSHOT", "NAME", "SINCE", "STATE", "PID", "KEEPER", "RESTARTS", "REQUESTS", "FETCHED", "HITS", "ERRORS")
	for _, m := range mounts {
		since, pid, keeper, restarts, requests, fetched, hits, failed := "-", "-", "-", "-", "-", "-", "-", "-"
		if m.Since != nil {
			since = when(*m.Since)
		}
		if m.Pid != 0 {
			pid, restarts = strconv.Itoa(m.Pid), strconv.Itoa(m.Restarts)
		}
		if m.Keeper != 0 {
			keeper = strconv.Itoa(m.Keeper)
		} else if m.Unkept {
			keeper = "none"
		}
		if s := m.Stats; s != nil {
			requests = humanize.Comma(s.Requests.Total())
			fetched, hits, failed = ui.Size(s.Fetched), humanize.Comma(s.Hits), humanize.Comma(s.Errors)
		}
		t.Add(ui.Cell(m.Dir), m.Snapshot.ID.String(), ui.Cell(m.Snapshot.Name), since, string(m.State), pid, keeper, restarts, requests, fetched, hits, failed)
	}
	return t.String()
}

// mounted offers mount points that were not named yet.
func (c *completer) mounted(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), c.repos.env.menuPatience)
	defer cancel()
	mounts, _ := engine.Mounts(ctx, c.repos.state()) // an error has no place in a shell's menu
	var all []cobra.Completion
	for _, m := range mounts {
		if ui.IsPrintable(m.Dir) && !slices.Contains(args, m.Dir) && m.State != engine.MountDetached && m.State != engine.MountElsewhere {
			all = append(all, cobra.CompletionWithDesc(m.Dir, string(m.State)+", "+m.Snapshot.ID.String()))
		}
	}
	return all, cobra.ShellCompDirectiveNoFileComp
}

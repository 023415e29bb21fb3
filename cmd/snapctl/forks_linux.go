package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

func forksCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "forks",
		Short: "List forks",
		Long: `Lists forks in the columns name, snapshot, created, changed, state, mode and
dir. Changed is how much room on disk the changes take, ">" before it if there
are too many files to count them all. With --json, prints an array of objects:
what fork --json prints, state, changed (bytes, -1 if not known), changedMore.

States:
  mounted      it can be used
  silent       the process that serves its snapshot does not answer
  covered      something else is mounted over it, and has to be unmounted first
  server dead  that process is gone; snapctl resume brings the fork back
  detached     it was unmounted; snapctl fork --resume mounts it
  lost         it was mounted when the machine was stopped; snapctl resume
               brings it back, but for what was in memory
  elsewhere    another mount namespace has it, such as a container's, where it
               has to be unmounted before it can be resumed or removed`,
		Example: `  snapctl forks
  snapctl forks --json | jq -r '.[] | select(.state == "detached") | .name'`,
		Args:              takes(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runForks(cmd.Context(), a) },
	}
}

func runForks(ctx context.Context, a *app) error {
	forks, err := engine.Forks(ctx, a.repos.state())
	var perr error
	switch {
	case a.ui.JSON && forks == nil:
		perr = a.ui.PrintJSON([]*engine.ForkStatus{}) // [], not null
	case a.ui.JSON:
		perr = a.ui.PrintJSON(forks)
	case len(forks) > 0:
		perr = a.ui.Print(forkTable(a.ui, forks))
	}
	return errors.Join(err, perr)
}

func forkTable(out *ui.Streams, forks []*engine.ForkStatus) string {
	when := out.When()
	t := ui.Table{Right: []bool{3: true, 6: false}}
	t.Add("NAME", "SNAPSHOT", "CREATED", "CHANGED", "STATE", "MODE", "DIR")
	for _, f := range forks {
		changed := "-"
		if f.Changed >= 0 {
			changed = ui.Size(f.Changed)
		}
		if f.ChangedMore {
			changed = ">" + changed
		}
		t.Add(f.Name, f.Snapshot.ID.String(), when(f.Created), changed, ui.Cell(string(f.State)), string(f.Mode), ui.Cell(f.Dir))
	}
	return t.String()
}

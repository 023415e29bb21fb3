package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/background"
	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

func resumeCommand(a *app) *cobra.Command {
	all := false
	cmd := &cobra.Command{
		Use:   "resume",
		Short: "Bring back mounts and forks after a restart or a crash",
		Long: `Mounts again what was mounted when the machine was stopped, and what a process
served that was killed: mounts, and forks with their changes. What works is left
alone, so that it can run at any time, and several at once. With --all it also
mounts forks that were unmounted.

To do so when the machine starts, run it from a unit file or an init script, as
the user whose mounts they are. Mounts whose process was asked to end, as at an
orderly shutdown, have ended, and do not come back; forks do.

Programs that have files of a dead mount or fork open get errors until they open
them again; so do those that write to a dead fork until it is back. A fork of
which files are open for writing is not brought back before they are closed: it
says by whom, as far as it may know. A fork whose changes were in memory is
lost, which is a warning.

Prints a line for each that it brought back, the path; with --json an array of
paths. When one fails the others are still brought back, and the exit code is 1.`,
		Example:           `  snapctl resume`,
		Args:              takes(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runResume(cmd.Context(), a, all) },
	}
	cmd.Flags().BoolVar(&all, "all", false, "forks that were unmounted too")
	return cmd
}

func runResume(ctx context.Context, a *app, all bool) error {
	unlock, err := engine.LockResume(ctx, a.repos.state())
	if err != nil {
		return fmt.Errorf("resume: state folder: %w", err)
	}
	defer unlock()
	if _, err := engine.Sweep(ctx, a.repos.state()); err != nil {
		a.ui.Warn(err)
	}
	done := []string{}
	var errs []error
	back := func(dir string, err error) {
		switch {
		case err != nil:
			errs = append(errs, err)
		case a.ui.JSON:
			done = append(done, dir)
		default:
			errs = append(errs, a.ui.PrintLine(dir))
		}
	}
	mounts, err := engine.Mounts(ctx, a.repos.state())
	errs = append(errs, err) // what is damaged; the others there are
	for _, m := range mounts {
		// What forks lie over comes back with them.
		if m.Registered && !m.Lower && (m.State == engine.MountDead || m.State == engine.MountLost) {
			back(m.Dir, remount(ctx, a, m))
		}
	}
	forks, err := engine.Forks(ctx, a.repos.state())
	errs = append(errs, err)
	repos := map[string]*engine.Repository{}
	for _, f := range forks {
		if f.State != engine.ForkDead && f.State != engine.ForkLost && (!all || f.State != engine.ForkDetached) {
			continue
		}
		err := remountFork(ctx, a, f, repos)
		if errors.Is(err, engine.ErrForkLost) {
			a.ui.Warn(err)
			continue
		}
		back(f.Dir, err)
	}
	for _, r := range repos {
		a.repos.close(r)
	}
	if a.ui.JSON {
		errs = append(errs, a.ui.PrintJSON(done))
	}
	return errors.Join(errs...)
}

// remount mounts again what was mounted.
func remount(ctx context.Context, a *app, m *engine.MountStatus) error {
	// What it was mounted over may have held something. Or it is gone, with a tmpfs.
	flags := []string{"--force", "--prefetch", m.Prefetch.String()}
	if m.AllowOther {
		flags = append(flags, "--allow-other")
	}
	if m.State == engine.MountLost {
		if err := os.MkdirAll(m.Dir, 0o755); err != nil {
			return fmt.Errorf("mounting at %s: %w", m.Dir, err)
		}
	}
	err := startInBackground(ctx, a, serverOf(a.repos, m.Repository, m.Snapshot.ID, m.Dir, flags...), nil, nil)
	var said *background.ExitError
	if errors.As(err, &said) {
		err = fmt.Errorf("%s is not mounted again", ui.Quoted(m.Dir)) // it said why
	}
	return err
}

func remountFork(ctx context.Context, a *app, f *engine.ForkStatus, repos map[string]*engine.Repository) error {
	repo := repos[f.Repository]
	if repo == nil {
		var err error
		if repo, err = engine.Open(ctx, f.Repository, a.repos.optionsFor(f.Repository)); err != nil {
			return fmt.Errorf("resuming fork %s: %w", f.Name, err)
		}
		repos[f.Repository] = repo
	}
	opts := engine.ForkOptions{Force: true} // it may have been so before
	prepareFork(a, repo, &opts)
	_, err := repo.ResumeFork(ctx, f.Name, &opts)
	return resumeHint(err, f.Dir)
}

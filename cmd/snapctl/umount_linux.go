package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/doctor"
	"github.com/snapctl/snapctl/engine"
	"github.com/snapctl/snapctl/fusefs"
)

func umountCommand(a *app) *cobra.Command {
	all := false
	var opts engine.UnmountOptions
	cmd := &cobra.Command{
		Use:   "umount (DIR... | --all)",
		Short: "Unmount what mount mounted",
		Long: `Unmounts snapshots, also those whose process is gone. When it was the last
mount of a process, it waits for a minute at most until that has ended.

A mount that somebody uses is left, and the exit code is 1; it says who, as far
as it may know. With --force the path is free at once, and the mount ends when
nobody uses it any more.

A fork is unmounted too, and keeps what was changed in it: see snapctl fork.

With --all it unmounts what mounts and forks list of this state folder, each
whatever becomes of the others, and forgets which mounts are lost.`,
		Example: `  snapctl umount /mnt
  snapctl umount --force /mnt/*
  snapctl umount --all`,
		Args: func(cmd *cobra.Command, args []string) error {
			if all {
				return takes()(cmd, args)
			}
			return takes("DIR...")(cmd, args)
		},
		ValidArgsFunction: a.complete.mounted,
		RunE: func(cmd *cobra.Command, args []string) error {
			if all {
				return runUmountAll(cmd.Context(), a.repos, &opts)
			}
			var errs []error
			for _, dir := range args {
				if dir == "" {
					return usagef(cmd, "umount: a DIR is empty")
				}
				errs = append(errs, runUmount(cmd.Context(), a.repos, dir, &opts))
			}
			return errors.Join(errs...)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVar(&all, "all", false, "all that the state folder knows of")
	flags.BoolVar(&opts.Detach, "force", false, "detach what is in use")
	return cmd
}

func runUmount(ctx context.Context, repos *repositories, dir string, opts *engine.UnmountOptions) error {
	err := engine.Unmount(ctx, repos.state(), dir, opts)
	if errors.Is(err, fusefs.ErrBusy) {
		path, rerr := fusefs.Resolve(dir)
		if rerr != nil {
			path = dir
		}
		err = inUse(err, path, "--force detaches it")
	}
	if errors.Is(err, fusefs.ErrNoMtab) {
		err = &hintError{err: err, hint: doctor.MtabHint}
	}
	return err
}

func runUmountAll(ctx context.Context, repos *repositories, opts *engine.UnmountOptions) error {
	// What forks lie over goes with the last of them.
	forks, err := engine.Forks(ctx, repos.state())
	errs := []error{err}
	left := false
	for _, f := range slices.Backward(forks) {
		if f.Mode != engine.ForkRestore && f.State != engine.ForkDetached && f.State != engine.ForkElsewhere {
			err := runUmount(ctx, repos, f.Dir, opts)
			left = left || err != nil
			errs = append(errs, err)
		}
	}
	mounts, err := engine.Mounts(ctx, repos.state())
	errs = append(errs, err)
	for _, m := range slices.Backward(mounts) { // what is on top, or within another, is later
		switch {
		case !m.Registered, m.State == engine.MountDetached, m.Lower && left:
		case m.State == engine.MountElsewhere:
			errs = append(errs, fmt.Errorf("unmounting %s: process %d serves it in another mount namespace", m.Dir, m.Pid))
		default:
			err := runUmount(ctx, repos, m.Dir, opts)
			if !errors.Is(err, fusefs.ErrNotMounted) { // or somebody was faster
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

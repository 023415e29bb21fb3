package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/fusefs"
)

func (a *app) umountCommand() *cobra.Command {
	force := false
	cmd := &cobra.Command{
		Use:   "umount DIR...",
		Short: "Unmount what mount mounted",
		Long: `Unmounts snapshots, also those whose process is gone. The process that served
one ends.

A mount that somebody uses is left, and the exit code is 1; it says who, as far
as it may know. With --force the path is free at once, and the mount ends when
nobody uses it any more.`,
		Example: `  snapctl umount /mnt
  snapctl umount --force /mnt/*`,
		Args: takes("DIR..."),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return completeDir(true)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, dir := range args {
				if dir == "" {
					return usagef(cmd, "umount: a DIR is empty")
				}
				errs = append(errs, a.umount(dir, force))
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "detach what is in use")
	return cmd
}

func (a *app) umount(dir string, force bool) error {
	path, err := fusefs.Resolve(dir)
	if err != nil {
		return fmt.Errorf("umount: %w", err)
	}
	err = fusefs.Unmount(path, force)
	if errors.Is(err, fusefs.ErrBusy) {
		if users := usersOf(path); len(users) > 0 {
			err = fmt.Errorf("%w by %s", err, strings.Join(users, ", "))
		}
		err = &hintError{err: err, hint: "--force detaches it"}
	}
	return err
}

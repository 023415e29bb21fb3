//go:build !linux

package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/engine"
)

// The commands of mounts and forks, where there are none: each is there, in help and
// completion too, and says so.

func doctorCommand(a *app) *cobra.Command {
	return needsLinux("doctor", "Try what this machine can do, and say how to allow more")
}

func forkCommand(a *app) *cobra.Command {
	return needsLinux("fork (REF DIR | --resume DIR)", "Make a writable directory of a snapshot, at once")
}

func forksCommand(a *app) *cobra.Command { return needsLinux("forks", "List forks") }

func mountCommand(a *app) *cobra.Command {
	return needsLinux("mount REF DIR", "Show a snapshot as a read-only directory")
}

func mountsCommand(a *app) *cobra.Command { return needsLinux("mounts", "List what is mounted") }

func resumeCommand(a *app) *cobra.Command {
	return needsLinux("resume", "Bring back mounts and forks after a restart or a crash")
}

func umountCommand(a *app) *cobra.Command {
	return needsLinux("umount (DIR... | --all)", "Unmount what mount mounted")
}

func unforkCommand(a *app) *cobra.Command {
	return needsLinux("unfork DIR...", "Remove forks, and what was changed in them")
}

func needsLinux(use, short string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use,
		Short: short + " (Linux only)",
		Long: short + `.

Mounts and forks need Linux: on this system the command does nothing but say so,
with exit code 1. snapctl restore writes a snapshot out, and ls, cat, find and
dump look into one without that.`,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(*cobra.Command, []string) error { return engine.ErrNeedsLinux },
	}
	cmd.FParseErrWhitelist.UnknownFlags = true
	return cmd
}

// restoreLazily would make a fork.
func restoreLazily(context.Context, *app, string, string, engine.ForkOptions, engine.RestoreOptions) error {
	return engine.ErrNeedsLinux
}

// isKeeperProcess tells whether this process was started to keep a mount.
func isKeeperProcess(*env) bool { return false }

// keep would be the whole of such a process.
func keep(*env) int { return exitFailed }

// takesOver tells whether this process was started to take over a mount.
func takesOver(func(string) string) bool { return false }

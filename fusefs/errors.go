package fusefs

import "errors"

// ErrNotMounted: no snapshot is mounted at the directory.
var ErrNotMounted = errors.New("no snapshot is mounted here")

// ErrBusy: somebody uses the mount.
var ErrBusy = errors.New("in use")

// Why Probe says that a mount cannot be used.
var (
	ErrNoServer = errors.New("the process that served it is gone")
	ErrNoAnswer = errors.New("the process that serves it does not answer")
)

// ErrNoHelper: users other than root need a program to mount and unmount.
var ErrNoHelper = errors.New("users other than root need the program fusermount3, which the package fuse3 has")

// ErrNoMtab: fusermount3 mounts for a user and does not unmount, and neither does the
// system's umount.
var ErrNoMtab = errors.New("there is no /etc/mtab, without which fusermount3 does not unmount")

// ErrNoTakeOver: the kernel does not send again what a dead server had taken, so
// that some readers would wait for ever. Linux 6.9 and newer do.
var ErrNoTakeOver = errors.New("the kernel cannot repeat requests: it takes Linux 6.9")

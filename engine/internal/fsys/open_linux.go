//go:build !portable

package fsys

import (
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// OpenPath opens a directory to go on from, which takes no permission to read it.
	OpenPath = unix.O_PATH
	// OpenUnseen leaves the access time alone, which only a file's owner may do.
	OpenUnseen = unix.O_NOATIME
)

// noOpenat2 is set once the kernel or a sandbox turned out not to have openat2.
var noOpenat2 atomic.Bool

// openWhole opens a path in one system call. ok is false where there is none for that.
func openWhole(dir int, path string, flags int) (fd int, ok bool, err error) {
	if noOpenat2.Load() {
		return -1, false, nil
	}
	how := unix.OpenHow{Flags: uint64(flags), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	for {
		fd, err := unix.Openat2(dir, path, &how)
		switch {
		case err == nil:
			return fd, true, nil
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN):
		case errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM):
			// Old kernels do not know it, and some container runtimes forbid it.
			noOpenat2.Store(true)
			return -1, false, nil
		default:
			return -1, true, err
		}
	}
}

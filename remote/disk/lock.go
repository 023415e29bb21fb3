package disk

import "golang.org/x/sys/unix"

// ErrLocked is why [Lock] and [LockShared] fail where another open file holds the
// lock. Other errors say that the file system has no locks, or that there is no such
// descriptor.
const ErrLocked = unix.EWOULDBLOCK

// Lock takes the lock (flock) of an open file or directory for it alone, without
// waiting. It ends with [Unlock], or when the last descriptor of the open file is
// closed: at the death of the process, too.
func Lock(fd int) error { return flock(fd, unix.LOCK_EX) }

// LockShared takes the lock together with others that share it, without waiting.
func LockShared(fd int) error { return flock(fd, unix.LOCK_SH) }

// Unlock gives the lock back.
func Unlock(fd int) error { return flock(fd, unix.LOCK_UN) }

func flock(fd, how int) error {
	for {
		if err := unix.Flock(fd, how|unix.LOCK_NB); err != unix.EINTR {
			return err
		}
	}
}

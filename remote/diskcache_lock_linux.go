//go:build !portable

package remote

import (
	"io"

	"golang.org/x/sys/unix"
)

// fileLocks is what an open file has to know of its locks: the kernel knows it all.
type fileLocks struct{}

// tryLock locks a range, or tells that another open file has it. Where the
// file system has no such locks, all succeed.
func (f *cacheFile) tryLock(offset, length int64) bool {
	err := f.setLock(unix.F_WRLCK, offset, length)
	return err != unix.EAGAIN && err != unix.EACCES
}

// tryLockAll locks the whole file, or tells that another open file has some of it.
func (f *cacheFile) tryLockAll() bool { return f.tryLock(0, 0) }

func (f *cacheFile) unlock(offset, length int64) {
	_ = f.setLock(unix.F_UNLCK, offset, length)
}

func (f *cacheFile) setLock(kind int16, offset, length int64) error {
	lock := unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: offset, Len: length}
	for {
		err := unix.FcntlFlock(uintptr(f.fd), unix.F_OFD_SETLK, &lock)
		if err != unix.EINTR {
			return err
		}
	}
}

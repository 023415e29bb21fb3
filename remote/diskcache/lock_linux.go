//go:build !portable

package diskcache

import (
	"io"

	"golang.org/x/sys/unix"
)

// fileLocks is what an open file has to know of its locks: the kernel knows it all.
type fileLocks struct{}

func (fileLocks) try(fd int, offset, length int64) bool {
	err := setLock(fd, unix.F_WRLCK, offset, length)
	return err != unix.EAGAIN && err != unix.EACCES
}

func (l fileLocks) tryAll(fd int) bool { return l.try(fd, 0, 0) }

func (fileLocks) release(fd int, offset, length int64) {
	_ = setLock(fd, unix.F_UNLCK, offset, length)
}

func setLock(fd int, kind int16, offset, length int64) error {
	lock := unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: offset, Len: length}
	for {
		err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock)
		if err != unix.EINTR {
			return err
		}
	}
}

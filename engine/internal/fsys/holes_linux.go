//go:build !portable

package fsys

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"
)

// NextData finds the first data at or behind off: from data to end. Both are the
// size of the file where there is none.
func NextData(fd int, off int64) (data, end int64, err error) {
	data, err = unix.Seek(fd, off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		size, err := unix.Seek(fd, 0, io.SeekEnd)
		return max(size, off), max(size, off), err
	case errors.Is(err, unix.EINVAL): // the file system does not know
		size, err := unix.Seek(fd, 0, io.SeekEnd)
		return min(off, size), size, err
	case err != nil:
		return 0, 0, err
	}
	end, err = unix.Seek(fd, data, unix.SEEK_HOLE)
	if errors.Is(err, unix.ENXIO) { // cut short in between
		return off, off, nil
	}
	return data, end, err
}

// DataFrom finds the first data at or behind off: off itself where the file system does
// not tell. It fails with ENXIO if there is none.
func DataFrom(fd int, off int64) (int64, error) {
	data, err := unix.Seek(fd, off, unix.SEEK_DATA)
	if errors.Is(err, unix.EINVAL) {
		return off, nil
	}
	return data, err
}

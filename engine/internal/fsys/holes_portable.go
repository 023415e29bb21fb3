//go:build !linux || portable

package fsys

import (
	"io"

	"golang.org/x/sys/unix"
)

// Where a file has holes is not asked here. APFS answers, but is known to call a hole
// what was just written and is not on disk yet (https://bugs.gnu.org/51857), and a wrong
// answer would be a snapshot of zeros. So holes are read as the zeros that they show,
// which compress to nothing but come back as zeros and not as holes.

// NextData finds the first data at or behind off: from data to end. Both are the
// size of the file where there is none.
func NextData(fd int, off int64) (data, end int64, err error) {
	size, err := unix.Seek(fd, 0, io.SeekEnd)
	return min(off, size), size, err
}

// DataFrom is where data may be, at or behind off.
func DataFrom(_ int, off int64) (int64, error) { return off, nil }

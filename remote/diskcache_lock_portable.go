//go:build !linux || portable

package remote

import (
	"sync"

	"golang.org/x/sys/unix"
)

// fileLocks makes one lock of a file (flock) of those of its ranges: whoever fills
// any range shares it, and eviction has it alone. So what is being filled is not taken
// away, which is what matters; but two processes that miss the same range may both
// fetch it.
//
// POSIX locks would know ranges. But they belong to the process and not to the open
// file: when a process closes any descriptor of a file, as eviction does, all its locks
// of that file are gone, also those of its own fills.
type fileLocks struct {
	mu    sync.Mutex
	fills int
}

func (l *fileLocks) try(fd int, _, _ int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fills == 0 && !flock(fd, unix.LOCK_SH) {
		return false
	}
	l.fills++
	return true
}

// tryAll is for a descriptor of the caller's own, which is not used to fill.
func (l *fileLocks) tryAll(fd int) bool { return flock(fd, unix.LOCK_EX) }

func (l *fileLocks) release(fd int, _, _ int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fills--; l.fills == 0 {
		flock(fd, unix.LOCK_UN)
	}
}

// flock sets the lock of a file, and reports whether nobody's is in the way.
func flock(fd, how int) bool {
	for {
		switch unix.Flock(fd, how|unix.LOCK_NB) {
		case unix.EINTR:
		case unix.EWOULDBLOCK:
			return false
		default:
			return true
		}
	}
}

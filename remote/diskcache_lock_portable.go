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

// tryLock locks a range for a fill, or tells that another open file is being evicted.
// Where the file system has no such locks, all succeed.
func (f *cacheFile) tryLock(_, _ int64) bool {
	f.locks.mu.Lock()
	defer f.locks.mu.Unlock()
	if f.locks.fills == 0 && !f.flock(unix.LOCK_SH) {
		return false
	}
	f.locks.fills++
	return true
}

// tryLockAll locks the whole file, or tells that another open file has some of it. It
// stays so until the file is closed.
func (f *cacheFile) tryLockAll() bool { return f.flock(unix.LOCK_EX) }

func (f *cacheFile) unlock(_, _ int64) {
	f.locks.mu.Lock()
	defer f.locks.mu.Unlock()
	if f.locks.fills--; f.locks.fills == 0 {
		f.flock(unix.LOCK_UN)
	}
}

// flock sets the lock of the file, and reports whether nobody's is in the way.
func (f *cacheFile) flock(how int) bool {
	for {
		switch unix.Flock(f.fd, how|unix.LOCK_NB) {
		case unix.EINTR:
		case unix.EWOULDBLOCK:
			return false
		default:
			return true
		}
	}
}

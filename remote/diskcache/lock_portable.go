//go:build !linux || portable

package diskcache

import (
	"sync"

	"github.com/snapctl/snapctl/remote/disk"
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
	if l.fills == 0 && !free(disk.LockShared(fd)) {
		return false
	}
	l.fills++
	return true
}

// tryAll is for a descriptor of the caller's own, which is not used to fill.
func (l *fileLocks) tryAll(fd int) bool { return free(disk.Lock(fd)) }

func (l *fileLocks) release(fd int, _, _ int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fills--; l.fills == 0 {
		_ = disk.Unlock(fd)
	}
}

// free tells whether nobody's lock was in the way. Where the file system has no locks,
// all succeed.
func free(err error) bool { return err != disk.ErrLocked }

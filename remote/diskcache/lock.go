package diskcache

import (
	"context"
	"time"
)

// Locks of byte ranges of a mirror's file, by open file description: two
// processes that miss the same range fetch it once. They are advice. A lock
// ends with its process, and nobody waits for one longer than lockPatience, so
// that a process that was stopped does not hold up others. Eviction locks
// everything, and so never takes away what is being filled.
//
// Background fetches lock at backgroundLocks plus the offset: whoever waits
// for a fault does not wait for another process's large request.
//
// That is Linux, whose locks fileLocks are. Elsewhere there are none of ranges that
// would do: see lock_portable.go.
const (
	lockPatience    = 2 * time.Second
	lockPollMin     = time.Millisecond
	lockPollMax     = 16 * time.Millisecond
	backgroundLocks = int64(1) << 61
)

// tryLock locks a range, or tells that another open file has it. Where the
// file system has no such locks, all succeed.
func (f *mirror) tryLock(offset, length int64) bool { return f.locks.try(f.fd, offset, length) }

// tryLockAll locks the whole file, or tells that another open file has some of it.
func (f *mirror) tryLockAll() bool { return f.locks.tryAll(f.fd) }

func (f *mirror) unlock(offset, length int64) { f.locks.release(f.fd, offset, length) }

// lock waits until the range is locked, done says that there is no more need,
// or patience ends. It tells whether it is locked.
func (f *mirror) lock(ctx context.Context, offset, length int64, done func() bool) bool {
	patience := time.NewTimer(lockPatience)
	defer patience.Stop()
	for delay := lockPollMin; ; delay = min(2*delay, lockPollMax) {
		if f.tryLock(offset, length) {
			return true
		}
		if done() {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-patience.C:
			return false
		case <-time.After(delay):
		}
	}
}

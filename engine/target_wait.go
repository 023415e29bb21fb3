package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/remote/disk"
	"golang.org/x/sys/unix"
)

// Whoever waits for the lock of a target says so, and does not wait for ever for somebody
// who is no restore: flock DIR snapctl restore REF DIR would wait for itself.

// A lockWait is how a restore waits for another one of its target.
type lockWait struct {
	quiet   time.Duration // after which tell is called, once
	foreign time.Duration // the longest for a lock that no restore is seen to hold
	tell    func(error)
}

// newLockWait is how every restore waits. A restore whose lock is not known as such, that of
// another user, has shown itself by its temporary directory long before the time is over.
func newLockWait(tell func(error)) *lockWait {
	return &lockWait{quiet: time.Second, foreign: time.Minute, tell: tell}
}

// lock waits for the lock of the open directory at path. Where the file system has none,
// all is as it would be without others. It fails with ErrExists if the lock is not a
// restore's, and is held for too long.
func (w *lockWait) lock(ctx context.Context, path string, fd int) error {
	const advice = "end that, or let it lock a file elsewhere instead of the directory"
	start := time.Now()
	foreign, told := start, false
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := disk.Lock(fd)
		if !fsys.IsAny(err, unix.EWOULDBLOCK, unix.EINTR) {
			return nil
		}
		if !told && time.Since(start) >= w.quiet {
			told = true
			h := lockHolder(fd)
			if h.inherited {
				return fmt.Errorf("%w: it is locked %v, so that this would wait for itself: %s", snapshot.ErrExists, h, advice)
			}
			w.tell(fmt.Errorf("waiting for another restore of %s, which is locked %v", path, h))
		}
		if time.Since(foreign) >= w.foreign {
			h := lockHolder(fd)
			// It may have ended while it was looked for.
			if !h.restores && !hasTemp(path) && disk.Lock(fd) != nil {
				return fmt.Errorf("%w: it is locked %v, and that is no restore: %s", snapshot.ErrExists, h, advice)
			}
			foreign = time.Now()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for another restore: %w", ctx.Err())
		case <-time.After(pause):
		}
	}
}

// A holder is the process that holds a lock.
type holder struct {
	pid       int // 0 if it is not known
	name      string
	restores  bool // it is this program, and has taken the lock itself
	inherited bool // it has begun this process
}

func (h holder) String() string {
	switch {
	case h.inherited:
		return "by the process that started this one"
	case h.pid == 0:
		return "by a process that is not known"
	}
	return fmt.Sprintf("by process %d (%s)", h.pid, repo.Printable(h.name))
}

// hasTemp reports whether a restore works on the directory at a path: one has a temporary
// directory in it or beside it, and holds the lock of that.
func hasTemp(path string) bool {
	parent, prefix := beside(path)
	return lockedTemp(path, tempPrefix) || lockedTemp(parent, prefix)
}

package repo

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/remote"
)

// What time it is: by the clock of the store. Machines with clocks of their own share a
// repository, and garbage collection removes what has expired by the store's times. So
// lifetimes and ages go by that clock wherever it is known: of a bucket from the first
// answer on, of a folder when something is written to it or seems to have expired. Where it
// is not known, or differs from this machine's by no more than clockTolerance, this
// machine's is as good.

// clockTolerance is how far this machine's clock may be off. What the store is heard to
// say can be nearly as early as this.
const clockTolerance = 5 * time.Second

// heardClock is what was heard of the store's clock.
type heardClock struct {
	mu    sync.Mutex
	Heard bool
	at    time.Time     // what it said,
	when  time.Duration // and when, by Repository.uptime
	told  bool          // of a machine's clock that is off
}

// Time is what time it is: see above.
func (r *Repo) Time() time.Time { return r.Now().Add(-r.Skew()) }

// Skew is how far this machine's clock is ahead of the store's, negative if it is behind;
// 0 if that is not known, or little.
func (r *Repo) Skew() time.Duration {
	c := &r.Clock
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.Heard {
		return 0
	}
	ahead := r.Now().Sub(c.at.Add(r.Uptime() - c.when))
	if ahead.Abs() <= clockTolerance {
		return 0
	}
	return ahead
}

// expired reports whether a snapshot's time to live has passed, by the store's clock.
func (r *Repo) expired(ctx context.Context, s *snapshot.Snapshot) bool {
	if !s.Expired(r.Time()) {
		return false
	}
	// This machine's clock may be ahead of that of a folder, which was not asked yet.
	r.Clock.mu.Lock()
	heard := r.Clock.Heard
	r.Clock.mu.Unlock()
	if !heard {
		r.AskTime(ctx)
	}
	return s.Expired(r.Time())
}

// AskTime asks the store for the time, which takes no request. In a folder it makes a
// temporary file, so what only reads does that when it matters: see expired.
func (r *Repo) AskTime(ctx context.Context) {
	for range 3 {
		began := r.Uptime()
		at, err := r.readTime(ctx)
		if err != nil {
			if !errors.Is(err, errors.ErrUnsupported) {
				r.Logger.Info("asking the store for the time", "err", err)
			}
			return
		}
		if r.HearTime(at, began) {
			return
		}
	}
}

// HearTime takes note of what the store said of the time since then, by uptime. It
// reports whether that is recent enough to go by.
func (r *Repo) HearTime(at time.Time, since time.Duration) bool {
	c := &r.Clock
	c.mu.Lock()
	now := r.Uptime()
	if now-since > clockTolerance/2 { // this process was stopped, or the store is slow
		c.mu.Unlock()
		return false
	}
	c.Heard, c.at, c.when = true, at, now
	c.mu.Unlock()
	if ahead := r.Skew(); ahead != 0 {
		r.tellAhead(ahead)
	}
	return true
}

// tellAhead tells once that this machine's clock is off.
func (r *Repo) tellAhead(ahead time.Duration) {
	r.Clock.mu.Lock()
	told := r.Clock.told
	r.Clock.told = true
	r.Clock.mu.Unlock()
	if told {
		return
	}
	r.Logger.Warn("this machine's clock is not the store's, which counts", "ahead", ahead)
	if r.onClock != nil {
		r.onClock(ahead)
	}
}

func (r *Repo) readTime(ctx context.Context) (time.Time, error) {
	if r.StoreTime != nil {
		return r.StoreTime(ctx)
	}
	return remote.Time(ctx, r.Store)
}

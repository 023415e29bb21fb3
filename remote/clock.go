package remote

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"
)

// A Clock is a [Store] that tells the time by the clock that [Info.ModTime] goes by. It
// sends no request for it.
type Clock interface {
	// Time tells the time by the store's clock: a few seconds early at most, and never
	// late. It fails with [errors.ErrUnsupported] where that is not known, or not yet.
	Time(ctx context.Context) (time.Time, error)
}

// Time is [Clock.Time] of a store, and [errors.ErrUnsupported] where it is no Clock.
func Time(ctx context.Context, s Store) (time.Time, error) {
	if c, ok := s.(Clock); ok {
		return c.Time(ctx)
	}
	return time.Time{}, fmt.Errorf("the time of the store: %w", errors.ErrUnsupported)
}

// Time is [Clock.Time].
func (r *retrier) Time(ctx context.Context) (time.Time, error) { return Time(ctx, r.store) }

// Time is [Clock.Time]. It is not counted.
func (c *counted) Time(ctx context.Context) (time.Time, error) { return Time(ctx, c.store) }

// Time is [Clock.Time]: the time of a temporary file, which a file server gives it where
// the folder is on one.
func (s *File) Time(ctx context.Context) (time.Time, error) {
	now, err := s.now(ctx)
	if err != nil {
		return time.Time{}, fmt.Errorf("the time of %s: %w", s.dir, err)
	}
	return now, nil
}

// promptly is how long after its request an answer may come for its Date to say what
// time it is now.
const promptly = 3 * time.Second

// dates is what a server has said of the time, in the Date of its last prompt answer.
type dates struct {
	last atomic.Pointer[heardDate]
}

type heardDate struct {
	date  time.Time
	heard time.Time // by this machine's clock
	wall  time.Time // the same, without its monotonic reading
}

// at is what time it then is, unless this machine has slept since, or its clock was set:
// its monotonic clock does not go on while it sleeps.
func (h *heardDate) at(now, wall time.Time) (time.Time, bool) {
	passed := now.Sub(h.heard)
	return h.date.Add(passed), (wall.Sub(h.wall) - passed).Abs() < time.Second
}

// hear takes note of an answer to a request that was sent at that time.
func (d *dates) hear(resp *http.Response, sent time.Time) {
	heard := time.Now()
	if heard.Sub(sent) > promptly {
		return // it may have been on its way, or we stopped, for long
	}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		d.last.Store(&heardDate{date, heard, heard.Round(0)})
	}
}

// Time is [Clock.Time]: it goes by the Date of the last answer.
func (s *S3) Time(ctx context.Context) (time.Time, error) {
	if err := ctx.Err(); err != nil {
		return time.Time{}, err
	}
	now := time.Now()
	if h := s.dates.last.Load(); h != nil {
		if at, ok := h.at(now, now.Round(0)); ok {
			return at, nil
		}
	}
	return time.Time{}, fmt.Errorf("the time of %s: no answer has told it: %w", s.place, errors.ErrUnsupported)
}

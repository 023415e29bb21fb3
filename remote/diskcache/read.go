package diskcache

import (
	"context"
	"errors"

	"github.com/snapctl/snapctl/remote"
)

// readTries is how often a read looks at the disk when what it says is there
// turns out not to be; then it asks the store.
const readTries = 4

// ReadAt is [remote.Store.ReadAt], from the disk as far as possible. What is missing
// is fetched with the window around it, and p filled as soon as its own bytes
// are here. The end of ctx ends the wait, and the fetch too unless somebody
// else has an interest in it.
func (s *Store) ReadAt(ctx context.Context, name string, offset int64, p []byte) error {
	if !s.caches(name) || offset < 0 || len(p) == 0 || offset > maxObject-int64(len(p)) {
		return s.store.ReadAt(ctx, name, offset, p)
	}
	if err := ctx.Err(); err != nil {
		return remote.OpReadAt.Wrap(name, err)
	}
	obj := s.cache.object(s.repo, name)
	if obj == nil {
		return s.store.ReadAt(ctx, name, offset, p)
	}
	defer obj.release()
	stats := &s.cache.stats
	n := obj.read(p, offset)
	stats.diskBytes.Add(int64(n))
	if n == len(p) {
		stats.hits.Add(1)
		return nil
	}
	r := missReader{cached: s, obj: obj}
	err := r.read(ctx, offset+int64(n), p[n:])
	r.leave(ctx.Err() != nil)
	switch {
	case r.own:
		stats.misses.Add(1)
	case r.joined:
		stats.shared.Add(1)
	case err == nil:
		stats.hits.Add(1) // another filled it in between
	}
	return err
}

// missReader is a read that the disk does not have all of.
type missReader struct {
	cached *Store
	obj    *object
	held   []*flight
	own    bool // it has started a fetch
	joined bool // it waits for another's
	waits  bool
}

func (r *missReader) read(ctx context.Context, offset int64, p []byte) error {
	missed := 0
	for range readTries {
		segments, ok := r.obj.plan(ctx, r, offset, offset+int64(len(p)))
		if !ok {
			break
		}
		if !r.waits && len(r.held) > 0 {
			// Not before it has joined what was under way, which would give way.
			r.waits = true
			r.cached.cache.slots.enter()
		}
		if r.cached.miss != nil && missed < len(r.held) {
			r.tellMiss(r.held[missed:])
			missed = len(r.held)
		}
		n := 0
		for _, seg := range segments {
			part := p[n : n+int(seg.end-seg.start)]
			if seg.flight == nil {
				m := r.obj.read(part, seg.start)
				r.cached.cache.stats.diskBytes.Add(int64(m))
				n += m
				if m < len(part) {
					break // it was damaged, or evicted: plan again
				}
				continue
			}
			err := seg.flight.wait(ctx, seg.end)
			if errors.Is(err, remote.ErrShort) || err != nil && isContext(err) && ctx.Err() == nil {
				// Only the store may say that there is no more. Or the cache was closed.
				return r.direct(ctx, offset+int64(n), p[n:])
			}
			if err != nil {
				return remote.OpReadAt.Wrap(r.obj.key.name, unwrapOp(err))
			}
			n += copy(part, seg.flight.buf[seg.start-seg.flight.start:])
		}
		if n == len(p) {
			return nil
		}
		offset, p = offset+int64(n), p[n:]
	}
	// Behind what is known to be the end; or the disk makes no sense.
	return r.direct(ctx, offset, p)
}

// tellMiss tells of the fetches that were begun.
func (r *missReader) tellMiss(held []*flight) {
	from, to := int64(-1), int64(-1)
	for _, fl := range held {
		if fl.reader != r {
			continue
		}
		if from < 0 {
			from = fl.start
		}
		to = fl.end
	}
	if from >= 0 {
		r.cached.miss(r.obj.key.name, from, to-from)
	}
}

// direct reads from the store, which knows best.
func (r *missReader) direct(ctx context.Context, offset int64, p []byte) error {
	r.own = true
	r.cached.cache.stats.requests.Add(1)
	err := r.cached.store.ReadAt(ctx, r.obj.key.name, offset, p)
	if err == nil {
		r.cached.cache.stats.fetchedBytes.Add(int64(len(p)))
		r.obj.longer(offset + int64(len(p)))
	}
	return err
}

// leave ends the interest in the fetches that were waited for.
func (r *missReader) leave(cancelled bool) {
	if r.waits {
		r.cached.cache.slots.exit()
	}
	for _, fl := range r.held {
		fl.leave(cancelled)
	}
}

func isContext(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// unwrapOp takes off the operation that err is wrapped in, so that it is not
// named twice.
func unwrapOp(err error) error {
	if o, ok := err.(*remote.OpError); ok {
		return o.Err
	}
	return err
}

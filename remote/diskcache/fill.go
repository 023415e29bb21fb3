package diskcache

import (
	"context"
	"errors"
	"slices"

	"github.com/snapctl/snapctl/remote"
)

// Fill fetches what the disk does not have of a range, in large requests, when
// nobody waits for anything: it begins no request while a reader does or did a
// moment ago, and gives up one that is under way. It evicts nothing that was in
// use lately, but fails with [ErrFull]. A negative length, or one that is too
// large, means up to the object's end. It returns when the range is there;
// [ErrNoCache] when nothing can be stored.
func (s *Store) Fill(ctx context.Context, name string, offset, length int64) error {
	return s.fill(ctx, name, offset, length, classFill)
}

// Prefetch is Fill for what a reader is likely to want next: it goes before all
// of Fill, does not stop for readers, and may evict as they do. They do not wait
// for a slot that it has.
func (s *Store) Prefetch(ctx context.Context, name string, offset, length int64) error {
	return s.fill(ctx, name, offset, length, classAhead)
}

func (s *Store) fill(ctx context.Context, name string, offset, length int64, class class) error {
	if !s.caches(name) || offset < 0 {
		return nil
	}
	c := s.cache
	end := int64(maxObject)
	if length >= 0 && length < end-offset {
		end = offset + length
	}
	obj := c.object(s.repo, name)
	if obj == nil {
		return ErrNoCache
	}
	defer obj.release()
	began := offset
	for offset < end {
		if err := ctx.Err(); err != nil {
			return remote.OpReadAt.Wrap(name, err)
		}
		if !c.storing() {
			return ErrNoCache
		}
		var done bool
		if offset, done = obj.skip(offset, end); done {
			return nil
		}
		if class == classFill && c.room() < min(end-offset, int64(c.opts.Piece)) {
			return ErrFull
		}
		// Until there is a slot, nobody can wait for what this will fetch.
		if err := c.slots.acquire(ctx, class); err != nil {
			return remote.OpReadAt.Wrap(name, err)
		}
		fl, own := obj.fill(ctx, s, offset, end, class)
		if !own || fl == nil {
			c.slots.release(class)
		}
		if fl == nil {
			return ErrNoCache
		}
		short, err := fl.settle(ctx)
		fl.leave(ctx.Err() != nil)
		switch {
		case errors.Is(err, remote.ErrShort) && fl.start > began:
			return nil // the last piece ended where the object does
		case err != nil && isContext(err) && ctx.Err() == nil && c.ctx.Err() == nil:
			continue // it gave way, to go on later
		case err != nil:
			return remote.OpReadAt.Wrap(name, unwrapOp(err))
		case short:
			return nil
		}
		offset = fl.end
	}
	return nil
}

// skip gives the first block from offset on that the disk does not have; all
// is true when it has everything before end.
func (obj *object) skip(offset, end int64) (next int64, all bool) {
	for offset < end {
		b0 := offset / blockSize
		b1 := min(ceilBlock(end), b0+scratchBlocks)
		size, here := obj.blocks(b0, b1)
		if size > 0 && size < end {
			if end = size; offset >= end {
				break
			}
			b1 = min(b1, ceilBlock(end))
		}
		if i := slices.Index(here[:b1-b0], false); i >= 0 {
			return max(offset, (b0+int64(i))*blockSize), false
		}
		offset = b1 * blockSize
	}
	return end, true
}

// fill starts a fetch for the background, of what is missing from offset on,
// up to end or a piece; or it joins one that is under way there. It is nil when
// the cache is closed. The caller has a slot, which the fetch takes over if it
// is its own.
func (obj *object) fill(ctx context.Context, s *Store, offset, end int64, class class) (fl *flight, own bool) {
	obj.mu.Lock()
	defer obj.mu.Unlock()
	busy := func(b int64) *flight {
		for _, fl := range obj.flights {
			if fl.start <= b*blockSize && b*blockSize < fl.end {
				return fl
			}
		}
		return nil
	}
	b0 := offset / blockSize
	if fl := busy(b0); fl != nil {
		fl.join()
		return fl, false
	}
	last := min(ceilBlock(end), b0+int64(obj.cache.opts.Piece)/blockSize)
	size, here := obj.blocksLocked(b0, last)
	b1 := b0 + 1
	for b1 < last && !here[b1-b0] && busy(b1) == nil {
		b1++
	}
	to := b1 * blockSize
	if size > b0*blockSize {
		to = min(to, size)
	}
	return obj.start(ctx, s, b0*blockSize, to, true, class), true
}

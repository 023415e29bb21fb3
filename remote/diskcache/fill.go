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
	end := int64(maxObject)
	if length >= 0 && length < end-offset {
		end = offset + length
	}
	obj := s.cache.object(s.repo, name)
	if obj == nil {
		return ErrNoCache
	}
	defer obj.release()
	f := filler{store: s, obj: obj, class: class, start: offset, end: end}
	for offset < end {
		next, done, err := f.piece(ctx, offset)
		if done || err != nil {
			return err
		}
		offset = next
	}
	return nil
}

// filler brings a range of an object for the background.
type filler struct {
	store      *Store
	obj        *object
	class      class
	start, end int64
}

// piece fetches the first piece that is missing from offset on, and gives where to go on.
// done says that nothing is missing up to the end of the range or the object.
func (f *filler) piece(ctx context.Context, offset int64) (next int64, done bool, err error) {
	c, name := f.store.cache, f.obj.key.name
	if err := ctx.Err(); err != nil {
		return 0, false, remote.OpReadAt.Wrap(name, err)
	}
	if !c.storing() {
		return 0, false, ErrNoCache
	}
	if offset, done = f.obj.skip(offset, f.end); done {
		return 0, true, nil
	}
	if f.class == classFill && c.room() < min(f.end-offset, int64(c.opts.Piece)) {
		return 0, false, ErrFull
	}
	fl, err := f.fetch(ctx, offset)
	if err != nil {
		return 0, false, err
	}
	short, err := fl.waitAll(ctx)
	fl.leave(ctx.Err() != nil)
	switch {
	case errors.Is(err, remote.ErrShort) && fl.start > f.start:
		return 0, true, nil // the last piece ended where the object does
	case err != nil && isContext(err) && ctx.Err() == nil && c.ctx.Err() == nil:
		return offset, false, nil // it gave way, to go on later
	case err != nil:
		return 0, false, remote.OpReadAt.Wrap(name, unwrapOp(err))
	}
	return fl.end, short, nil
}

// fetch starts to fetch what is missing at offset when its turn comes, or joins a fetch
// of it. The caller leaves it.
func (f *filler) fetch(ctx context.Context, offset int64) (*flight, error) {
	slots := &f.store.cache.slots
	// Until there is a slot, nobody can wait for what this will fetch.
	if err := slots.acquire(ctx, f.class); err != nil {
		return nil, remote.OpReadAt.Wrap(f.obj.key.name, err)
	}
	fl, own := f.obj.fill(ctx, f.store, offset, f.end, f.class)
	if !own || fl == nil {
		slots.release(f.class)
	}
	if fl == nil {
		return nil, ErrNoCache
	}
	return fl, nil
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

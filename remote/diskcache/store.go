package diskcache

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/snapctl/snapctl/remote"
)

// A Store is a [remote.Store] behind a [Cache]. ReadAt of objects with the
// cache's prefixes is what is cached; everything else goes through. Make one
// with [Cache.Wrap]; it is safe for parallel use.
type Store struct {
	store remote.Store
	cache *Cache
	repo  string
	off   bool // repo is not a name that can be used
	miss  func(name string, offset, length int64)
}

var (
	_ remote.Store    = (*Store)(nil)
	_ remote.Replacer = (*Store)(nil)
	_ remote.Resumer  = (*Store)(nil)
)

// OnMiss gives the same store, which calls f whenever a read begins a fetch of
// its own, with the range that it fetches: so that f can see to what will be
// read next. f must not wait for anything.
func (s *Store) OnMiss(f func(name string, offset, length int64)) *Store {
	other := *s
	other.miss = f
	return &other
}

// caches tells whether there is a cache for the object.
func (s *Store) caches(name string) bool {
	begins := func(prefix string) bool { return strings.HasPrefix(name, prefix) }
	return !s.off && slices.ContainsFunc(s.cache.opts.Prefixes, begins) && remote.CheckName(name) == nil
}

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
	r := missReader{Store: s, obj: obj}
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
	*Store
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
			r.cache.slots.enter()
		}
		if r.miss != nil && missed < len(r.held) {
			r.tellMiss(r.held[missed:])
			missed = len(r.held)
		}
		n := 0
		for _, seg := range segments {
			part := p[n : n+int(seg.end-seg.start)]
			if seg.flight == nil {
				m := r.obj.read(part, seg.start)
				r.cache.stats.diskBytes.Add(int64(m))
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
		r.miss(r.obj.key.name, from, to-from)
	}
}

// direct reads from the store, which knows best.
func (r *missReader) direct(ctx context.Context, offset int64, p []byte) error {
	r.own = true
	r.cache.stats.requests.Add(1)
	err := r.store.ReadAt(ctx, r.obj.key.name, offset, p)
	if err == nil {
		r.cache.stats.fetchedBytes.Add(int64(len(p)))
		r.obj.longer(offset + int64(len(p)))
	}
	return err
}

// leave ends the interest in the fetches that were waited for.
func (r *missReader) leave(cancelled bool) {
	if r.waits {
		r.cache.slots.exit()
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

// Keep stores an object that was just put, so that it need not be fetched. What
// cannot be stored is fetched when it is wanted.
func (s *Store) Keep(name string, data []byte) {
	if !s.caches(name) || len(data) == 0 || int64(len(data)) > maxObject {
		return
	}
	obj := s.cache.object(s.repo, name)
	if obj == nil {
		return
	}
	defer obj.release()
	f := obj.openToFill()
	if f == nil {
		return
	}
	defer f.release()
	obj.setSize(int64(len(data)))
	fl := &flight{obj: obj, end: int64(len(data)), buf: data, keep: true}
	n, err := fl.keepRange(f, 0, fl.end)
	s.cache.stored(n)
	if err != nil {
		s.cache.trouble(troubleStore, err)
	}
}

// Missing tells how many bytes of a range the disk does not have, in whole
// blocks. It asks nothing of the store; behind the object's end nothing is
// missing, as far as that is known.
func (s *Store) Missing(name string, offset, length int64) int64 {
	if !s.caches(name) || offset < 0 || length <= 0 || offset >= maxObject {
		return 0
	}
	obj := s.cache.object(s.repo, name)
	if obj == nil {
		return 0
	}
	defer obj.release()
	b0, b1 := offset/blockSize, ceilBlock(min(offset+length, maxObject))
	size, here := obj.blocks(b0, b1)
	var n int64
	for i, ok := range here {
		from := (b0 + int64(i)) * blockSize
		if !ok && (size == 0 || from < size) {
			n += blockSize
		}
	}
	return n
}

// Invalidate drops a range from the disk, in whole blocks: its content was
// found to be wrong. What is being fetched of it is not kept either.
func (s *Store) Invalidate(name string, offset, length int64) {
	if !s.caches(name) || offset < 0 || length <= 0 || offset >= maxObject {
		return
	}
	s.cache.stats.invalidated.Add(1)
	if obj := s.cache.object(s.repo, name); obj != nil {
		defer obj.release()
		obj.invalidate(offset, min(offset+length, maxObject))
	}
}

// forget drops an object that has been deleted or replaced.
func (s *Store) forget(name string) {
	if !s.caches(name) {
		return
	}
	if obj := s.cache.object(s.repo, name); obj != nil {
		defer obj.release()
		obj.invalidate(0, maxObject)
		s.cache.discard(obj.path())
	}
}

// Put is [remote.Store.Put].
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	return s.store.Put(ctx, name, data)
}

// Replace is [remote.Replacer.Replace].
func (s *Store) Replace(ctx context.Context, name string, data []byte) error {
	err := remote.Replace(ctx, s.store, name, data)
	s.forget(name)
	return err
}

// Get is [remote.Store.Get]. It is not cached.
func (s *Store) Get(ctx context.Context, name string) ([]byte, error) {
	return s.store.Get(ctx, name)
}

// List is [remote.Store.List].
func (s *Store) List(ctx context.Context, prefix string, yield func(remote.Info) error) error {
	return s.store.List(ctx, prefix, yield)
}

// ListAfter is [remote.Resumer.ListAfter].
func (s *Store) ListAfter(ctx context.Context, prefix, after string, yield func(remote.Info) error) error {
	return remote.ListAfter(ctx, s.store, prefix, after, yield)
}

// Stat is [remote.Store.Stat].
func (s *Store) Stat(ctx context.Context, name string) (remote.Info, error) {
	return s.store.Stat(ctx, name)
}

// Delete is [remote.Store.Delete]. Objects that another process deletes stay in the
// cache until they are evicted.
func (s *Store) Delete(ctx context.Context, names ...string) error {
	err := s.store.Delete(ctx, names...)
	for _, name := range names {
		s.forget(name)
	}
	return err
}

package diskcache

import (
	"context"
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

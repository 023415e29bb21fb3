package repo

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/diskcache"
)

// DefaultCacheSize is the default of Options.CacheSize.
const DefaultCacheSize = 10 << 30

// MissWindow is what a read fetches around what is wanted, and prefetcher in the
// background on either side of that. A round trip of 30 ms takes as long as 3 MB,
// but little of what lies around a frame is wanted: with 1 MiB and nothing beside
// it, the start of node that prefetcher tells of fetches 50 MB and waits 42
// times; so it is 57 MB and 33 times.
const MissWindow = 512 << 10

// packCache is this machine's disk cache of packs as a repository uses it: one
// for all its mounts, restores and trees, opened when it is first needed. The
// folder is that of all repositories and processes.
type packCache struct {
	size   int64
	ctx    context.Context // of work in the background; ends with close
	cancel context.CancelFunc

	mu    sync.Mutex
	disk  *diskcache.Cache
	tree  *diskcache.Store
	rests map[string]bool // tree packs whose rest is here or on its way
	ended bool
	work  sync.WaitGroup
}

func newPackCache(size int64) *packCache {
	if size <= 0 {
		size = DefaultCacheSize
	}
	c := &packCache{size: size, rests: map[string]bool{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// background runs f unless the cache is closed, which then waits for it.
func (c *packCache) background(f func(context.Context)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.work.Go(func() { f(c.ctx) })
	}
}

// close ends what is done in the background. Reads then go to the store.
func (c *packCache) close() error {
	c.mu.Lock()
	c.ended = true
	disk := c.disk
	c.mu.Unlock()
	c.cancel()
	c.work.Wait()
	if disk == nil {
		return nil
	}
	return disk.Close()
}

// DiskCache gives the cache. It is nil for a local repository, which has no use
// for one.
func (r *Repo) DiskCache() *diskcache.Cache {
	if r.Local() {
		return nil
	}
	c := r.packs
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.disk == nil {
		c.disk = diskcache.Open(filepath.Join(r.CacheDir(), local.Packs), c.size, &diskcache.Options{
			Prefixes: []string{"packs/", ProfilePrefix},
			Window:   MissWindow,
			// The defaults, where memory is not scarce: each request has its bytes there.
			Piece: local.ShareOf(4<<20, MissWindow), Parallel: local.ShareOf(24, 3), Background: local.ShareOf(4, 1),
			Notify: func(err error) { r.Logger.Warn("cache of packs", "err", err) },
		})
		c.tree = c.disk.Wrap(r.Store, r.Cfg.ID.String()).OnMiss(r.treeMissed)
		if c.ended {
			c.disk.Close()
		}
	}
	return c.disk
}

// PackStore is the store to read packs from: through the disk cache.
func (r *Repo) PackStore() remote.Store {
	if d := r.DiskCache(); d != nil {
		return d.Wrap(r.Store, r.Cfg.ID.String())
	}
	return r.Store
}

// treeStore is the store to read tree pages from. It is nil for a local
// repository.
func (r *Repo) treeStore() *diskcache.Store {
	if r.DiskCache() == nil {
		return nil
	}
	return r.packs.tree
}

// treeMissed is called when a page was not there, and the window around it is
// being fetched: the rest of the pack is brought right behind it, since whoever
// reads a page mostly goes on to others. A pack of 8 MiB takes three requests.
func (r *Repo) treeMissed(name string, offset, _ int64) {
	c := r.packs
	c.mu.Lock()
	have := c.rests[name]
	c.rests[name] = true
	c.mu.Unlock()
	if have {
		return
	}
	c.background(func(ctx context.Context) {
		// It waits for the window, which may be all that the pack has.
		err := c.tree.Prefetch(ctx, name, offset, -1)
		if err == nil && offset > 0 {
			err = c.tree.Prefetch(ctx, name, 0, offset)
		}
		if err == nil {
			return
		}
		c.mu.Lock()
		delete(c.rests, name) // the next miss may have more luck
		c.mu.Unlock()
		if ctx.Err() == nil && !errors.Is(err, diskcache.ErrNoCache) {
			r.Logger.Info("fetching a tree pack", "object", name, "err", err)
		}
	})
}

// KeepTree keeps a tree pack of this machine's making for the next create, which
// reads its parent's tree.
func (r *Repo) KeepTree(id chunk.PackID, data []byte) {
	if s := r.treeStore(); s != nil {
		s.Keep(PackName(id), data)
	}
}

// CacheDir is engine.Repository.CacheDir.
func (r *Repo) CacheDir() string { return filepath.Dir(r.Cache.Root) }

// PackIndex reads what a pack holds from its end, mostly in one request.
func (r *Repo) PackIndex(ctx context.Context, id chunk.PackID, size int64) (*chunk.PackIndex, error) {
	const guess = 64 << 10
	tail := make([]byte, min(size, guess))
	if err := r.Store.ReadAt(ctx, PackName(id), size-int64(len(tail)), tail); err != nil {
		return nil, err
	}
	if len(tail) < chunk.PackFooterSize {
		return nil, fmt.Errorf("pack %v: %w: %d bytes", id, chunk.ErrNotPack, size)
	}
	n, err := chunk.PackIndexSize(tail[len(tail)-chunk.PackFooterSize:])
	if err != nil {
		return nil, fmt.Errorf("pack %v: %w", id, err)
	}
	switch {
	case int64(n) > size:
		return nil, fmt.Errorf("pack %v: %w: index of %d bytes in %d", id, chunk.ErrNotPack, n, size)
	case n > len(tail):
		tail = make([]byte, n)
		if err := r.Store.ReadAt(ctx, PackName(id), size-int64(n), tail); err != nil {
			return nil, err
		}
	default:
		tail = tail[len(tail)-n:]
	}
	x, err := chunk.DecodePackTail(r.Codec, tail, size)
	if err != nil {
		return nil, fmt.Errorf("pack %v: %w", id, err)
	}
	return x, nil
}

package engine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/access"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/singleflight"
)

// chunkReader gives chunks by where they lie. It keeps decoded frames, within a
// bound, since a reader of one chunk soon wants its neighbours: a frame is
// fetched and decoded once while it is kept, however many ask for it at once,
// and each of its chunks is hashed once. It is safe for parallel use.
type chunkReader struct {
	repo  *Repository
	store remote.Store // with a disk cache before it, if that is of use
	// ctx is that of fetches: they are everybody's, and go on when the reader
	// who caused one goes away.
	ctx   context.Context
	fetch singleflight.Group

	mu     sync.Mutex
	frames *simplelru.LRU[access.FrameKey, *plainFrame]
	size   int // bytes of the frames
	limit  int

	buffers sync.Pool // of *[]byte

	// synced is set when the index was brought up to date, to find what lay in
	// a pack that has gone: the next chunk of that pack then takes no listing.
	synced  atomic.Bool
	decoded atomic.Int64

	hot *access.HotSet   // where copies may be that come sooner; nil for none
	rec *access.Recorder // told of what is asked for; nil for nobody
}

// plainFrame is a decoded frame. Its bytes never change.
type plainFrame struct {
	raw []byte

	mu      sync.Mutex
	checked map[chunk.ID]uint32 // chunks whose bytes are theirs, by offset
}

// frameOverhead is what a frame takes beside its bytes: a table of its chunks.
const frameOverhead = 4 << 10

func newChunkReader(ctx context.Context, r *Repository, store remote.Store, limit int) *chunkReader {
	return &chunkReader{repo: r, store: store, ctx: ctx, frames: newLRU[access.FrameKey, *plainFrame](math.MaxInt), limit: limit}
}

func newLRU[K comparable, V any](size int) *simplelru.LRU[K, V] {
	l, err := simplelru.NewLRU[K, V](size, nil)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return l
}

// invalidator is a store that keeps what it fetched, and can be told that it is
// wrong.
type invalidator interface {
	Invalidate(name string, offset, length int64)
}

// Chunk gives the bytes of an extent's chunk, which match its id. They are not
// changed as long as somebody has them.
func (c *chunkReader) Chunk(ctx context.Context, x *manifest.Extent) ([]byte, error) {
	if c.rec != nil {
		c.rec.Note(x.ID, &x.Location, false)
	}
	if data := c.copied(ctx, x.ID, &x.Location); data != nil {
		return data, nil
	}
	data, err := c.at(ctx, x.ID, &x.Location)
	if errors.Is(err, remote.ErrNotExist) {
		data, err = c.relocated(ctx, x)
	}
	if err != nil {
		return nil, fmt.Errorf("chunk %v: %w", x.ID, repo.Integrity(err))
	}
	return data, nil
}

// copied gives a chunk from a bundle, if that is the better place to have it from;
// else nil. What is here need not wait for bundles, and a bundle that is wrong or
// gone is no reason to fail.
func (c *chunkReader) copied(ctx context.Context, id chunk.ID, loc *chunk.Location) []byte {
	if c.hot == nil || c.cached(access.FrameKey{Pack: loc.Pack, Offset: loc.Frame.Offset}) != nil {
		return nil
	}
	if !c.hot.Settled() && !c.onDisk(loc) {
		c.hot.Wait(ctx)
	}
	at, ok := c.hot.Find(id)
	if !ok {
		return nil
	}
	data, err := c.once(ctx, id, &at)
	if err != nil {
		if ctx.Err() == nil {
			c.repo.repo.Logger.Info("access profile", "err", err)
		}
		return nil
	}
	return data
}

// onDisk reports whether the disk cache has a chunk's frame.
func (c *chunkReader) onDisk(loc *chunk.Location) bool {
	s, ok := c.store.(*remote.CachedStore)
	return ok && s.Missing(repo.PackName(loc.Pack), int64(loc.Frame.Offset), int64(loc.Frame.Stored)) == 0
}

// at gives a chunk from there. What is wrong is fetched once more: the disk, or
// a server on the way, may have spoiled it.
func (c *chunkReader) at(ctx context.Context, id chunk.ID, loc *chunk.Location) ([]byte, error) {
	data, err := c.once(ctx, id, loc)
	if !errors.Is(repo.Integrity(err), snapshot.ErrIntegrity) {
		return data, err
	}
	c.repo.repo.Logger.Warn("wrong bytes, fetching again", "err", err)
	c.drop(loc)
	return c.once(ctx, id, loc)
}

// once gives a chunk from there, from the cache or not.
func (c *chunkReader) once(ctx context.Context, id chunk.ID, loc *chunk.Location) ([]byte, error) {
	f, err := c.frame(ctx, loc.Pack, loc.Frame)
	if err != nil {
		return nil, err
	}
	data, err := f.chunk(c.repo.repo.Hasher, id, loc)
	if err != nil {
		return nil, fmt.Errorf("%w: pack %v at %d: %w", snapshot.ErrIntegrity, loc.Pack, loc.Frame.Offset, err)
	}
	return data, nil
}

// chunk gives a chunk of the frame. Whoever asks while it is being hashed waits
// rather than hash it too.
func (f *plainFrame) chunk(h *chunk.Hasher, id chunk.ID, loc *chunk.Location) ([]byte, error) {
	if uint64(loc.Offset)+uint64(loc.Length) > uint64(len(f.raw)) {
		return nil, errors.New("a chunk lies outside of its frame")
	}
	data := f.raw[loc.Offset : loc.Offset+loc.Length : loc.Offset+loc.Length]
	f.mu.Lock()
	defer f.mu.Unlock()
	if at, ok := f.checked[id]; ok && at == loc.Offset {
		return data, nil
	}
	if h.Sum(data) != id {
		return nil, errors.New("the bytes of a chunk are not what they were")
	}
	f.checked[id] = loc.Offset
	return data, nil
}

// frame gives a decoded frame.
func (c *chunkReader) frame(ctx context.Context, pack chunk.PackID, at chunk.Frame) (*plainFrame, error) {
	key := access.FrameKey{Pack: pack, Offset: at.Offset}
	if f := c.cached(key); f != nil {
		return f, nil
	}
	return c.await(ctx, key, at)
}

// await gives a frame that is not there, fetched once for all who wait.
func (c *chunkReader) await(ctx context.Context, key access.FrameKey, at chunk.Frame) (*plainFrame, error) {
	ch := c.fetch.DoChan(fmt.Sprintf("%s%08x", key.Pack[:], at.Offset), func() (any, error) {
		if f := c.cached(key); f != nil {
			return f, nil // since the look above
		}
		f, err := c.load(key.Pack, at)
		if err == nil {
			c.keep(key, f)
		}
		return f, err
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r := <-ch:
		return r.Val.(*plainFrame), r.Err
	}
}

func (c *chunkReader) cached(key access.FrameKey) *plainFrame {
	c.mu.Lock()
	defer c.mu.Unlock()
	f, _ := c.frames.Get(key)
	return f
}

func (c *chunkReader) keep(key access.FrameKey, f *plainFrame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frames.Add(key, f)
	for c.size += len(f.raw) + frameOverhead; c.size > c.limit && c.frames.Len() > 1; {
		_, old, _ := c.frames.RemoveOldest()
		c.size -= len(old.raw) + frameOverhead
	}
}

// drop forgets the frame of a location, here and on the disk.
func (c *chunkReader) drop(loc *chunk.Location) {
	c.mu.Lock()
	key := access.FrameKey{Pack: loc.Pack, Offset: loc.Frame.Offset}
	if f, ok := c.frames.Peek(key); ok {
		c.frames.Remove(key)
		c.size -= len(f.raw) + frameOverhead
	}
	c.mu.Unlock()
	if s, ok := c.store.(invalidator); ok {
		s.Invalidate(repo.PackName(loc.Pack), int64(loc.Frame.Offset), int64(loc.Frame.Stored))
	}
}

// load fetches and decodes a frame.
func (c *chunkReader) load(pack chunk.PackID, at chunk.Frame) (*plainFrame, error) {
	stored := c.buffer(at)
	object, base := c.hot.Place(pack)
	if err := c.store.ReadAt(c.ctx, object, base+int64(at.Offset), stored); err != nil {
		return nil, err
	}
	c.decoded.Add(1)
	raw, err := c.repo.repo.Codec.Decode(nil, stored, int(at.Raw))
	if err != nil {
		return nil, fmt.Errorf("%w: pack %v at %d: %w", snapshot.ErrIntegrity, pack, at.Offset, err)
	}
	if at.Stored < at.Raw { // else they are the same bytes
		c.buffers.Put(&stored)
	}
	return &plainFrame{raw: raw, checked: map[chunk.ID]uint32{}}, nil
}

// buffer gives room for a stored frame: one that load gave back, if it is
// compressed.
func (c *chunkReader) buffer(at chunk.Frame) []byte {
	if at.Stored >= at.Raw {
		return make([]byte, at.Stored)
	}
	if b, ok := c.buffers.Get().(*[]byte); ok && cap(*b) >= int(at.Stored) {
		return (*b)[:at.Stored]
	}
	return make([]byte, at.Stored, max(int(at.Stored), usualStored))
}

// usualStored is what most frames of 1 MiB are stored in.
const usualStored = 512 << 10

// relocated gives a chunk whose pack has gone.
func (c *chunkReader) relocated(ctx context.Context, x *manifest.Extent) ([]byte, error) {
	if c.synced.Load() {
		if ix, err := c.repo.repo.OpenIndex(); err == nil {
			if loc, ok := ix.Lookup(x.ID); ok && loc.Pack != x.Pack {
				if data, err := c.at(ctx, x.ID, &loc); !errors.Is(err, remote.ErrNotExist) {
					return data, err
				}
			}
		}
	}
	loc, err := c.repo.repo.Relocate(ctx, x.ID, x.Pack)
	if err != nil {
		return nil, err
	}
	c.synced.Store(true)
	return c.at(ctx, x.ID, &loc)
}

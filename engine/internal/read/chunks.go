// Package read gets chunks and tree pages back from packs: decoded, verified, and fetched
// once however many ask for them.
package read

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/lru"
	"github.com/snapctl/snapctl/engine/internal/access"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/diskcache"
	"golang.org/x/sync/singleflight"
)

// Chunks gives chunks by where they lie. It keeps decoded frames, within a
// bound, since a reader of one chunk soon wants its neighbours: a frame is
// fetched and decoded once while it is kept, however many ask for it at once,
// and each of its chunks is hashed once. It is safe for parallel use.
type Chunks struct {
	Repo  *repo.Repo
	Store remote.Store // with a disk cache before it, if that is of use
	// ctx is that of fetches: they are everybody's, and go on when the reader
	// who caused one goes away.
	ctx   context.Context
	fetch singleflight.Group

	Mu     sync.Mutex
	frames *lru.Cache[access.FrameKey, *PlainFrame]
	Size   int // bytes of the frames
	Limit  int

	buffers sync.Pool // of *[]byte

	// synced is set when the index was brought up to date, to find what lay in
	// a pack that has gone: the next chunk of that pack then takes no listing.
	synced  atomic.Bool
	Decoded atomic.Int64

	Hot *access.HotSet   // where copies may be that come sooner; nil for none
	Rec *access.Recorder // told of what is asked for; nil for nobody
}

// PlainFrame is a decoded frame. Its bytes never change.
type PlainFrame struct {
	raw []byte

	mu      sync.Mutex
	checked map[chunk.ID]uint32 // chunks whose bytes are theirs, by offset
}

// frameOverhead is what a frame takes beside its bytes: a table of its chunks.
const frameOverhead = 4 << 10

// Memory is how many bytes of decoded frames are kept where nothing speaks for
// another number. A dump of app-v1 takes 106 MB with it and 160 MB with twice as
// much, and the same time.
const Memory = 32 << 20

// New makes a reader of chunks that keeps up to limit bytes of decoded frames.
func New(ctx context.Context, r *repo.Repo, store remote.Store, limit int) *Chunks {
	return &Chunks{Repo: r, Store: store, ctx: ctx, frames: lru.New[access.FrameKey, *PlainFrame](math.MaxInt), Limit: limit}
}

// Invalidator is a store that keeps what it fetched, and can be told that it is
// wrong.
type Invalidator interface {
	Invalidate(name string, offset, length int64)
}

// Chunk gives the bytes of an extent's chunk, which match its id. They are not
// changed as long as somebody has them.
func (c *Chunks) Chunk(ctx context.Context, x *manifest.Extent) ([]byte, error) {
	if c.Rec != nil {
		c.Rec.Note(x.ID, &x.Location, false)
	}
	if data := c.Copied(ctx, x.ID, &x.Location); data != nil {
		return data, nil
	}
	data, err := c.At(ctx, x.ID, &x.Location)
	if errors.Is(err, remote.ErrNotExist) {
		data, err = c.relocated(ctx, x)
	}
	if err != nil {
		return nil, fmt.Errorf("chunk %v: %w", x.ID, repo.Integrity(err))
	}
	return data, nil
}

// Copied gives a chunk from a bundle, if that is the better place to have it from;
// else nil. What is here need not wait for bundles, and a bundle that is wrong or
// gone is no reason to fail.
func (c *Chunks) Copied(ctx context.Context, id chunk.ID, loc *chunk.Location) []byte {
	if c.Hot == nil || c.cached(access.FrameKey{Pack: loc.Pack, Offset: loc.Frame.Offset}) != nil {
		return nil
	}
	if !c.Hot.Settled() && !c.onDisk(loc) {
		c.Hot.Wait(ctx)
	}
	at, ok := c.Hot.Find(id)
	if !ok {
		return nil
	}
	data, err := c.once(ctx, id, &at)
	if err != nil {
		if ctx.Err() == nil {
			c.Repo.Logger.Info("access profile", "err", err)
		}
		return nil
	}
	return data
}

// onDisk reports whether the disk cache has a chunk's frame.
func (c *Chunks) onDisk(loc *chunk.Location) bool {
	s, ok := c.Store.(*diskcache.Store)
	return ok && s.Missing(repo.PackName(loc.Pack), int64(loc.Frame.Offset), int64(loc.Frame.Stored)) == 0
}

// At gives a chunk from there. What is wrong is fetched once more: the disk, or
// a server on the way, may have spoiled it.
func (c *Chunks) At(ctx context.Context, id chunk.ID, loc *chunk.Location) ([]byte, error) {
	data, err := c.once(ctx, id, loc)
	if !errors.Is(repo.Integrity(err), snapshot.ErrIntegrity) {
		return data, err
	}
	c.Repo.Logger.Warn("wrong bytes, fetching again", "err", err)
	c.drop(loc)
	return c.once(ctx, id, loc)
}

// once gives a chunk from there, from the cache or not.
func (c *Chunks) once(ctx context.Context, id chunk.ID, loc *chunk.Location) ([]byte, error) {
	f, err := c.frame(ctx, loc.Pack, loc.Frame)
	if err != nil {
		return nil, err
	}
	data, err := f.chunk(c.Repo.Hasher, id, loc)
	if err != nil {
		return nil, fmt.Errorf("%w: pack %v at %d: %w", snapshot.ErrIntegrity, loc.Pack, loc.Frame.Offset, err)
	}
	return data, nil
}

// chunk gives a chunk of the frame. Whoever asks while it is being hashed waits
// rather than hash it too.
func (f *PlainFrame) chunk(h *chunk.Hasher, id chunk.ID, loc *chunk.Location) ([]byte, error) {
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
func (c *Chunks) frame(ctx context.Context, pack chunk.PackID, at chunk.Frame) (*PlainFrame, error) {
	key := access.FrameKey{Pack: pack, Offset: at.Offset}
	if f := c.cached(key); f != nil {
		return f, nil
	}
	return c.await(ctx, key, at)
}

// await gives a frame that is not there, fetched once for all who wait.
func (c *Chunks) await(ctx context.Context, key access.FrameKey, at chunk.Frame) (*PlainFrame, error) {
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
		return r.Val.(*PlainFrame), r.Err
	}
}

func (c *Chunks) cached(key access.FrameKey) *PlainFrame {
	c.Mu.Lock()
	defer c.Mu.Unlock()
	f, _ := c.frames.Get(key)
	return f
}

func (c *Chunks) keep(key access.FrameKey, f *PlainFrame) {
	c.Mu.Lock()
	defer c.Mu.Unlock()
	c.frames.Add(key, f)
	for c.Size += len(f.raw) + frameOverhead; c.Size > c.Limit && c.frames.Len() > 1; {
		_, old, _ := c.frames.RemoveOldest()
		c.Size -= len(old.raw) + frameOverhead
	}
}

// drop forgets the frame of a location, here and on the disk.
func (c *Chunks) drop(loc *chunk.Location) {
	c.Mu.Lock()
	key := access.FrameKey{Pack: loc.Pack, Offset: loc.Frame.Offset}
	if f, ok := c.frames.Peek(key); ok {
		c.frames.Remove(key)
		c.Size -= len(f.raw) + frameOverhead
	}
	c.Mu.Unlock()
	if s, ok := c.Store.(Invalidator); ok {
		s.Invalidate(repo.PackName(loc.Pack), int64(loc.Frame.Offset), int64(loc.Frame.Stored))
	}
}

// load fetches and decodes a frame.
func (c *Chunks) load(pack chunk.PackID, at chunk.Frame) (*PlainFrame, error) {
	stored := c.buffer(at)
	object, base := c.Hot.Place(pack)
	if err := c.Store.ReadAt(c.ctx, object, base+int64(at.Offset), stored); err != nil {
		return nil, err
	}
	c.Decoded.Add(1)
	raw, err := c.Repo.Codec.Decode(nil, stored, int(at.Raw))
	if err != nil {
		return nil, fmt.Errorf("%w: pack %v at %d: %w", snapshot.ErrIntegrity, pack, at.Offset, err)
	}
	if at.Stored < at.Raw { // else they are the same bytes
		c.buffers.Put(&stored)
	}
	return &PlainFrame{raw: raw, checked: map[chunk.ID]uint32{}}, nil
}

// buffer gives room for a stored frame: one that load gave back, if it is
// compressed.
func (c *Chunks) buffer(at chunk.Frame) []byte {
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
func (c *Chunks) relocated(ctx context.Context, x *manifest.Extent) ([]byte, error) {
	if c.synced.Load() {
		if ix, err := c.Repo.OpenIndex(); err == nil {
			if loc, ok := ix.Lookup(x.ID); ok && loc.Pack != x.Pack {
				if data, err := c.At(ctx, x.ID, &loc); !errors.Is(err, remote.ErrNotExist) {
					return data, err
				}
			}
		}
	}
	loc, err := c.Repo.Relocate(ctx, x.ID, x.Pack)
	if err != nil {
		return nil, err
	}
	c.synced.Store(true)
	return c.At(ctx, x.ID, &loc)
}

// RemoteFetches is how many requests to a store far away are under way at once, at least.
const RemoteFetches = 8 // requests at once

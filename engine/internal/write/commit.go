package write

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/index"
)

// When packs that have landed are put into an index segment before the end, so
// that a run that is killed has lost no more than this.
const (
	segmentEvery  = 5 * time.Second
	segmentPacks  = 32
	segmentChunks = 128 << 10
)

// committer makes what has landed known: to other machines by index segments,
// to this run and the next by the local index.
type committer struct {
	repo  *repo.Repo
	up    *Uploader
	guard *Guard
	// ready waits for the listing of segments and, if there are any, for the index
	// to have them.
	ready   func() error
	listing sync.WaitGroup

	ix   atomic.Pointer[index.Index] // set when it has something to say
	Fail atomic.Pointer[error]

	flushing sync.Mutex
	last     time.Duration     // by Repository.uptime
	segments []index.SegmentID // of the repository, this run's included
}

// start lists the segments in the background, until ctx ends. The index is opened
// by the first lookup, if there is any segment.
func (c *committer) start(ctx context.Context) {
	type listing struct {
		ids []index.SegmentID
		err error
	}
	listed := make(chan listing, 1)
	c.listing.Go(func() {
		ids, err := c.repo.ListSegments(ctx)
		listed <- listing{ids, err}
	})
	c.ready = sync.OnceValue(func() error {
		l := <-listed
		if l.err != nil || len(l.ids) == 0 {
			return l.err
		}
		c.flushing.Lock()
		c.segments = append(c.segments, l.ids...)
		c.flushing.Unlock()
		// What is doomed is excluded before packs come that hold the same.
		ix, err := c.repo.OpenIndex()
		if err != nil {
			return err
		}
		if err := c.guard.Ready(ctx); err != nil {
			return err
		}
		c.guard.tell(ix.Exclude)
		if ix, err = c.repo.SyncIndex(ctx, l.ids); err == nil {
			c.ix.Store(ix)
		}
		return err
	})
}

// Lookup tells where the repository has a chunk. If that cannot be known, err
// says why, and the run ends: a listing that failed is not an empty listing.
func (c *committer) Lookup(id chunk.ID) (chunk.Location, bool) {
	if err := c.ready(); err != nil {
		c.Fail.CompareAndSwap(nil, &err)
		return chunk.Location{}, false
	}
	ix := c.ix.Load()
	if ix == nil {
		return chunk.Location{}, false
	}
	loc, ok := ix.Lookup(id)
	if ok {
		c.guard.Present(ByIndex, repo.SizedPack{Id: loc.Pack, Size: ix.PackSize(loc.Pack)})
	}
	return loc, ok
}

// SawDamage makes the index blind to the pack that an error is about, if it says
// so: what it is known to hold is stored again.
func (c *committer) SawDamage(err error) {
	var d *repo.DamagedPack
	if !errors.As(err, &d) {
		return
	}
	ix, openErr := c.repo.OpenIndex()
	if openErr != nil {
		c.Fail.CompareAndSwap(nil, &openErr)
		return
	}
	ix.Exclude([]chunk.PackID{d.Pack})
}

// Err is why lookup cannot answer.
func (c *committer) Err() error {
	if err := c.Fail.Load(); err != nil {
		return *err
	}
	return nil
}

// flushSome writes a segment when enough has landed, or enough time has passed.
func (c *committer) flushSome(ctx context.Context) error {
	if !c.flushing.TryLock() {
		return nil
	}
	defer c.flushing.Unlock()
	packs, chunks := c.up.waiting()
	if packs == 0 || packs < segmentPacks && chunks < segmentChunks && c.repo.Uptime()-c.last < segmentEvery {
		return nil
	}
	c.last = c.repo.Uptime()
	return c.flush(ctx)
}

// learn brings the local index in line with all segments, those of this run
// included, so that lookup finds their chunks.
func (c *committer) learn(ctx context.Context) error {
	if err := c.ready(); err != nil {
		return err
	}
	c.flushing.Lock()
	defer c.flushing.Unlock()
	if err := c.flush(ctx); err != nil {
		return err
	}
	ix, err := c.repo.SyncIndex(ctx, c.segments)
	if err == nil {
		c.ix.Store(ix)
	}
	return err
}

// flushAll writes what is left. The local index learns it when it is next
// needed, from the copy that the cache keeps: that is not for this run to wait for.
func (c *committer) flushAll(ctx context.Context) error {
	c.flushing.Lock()
	defer c.flushing.Unlock()
	return c.flush(ctx)
}

// flush writes segments of what has landed.
func (c *committer) flush(ctx context.Context) error {
	packs := c.up.Take()
	for len(packs) > 0 {
		s, chunks := &index.Segment{}, 0
		for len(packs) > 0 && (len(s.Packs) == 0 || chunks+ChunksIn(packs[0]) <= 2*segmentChunks) {
			chunks += ChunksIn(packs[0])
			s.Packs = append(s.Packs, packs[0])
			packs = packs[1:]
		}
		id, err := c.repo.PutSegment(ctx, s)
		if err != nil {
			c.up.giveBack(append(s.Packs, packs...))
			return err
		}
		c.segments = append(c.segments, id)
	}
	return nil
}

// rescue makes what an interrupted create uploaded known to the next.
func (c *committer) rescue(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.repo.Patience.Rescue)
	defer cancel()
	if err := c.flushAll(ctx); err != nil {
		c.repo.Logger.Info("what was uploaded is not in the index", "err", err)
	}
}

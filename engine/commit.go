package engine

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapctl/snapctl/chunk"
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
	repo *Repository
	up   *uploader
	once func() error // waits for the repository's segments, if there are any

	ix      atomic.Pointer[index.Index] // set when it has something to say
	fail    atomic.Pointer[error]
	damaged atomic.Bool // avoid is not empty

	flushing sync.Mutex
	last     time.Time

	mu    sync.Mutex
	avoid map[chunk.PackID]bool // packs that were found damaged
	done  []chunk.ID            // chunks that the index has learnt, for the assembler to forget
}

// start lists the segments in the background. The index is opened by the first
// lookup, if there is any segment.
func (c *committer) start(ctx context.Context) {
	type listing struct {
		ids []index.SegmentID
		err error
	}
	listed := make(chan listing, 1)
	go func() {
		ids, err := c.repo.listSegments(ctx)
		listed <- listing{ids, err}
	}()
	c.once = sync.OnceValue(func() error {
		l := <-listed
		if l.err != nil || len(l.ids) == 0 {
			return l.err
		}
		ix, err := c.repo.syncIndex(ctx, l.ids)
		if err == nil {
			c.ix.Store(ix)
		}
		return err
	})
}

// lookup tells where the repository has a chunk. If that cannot be known, err
// says why, and the run ends: a listing that failed is not an empty listing.
func (c *committer) lookup(id chunk.ID) (chunk.Location, bool) {
	if err := c.once(); err != nil {
		c.fail.CompareAndSwap(nil, &err)
		return chunk.Location{}, false
	}
	ix := c.ix.Load()
	if ix == nil {
		return chunk.Location{}, false
	}
	loc, ok := ix.Lookup(id)
	if ok && c.damaged.Load() {
		c.mu.Lock()
		defer c.mu.Unlock()
		ok = !c.avoid[loc.Pack]
	}
	return loc, ok
}

// sawDamage makes lookup blind to the pack that an error is about, if it says so:
// what it is known to hold is stored again.
func (c *committer) sawDamage(err error) {
	var d *damagedPack
	if !errors.As(err, &d) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.avoid == nil {
		c.avoid = map[chunk.PackID]bool{}
	}
	c.avoid[d.pack] = true
	c.damaged.Store(true)
}

// err is why lookup cannot answer.
func (c *committer) err() error {
	if err := c.fail.Load(); err != nil {
		return *err
	}
	return nil
}

// committed gives the chunks that lookup has come to find since it was called last.
func (c *committer) committed() []chunk.ID {
	c.mu.Lock()
	defer c.mu.Unlock()
	done := c.done
	c.done = nil
	return done
}

// flushSome writes a segment when enough has landed, or enough time has passed.
func (c *committer) flushSome(ctx context.Context) error {
	if !c.flushing.TryLock() {
		return nil
	}
	defer c.flushing.Unlock()
	packs, chunks := c.up.waiting()
	if packs == 0 || packs < segmentPacks && chunks < segmentChunks && time.Since(c.last) < segmentEvery {
		return nil
	}
	c.last = time.Now()
	return c.flush(ctx, func(id index.SegmentID, s *index.Segment) error {
		ix, err := c.repo.openIndex()
		if err == nil {
			err = ix.Commit(id, s)
		}
		if err != nil {
			c.repo.log.Info("the index did not learn a segment", "err", err)
			return nil
		}
		c.ix.Store(ix)
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, p := range s.Packs {
			for _, f := range p.Index.Frames {
				for _, x := range f.Chunks {
					c.done = append(c.done, x.ID)
				}
			}
		}
		return nil
	})
}

// flushAll writes what is left. The local index learns it when it is next
// needed, from the copy that the cache keeps: that is not for this run to wait for.
func (c *committer) flushAll(ctx context.Context) error {
	c.flushing.Lock()
	defer c.flushing.Unlock()
	return c.flush(ctx, func(index.SegmentID, *index.Segment) error { return nil })
}

// flush writes segments of what has landed.
func (c *committer) flush(ctx context.Context, then func(index.SegmentID, *index.Segment) error) error {
	packs := c.up.take()
	for len(packs) > 0 {
		s, chunks := &index.Segment{}, 0
		for len(packs) > 0 && (len(s.Packs) == 0 || chunks+chunksIn(packs[0]) <= 2*segmentChunks) {
			chunks += chunksIn(packs[0])
			s.Packs = append(s.Packs, packs[0])
			packs = packs[1:]
		}
		id, err := c.repo.putSegment(ctx, s)
		if err != nil {
			return err
		}
		if err := then(id, s); err != nil {
			return err
		}
	}
	return nil
}

// rescueTime is how long an interrupted create takes to write down what it has
// uploaded.
const rescueTime = 700 * time.Millisecond

// rescue makes what an interrupted create uploaded known to the next.
func (c *committer) rescue(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rescueTime)
	defer cancel()
	if err := c.flushAll(ctx); err != nil {
		c.repo.log.Info("what was uploaded is not in the index", "err", err)
	}
}

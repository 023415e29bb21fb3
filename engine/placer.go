package engine

import (
	"context"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/manifest"
)

// placer puts chunks that the repository does not have into frames, and knows those
// that it has put there. It is not safe for parallel use.
type placer struct {
	w      *writer
	framer framer
	// pending are the chunks of this run that the index does not have yet.
	pending      map[chunk.ID]placed
	pendingLimit int
	newBytes     uint64
}

// placed is a chunk's place in a frame.
type placed struct {
	frame  *frame
	offset uint32
}

// maxPending is how many chunks of a run are known by memory alone, about 80 bytes
// each. More are left to the index, which is slower and takes memory of its own.
const maxPending = 1 << 20

func newPlacer(w *writer, p *packer) placer {
	return placer{w: w, framer: framer{pack: p}, pending: map[chunk.ID]placed{}, pendingLimit: maxPending}
}

// put finds or makes the place of a chunk that the index does not have.
func (p *placer) put(ctx context.Context, l lane, id chunk.ID, data []byte) (*frame, uint32, error) {
	if at, ok := p.pending[id]; ok {
		return at.frame, at.offset, nil
	}
	f, off, err := p.framer.add(ctx, l, id, data)
	if err != nil {
		return nil, 0, err
	}
	p.pending[id] = placed{f, off}
	p.newBytes += uint64(len(data))
	p.w.meter.AddNew(int64(len(data)))
	return f, off, nil
}

// forgetPending has the index learn what has landed and forgets it, if it is much.
func (p *placer) forgetPending(ctx context.Context) error {
	if len(p.pending) <= p.pendingLimit {
		return nil
	}
	if err := p.w.commit.learn(ctx); err != nil {
		return err
	}
	for id, at := range p.pending {
		if _, ok := p.w.commit.lookup(id); ok && at.frame.settled() {
			delete(p.pending, id)
		}
	}
	p.pendingLimit = len(p.pending) + maxPending // what has not landed stays
	return nil
}

// sealOpen closes the pack at hand, so that all chunks get their places.
func (p *placer) sealOpen(ctx context.Context) error {
	if err := p.framer.flush(ctx); err != nil {
		return err
	}
	return p.framer.pack.seal(ctx)
}

// noMore says that no chunk will come.
func (p *placer) noMore(ctx context.Context) error {
	if err := p.framer.flush(ctx); err != nil {
		return err
	}
	p.framer.pack.finish()
	return nil
}

// maxQueue is how many entries wait for the place of some chunk: behind one new
// file nothing else may be new, and its pack fills slowly.
const maxQueue = 32 << 10

// fileExtents are the extents of a file on its way into the tree, and the frames of
// those that lie in one that has no place yet.
type fileExtents struct {
	extents []manifest.Extent
	frames  []*frame
	placed  int // of frames: those before have been looked at
}

// add appends an extent; f, if not nil, is the frame in which it lies.
func (x *fileExtents) add(e manifest.Extent, f *frame) {
	if f != nil && f.settled() {
		e.Pack, e.Frame, f = f.pack, f.at, nil
	}
	x.extents = append(x.extents, e)
	if f != nil || x.frames != nil {
		for len(x.frames) < len(x.extents)-1 {
			x.frames = append(x.frames, nil)
		}
		x.frames = append(x.frames, f)
	}
}

// settle gives all extents their places; false if some frame has none yet. With wait,
// it waits for them.
func (x *fileExtents) settle(ctx context.Context, wait bool) (bool, error) {
	for ; x.placed < len(x.frames); x.placed++ {
		f := x.frames[x.placed]
		if f == nil {
			continue
		}
		if !f.settled() {
			if !wait {
				return false, nil
			}
			select {
			case <-f.sealed:
			case <-ctx.Done():
				return false, ctx.Err()
			}
		}
		e := &x.extents[x.placed]
		e.Pack, e.Frame = f.pack, f.at
		x.frames[x.placed] = nil
	}
	return true, nil
}

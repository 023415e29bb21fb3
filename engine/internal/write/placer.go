package write

import (
	"context"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/manifest"
)

// Placer puts chunks that the repository does not have into frames, and knows those
// that it has put there. It is not safe for parallel use.
type Placer struct {
	w      *Writer
	framer Framer
	// Pending are the chunks of this run that the index does not have yet.
	Pending      map[chunk.ID]Placed
	pendingLimit int
	NewBytes     uint64
}

// Placed is a chunk's place in a frame.
type Placed struct {
	Frame  *Frame
	Offset uint32
}

// MaxPending is how many chunks of a run are known by memory alone, about 80 bytes
// each. More are left to the index, which is slower and takes memory of its own.
const MaxPending = 1 << 20

// NewPlacer makes a placer of chunks into the packs of p.
func NewPlacer(w *Writer, p *packer) Placer {
	return Placer{w: w, framer: Framer{Pack: p}, Pending: map[chunk.ID]Placed{}, pendingLimit: MaxPending}
}

// Put finds or makes the place of a chunk that the index does not have.
func (p *Placer) Put(ctx context.Context, l Lane, id chunk.ID, data []byte) (*Frame, uint32, error) {
	if at, ok := p.Pending[id]; ok {
		return at.Frame, at.Offset, nil
	}
	f, off, err := p.framer.Add(ctx, l, id, data)
	if err != nil {
		return nil, 0, err
	}
	p.Pending[id] = Placed{f, off}
	p.NewBytes += uint64(len(data))
	p.w.Meter.AddNew(int64(len(data)))
	return f, off, nil
}

// ForgetPending has the index learn what has landed and forgets it, if it is much.
func (p *Placer) ForgetPending(ctx context.Context) error {
	if len(p.Pending) <= p.pendingLimit {
		return nil
	}
	if err := p.w.Commit.learn(ctx); err != nil {
		return err
	}
	for id, at := range p.Pending {
		if _, ok := p.w.Commit.Lookup(id); ok && at.Frame.settled() {
			delete(p.Pending, id)
		}
	}
	p.pendingLimit = len(p.Pending) + MaxPending // what has not landed stays
	return nil
}

// SealOpen closes the pack at hand, so that all chunks get their places.
func (p *Placer) SealOpen(ctx context.Context) error {
	if err := p.framer.Flush(ctx); err != nil {
		return err
	}
	return p.framer.Pack.seal(ctx)
}

// NoMore says that no chunk will come.
func (p *Placer) NoMore(ctx context.Context) error {
	if err := p.framer.Flush(ctx); err != nil {
		return err
	}
	p.framer.Pack.Finish()
	return nil
}

// MaxQueue is how many entries wait for the place of some chunk: behind one new
// file nothing else may be new, and its pack fills slowly.
const MaxQueue = 32 << 10

// FileExtents are the extents of a file on its way into the tree, and the frames of
// those that lie in one that has no place yet.
type FileExtents struct {
	Extents []manifest.Extent
	frames  []*Frame
	placed  int // of frames: those before have been looked at
}

// Add appends an extent; f, if not nil, is the frame in which it lies.
func (x *FileExtents) Add(e manifest.Extent, f *Frame) {
	if f != nil && f.settled() {
		e.Pack, e.Frame, f = f.Pack, f.At, nil
	}
	x.Extents = append(x.Extents, e)
	if f != nil || x.frames != nil {
		for len(x.frames) < len(x.Extents)-1 {
			x.frames = append(x.frames, nil)
		}
		x.frames = append(x.frames, f)
	}
}

// Settle gives all extents their places; false if some frame has none yet. With wait,
// it waits for them.
func (x *FileExtents) Settle(ctx context.Context, wait bool) (bool, error) {
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
		e := &x.Extents[x.placed]
		e.Pack, e.Frame = f.Pack, f.At
		x.frames[x.placed] = nil
	}
	return true, nil
}

package write

import (
	"context"

	"github.com/snapctl/snapctl/index"
)

// SegmentFull is how many chunks a segment is filled up with: some 4 MiB.
const SegmentFull = 128 << 10

// SegmentFiller puts packs into few segments.
type SegmentFiller struct {
	Put    func(context.Context, *index.Segment) error
	open   index.Segment
	chunks int
}

// Add adds a pack, and puts the segment before if that has no room for it.
func (w *SegmentFiller) Add(ctx context.Context, p *index.Pack) error {
	n := ChunksIn(*p)
	if len(w.open.Packs) > 0 && w.chunks+n > SegmentFull {
		if err := w.Flush(ctx); err != nil {
			return err
		}
	}
	w.open.Packs = append(w.open.Packs, *p)
	w.chunks += n
	return nil
}

// Flush puts what was added.
func (w *SegmentFiller) Flush(ctx context.Context) error {
	s := w.open
	w.open, w.chunks = index.Segment{}, 0
	if len(s.Packs) == 0 {
		return nil
	}
	return w.Put(ctx, &s)
}

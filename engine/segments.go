package engine

import (
	"context"

	"github.com/snapctl/snapctl/index"
)

// segmentFull is how many chunks a segment is filled up with: some 4 MiB.
const segmentFull = 128 << 10

// segmentFiller puts packs into few segments.
type segmentFiller struct {
	put    func(context.Context, *index.Segment) error
	open   index.Segment
	chunks int
}

// add adds a pack, and puts the segment before if that has no room for it.
func (w *segmentFiller) add(ctx context.Context, p *index.Pack) error {
	n := chunksIn(*p)
	if len(w.open.Packs) > 0 && w.chunks+n > segmentFull {
		if err := w.flush(ctx); err != nil {
			return err
		}
	}
	w.open.Packs = append(w.open.Packs, *p)
	w.chunks += n
	return nil
}

// flush puts what was added.
func (w *segmentFiller) flush(ctx context.Context) error {
	s := w.open
	w.open, w.chunks = index.Segment{}, 0
	if len(s.Packs) == 0 {
		return nil
	}
	return w.put(ctx, &s)
}

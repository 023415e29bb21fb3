package check

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/remote"
)

// rebuildIndex makes segments of the packs that are whole and that no good segment
// lists, and of those that this run has put.
func (x *repairer) rebuildIndex(ctx context.Context) error {
	w := &write.SegmentFiller{Put: x.putSegment}
	list := func(p *index.Pack) error {
		if x.guard.Refuses(p.ID) {
			return nil
		}
		x.report.Indexed++
		return w.Add(ctx, p)
	}
	good := map[chunk.PackID]bool{}
	var replaced []segmentFacts
	for _, s := range x.segments {
		if x.misleads(&s) {
			replaced = append(replaced, s)
			continue
		}
		for id := range s.sizes {
			good[id] = true
		}
	}
	x.report.BadSegments = slices.Clone(x.badSegments)
	for i := range replaced {
		name := repo.SegmentPrefix + replaced[i].id.String()
		s, err := x.repo.Segment(ctx, replaced[i].id)
		if errors.Is(err, remote.ErrNotExist) {
			continue // compacted meanwhile
		}
		if err != nil {
			return fmt.Errorf("object %s: %w", name, err)
		}
		x.report.BadSegments = append(x.report.BadSegments, name)
		for j := range s.Packs {
			p := &s.Packs[j]
			if facts := x.pack(p.ID); good[p.ID] || facts.missing() || x.suspected(facts) {
				continue
			}
			good[p.ID] = true
			if err := list(p); err != nil {
				return err
			}
		}
	}
	slices.Sort(x.report.BadSegments)
	// In the order of names: the packs that no segment lists.
	var unlisted []*packFacts
	for id, p := range x.packs {
		if !good[id] && !p.missing() && !x.bad[id] {
			unlisted = append(unlisted, p)
		}
	}
	slices.SortFunc(unlisted, func(a, b *packFacts) int { return comparePacks(a.id, b.id) })
	for _, p := range unlisted {
		tail, err := x.repo.PackIndex(ctx, p.id, p.size)
		switch {
		case err == nil:
			if err := list(&index.Pack{ID: p.id, Size: p.size, Index: tail}); err != nil {
				return err
			}
		case !repo.Damaged(ctx, err):
			return err
		case !errors.Is(err, remote.ErrNotExist):
			// Nothing refers to it, or it would be suspected.
			x.found(snapshot.Finding{Object: repo.PackName(p.id), Problem: repo.Integrity(err)})
		}
	}
	for i := range x.fresh {
		if err := w.Add(ctx, &x.fresh[i]); err != nil {
			return err
		}
	}
	return w.Flush(ctx)
}

// misleads reports whether whoever goes by a segment may be led to what is not there.
func (x *repairer) misleads(s *segmentFacts) bool {
	for id := range s.sizes {
		if p := x.pack(id); p.missing() || x.suspected(p) {
			return true
		}
	}
	return false
}

// putSegment puts a segment, but for the packs of it that are about to be deleted.
func (x *repairer) putSegment(ctx context.Context, s *index.Segment) error {
	if !x.opts.Apply {
		return nil
	}
	if err := x.guard.Refresh(ctx); err != nil {
		return err
	}
	s.Packs = slices.DeleteFunc(s.Packs, func(p index.Pack) bool { return x.guard.Refuses(p.ID) })
	if len(s.Packs) == 0 {
		return nil
	}
	// Never the name of a segment that was, which a collector may be about to delete.
	rand.Read(s.Salt[:]) // never fails
	_, err := x.repo.PutSegment(ctx, s)
	return err
}

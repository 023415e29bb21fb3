package check

import (
	"context"
	"errors"
	"fmt"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/read"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/manifest"
)

// findAffected finds out what each snapshot has lost by the packs that something is
// wrong with: it tries to read all that lies in them, as a reader would.
func (v *checkup) findAffected(ctx context.Context) error {
	a := &affected{checkup: v, lost: map[placeKey]bool{}, chunks: read.New(ctx, v.repo, v.repo.Store, affectedMemory)}
	for _, s := range v.snapshots {
		if s.whole {
			continue
		}
		for _, p := range s.packs {
			if v.suspected(p) {
				if err := a.snapshot(ctx, s); err != nil {
					return err
				}
				break
			}
		}
	}
	return nil
}

// affectedMemory bounds the frames that findAffected keeps.
const affectedMemory = 32 << 20

// affected finds out what is lost.
type affected struct {
	*checkup
	chunks *read.Chunks
	index  *index.Index      // nil until it is needed
	lost   map[placeKey]bool // chunks in suspected packs that were tried

	hits map[*packFacts]*snapshot.Affected // of the snapshot at hand
}

// placeKey is a chunk where it is said to lie.
type placeKey struct {
	id  chunk.ID
	loc chunk.Location
}

func (a *affected) snapshot(ctx context.Context, s *checkedSnapshot) error {
	m, err := a.repo.Manifest(ctx, s.id)
	if errors.Is(err, snapshot.ErrNotFound) {
		return nil // removed meanwhile: it does not matter any more
	}
	if err != nil {
		return err
	}
	tree, err := m.Tree(a.pages)
	if err != nil {
		return err
	}
	a.hits = map[*packFacts]*snapshot.Affected{}
	err = tree.Parts(ctx, func(p manifest.Part) error {
		if p.Level > 0 || !a.suspicious(m, &p) {
			return nil
		}
		leaf, err := tree.ReadLeaf(ctx, &p)
		switch {
		case err == nil:
			return a.leaf(ctx, s, tree, leaf)
		case repo.Damaged(ctx, err):
			a.lostRange(s, &p)
			return nil
		}
		return err
	}, func(p manifest.Part, err error) error {
		if !repo.Damaged(ctx, err) {
			return err
		}
		a.lostRange(s, &p)
		return nil
	})
	if err != nil {
		return err
	}
	if len(a.hits) == 0 {
		return nil
	}
	now := repo.SnapshotOf(&m.Info) // as people know it
	if _, err := a.annotate(ctx, now); err != nil {
		return err
	}
	for p, hit := range a.hits {
		hit.Name = now.Name
		p.affected = append(p.affected, *hit)
	}
	return nil
}

// suspicious reports whether something may be lost with, or in, a leaf.
func (a *affected) suspicious(m *manifest.Manifest, p *manifest.Part) bool {
	facts := a.leaves[leafKey(m, p)]
	if facts == nil || facts.bad || !p.IsRoot() && a.suspected(a.pack(p.Pack)) {
		return true
	}
	for _, u := range facts.use {
		if a.suspected(u.pack) {
			return true
		}
	}
	return false
}

func (a *affected) hit(s *checkedSnapshot, p *packFacts) *snapshot.Affected {
	h := a.hits[p]
	if h == nil {
		h = &snapshot.Affected{ID: s.id, Name: s.name, Dir: s.dir}
		a.hits[p] = h
	}
	return h
}

// lostRange notes that the entries in a page are lost.
func (a *affected) lostRange(s *checkedSnapshot, p *manifest.Part) {
	h := a.hit(s, a.pack(p.Pack))
	h.Ranges = appendRange(h.Ranges, p)
}

// appendRange adds the entries of a page to the ranges that are lost: pages that
// follow each other are one.
func appendRange(all []snapshot.LostRange, p *manifest.Part) []snapshot.LostRange {
	from, before := p.First.Path(), ""
	if p.End != nil {
		before = p.End.Path()
	}
	if n := len(all); n > 0 && all[n-1].Before == from {
		all[n-1].Entries += int64(p.Entries)
		all[n-1].Before = before
		return all
	}
	return append(all, snapshot.LostRange{Entries: int64(p.Entries), From: from, Before: before})
}

// leaf tries to read the files of a leaf, as far as they lie in suspected packs.
func (a *affected) leaf(ctx context.Context, s *checkedSnapshot, tree *manifest.Tree, leaf *manifest.Leaf) error {
	var e manifest.Entry
	for i := range leaf.Len() {
		leaf.Entry(i, &e)
		in, err := a.file(ctx, tree, &e)
		if err != nil {
			return fmt.Errorf("%q: %w", e.Path(), err)
		}
		if in == nil {
			continue
		}
		h := a.hit(s, in)
		h.Files++
		limit := a.opts.MaxFiles
		if limit == 0 {
			limit = maxAffectedFiles
		}
		if limit < 0 || len(h.Paths) < limit {
			h.Paths = append(h.Paths, e.Path())
		}
	}
	return nil
}

// file gives the first pack by which a file cannot be read; nil if it can.
func (a *affected) file(ctx context.Context, tree *manifest.Tree, e *manifest.Entry) (in *packFacts, err error) {
	errLost := errors.New("lost") // ends the walk over extents
	err = tree.Extents(ctx, e, func(_ uint64, x *manifest.Extent) error {
		p := a.pack(x.Pack)
		if !a.suspected(p) {
			return nil
		}
		lost, err := a.chunkLost(ctx, x)
		if lost {
			in = p
			return errLost
		}
		return err
	})
	switch {
	case errors.Is(err, errLost):
		return in, nil
	case err != nil && e.Spill != nil && repo.Damaged(ctx, err): // a page of its extents
		return a.pack(e.Spill.Refs[0].Pack), nil
	}
	return nil, err
}

// chunkLost tries to read a chunk, once for all snapshots.
func (a *affected) chunkLost(ctx context.Context, x *manifest.Extent) (bool, error) {
	key := placeKey{x.ID, x.Location}
	lost, known := a.lost[key]
	if known {
		return lost, nil
	}
	loc := &x.Location
	if a.pack(x.Pack).missing() {
		found, err := a.elsewhere(ctx, x)
		if err != nil {
			return false, err
		}
		loc = found
	}
	lost = loc == nil
	if !lost {
		_, err := a.chunks.At(ctx, x.ID, loc)
		if err != nil && !repo.Damaged(ctx, err) {
			return false, err
		}
		lost = err != nil
	}
	a.lost[key] = lost
	return lost, nil
}

// elsewhere gives another place of a chunk whose pack is missing; nil if there is
// none.
func (a *affected) elsewhere(ctx context.Context, x *manifest.Extent) (*chunk.Location, error) {
	if loc, ok, err := a.repo.MovedTo(ctx, x.Pack, x.ID); ok || err != nil && !repo.Damaged(ctx, err) {
		return &loc, err
	}
	if a.index == nil {
		ids := make([]index.SegmentID, len(a.segments))
		for i := range a.segments {
			ids[i] = a.segments[i].id
		}
		var err error
		if a.index, err = a.repo.SyncIndex(ctx, ids); err != nil {
			return nil, err
		}
	}
	if loc, ok := a.index.Lookup(x.ID); ok && loc.Pack != x.Pack {
		return &loc, nil
	}
	return nil, nil
}

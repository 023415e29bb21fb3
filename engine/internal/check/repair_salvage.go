package check

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/read"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
)

// lostSnapshot is a snapshot that lost something.
type lostSnapshot struct {
	snapshot.RepairedSnapshot
	m     *manifest.Manifest // nil if nothing can be done
	now   *snapshot.Snapshot // as its notes have it
	known bool               // that they could be read
	tree  *manifest.Tree
	fresh *manifest.Manifest // of what is left, to be put
}

// findLost finds the snapshots that lost something, and those of them of which an
// earlier run has made what can be made.
func (x *repairer) findLost(ctx context.Context) error {
	lost := map[manifest.ID]*lostSnapshot{}
	for i := range x.checkup.report.Findings {
		for _, a := range x.checkup.report.Findings[i].Affected {
			if lost[a.ID] == nil {
				s := &lostSnapshot{RepairedSnapshot: snapshot.RepairedSnapshot{ID: a.ID, Name: a.Name, Dir: a.Dir}}
				lost[a.ID] = s
				x.lostOnes = append(x.lostOnes, s)
			}
		}
	}
	slices.SortFunc(x.lostOnes, func(a, b *lostSnapshot) int { return a.ID.Compare(b.ID) })
	x.saved = newSalvage(ctx, x)
	for _, s := range x.lostOnes {
		err := x.open(ctx, s)
		if err != nil && !repo.Damaged(ctx, err) && !errors.Is(err, snapshot.ErrNotFound) {
			return err
		}
		if err != nil {
			s.Nothing, s.Why = true, err
			continue
		}
		for _, other := range x.snapshots {
			if other.parent == s.ID && other.created.Equal(s.m.Created) && lost[other.id] == nil {
				s.New, s.Before, s.m = other.id, true, nil
				break
			}
		}
	}
	return nil
}

// open reads the manifest of a snapshot, or the copy for later, or what a lease has of it.
func (x *repairer) open(ctx context.Context, s *lostSnapshot) (err error) {
	s.m, err = x.repo.Manifest(ctx, s.ID)
	if err != nil && repo.Damaged(ctx, err) {
		m, oerr := x.kept(ctx, s.ID)
		if m == nil && oerr == nil {
			m, oerr = x.leased(ctx, s.ID)
		}
		if m != nil || oerr != nil {
			s.m, err = m, oerr
		}
	}
	if err == nil {
		s.tree, err = s.m.Tree(x.saved)
	}
	if err != nil {
		return err
	}
	s.now = repo.SnapshotOf(&s.m.Info)
	s.known, err = x.annotate(ctx, s.now)
	s.Name, s.Dir = s.now.Name, s.now.Dir
	return err
}

// kept gives a snapshot's manifest from where it lies to outlive its class, nil if it
// is not there.
func (x *repairer) kept(ctx context.Context, id manifest.ID) (*manifest.Manifest, error) {
	b, err := x.repo.Store.Get(ctx, id.KeptName())
	if errors.Is(err, remote.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if m, err := manifest.Decode(x.repo.Codec, b); err == nil && m.ID == id {
		return m, nil
	}
	return nil, nil
}

// leased gives a snapshot's manifest from a lease, nil if none has it.
func (x *repairer) leased(ctx context.Context, id manifest.ID) (m *manifest.Manifest, err error) {
	err = x.repo.Store.List(ctx, write.LeasePrefix+id.String()+"/", func(o remote.Info) error {
		b, err := x.repo.Store.Get(ctx, o.Name)
		if err != nil || m != nil {
			return err
		}
		if l, err := manifest.DecodeLease(b); err == nil {
			if got, err := manifest.Decode(x.repo.Codec, l.Manifest); err == nil && got.ID == id {
				m = got
			}
		}
		return nil
	})
	return m, err
}

// salvage gets chunks out of damaged packs, and finds elsewhere what cannot be got. It
// is a manifest.PageSource that gives what was found.
type salvage struct {
	x      *repairer
	pages  *storePages
	chunks *read.Chunks

	want  map[chunk.ID]bool           // not where they are said to be
	found map[chunk.ID]chunk.Location // of those
	have  map[chunk.ID]savedChunk     // copied; without Apply, that could be
	fine  map[placeKey]bool           // where they are said to be, in packs that are usable
	fr    write.Framer
}

// savedChunk is a chunk that was copied into a frame; without Apply, into none.
type savedChunk struct {
	place  write.Placed
	length uint32
}

func newSalvage(ctx context.Context, x *repairer) *salvage {
	return &salvage{
		x: x, pages: x.checkup.pages, chunks: read.New(ctx, x.repo, x.repo.Store, affectedMemory),
		want: map[chunk.ID]bool{}, found: map[chunk.ID]chunk.Location{}, have: map[chunk.ID]savedChunk{}, fine: map[placeKey]bool{},
	}
}

// Page is manifest.PageSource.
func (s *salvage) Page(ctx context.Context, ref manifest.PageRef) ([]byte, error) {
	if loc, ok := s.found[ref.ID]; ok {
		return s.pages.alone(ctx, ref.ID, loc)
	}
	page, err := s.pages.at(ctx, ref)
	if err != nil && repo.Damaged(ctx, err) {
		s.want[ref.ID] = true
		err = fmt.Errorf("tree page: %w", repo.Integrity(err))
		if errors.Is(err, remote.ErrNotExist) {
			err = fmt.Errorf("%w: %w", snapshot.ErrIntegrity, err)
		}
	}
	return page, err
}

// unusable reports whether nothing new may refer to a pack.
func (x *repairer) unusable(id chunk.PackID) bool {
	return x.pack(id).missing() || x.bad[id] || x.guard.Refuses(id)
}

// dubious reports whether what is said to lie in a pack may not.
func (x *repairer) dubious(id chunk.PackID) bool {
	return x.unusable(id) || x.suspected(x.pack(id))
}

// salvageRounds bounds how often trees are walked: pages that are found elsewhere may
// lead to others that have to be.
const salvageRounds = 4

// salvage copies what can be read of unusable packs, as far as the snapshots need it
// that lost something, and looks for the rest in all other packs.
func (x *repairer) salvage(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	up := x.uploader(g)
	x.saved.fr.Pack = write.NewPacker(gctx, g, x.repo.Codec, up, runtime.GOMAXPROCS(0))
	g.Go(func() error {
		for range salvageRounds {
			for _, s := range x.lostOnes {
				if s.m == nil {
					continue
				}
				err := x.walk(gctx, s, func(e *manifest.Entry) error { return x.saved.file(gctx, s.tree, e) }, nil)
				if err != nil {
					return err
				}
			}
			pages, err := x.saved.locate(gctx)
			if err != nil {
				return err
			}
			if !pages {
				break
			}
		}
		if err := x.saved.fr.Flush(gctx); err != nil {
			return err
		}
		x.saved.fr.Pack.Finish()
		return nil
	})
	err := g.Wait()
	x.landed(up)
	x.report.SavedChunks = len(x.saved.have) + len(x.saved.found)
	return err
}

// uploader gives one whose packs the new segments will list.
func (x *repairer) uploader(g *errgroup.Group) *write.Uploader {
	up := write.NewUploader(x.repo.Store, g, write.Uploads)
	up.Busy = x.meter.Transfer
	up.OnLand = func(context.Context) error { return nil }
	return up
}

func (x *repairer) landed(up *write.Uploader) {
	for _, p := range up.Take() {
		x.guard.Vouch(p.ID, p.Size)
		x.fresh = append(x.fresh, p)
		x.report.BytesWritten += p.Size
	}
}

// walk calls entry for each entry of a snapshot that can be read, and lost, if it is
// not nil, for each page that cannot. entry must not keep its entry.
func (x *repairer) walk(ctx context.Context, s *lostSnapshot, entry func(*manifest.Entry) error, lost func(*manifest.Part)) error {
	gone := func(p manifest.Part, err error) error {
		if !repo.Damaged(ctx, err) {
			return err
		}
		if lost != nil {
			lost(&p)
		}
		return nil
	}
	return s.tree.Parts(ctx, func(p manifest.Part) error {
		if p.Level > 0 {
			return nil
		}
		leaf, err := s.tree.ReadLeaf(ctx, &p)
		if err != nil {
			return gone(p, err)
		}
		var e manifest.Entry
		for i := range leaf.Len() {
			leaf.Entry(i, &e)
			if err := entry(&e); err != nil {
				return err
			}
		}
		return nil
	}, gone)
}

// file copies the chunks of a file that lie in unusable packs.
func (s *salvage) file(ctx context.Context, tree *manifest.Tree, e *manifest.Entry) error {
	err := tree.Extents(ctx, e, func(_ uint64, x *manifest.Extent) error {
		if !s.x.dubious(x.Pack) {
			return nil
		}
		return s.chunk(ctx, x, write.LaneOf(e.Name))
	})
	if err != nil && repo.Damaged(ctx, err) {
		return nil // a page of extents, which is wanted now
	}
	return err
}

// chunk copies a chunk, or notes that it is wanted.
func (s *salvage) chunk(ctx context.Context, x *manifest.Extent, l write.Lane) error {
	key := placeKey{x.ID, x.Location}
	if _, ok := s.have[x.ID]; ok || s.fine[key] {
		return nil
	}
	if _, ok := s.found[x.ID]; ok {
		return nil
	}
	data, err := s.chunks.At(ctx, x.ID, &x.Location)
	if err != nil {
		if !repo.Damaged(ctx, err) {
			return err
		}
		s.want[x.ID] = true
		return nil
	}
	if !s.x.unusable(x.Pack) {
		s.fine[key] = true
		return nil
	}
	at := savedChunk{length: x.Length}
	if s.x.opts.Apply {
		if at.place.Frame, at.place.Offset, err = s.fr.Add(ctx, l, x.ID, data); err != nil {
			return err
		}
	}
	s.have[x.ID] = at
	delete(s.want, x.ID) // it was, of another place
	s.x.report.SavedBytes += int64(len(data))
	return nil
}

// locate looks for what is wanted in all packs that are good. It reports whether a
// tree page was found.
func (s *salvage) locate(ctx context.Context) (pages bool, err error) {
	look := func(pack chunk.PackID, x *chunk.PackIndex) error {
		if len(s.want) == 0 || s.x.unusable(pack) {
			return nil
		}
		for id, loc := range x.All(pack) {
			if !s.want[id] {
				continue
			}
			data, err := s.chunks.At(ctx, id, &loc)
			if err != nil && !repo.Damaged(ctx, err) {
				return err
			}
			if err != nil {
				continue
			}
			s.found[id] = loc
			delete(s.want, id)
			s.x.guard.Present(write.ByIndex, repo.SizedPack{Id: pack, Size: s.x.pack(pack).size})
			s.x.report.SavedBytes += int64(len(data))
			pages = pages || x.Kind == chunk.TreePack
		}
		return nil
	}
	if len(s.want) == 0 {
		return false, nil
	}
	for i := range s.x.segments {
		seg, err := s.x.repo.Segment(ctx, s.x.segments[i].id)
		if errors.Is(err, remote.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		for j := range seg.Packs {
			if err := look(seg.Packs[j].ID, seg.Packs[j].Index); err != nil {
				return false, err
			}
		}
	}
	for _, p := range s.x.packs {
		if len(p.segments) > 0 || s.x.unusable(p.id) {
			continue
		}
		tail, err := s.x.repo.PackIndex(ctx, p.id, p.size)
		if err == nil {
			err = look(p.id, tail)
		}
		if err != nil && !repo.Damaged(ctx, err) {
			return false, err
		}
	}
	return pages, nil
}

// place gives where a chunk is to be found from now on, or reports that it is lost.
func (s *salvage) place(x *manifest.Extent) (ok bool) {
	if !s.x.dubious(x.Pack) || s.fine[placeKey{x.ID, x.Location}] {
		return true
	}
	// What an extent says of the length may be as wrong as the rest.
	if at, ok := s.have[x.ID]; ok && at.length == x.Length {
		if at.place.Frame != nil {
			x.Pack, x.Frame, x.Offset = at.place.Frame.Pack, at.place.Frame.At, at.place.Offset
		}
		return true
	}
	if loc, ok := s.found[x.ID]; ok && loc.Length == x.Length {
		x.Location = loc
		return true
	}
	return false
}

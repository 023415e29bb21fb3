package check

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/flow"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
)

// leafFacts is what is kept of a leaf, some 150 bytes: it is read once, however many
// snapshots share it, and each of them is compared with the sum of its leaves.
type leafFacts struct {
	files, bytes uint64
	use          []usedPack
	bad          bool // it, or a page of extents below it, cannot be read
}

type usedPack struct {
	pack  *packFacts
	bytes uint64
}

// leafKey tells leaves apart, with what their parents say of them.
func leafKey(m *manifest.Manifest, p *manifest.Part) [16]byte {
	var b []byte
	if p.IsRoot() {
		sum := m.Digest() // it has no place of its own
		b = append(b, sum[:]...)
	}
	sum := blake3.Sum256(p.AppendTo(b))
	return [16]byte(sum[:])
}

// openTree is a snapshot whose tree is being read.
type openTree struct {
	*checkedSnapshot
	m      *manifest.Manifest
	tree   *manifest.Tree
	leaves []*leafFacts
	use    map[chunk.PackID]uint64 // of inner pages
	lost   bool                    // some inner page cannot be read
}

// leafJob is a leaf that nobody has read yet.
type leafJob struct {
	tree  *manifest.Tree
	part  manifest.Part
	facts *leafFacts
}

// treesAtOnce is how many trees are open at once: each keeps up to 10 MiB of pages.
const treesAtOnce = 8

// readTrees reads all manifests and every page of their trees, each page once.
func (v *checkup) readTrees(ctx context.Context) error {
	v.pages.size = func(id chunk.PackID) int64 { return v.pack(id).size }
	for batch := range slices.Chunk(v.snapshots, treesAtOnce) {
		if err := v.readBatch(ctx, batch); err != nil {
			return err
		}
	}
	v.snapshots = slices.DeleteFunc(v.snapshots, func(s *checkedSnapshot) bool { return s.id.IsZero() })
	return nil
}

func (v *checkup) readBatch(ctx context.Context, batch []*checkedSnapshot) error {
	trees := make([]*openTree, len(batch))
	g, gctx := errgroup.WithContext(ctx)
	for i, s := range batch {
		g.Go(func() (err error) {
			trees[i], err = v.openTree(gctx, s)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	jobs := make(chan leafJob, 64)
	g, gctx = errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(jobs)
		for _, t := range trees {
			if t == nil {
				continue
			}
			if err := v.listLeaves(gctx, t, jobs); err != nil {
				return err
			}
		}
		return nil
	})
	workers := runtime.GOMAXPROCS(0)
	if !v.repo.Local() {
		workers = max(workers, write.Uploads) // they mostly wait
	}
	for range workers {
		g.Go(func() error {
			for job := range jobs {
				if err := v.readLeaf(gctx, &job); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, t := range trees {
		if t != nil {
			v.compareTable(t)
		}
	}
	return nil
}

// openTree reads a manifest; nil if that cannot be done.
func (v *checkup) openTree(ctx context.Context, s *checkedSnapshot) (*openTree, error) {
	m, err := v.repo.Manifest(ctx, s.id)
	var tree *manifest.Tree
	if err == nil {
		s.name, s.dir, s.parent, s.created = m.Name, m.Dir, m.Parent, m.Created
		tree, err = m.Tree(v.pages)
	}
	switch {
	case err == nil:
		return &openTree{checkedSnapshot: s, m: m, tree: tree, use: map[chunk.PackID]uint64{}}, nil
	case errors.Is(err, snapshot.ErrNotFound): // removed since it was listed
		s.id = manifest.ID{}
		return nil, nil
	case !repo.Damaged(ctx, err):
		return nil, err
	}
	s.whole = true
	if head := v.repo.CachedHead(s.id); head != nil { // for people, who know it by that
		if _, err := v.annotate(ctx, head); err != nil {
			return nil, err
		}
		s.name, s.dir = head.Name, head.Dir
	}
	v.found(snapshot.Finding{Object: s.object, Problem: repo.Integrity(err), Affected: []snapshot.Affected{{ID: s.id, Name: s.name, Dir: s.dir, Whole: true}}})
	return nil, nil
}

// listLeaves reads the inner pages of a tree, and has the leaves read that no tree
// before had.
func (v *checkup) listLeaves(ctx context.Context, t *openTree, jobs chan<- leafJob) error {
	yield := func(p manifest.Part) error {
		if !p.IsRoot() {
			t.use[p.Pack] += uint64(p.Frame.Raw)
			if err := v.checkPage(ctx, p.PageRef); err != nil {
				return err
			}
		}
		if p.Level > 0 {
			return nil
		}
		key := leafKey(t.m, &p)
		facts := v.leaves[key]
		if facts == nil {
			facts = &leafFacts{}
			v.leaves[key] = facts
			v.report.Pages++
			if !flow.Send(ctx, jobs, leafJob{t.tree, p, facts}) {
				return ctx.Err()
			}
		} else {
			v.meter.Files.Add(int64(p.Entries))
		}
		t.leaves = append(t.leaves, facts)
		return nil
	}
	v.report.Entries += int64(t.m.Entries)
	return t.tree.Parts(ctx, yield, func(p manifest.Part, err error) error {
		if !repo.Damaged(ctx, err) {
			return err
		}
		t.lost = true
		v.lostPage(p.PageRef, err)
		return nil
	})
}

// lostPage notes that a page cannot be read, or is not what refers to it says.
func (v *checkup) lostPage(ref manifest.PageRef, err error) {
	v.suspect(v.pack(ref.Pack), fmt.Errorf("page %v: %w", ref.ID, err))
}

// checkPage compares where a page is said to lie with what its pack says. That it is
// there is found out by reading it.
func (v *checkup) checkPage(ctx context.Context, ref manifest.PageRef) error {
	p, loc := v.pack(ref.Pack), ref.Location()
	if p.missing() {
		return nil
	}
	ok, err := v.holds(ctx, p, &ref.ID, &loc)
	if !ok && err == nil && !v.suspected(p) {
		v.suspect(p, fmt.Errorf("%w: by its index page %v is not where a tree refers to it", snapshot.ErrIntegrity, ref.ID))
	}
	return err
}

// readLeaf reads a leaf, and where the chunks of its entries are.
func (v *checkup) readLeaf(ctx context.Context, job *leafJob) error {
	leaf, err := job.tree.ReadLeaf(ctx, &job.part)
	if err != nil {
		if !repo.Damaged(ctx, err) {
			return err
		}
		job.facts.bad = true
		v.lostPage(job.part.PageRef, err)
		return nil
	}
	use := map[chunk.PackID]uint64{}
	var e manifest.Entry
	for i := range leaf.Len() {
		leaf.Entry(i, &e)
		if e.Type != manifest.Dir {
			job.facts.files++
		}
		job.facts.bytes += e.Size
		if err = job.tree.Use(ctx, &e, use); err == nil {
			err = v.checkExtents(ctx, job.tree, &e)
		}
		if err == nil {
			continue
		}
		if e.Spill == nil || !repo.Damaged(ctx, err) {
			return err
		}
		// A page of extents: the other entries are read.
		job.facts.bad = true
		for _, ref := range e.Spill.Refs {
			v.suspect(v.pack(ref.Pack), fmt.Errorf("extents of %q: %w", e.Path(), err))
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(use), comparePacks) {
		job.facts.use = append(job.facts.use, usedPack{v.pack(id), use[id]})
	}
	v.meter.Files.Add(int64(leaf.Len()))
	return nil
}

// checkExtents compares where the chunks of a file are said to lie with what their
// packs say.
func (v *checkup) checkExtents(ctx context.Context, tree *manifest.Tree, e *manifest.Entry) error {
	var p *packFacts
	return tree.Extents(ctx, e, func(_ uint64, x *manifest.Extent) error {
		if p == nil || p.id != x.Pack {
			p = v.pack(x.Pack)
		}
		if p.missing() {
			return nil // which is told of as such
		}
		ok, err := v.holds(ctx, p, &x.ID, &x.Location)
		if !ok && err == nil && !v.suspected(p) {
			v.suspect(p, fmt.Errorf("%w: by its index chunk %v is not where %q refers to it", snapshot.ErrIntegrity, x.ID, e.Path()))
		}
		return err
	})
}

// compareTable compares what the manifest says with what is in its tree.
func (v *checkup) compareTable(t *openTree) {
	var files, bytes uint64
	use := map[*packFacts]uint64{}
	for id, n := range t.use {
		use[v.pack(id)] += n
	}
	bad := t.lost
	for _, l := range t.leaves {
		files += l.files
		bytes += l.bytes
		bad = bad || l.bad
		for _, u := range l.use {
			use[u.pack] += u.bytes
		}
	}
	var wrong []error
	for _, p := range t.m.Packs {
		facts := v.pack(p.ID)
		facts.used = true
		t.packs = append(t.packs, facts)
		if n := use[facts]; n != p.Bytes && !bad {
			wrong = append(wrong, fmt.Errorf("of %s its tree uses %d bytes, and its table says %d", repo.PackName(p.ID), n, p.Bytes))
		}
		delete(use, facts)
	}
	for _, facts := range slices.SortedFunc(maps.Keys(use), func(a, b *packFacts) int { return comparePacks(a.id, b.id) }) {
		facts.used = true
		t.packs = append(t.packs, facts)
		wrong = append(wrong, fmt.Errorf("its tree refers to %s, which is not in its table", repo.PackName(facts.id)))
	}
	if !bad && (files != t.m.Files || bytes != t.m.Bytes) {
		wrong = append(wrong, fmt.Errorf("its tree has %d files of %d bytes, and it says %d of %d", files, bytes, t.m.Files, t.m.Bytes))
	}
	if len(wrong) > 0 {
		err := fmt.Errorf("%w: %w", snapshot.ErrIntegrity, wrong[0])
		if len(wrong) > 1 {
			err = fmt.Errorf("%w; and %d more of this kind", err, len(wrong)-1)
		}
		v.found(snapshot.Finding{Object: t.id.ObjectName(), Problem: err})
	}
}

func comparePacks(a, b chunk.PackID) int { return slices.Compare(a[:], b[:]) }

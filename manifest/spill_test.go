package manifest

import (
	"errors"
	"reflect"
	"slices"
	"testing"
)

// spilled builds a tree of a root and a file with these extents.
func spilled(t testing.TB, s *pageStore, extents []Extent) (*Root, *Tree, *Entry) {
	t.Helper()
	f := Entry{Name: "large", Type: File, Links: 1, Size: 100}
	for _, x := range extents {
		f.Size += x.Hole + uint64(x.Length)
	}
	f.Extents = extents
	root, _ := build(t, s, []Entry{{Type: Dir, Links: 1}, f})
	tree := newTree(t, root, s)
	e := new(Entry)
	if err := tree.At(t.Context(), 1, e); err != nil {
		t.Fatal(err)
	}
	return root, tree, e
}

func randomExtents(seed uint64, n int) []Extent {
	return randomFile(newRand(seed), n, true).Extents
}

func TestSpilledFiles(t *testing.T) {
	for _, test := range []struct{ extents, level int }{
		{MaxInline, -1}, {MaxInline + 1, 0}, {5000, 0}, {20_000, 0}, {300_000, 1},
	} {
		extents := randomExtents(7, test.extents)
		extents[0].Hole = 1 << 20
		extents[test.extents/2].Hole = 1 << 40
		s := newPageStore()
		root, tree, e := spilled(t, s, extents)
		if test.level < 0 {
			if e.Spill != nil || len(e.Extents) != test.extents {
				t.Fatalf("%d extents are spilled", test.extents)
			}
		} else if e.Spill == nil || len(e.Extents) > 0 || e.Spill.Level != test.level {
			t.Fatalf("%d extents: %+v", test.extents, e.Spill)
		}
		testExtents(t, tree, e, extents)
		testExtentsFrom(t, s, root, e, extents)
		testUseOfExtents(t, s, root, e, extents)
	}
}

// testExtents reads all extents of a file.
func testExtents(t *testing.T, tree *Tree, e *Entry, extents []Extent) {
	t.Helper()
	i, at := 0, uint64(0)
	if err := tree.Extents(t.Context(), e, func(off uint64, x *Extent) error {
		if at += extents[i].Hole; off != at || *x != extents[i] {
			t.Fatalf("extent %d at %d is %+v, expected at %d %+v", i, off, *x, at, extents[i])
		}
		at += uint64(x.Length)
		i++
		return nil
	}); err != nil || i != len(extents) {
		t.Fatalf("%d extents: %v", i, err)
	}
}

// testExtentsFrom reads an extent from anywhere, with no more pages than lead there.
func testExtentsFrom(t *testing.T, s *pageStore, root *Root, e *Entry, extents []Extent) {
	t.Helper()
	pages := int64(0)
	if e.Spill != nil {
		pages = int64(e.Spill.Level) + 1
	}
	r := newRand(3)
	for range 20 {
		from := r.Uint64N(e.Size)
		want, off := 0, uint64(0)
		for ; want < len(extents); want++ {
			if off += extents[want].Hole + uint64(extents[want].Length); off > from {
				break
			}
		}
		tree := newTree(t, root, s)
		reads, done, got := s.reads.Load(), errors.New("enough"), -1
		err := tree.ExtentsFrom(t.Context(), e, from, func(off uint64, x *Extent) error {
			if got = slices.Index(extents, *x); got != want {
				t.Fatalf("from %d: extent %d, expected %d", from, got, want)
			}
			return done
		})
		if want < len(extents) && !errors.Is(err, done) || want == len(extents) && (err != nil || got >= 0) {
			t.Fatalf("from %d: extent %d of %d, %v", from, got, len(extents), err)
		}
		if n := s.reads.Load() - reads; n > pages {
			t.Fatalf("%d pages read for one extent", n)
		}
	}
}

// testUseOfExtents: what a file uses counts, and counts the same for a tree that takes
// the entry over.
func testUseOfExtents(t *testing.T, s *pageStore, root *Root, e *Entry, extents []Extent) {
	t.Helper()
	var want uint64
	for _, x := range extents {
		want += uint64(x.Length)
	}
	b := NewBuilder(s)
	b.Reuse(newTree(t, root, s))
	for _, e := range []Entry{{Type: Dir, Links: 1}, *e} {
		if err := b.Add(t.Context(), &e); err != nil {
			t.Fatal(err)
		}
	}
	again, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(again, root) {
		t.Fatalf("%d extents: taken over, the tree is another, or uses %v instead of %v", len(extents), again.Use, root.Use)
	}
	var sum uint64
	for _, pack := range somePacks {
		sum += root.Use[pack]
	}
	if sum != want {
		t.Fatalf("%d bytes are used, expected %d", sum, want)
	}
}

// A change in a large file makes one new page of extents.
func TestSpillLocality(t *testing.T) {
	extents := randomExtents(5, 20_000)
	s := newPageStore()
	spilled(t, s, extents)
	before := slices.Clone(s.added)
	r := newRand(1)
	fresh := 0
	for range 15 {
		after := slices.Clone(extents)
		i := r.IntN(len(after))
		switch r.IntN(3) {
		case 0:
			after[i].ID = randomID(r)
		case 1:
			after = slices.Insert(after, i, randomExtent(r))
		case 2:
			after = slices.Delete(after, i, i+1)
		}
		spilled(t, s, after)
		n := newPages(before, s.added)
		if fresh += n; n > 3 {
			t.Errorf("%d new pages", n)
		}
	}
	if fresh > 18 {
		t.Errorf("%d new pages in 15 edits", fresh)
	}
}

// A tree that cannot tell what a spilled file uses would lose its packs to
// garbage collection.
func TestSpillOfAnUnknownTree(t *testing.T) {
	s := newPageStore()
	_, tree, e := spilled(t, s, randomExtents(1, 2000))
	dir := Entry{Type: Dir, Links: 1}
	b := NewBuilder(s)
	if err := b.Add(t.Context(), &dir); err != nil {
		t.Fatal(err)
	}
	if err := b.Add(t.Context(), e); err == nil {
		t.Fatal("accepted without the pages")
	}
	// The same with pages that have gone; then it works after all.
	b.Reuse(tree)
	pages := s.pages
	s.pages = nil
	if err := b.Add(t.Context(), e); err == nil {
		t.Fatal("accepted without the pages")
	}
	s.pages = pages
	if err := b.Add(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if root, err := b.Finish(t.Context()); err != nil || root.Entries != 2 {
		t.Fatal(root, err)
	}
}

func TestHostileSpills(t *testing.T) {
	s := newPageStore()
	_, tree, good := spilled(t, s, randomExtents(1, 300_000))
	ignore := func(uint64, *Extent) error { return nil }
	page, err := tree.page(t.Context(), &good.Spill.Refs[1].PageRef)
	if err != nil {
		t.Fatal(err)
	}
	below := page.(*spillPage).refs
	for name, change := range map[string]func(*Spill){
		"level too high":      func(p *Spill) { p.Level++ },
		"level too low":       func(p *Spill) { p.Level-- },
		"length too long":     func(p *Spill) { p.Refs[0].Length++ },
		"length too short":    func(p *Spill) { p.Refs[0].Length-- },
		"swapped":             func(p *Spill) { p.Refs[0].PageRef = p.Refs[1].PageRef },
		"page of extents":     func(p *Spill) { p.Refs[0].PageRef = below[0].PageRef },
		"page that is absent": func(p *Spill) { p.Refs[0].ID[0]++ },
	} {
		e := *good
		e.Spill = &Spill{good.Spill.Level, slices.Clone(good.Spill.Refs)}
		change(e.Spill)
		if err := tree.Extents(t.Context(), &e, ignore); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// A page that is known as one of extents is no page of the tree.
	c := child{PageRef: below[0].PageRef, entries: 3}
	root := appendInner(nil, new(tableWriter), 1, []child{c})
	evil, err := NewTree(root, s.source())
	if err != nil {
		t.Fatal(err)
	}
	evil.cache = tree.cache
	if err := evil.At(t.Context(), 1, new(Entry)); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
}

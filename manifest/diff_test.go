package manifest

import (
	"context"
	"errors"
	"slices"
	"testing"
)

// Diff finds what a comparison of all entries finds, in any part of the tree.
func TestDiff(t *testing.T) {
	for seed := range uint64(60) {
		r := newRand(seed)
		var entries []Entry
		switch seed % 4 {
		case 0:
			entries = smallFiles(2 + r.IntN(6000))
		case 1, 2:
			entries = randomEntries(r, 1+r.IntN(3000))
		default: // few entries, large ones
			entries = randomEntries(r, 1+r.IntN(200))
			for i := range entries {
				if e := &entries[i]; e.Type == File && r.IntN(3) == 0 {
					k := e.Key()
					*e = randomFile(r, 1+r.IntN(4*MaxInline), r.IntN(2) == 0)
					e.Dir, e.Name = k.Dir, k.Name
				}
			}
		}
		n := r.IntN(15)
		if seed%10 == 0 {
			n = min(len(entries), 400)
		}
		after := mutate(r, entries, n)
		if seed%12 == 0 { // of another size, so that the trees differ in height
			after = repairLinks(slices.DeleteFunc(slices.Clone(after), func(e Entry) bool { return e.Dir != "" && e.Type != Dir && r.IntN(10) > 0 }))
		}
		s := newPageStore()
		before, _ := build(t, s, entries)
		root, _ := build(t, s, after)
		dirs := []string{""}
		for _, all := range [][]Entry{entries, after} {
			for range 6 {
				dirs = append(dirs, all[r.IntN(len(all))].Path())
			}
		}
		for _, dir := range dirs {
			a, b := newTree(t, before, s), newTree(t, root, s)
			if got, want := diff(t, a, b, dir), naiveDiff(entries, after, dir); !slices.Equal(got, want) {
				t.Fatalf("seed %d, in %q:\n%+v, want\n%+v", seed, dir, got, want)
			}
			if got, want := diff(t, b, a, dir), naiveDiff(after, entries, dir); !slices.Equal(got, want) {
				t.Fatalf("seed %d, back, in %q:\n%+v, want\n%+v", seed, dir, got, want)
			}
		}
	}
}

// The same entries in pages that are cut elsewhere, and in trees of other heights,
// have no differences; an edit is found all the same.
func TestDiffOfOtherPages(t *testing.T) {
	entries := smallFiles(4000)
	s := newPageStore()
	before, _ := build(t, s, entries)
	root, err := decodeInner(before.Page)
	if err != nil {
		t.Fatal(err)
	}
	// The root's children in groups of three below a further level or two.
	var w tableWriter
	level := func(level int, children []child) (above []child) {
		for g := range slices.Chunk(children, 3) {
			page := appendInner(nil, &w, level, g)
			c := child{first: g[0].first}
			for i := range g {
				c.entries += g[i].entries
				c.flags |= g[i].flags
			}
			c.ID, _ = s.Add(t.Context(), page)
			_ = s.Flush(t.Context())
			c.PageRef = s.Page(c.ID)
			above = append(above, c)
		}
		return above
	}
	if len(root.children) < 7 {
		t.Fatalf("%d leaves are too few", len(root.children))
	}
	high := appendInner(nil, &w, 3, level(2, level(1, root.children)))
	tall, err := NewTree(high, s.source())
	if err != nil {
		t.Fatal(err)
	}
	flat := newTree(t, before, s)
	s.reads.Store(0)
	if got := diff(t, flat, tall, ""); len(got) > 0 {
		t.Errorf("differences: %v", got)
	}
	leaves := int64(len(root.children))
	if n := s.reads.Load(); n > leaves {
		t.Errorf("%d pages were read: more than the inner ones, with %d leaves", n, leaves)
	}
	after := slices.Clone(entries)
	after[1234].Mode ^= 0o1
	edited, _ := build(t, s, after)
	got := diff(t, tall, newTree(t, edited, s), "")
	if want := []difference{{entries[1234].Path(), 1234, 1234, ChangedMode}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// An edit costs a leaf and the inner pages above it, on either side.
func TestDiffCost(t *testing.T) {
	entries := smallFiles(60_000)
	s := newPageStore()
	before, _ := build(t, s, entries)
	r := newRand(7)
	for i, test := range []struct {
		what  string
		edit  func(all []Entry, i int) []Entry
		pages int64 // at most
	}{
		{"a change", func(all []Entry, i int) []Entry { all[i].Mode ^= 1; return all }, 2},
		// Where a leaf ends with it, two become one, or one two.
		{"an addition", func(all []Entry, i int) []Entry {
			e := all[i]
			e.Name += "x"
			e.Type, e.Size, e.Extents = File, 0, nil
			all = slices.Insert(all, i, e)
			slices.SortFunc(all, func(a, b Entry) int { return a.Key().Compare(b.Key()) })
			return all
		}, 3},
		{"a removal", func(all []Entry, i int) []Entry { return slices.Delete(all, i, i+1) }, 3},
	} {
		for range 10 {
			at := 1 + r.IntN(len(entries)-1)
			for entries[at].Type == Dir {
				at++
			}
			root, _ := build(t, s, test.edit(slices.Clone(entries), at))
			a, b := newTree(t, before, s), newTree(t, root, s)
			s.reads.Store(0)
			if got := diff(t, a, b, ""); len(got) != 1 {
				t.Fatalf("%s: %d differences", test.what, len(got))
			}
			if n := s.reads.Load(); n > test.pages {
				t.Errorf("%d: %s: %d pages were read", i, test.what, n)
			}
		}
	}

	a, b := newTree(t, before, s), newTree(t, before, s)
	s.reads.Store(0)
	if got := diff(t, a, b, ""); len(got) > 0 || s.reads.Load() > 0 {
		t.Errorf("identical trees: %d differences, %d pages read", len(got), s.reads.Load())
	}
	if got := diff(t, a, b, "node_modules/package-00100"); len(got) > 0 || s.reads.Load() > 1 {
		t.Errorf("a directory of identical trees: %d differences, %d pages read", len(got), s.reads.Load())
	}

	// Every fifth file differs, and a directory is wanted: nothing else is read.
	after := slices.Clone(entries)
	for i := range after {
		if i%5 == 0 {
			after[i].Mode ^= 1
		}
	}
	root, _ := build(t, s, after)
	for range 10 {
		dir := entries[r.IntN(len(entries))].Dir
		if dir == "" || dir == "node_modules" {
			continue
		}
		a, b := newTree(t, before, s), newTree(t, root, s)
		want := naiveDiff(entries, after, dir)
		s.reads.Store(0)
		n := 0
		if err := Diff(t.Context(), a, b, dir, func(*Difference) error { n++; return nil }); err != nil || n != len(want) {
			t.Errorf("in %q: %d differences, want %d; %v", dir, n, len(want), err)
		}
		// Two leaves on either side hold the directory's entry and what is in it,
		// and a leaf more where one of these ends.
		if n := s.reads.Load(); n > 8 {
			t.Errorf("in %q: %d pages were read", dir, n)
		}
	}
}

// Of a large file that was appended to, only the pages of extents that differ are
// read; of one whose chunks lie elsewhere all are, and they are the same.
func TestDiffOfSpilled(t *testing.T) {
	r := newRand(5)
	big := randomFile(r, 40*MaxInline, true)
	big.Name = "big"
	with := func(change func(*Entry)) []Entry {
		e := big
		e.Extents = slices.Clone(big.Extents)
		change(&e)
		return []Entry{{Type: Dir, Links: 1}, e}
	}
	s := newPageStore()
	before, _ := build(t, s, with(func(*Entry) {}))
	for _, test := range []struct {
		what     string
		change   func(*Entry)
		want     Changes
		min, max int64 // pages read, the two of the entry among them
	}{
		{"nothing", func(*Entry) {}, 0, 0, 0},
		{"mode", func(e *Entry) { e.Mode ^= 1 }, ChangedMode, 2, 2},
		{"size", func(e *Entry) { e.Size++ }, ChangedContent, 2, 2},
		{"a chunk at the end", func(e *Entry) { e.Extents[len(e.Extents)-1].ID[5] ^= 1 }, ChangedContent, 4, 4},
		{"a chunk in the middle", func(e *Entry) { e.Extents[20_000].ID[5] ^= 1 }, ChangedContent, 4, 4},
		{"one hole less", func(e *Entry) {
			i := slices.IndexFunc(e.Extents, func(x Extent) bool { return x.Hole > 0 })
			e.Extents[i].Hole--
		}, ChangedContent, 4, 4},
		{"places of chunks", func(e *Entry) {
			for i := range e.Extents {
				e.Extents[i].Offset ^= 1
			}
		}, 0, 40, 200},
	} {
		root, _ := build(t, s, with(test.change))
		s.reads.Store(0)
		var got Changes
		err := Diff(t.Context(), newTree(t, before, s), newTree(t, root, s), "", func(d *Difference) error {
			got |= d.Changes
			return nil
		})
		if n := s.reads.Load(); err != nil || got != test.want || n < test.min || n > test.max {
			t.Errorf("%s: %b, want %b; %d pages read; %v", test.what, got, test.want, n, err)
		}
	}
}

// What neither tree has; what only one has; what only looks alike.
func TestDiffWithin(t *testing.T) {
	file := func(dir, name string) Entry { return Entry{Dir: dir, Name: name, Type: File, Links: 1} }
	dir := func(dir, name string) Entry { return Entry{Dir: dir, Name: name, Type: Dir, Links: 1} }
	old := []Entry{dir("", ""), dir("", "a"), file("", "a.b"), dir("", "b"), dir("a", "b"), file("a", "x"), file("a/b", "y"), file("b", "z")}
	new := []Entry{dir("", ""), file("", "a"), dir("", "a.b"), dir("", "c"), file("a.b", "n"), file("c", "z")}
	s := newPageStore()
	before, _ := build(t, s, old)
	root, _ := build(t, s, new)
	a, b := newTree(t, before, s), newTree(t, root, s)
	for _, d := range []string{"", "a", "a.b", "b", "c", "a/b", "a/b/y", "a.b/n"} {
		if got, want := diff(t, a, b, d), naiveDiff(old, new, d); !slices.Equal(got, want) || len(got) == 0 {
			t.Errorf("in %q: %v, want %v", d, got, want)
		}
	}
	for _, d := range []string{"d", "a/c", "a/b/y/z", "a."} {
		err := Diff(t.Context(), a, b, d, func(*Difference) error { t.Errorf("in %q: a difference", d); return nil })
		if !errors.Is(err, ErrNotExist) {
			t.Errorf("in %q: %v", d, err)
		}
	}
	stop := errors.New("stop")
	n := 0
	if err := Diff(t.Context(), a, b, "", func(*Difference) error { n++; return stop }); err != stop || n != 1 {
		t.Errorf("after %d calls: %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	before, _ = build(t, s, smallFiles(3000))
	if err := Diff(ctx, newTree(t, before, s), b, "", func(*Difference) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("after the context ended: %v", err)
	}
}

// A page that is damaged, missing or another valid one is an error, or is not
// needed; it never makes a difference where there is none.
func TestDiffOfDamagedPages(t *testing.T) {
	entries := smallFiles(6000)
	big := randomFile(newRand(1), 3*MaxInline, false)
	big.Name = "zz-big"
	entries = append(entries, big)
	slices.SortFunc(entries, func(a, b Entry) int { return a.Key().Compare(b.Key()) })
	after := mutate(newRand(2), entries, 40)
	s := newPageStore()
	before, pages := build(t, s, entries)
	root, more := build(t, s, after)
	want := naiveDiff(entries, after, "")
	pages = append(pages, more...)
	r := newRand(3)
	failed := 0
	for i, id := range pages {
		good := s.pages[id]
		switch r.IntN(3) {
		case 0:
			s.pages[id] = slices.Clone(good)
			s.pages[id][r.IntN(len(good))] ^= 1 << r.IntN(8)
			if _, err := decodePage(s.pages[id]); err == nil {
				s.pages[id] = good[:len(good)-1] // it would have another id
			}
		case 1:
			s.pages[id] = nil
		case 2:
			other := pages[(i+1)%len(pages)]
			s.pages[id] = s.pages[other]
			if other == id {
				s.pages[id] = nil
			}
		}
		var got []string
		err := Diff(t.Context(), newTree(t, before, s), newTree(t, root, s), "", func(d *Difference) error {
			e := d.Old
			if e == nil {
				e = d.New
			}
			got = append(got, e.Path())
			return nil
		})
		if err != nil {
			failed++
			got = slices.Compact(got)
		} else if len(got) != len(want) {
			t.Fatalf("page %d: %d differences without an error, want %d", i, len(got), len(want))
		}
		for j := range got {
			if got[j] != want[j].path {
				t.Fatalf("page %d: difference %q, want %q", i, got[j], want[j].path)
			}
		}
		s.pages[id] = good
	}
	if failed < 10 {
		t.Errorf("%d errors of %d damaged pages", failed, len(pages))
	}
}

package manifest

import (
	"fmt"
	"slices"
	"testing"

	"github.com/snapctl/snapctl/chunk"
)

// One edit makes one new page per level, the root page aside, in nearly all
// cases: the other pages are the very same, before it and behind it.
func TestLocality(t *testing.T) {
	const n, edits = 8000, 20
	small := smallFiles(n)
	large := slices.Clone(small[:n/8])
	r := newRand(17)
	for i := range large {
		if e := &large[i]; e.Type == File {
			dir, name := e.Dir, e.Name
			*e = randomFile(r, 200, false)
			e.Dir, e.Name = dir, name
		}
	}
	for name, entries := range map[string][]Entry{"small files": small, "large files": large} {
		s := newPageStore()
		_, before := build(t, s, entries)
		for kind, edit := range map[string]func(i int) []Entry{
			"change": func(i int) []Entry {
				after := slices.Clone(entries)
				after[i].Mtime.Sec++
				return after
			},
			"rewrite": func(i int) []Entry {
				after := slices.Clone(entries)
				if e := &after[i]; e.Type == File {
					e.Extents = slices.Clone(e.Extents)
					e.Extents[0].ID[3]++
				}
				return after
			},
			"insert": func(i int) []Entry {
				e := entries[i]
				e.Name += fmt.Sprint(".", i)
				return slices.Insert(slices.Clone(entries), i+1, e)
			},
			"remove": func(i int) []Entry { return slices.Delete(slices.Clone(entries), i, i+1) },
		} {
			worst, sum := 0, 0
			for range edits {
				i := 1 + r.IntN(len(entries)-1)
				if entries[i].Type != File {
					continue
				}
				after := edit(i)
				slices.SortFunc(after, func(a, b Entry) int { return a.Key().Compare(b.Key()) })
				_, pages := build(t, s, after)
				fresh := newPages(before, pages)
				sum += fresh
				worst = max(worst, fresh)
			}
			if sum > edits+edits/5 || worst > 3 {
				t.Errorf("%s, %s: %d edits made %d pages, one of them %d", name, kind, edits, sum, worst)
			}
		}
	}
}

func newPages(before, after []chunk.ID) (n int) {
	known := map[chunk.ID]bool{}
	for _, id := range before {
		known[id] = true
	}
	for _, id := range after {
		if !known[id] {
			n++
		}
	}
	return n
}

// Pages are as large as they are meant to be, whatever is in the tree.
func TestPageSizes(t *testing.T) {
	r := newRand(5)
	large := smallFiles(1500)
	for i := range large {
		if e := &large[i]; e.Type == File {
			dir, name := e.Dir, e.Name
			*e = randomFile(r, 100, false)
			e.Dir, e.Name = dir, name
		}
	}
	for name, entries := range map[string][]Entry{"small files": smallFiles(20_000), "large files": large} {
		s := newPageStore()
		_, pages := build(t, s, entries)
		sum := 0
		for _, id := range pages {
			sum += len(s.pages[id])
		}
		mean := sum / len(pages)
		t.Logf("%s: %d entries and %d bytes a page", name, len(entries)/len(pages), mean)
		if mean < 24<<10 || mean > 80<<10 {
			t.Errorf("%s: %d bytes a page", name, mean)
		}
	}
}

// Above fanOut pages there is a further level, cut so that it is shared too.
func TestGroup(t *testing.T) {
	b := NewBuilder(newPageStore())
	children := make([]child, 20*fanOut) // 20 pages of the next level
	for i := range children {
		children[i].first = Key{fmt.Sprintf("folder-%05d", i), "name"}
	}
	if g := group(b.hash, 1, children[:fanOut]); len(g) != 1 {
		t.Errorf("%d pages of %d children", len(g), fanOut)
	}
	ends := func(all []child) map[Key]bool {
		m := map[Key]bool{}
		for _, g := range group(b.hash, 1, all) {
			m[g[0].first] = true
		}
		return m
	}
	before := ends(children)
	if len(before) < 8 || len(before) > 40 {
		t.Errorf("%d pages of %d children", len(before), len(children))
	}
	moved := 0
	for i := 0; i < len(children); i += 211 {
		after := ends(slices.Delete(slices.Clone(children), i, i+1))
		for k := range before {
			if !after[k] {
				moved++
			}
		}
	}
	if cases := len(children) / 211; moved > cases/20 {
		t.Errorf("%d boundaries moved in %d edits", moved, cases)
	}
	// Keys that all end a page still make fewer pages at each level.
	if g := group(b.hash, 1, slices.Repeat(children[:1], 4*fanOut)); len(g) > 2*fanOut {
		t.Errorf("%d pages of %d children", len(g), 4*fanOut)
	}
}

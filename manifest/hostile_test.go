package manifest

import (
	"context"
	"errors"
	"slices"
	"testing"
)

// A parent that does not tell the truth of its pages is found out, by whichever
// way one comes.
func TestHostileTrees(t *testing.T) {
	entries := smallFiles(8000)
	s := newPageStore()
	honest, _ := build(t, s, entries)
	n, err := decodeInner(honest.Page)
	if err != nil || len(n.children) < 4 {
		t.Fatal(err)
	}
	// A leaf that reaches over the one behind it.
	over := slices.Clone(entries[n.ranks[1]:n.ranks[2]])
	over = append(over, Entry{Dir: "zzz", Name: "z", Type: Fifo})
	id, err := s.Add(t.Context(), leafOf(over))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	overlap := child{s.Page(id), over[0].Key(), uint64(len(over)), 0}

	for name, change := range map[string]func(c []child) []child{
		"count too large": func(c []child) []child { c[1].entries++; return c },
		"count too small": func(c []child) []child { c[1].entries--; return c },
		"first key":       func(c []child) []child { c[1].first.Name += "x"; return c },
		"flags":           func(c []child) []child { c[1].flags = hasXattrs; return c },
		"another page":    func(c []child) []child { c[1].PageRef = c[2].PageRef; return c },
		"overlap":         func(c []child) []child { c[1] = overlap; return c },
	} {
		for levels := 1; levels <= 2; levels++ {
			children := change(slices.Clone(n.children))
			root := appendInner(nil, new(tableWriter), 1, children)
			if levels == 2 {
				// The bad page is the last of its parent: what bounds it is
				// what its grandparent says.
				root = above(t, s, children[:2], children[2:])
			}
			tree, err := NewTree(root, s.source())
			if err != nil {
				t.Fatal(err)
			}
			var e Entry
			rank := children[0].entries + 1
			if err := tree.At(t.Context(), rank, &e); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s, %d levels: at: %v", name, levels, err)
			}
			if _, err := tree.Lookup(t.Context(), entries[rank].Key(), &e); !errors.Is(err, ErrDamaged) && name != "first key" {
				t.Errorf("%s, %d levels: lookup: %v", name, levels, err)
			}
			c, err := tree.Seek(t.Context(), Key{})
			for ok := err == nil; ok && err == nil; {
				ok, err = c.Next(t.Context(), &e)
			}
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%s, %d levels: cursor: %v", name, levels, err)
			}
		}
	}

	// Levels that do not go down by one: a page below itself cannot be made,
	// for its id is its hash, but a source may answer with any.
	tree, err := NewTree(above(t, s, n.children[:2], n.children[2:]), liar{s, honest.Page})
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.At(t.Context(), 1, new(Entry)); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	for name, root := range map[string][]byte{
		"no root directory":    leafOf([]Entry{{Name: "a", Type: Fifo}}),
		"inner, no root":       appendInner(nil, new(tableWriter), 1, n.children[1:]),
		"extents":              appendExtentPage(nil, new(tableWriter), randomExtents(1, 3)),
		"nothing":              nil,
		"level without levels": {leafPage, 1},
	} {
		if _, err := NewTree(root, s.source()); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// above makes a root at level 2 over two groups of leaves.
func above(t *testing.T, s *pageStore, groups ...[]child) []byte {
	t.Helper()
	var top []child
	for _, g := range groups {
		id, err := s.Add(t.Context(), appendInner(nil, new(tableWriter), 1, g))
		if err != nil {
			t.Fatal(err)
		}
		c := child{PageRef: PageRef{ID: id}, first: g[0].first}
		for _, x := range g {
			c.entries += x.entries
			c.flags |= x.flags
		}
		top = append(top, c)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range top {
		top[i].PageRef = s.Page(top[i].ID)
	}
	return appendInner(nil, new(tableWriter), 2, top)
}

// liar answers with one page whatever is asked for, once it has gone a level down.
type liar struct {
	*pageStore
	page []byte
}

func (l liar) Page(ctx context.Context, ref PageRef) ([]byte, error) {
	page, err := l.source().Page(ctx, ref)
	if err == nil && page[0] == leafPage {
		page = l.page
	}
	return page, err
}

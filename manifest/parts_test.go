package manifest

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/snapctl/snapctl/chunk"
)

// TestParts: the parts of a tree are all of its pages, in order, and what they use is
// what the tree does; a page that cannot be read costs what is below it and no more.
func TestParts(t *testing.T) {
	entries := randomEntries(newRand(7), 5000)
	s := newPageStore()
	root, _ := build(t, s, entries)
	children := 0
	root.Page, children = tallRoot(t, s, root)
	tree := newTree(t, root, s)
	ctx := t.Context()
	var parts []Part
	if err := tree.Parts(ctx, func(p Part) error { parts = append(parts, p); return nil }, nil); err != nil {
		t.Fatal(err)
	}
	if !parts[0].IsRoot() || parts[0].Level < 2 || parts[0].Entries != uint64(len(entries)) {
		t.Fatalf("%+v", parts[0])
	}
	pages, use := map[chunk.ID]bool{}, map[chunk.PackID]uint64{}
	at := 0
	var e Entry
	for i := range parts {
		p := &parts[i]
		if !p.IsRoot() {
			pages[p.ID] = true
			if p.Level == 0 {
				use[p.Pack] += uint64(p.Frame.Raw)
			}
		}
		if p.Level > 0 {
			continue
		}
		leaf, err := tree.ReadLeaf(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		if p.First != entries[at].Key() || uint64(leaf.Len()) != p.Entries {
			t.Errorf("page of %d entries from %v, %v expected", leaf.Len(), p.First, entries[at].Key())
		}
		for i := range leaf.Len() {
			leaf.Entry(i, &e)
			if err := tree.Use(ctx, &e, use); err != nil {
				t.Fatal(err)
			}
			if e.Key() != entries[at].Key() {
				t.Fatalf("%v instead of %v", e.Key(), entries[at].Key())
			}
			at++
		}
		if at < len(entries) && (p.End == nil || *p.End != entries[at].Key()) {
			t.Errorf("page ends at %v, %v expected", p.End, entries[at].Key())
		}
	}
	if at != len(entries) || len(pages) != children+(children+2)/3 || !maps.Equal(use, root.Use) {
		t.Errorf("%d pages, %d entries of %d; used %v, %v expected", len(pages), at, len(entries), use, root.Use)
	}

	// No two parts are the same, and each is in a tree that has it too.
	seen := map[string]bool{}
	for i := range parts {
		seen[string(parts[i].AppendTo(nil))] = true
	}
	if len(seen) != len(parts) {
		t.Errorf("%d of %d parts can be told apart", len(seen), len(parts))
	}
	again := newTree(t, root, s)
	if err := again.Parts(ctx, func(p Part) error {
		if !seen[string(p.AppendTo(nil))] {
			t.Errorf("%+v is new", p)
		}
		return nil
	}, nil); err != nil {
		t.Fatal(err)
	}

	// An inner page that cannot be read.
	bad := parts[1]
	s.onRead = func(_ context.Context, ref PageRef) error {
		if ref.ID == bad.ID {
			return errors.New("away")
		}
		return nil
	}
	var lost []Part
	rest := uint64(0)
	err := newTree(t, root, s).Parts(ctx, func(p Part) error {
		if p.Level == 0 {
			rest += p.Entries
		}
		return nil
	}, func(p Part, err error) error { lost = append(lost, p); return nil })
	if err != nil || len(lost) != 1 || !bytes.Equal(lost[0].AppendTo(nil), bad.AppendTo(nil)) || rest+bad.Entries != uint64(len(entries)) {
		t.Errorf("%v: lost %+v, the rest has %d of %d entries", err, lost, rest, len(entries))
	}
}

// tallRoot puts the children of a root in groups of three below a level of their own.
func tallRoot(t testing.TB, s *pageStore, root *Root) (page []byte, children int) {
	t.Helper()
	n, err := decodeInner(root.Page)
	if err != nil {
		t.Fatal(err)
	}
	if len(n.children) < 7 {
		t.Fatalf("%d leaves are too few", len(n.children))
	}
	var w tableWriter
	var above []child
	for g := range slices.Chunk(n.children, 3) {
		c := child{first: g[0].first}
		for i := range g {
			c.entries += g[i].entries
			c.flags |= g[i].flags
		}
		c.ID, _ = s.Add(t.Context(), appendInner(nil, &w, 1, g))
		_ = s.Flush(t.Context())
		c.PageRef = s.Page(c.ID)
		above = append(above, c)
	}
	return appendInner(nil, &w, 2, above), len(n.children)
}

// TestNext: the id that takes the place of another comes right behind it.
func TestNext(t *testing.T) {
	for _, c := range append(Classes(), 0) {
		id := NewID(c)
		next := id.Next()
		if next.Class() != c || next.Compare(id) <= 0 || next.Time().Sub(id.Time()) != time.Millisecond {
			t.Errorf("%v follows %v", next, id)
		}
		if _, err := ParseID(next.String()); err != nil {
			t.Error(err)
		}
		if again := id.Next(); again == next {
			t.Error("it is always the same")
		}
	}
}

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

// partsTest is a tall tree and its parts.
type partsTest struct {
	store    *pageStore
	root     *Root
	entries  []Entry
	parts    []Part
	children int // of the root page
}

func newPartsTest(t *testing.T) *partsTest {
	t.Helper()
	p := &partsTest{store: newPageStore(), entries: randomEntries(newRand(7), 5000)}
	p.root, _ = build(t, p.store, p.entries)
	p.root.Page, p.children = tallRoot(t, p.store, p.root)
	err := newTree(t, p.root, p.store).Parts(t.Context(), func(part Part) error { p.parts = append(p.parts, part); return nil }, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestParts: the parts of a tree are all of its pages, in order, and what they use is
// what the tree does.
func TestParts(t *testing.T) {
	p := newPartsTest(t)
	if root := &p.parts[0]; !root.IsRoot() || root.Level < 2 || root.Entries != uint64(len(p.entries)) {
		t.Fatalf("%+v", *root)
	}
	tree := newTree(t, p.root, p.store)
	pages, use := map[chunk.ID]bool{}, map[chunk.PackID]uint64{}
	at := 0
	for i := range p.parts {
		part := &p.parts[i]
		if !part.IsRoot() {
			pages[part.ID] = true
			if part.Level == 0 {
				use[part.Pack] += uint64(part.Frame.Raw)
			}
		}
		if part.Level == 0 {
			at += testLeafPart(t, tree, part, p.entries[at:], use)
		}
	}
	if at != len(p.entries) || len(pages) != p.children+(p.children+2)/3 || !maps.Equal(use, p.root.Use) {
		t.Errorf("%d pages, %d entries of %d; used %v, %v expected", len(pages), at, len(p.entries), use, p.root.Use)
	}
}

// testLeafPart reads the page of a part, which begins with the first of entries. It
// counts what they use, and gives how many they are.
func testLeafPart(t *testing.T, tree *Tree, part *Part, entries []Entry, use map[chunk.PackID]uint64) int {
	t.Helper()
	leaf, err := tree.ReadLeaf(t.Context(), part)
	if err != nil {
		t.Fatal(err)
	}
	n := leaf.Len()
	if part.First != entries[0].Key() || uint64(n) != part.Entries {
		t.Errorf("page of %d entries from %v, %v expected", n, part.First, entries[0].Key())
	}
	var e Entry
	for i := range n {
		leaf.Entry(i, &e)
		if err := tree.Use(t.Context(), &e, use); err != nil {
			t.Fatal(err)
		}
		if e.Key() != entries[i].Key() {
			t.Fatalf("%v instead of %v", e.Key(), entries[i].Key())
		}
	}
	if n < len(entries) && (part.End == nil || *part.End != entries[n].Key()) {
		t.Errorf("page ends at %v, %v expected", part.End, entries[n].Key())
	}
	return n
}

// TestPartsDiffer: no two parts are the same, and each is in a tree that has it too.
func TestPartsDiffer(t *testing.T) {
	p := newPartsTest(t)
	seen := map[string]bool{}
	for i := range p.parts {
		seen[string(p.parts[i].AppendTo(nil))] = true
	}
	if len(seen) != len(p.parts) {
		t.Errorf("%d of %d parts can be told apart", len(seen), len(p.parts))
	}
	err := newTree(t, p.root, p.store).Parts(t.Context(), func(part Part) error {
		if !seen[string(part.AppendTo(nil))] {
			t.Errorf("%+v is new", part)
		}
		return nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// TestPartsLost: an inner page that cannot be read costs what is below it and no more.
func TestPartsLost(t *testing.T) {
	p := newPartsTest(t)
	bad := p.parts[1]
	p.store.onRead = func(_ context.Context, ref PageRef) error {
		if ref.ID == bad.ID {
			return errors.New("away")
		}
		return nil
	}
	var lost []Part
	rest := uint64(0)
	err := newTree(t, p.root, p.store).Parts(t.Context(), func(part Part) error {
		if part.Level == 0 {
			rest += part.Entries
		}
		return nil
	}, func(part Part, err error) error { lost = append(lost, part); return nil })
	if err != nil || len(lost) != 1 || !bytes.Equal(lost[0].AppendTo(nil), bad.AppendTo(nil)) || rest+bad.Entries != uint64(len(p.entries)) {
		t.Errorf("%v: lost %+v, the rest has %d of %d entries", err, lost, rest, len(p.entries))
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

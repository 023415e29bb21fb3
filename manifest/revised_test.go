package manifest

import (
	"reflect"
	"slices"
	"testing"

	"github.com/snapctl/snapctl/chunk"
)

// revise makes tree b of tree a by what Revised tells.
func revise(t testing.TB, s *pageStore, a, b *Tree, of *Root) (root *Root, told int) {
	t.Helper()
	ctx := t.Context()
	p, err := NewPatch(ctx, a, of.Use, s)
	if err != nil {
		t.Fatal(err)
	}
	err = Revised(ctx, a, b, func(old, new *Entry) error {
		told++
		if new == nil {
			_, err := p.Remove(ctx, old.Key())
			return err
		}
		e := plain(*new)
		if e.Spill != nil {
			err := b.Extents(ctx, new, func(_ uint64, x *Extent) error {
				e.Extents = append(e.Extents, *x)
				return nil
			})
			if err != nil {
				return err
			}
			e.Spill = nil
		}
		return p.Put(ctx, &e)
	})
	if err != nil {
		t.Fatal(err)
	}
	if root, err = p.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	return root, told
}

// placeless is an entry without where its chunks lie.
func placeless(e Entry) Entry {
	e = plain(e)
	for i := range e.Extents {
		x := &e.Extents[i]
		x.Location = chunk.Location{Length: x.Length}
	}
	return e
}

// differing counts the keys that two trees do not have alike.
func differing(a, b []Entry) (n int) {
	old := map[Key]Entry{}
	for _, e := range a {
		old[e.Key()] = placeless(e)
	}
	for _, e := range b {
		if was, ok := old[e.Key()]; !ok || !reflect.DeepEqual(was, placeless(e)) {
			n++
		}
		delete(old, e.Key())
	}
	return n + len(old)
}

// What Revised tells makes the very tree of the other, links' counts and all.
func TestRevised(t *testing.T) {
	for seed := range uint64(40) {
		r := newRand(seed)
		entries := smallFiles(2 + r.IntN(6000))
		if seed%2 == 0 {
			entries = randomEntries(r, 1+r.IntN(2000))
			for i := range entries {
				if e := &entries[i]; e.Type == File && r.IntN(40) == 0 {
					k := e.Key()
					*e = randomFile(r, 1+r.IntN(3*MaxInline), true)
					e.Dir, e.Name = k.Dir, k.Name
				}
			}
		}
		after := slices.Clone(mutate(r, entries, r.IntN(15)))
		for range r.IntN(3) { // what Diff does not compare
			if e := &after[r.IntN(len(after))]; e.Type == File {
				e.Links++
			}
		}
		edits := differing(entries, after)
		s := newPageStore()
		before, _ := build(t, s, entries)
		want, _ := build(t, s, after)
		for _, turn := range [][2]*Root{{before, want}, {want, before}, {before, before}} {
			got, told := revise(t, s, newTree(t, turn[0], s), newTree(t, turn[1], s), turn[0])
			_, left := revise(t, s, newTree(t, got, s), newTree(t, turn[1], s), got)
			if left > 0 || got.Entries != turn[1].Entries || got.Xattrs != turn[1].Xattrs || got.HardLinks != turn[1].HardLinks {
				t.Fatalf("seed %d: another tree, of %d entries, want %d; %d differ", seed, got.Entries, turn[1].Entries, left)
			}
			if turn[0] != turn[1] && told != edits || turn[0] == turn[1] && told > 0 {
				t.Fatalf("seed %d: told of %d entries, %d differ", seed, told, edits)
			}
		}
	}
}

// Shared are the entries of the leaves that no edit has touched.
func TestSharedEntries(t *testing.T) {
	entries := smallFiles(20_000)
	s := newPageStore()
	before, _ := build(t, s, entries)
	after := slices.Clone(entries)
	after[10_000].Size++
	root, _ := build(t, s, after)
	a, b := newTree(t, before, s), newTree(t, root, s)
	for _, c := range []struct {
		x, y     *Tree
		min, max uint64
	}{{a, a, a.Len(), a.Len()}, {a, b, 15_000, a.Len() - 1}, {b, a, 15_000, a.Len() - 1}} {
		if n, err := SharedEntries(t.Context(), c.x, c.y); err != nil || n < c.min || n > c.max {
			t.Errorf("%d shared of %d, %v", n, c.y.Len(), err)
		}
	}
}

package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/snapctl/snapctl/chunk"
)

// edit is one call of a patch.
type edit struct {
	at    Key
	put   *Entry
	below bool // remove what is below at.Dir
}

// randomEdits changes entries in some places, and gives the edits that do so, in
// order.
func randomEdits(r *rand.Rand, entries []Entry, n int) ([]Entry, []edit) {
	after := slices.Clone(entries)
	var edits []edit
	done := map[Key]bool{}
	for range n {
		i := r.IntN(len(after))
		e := after[i]
		if done[e.Key()] {
			continue
		}
		switch kind := r.IntN(8); {
		case kind == 0 && e.Type == Dir && r.IntN(4) == 0:
			path := e.Path()
			if slices.ContainsFunc(edits, func(d edit) bool { return Within(d.at.Dir, path) }) {
				continue // one edit for each place
			}
			after = slices.DeleteFunc(after, func(e Entry) bool { return Within(e.Dir, path) && e.Key() != Key{} })
			edits = append(edits, edit{at: Key{path, "\x01"}, below: true})
			for _, e := range entries {
				if Within(e.Dir, path) {
					done[e.Key()] = true
				}
			}
		case kind < 3 && e.Type != Dir:
			after = slices.Delete(after, i, i+1)
			edits = append(edits, edit{at: e.Key()})
			done[e.Key()] = true
		case kind < 5:
			e.Name = randomName(r)
			if e.Dir != "" && done[Key{e.Dir, "\x01"}] || slices.ContainsFunc(after, func(o Entry) bool { return o.Key() == e.Key() }) || done[e.Key()] || e.Key() == (Key{}) {
				continue
			}
			if e.Type == Dir {
				e = randomFile(r, 1, false)
				e.Dir, e.Name = after[i].Dir, "new-"+fmt.Sprint(r.Uint32())
			}
			after = append(after, e)
			edits = append(edits, edit{at: e.Key(), put: &e})
			done[e.Key()] = true
		default:
			if e.Type == Link {
				continue
			}
			e.Mtime.Nsec ^= 1
			after[i] = e
			edits = append(edits, edit{at: e.Key(), put: &e})
			done[e.Key()] = true
		}
	}
	slices.SortFunc(after, func(a, b Entry) int { return a.Key().Compare(b.Key()) })
	slices.SortStableFunc(edits, func(a, b edit) int { return a.at.Compare(b.at) })
	return after, edits
}

func patch(t testing.TB, s *pageStore, from *Tree, use map[chunk.PackID]uint64, edits []edit, dropped func(*Entry)) *Root {
	t.Helper()
	ctx := t.Context()
	p, err := NewPatch(ctx, from, use, s)
	if err != nil {
		t.Fatal(err)
	}
	p.Dropped = dropped
	for _, d := range edits {
		switch {
		case d.put != nil:
			e := *d.put
			err = p.Put(ctx, &e)
		case d.below:
			err = p.RemoveBelow(ctx, d.at.Dir)
		default:
			var was bool
			if was, err = p.Remove(ctx, d.at); err == nil && !was {
				t.Fatalf("no %q to remove", d.at.Path())
			}
		}
		if err != nil {
			t.Fatalf("%q: %v", d.at.Path(), err)
		}
	}
	root, err := p.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// A patch makes the very tree that would be made from nothing.
func TestPatch(t *testing.T) {
	for seed := range uint64(60) {
		r := newRand(seed)
		var entries []Entry
		switch seed % 3 {
		case 0:
			entries = smallFiles(2 + r.IntN(6000))
		case 1:
			entries = randomEntries(r, 1+r.IntN(3000))
		default: // few entries, large ones
			entries = randomEntries(r, 1+r.IntN(300))
			for i := range entries {
				if e := &entries[i]; e.Type == File && r.IntN(3) == 0 {
					k := e.Key()
					*e = randomFile(r, 1+r.IntN(2*MaxInline), false)
					e.Dir, e.Name = k.Dir, k.Name
				}
			}
		}
		s := newPageStore()
		before, _ := build(t, s, entries)
		from := newTree(t, before, s)
		after, edits := randomEdits(r, entries, r.IntN(12))
		count := len(entries)
		got := patch(t, s, from, before.Use, edits, func(*Entry) { count-- })
		for _, d := range edits {
			if d.put != nil {
				count++
			}
		}
		want, _ := build(t, s, after)
		if got.Entries != want.Entries || got.Entries != uint64(len(after)) || count != len(after) {
			t.Fatalf("seed %d: %d entries, %d by what was dropped; want %d, %d", seed, got.Entries, count, want.Entries, len(after))
		}
		if !bytes.Equal(got.Page, want.Page) {
			t.Fatalf("seed %d: another root page", seed)
		}
		if got.Xattrs != want.Xattrs || got.HardLinks != want.HardLinks {
			t.Fatalf("seed %d: %v, %v", seed, got, want)
		}
		if !maps.Equal(got.Use, want.Use) {
			t.Fatalf("seed %d: packs in use: %v, want %v", seed, got.Use, want.Use)
		}
	}
}

// A patch reads and writes what an edit touches, however large the tree is.
func TestPatchCost(t *testing.T) {
	entries := smallFiles(60_000)
	s := newPageStore()
	before, _ := build(t, s, entries)
	from := newTree(t, before, s)
	r := newRand(3)
	for range 20 {
		after := entries[1+r.IntN(len(entries)-1)]
		after.Mtime.Nsec ^= 1
		s.added = nil
		s.reads.Store(0)
		patch(t, s, from, before.Use, []edit{{at: after.Key(), put: &after}}, nil)
		if n := s.reads.Load(); n > 3 {
			t.Errorf("%d pages were read", n)
		}
		if n := len(s.added); n > 3 {
			t.Errorf("%d pages were made", n)
		}
	}
}

// Nothing changes: no leaf is read or made.
func TestPatchOfNothing(t *testing.T) {
	s := newPageStore()
	before, _ := build(t, s, smallFiles(5000))
	from := newTree(t, before, s)
	s.added = nil
	s.reads.Store(0)
	got := patch(t, s, from, before.Use, nil, nil)
	if !bytes.Equal(got.Page, before.Page) || s.reads.Load() > 0 || len(s.added) > 0 {
		t.Errorf("%d pages read, %d made", s.reads.Load(), len(s.added))
	}
}

// What a manifest says of the packs it uses may be wrong.
func TestPatchOfWrongUse(t *testing.T) {
	s := newPageStore()
	entries := smallFiles(3000)
	before, _ := build(t, s, entries)
	from := newTree(t, before, s)
	for pack := range before.Use {
		use := maps.Clone(before.Use)
		delete(use, pack)
		p, err := NewPatch(t.Context(), from, use, s)
		if err == nil {
			err = p.RemoveBelow(t.Context(), "")
		}
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("pack %v: %v", pack, err)
		}
	}
}

package manifest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// difference is what a Difference says, to be compared.
type difference struct {
	path             string
	oldRank, newRank int // -1 for no entry
	changes          Changes
}

func diff(t testing.TB, a, b *Tree, dir string) []difference {
	t.Helper()
	var all []difference
	var last *Key
	err := Diff(t.Context(), a, b, dir, func(d *Difference) error {
		got := difference{oldRank: -1, newRank: -1, changes: d.Changes}
		for _, side := range []struct {
			e    *Entry
			rank uint64
			into *int
			tree *Tree
		}{{d.Old, d.OldRank, &got.oldRank, a}, {d.New, d.NewRank, &got.newRank, b}} {
			if side.e == nil {
				continue
			}
			*side.into = int(side.rank)
			got.path = side.e.Path()
			k := side.e.Key()
			if last != nil && last.Compare(k) > 0 {
				t.Fatalf("%q after %q", k.Path(), last.Path())
			}
			last = &k
			// The entry that is given is the one that stands there.
			var e Entry
			if err := side.tree.At(t.Context(), side.rank, &e); err != nil || e.Key() != side.e.Key() || e.Size != side.e.Size {
				t.Fatalf("entry %q at rank %d: %v", side.e.Path(), side.rank, err)
			}
		}
		all = append(all, got)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// naiveDiff compares full listings.
func naiveDiff(old, new []Entry, dir string) []difference {
	place := func(all []Entry) map[Key]int {
		m := map[Key]int{}
		for i := range all {
			m[all[i].Key()] = i
		}
		return m
	}
	oldAt, newAt := place(old), place(new)
	var keys []Key
	for _, all := range [][]Entry{old, new} {
		for i := range all {
			if Within(all[i].Path(), dir) {
				keys = append(keys, all[i].Key())
			}
		}
	}
	slices.SortFunc(keys, Key.Compare)
	var found []difference
	for _, k := range slices.Compact(keys) {
		d := difference{k.Path(), -1, -1, 0}
		i, inOld := oldAt[k]
		j, inNew := newAt[k]
		if inOld {
			d.oldRank = i
		}
		if inNew {
			d.newRank = j
		}
		if inOld && inNew {
			a, b := old[i], new[j]
			aLinks, bLinks := a.Type == Link, b.Type == Link
			switch {
			case aLinks && bLinks && a.First == b.First && k.Path() != dir:
				continue
			case (aLinks || bLinks) && a.First != b.First:
				d.changes = ChangedLinks
			}
			if aLinks {
				a = old[oldAt[a.First]]
			}
			if bLinks {
				b = new[newAt[b.First]]
			}
			if d.changes |= naiveChanges(a, b); d.changes == 0 {
				continue
			}
		}
		found = append(found, d)
	}
	return found
}

func naiveChanges(a, b Entry) (c Changes) {
	if a.Type != b.Type {
		return ChangedType
	}
	chunks := slices.EqualFunc(a.Extents, b.Extents, func(x, y Extent) bool {
		return x.Hole == y.Hole && x.ID == y.ID && x.Length == y.Length
	})
	for bit, differ := range map[Changes]bool{
		ChangedContent: a.Size != b.Size || a.Target != b.Target || a.Device != b.Device || !chunks,
		ChangedMode:    a.Mode != b.Mode,
		ChangedOwner:   a.UID != b.UID || a.GID != b.GID,
		ChangedXattrs:  len(a.Xattrs)+len(b.Xattrs) > 0 && fmt.Sprint(a.Xattrs) != fmt.Sprint(b.Xattrs),
		ChangedTimes:   a.Mtime != b.Mtime,
	} {
		if differ {
			c |= bit
		}
	}
	return c
}

// mutate changes some entries in all ways that there are.
func mutate(r *rand.Rand, entries []Entry, n int) []Entry {
	after := slices.Clone(entries)
	for range n {
		i := r.IntN(len(after))
		e := after[i]
		if e.Key() == (Key{}) {
			after[i].Mode ^= 0o100
			continue
		}
		switch kind := r.IntN(13); {
		case kind == 0 && e.Type == Dir:
			renameDir(after, e.Path(), Join(e.Dir, randomName(r)))
		case kind == 1 && e.Type == Dir: // a file in its place
			path := e.Path()
			after[i] = randomFile(r, 1, false)
			after[i].Dir, after[i].Name = e.Dir, e.Name
			after = slices.DeleteFunc(after, func(o Entry) bool { return Within(o.Dir, path) })
		case kind < 4 && e.Type != Dir:
			after = slices.Delete(after, i, i+1)
		case kind < 6:
			after = addNeighbour(r, after, e)
		default:
			mutateEntry(r, &after[i], kind)
		}
	}
	slices.SortFunc(after, func(a, b Entry) int { return a.Key().Compare(b.Key()) })
	return repairLinks(after)
}

// renameDir renames a directory, with all that is below it, unless something is at the
// new path.
func renameDir(entries []Entry, from, to string) {
	if slices.ContainsFunc(entries, func(o Entry) bool { return Within(o.Path(), to) }) {
		return
	}
	rename := func(p string) string {
		if Within(p, from) {
			return to + p[len(from):]
		}
		return p
	}
	for i := range entries {
		o := &entries[i]
		if k := KeyOf(rename(o.Path())); o.Key() != k {
			o.Dir, o.Name = k.Dir, k.Name
		}
		if o.Type == Link {
			o.First = KeyOf(rename(o.First.Path()))
		}
	}
}

// addNeighbour adds an entry beside e, at the end.
func addNeighbour(r *rand.Rand, entries []Entry, e Entry) []Entry {
	o := randomFile(r, r.IntN(3), true)
	if r.IntN(4) == 0 {
		o = Entry{Type: Link, First: e.Key()} // repairLinks sees to it
	}
	o.Dir, o.Name = e.Dir, randomName(r)
	if slices.ContainsFunc(entries, func(x Entry) bool { return x.Key() == o.Key() }) {
		return entries
	}
	return append(entries, o)
}

// mutateEntry changes what an entry says, if it can in that way.
func mutateEntry(r *rand.Rand, e *Entry, kind int) {
	switch {
	case e.Type == Link:
	case kind == 6:
		e.Mtime.Nsec ^= 1
	case kind == 7:
		e.UID ^= 1
	case kind == 8:
		e.Mode ^= 0o4000
	case kind == 9:
		e.Xattrs = []Xattr{{"user.new", []byte{byte(r.Uint32())}}}
	case kind == 10 && e.Type == File && len(e.Extents) > 0:
		e.Extents = slices.Clone(e.Extents)
		e.Extents[r.IntN(len(e.Extents))].ID = randomID(r)
	case kind == 11 && len(e.Extents) > 0: // the same chunk elsewhere: no difference
		e.Extents = slices.Clone(e.Extents)
		for j := range e.Extents {
			e.Extents[j].Pack = somePacks[r.IntN(len(somePacks))]
			e.Extents[j].Offset ^= 1
		}
	case kind == 12 && e.Type == File:
		e.Size += 1 << 20 // a hole at the end
	}
}

// repairLinks has hard links lead to earlier files, as the format wants it: where
// the first name is gone or later, to another file, or else a fifo takes their place.
func repairLinks(entries []Entry) []Entry {
	var files []Key
	known := map[Key]bool{}
	for i := range entries {
		e := &entries[i]
		switch {
		case e.Type == File:
			files = append(files, e.Key())
			known[e.Key()] = true
		case e.Type == Link && !known[e.First] && len(files) > 0:
			e.First = files[len(files)/2]
		case e.Type == Link && !known[e.First]:
			*e = Entry{Dir: e.Dir, Name: e.Name, Type: Fifo, Links: 1}
		}
	}
	return entries
}

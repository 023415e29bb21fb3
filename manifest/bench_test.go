package manifest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/snapctl/snapctl/bench/micro"
	"github.com/snapctl/snapctl/chunk"
)

// benchEntries is about how many entries a node_modules tree has.
const benchEntries = 120_000

// oneDirectory is n files of one directory, the root: all of a large listing.
func oneDirectory(n int) []Entry {
	r := newRand(uint64(n))
	entries := []Entry{{Type: Dir, Mode: 0o755, Links: 1}}
	for i := range n {
		e := randomFile(r, 1, false)
		e.Name, e.UID, e.GID, e.Mtime = fmt.Sprintf("module-%05d.js", i), 1000, 1000, Time{1_700_000_000 + int64(i), r.Uint32N(1e9)}
		e.Extents[0].Pack, e.Extents[0].Frame.Offset = somePacks[0], chunk.PackHeaderSize+1<<19*uint32(i/300)
		entries = append(entries, e)
	}
	return entries
}

// The limit is the hash of the page, by which whoever fetched it has checked it.
func BenchmarkPageDecode(b *testing.B) {
	run := func(name string, entries []Entry) {
		page := leafOf(entries)
		micro.Run(b, fmt.Sprintf("entries=%d/of=%s", len(entries)-1, name), micro.Work{Bytes: len(page), Entries: len(entries)}, func() error {
			_, err := DecodeLeaf(page)
			return err
		}, func() error {
			unkeyed.Sum(page)
			return nil
		})
	}
	run("directory", oneDirectory(100))
	run("directory", oneDirectory(5000))
	run("tree", smallFiles(500)) // as most pages are
}

// benchTree is a tree whose pages are decoded already, though it has as many as its
// cache can hold.
func benchTree(b *testing.B) ([]Entry, *Tree) {
	entries := smallFiles(benchEntries)
	s := newPageStore()
	root, _ := build(b, s, entries)
	tree := newTree(b, root, s)
	if err := walk(b.Context(), tree); err != nil {
		b.Fatal(err)
	}
	return entries, tree
}

func walk(ctx context.Context, tree *Tree) error {
	c, err := tree.Seek(ctx, Key{})
	var e Entry
	for more := true; more && err == nil; {
		more, err = c.Next(ctx, &e)
	}
	return err
}

// far goes through 0 to n-1 in an order that no cache foresees.
func far(n int) func() int {
	i := 0
	return func() int {
		i = (i + 7919*7919) % n
		return i
	}
}

// The limit is the decoding of an entry of a page at hand: what is above it are two
// pages to go down, and each a look into the cache.
func BenchmarkLookupRank(b *testing.B) {
	entries, tree := benchTree(b)
	page, err := DecodeLeaf(leafOf(smallFiles(500)))
	if err != nil {
		b.Fatal(err)
	}
	var e Entry
	ctx, next, near := b.Context(), far(len(entries)), far(page.Len())
	micro.Run(b, fmt.Sprintf("entries=%d", len(entries)), micro.Work{Entries: 1}, func() error {
		return tree.At(ctx, uint64(next()), &e)
	}, func() error {
		page.Entry(near(), &e)
		return nil
	})
}

// The limit is the search in a sorted slice of all keys, which in memory takes twenty
// times what the tree does.
func BenchmarkLookupName(b *testing.B) {
	entries, tree := benchTree(b)
	keys := make([]Key, len(entries))
	misses := make([]Key, len(entries))
	for i := range entries {
		keys[i] = entries[i].Key()
		misses[i] = Key{keys[i].Dir, keys[i].Name + ".map"}
	}
	var e Entry
	ctx := b.Context()
	for _, of := range []struct {
		name string
		keys []Key
		want error
	}{{"hit", keys, nil}, {"miss", misses, ErrNotExist}} {
		next := far(len(keys))
		micro.Run(b, fmt.Sprintf("entries=%d/of=%s", len(entries), of.name), micro.Work{Entries: 1}, func() error {
			if _, err := tree.Lookup(ctx, of.keys[next()], &e); !errors.Is(err, of.want) {
				return fmt.Errorf("lookup: %v, not %v", err, of.want)
			}
			return nil
		}, func() error {
			_, found := slices.BinarySearchFunc(keys, of.keys[next()], Key.Compare)
			if found != (of.want == nil) {
				return errors.New("the search is wrong")
			}
			return nil
		})
	}
}

// The limit is to copy the entries out of a slice of them.
func BenchmarkWalk(b *testing.B) {
	entries, tree := benchTree(b)
	var e Entry
	micro.Run(b, fmt.Sprintf("entries=%d", len(entries)), micro.Work{Entries: len(entries)}, func() error {
		return walk(b.Context(), tree)
	}, func() error {
		for i := range entries {
			x := e.Extents[:0]
			e = entries[i]
			e.Extents = append(x, e.Extents...)
		}
		return nil
	})
}

// discard is a sink that names pages, and knows all of them.
type discard struct{ pages int }

func (d *discard) Add(_ context.Context, page []byte) (chunk.ID, error) {
	d.pages++
	return unkeyed.Sum(page), nil
}
func (d *discard) Flush(context.Context) error { return nil }
func (d *discard) Page(id chunk.ID) PageRef {
	return PageRef{ID: id, Pack: somePacks[0], Frame: chunk.Frame{Offset: chunk.PackHeaderSize, Stored: 1 << 14, Raw: 1 << 16}}
}

// The limit is the hash of all pages.
func BenchmarkBuild(b *testing.B) {
	entries := smallFiles(benchEntries)
	s := newPageStore()
	build(b, s, entries)
	var pages [][]byte
	size := 0
	for _, p := range s.pages {
		pages = append(pages, p)
		size += len(p)
	}
	micro.Run(b, fmt.Sprintf("entries=%d", len(entries)), micro.Work{Bytes: size, Entries: len(entries)}, func() error {
		t := NewBuilder(&discard{})
		for i := range entries {
			if err := t.Add(b.Context(), &entries[i]); err != nil {
				return err
			}
		}
		_, err := t.Finish(b.Context())
		return err
	}, func() error {
		for _, p := range pages {
			unkeyed.Sum(p)
		}
		return nil
	})
}

// One file of many changes: a leaf and the inner pages above it are made anew. The limit
// is to decode and to build the leaf alone.
func BenchmarkPatch(b *testing.B) {
	leaf := smallFiles(500)
	page := leafOf(leaf)
	for _, n := range []int{10_000, 100_000} {
		entries := smallFiles(n)
		s := newPageStore()
		before, _ := build(b, s, entries)
		e := entries[len(entries)/2]
		e.Mtime.Nsec ^= 1
		micro.Run(b, fmt.Sprintf("entries=%d", n), micro.Work{}, func() error {
			p, err := NewPatch(b.Context(), newTree(b, before, s), before.Use, s)
			if err == nil {
				err = p.Put(b.Context(), &e)
			}
			if err == nil {
				_, err = p.Finish(b.Context())
			}
			return err
		}, func() error {
			_, err := DecodeLeaf(page)
			leafOf(leaf)
			return err
		})
	}
}

// One file of many differs, and no page is decoded yet. The limit is to decode the two
// leaves that differ.
func BenchmarkDiff(b *testing.B) {
	page := leafOf(smallFiles(500))
	for _, n := range []int{100_000, 1_000_000} {
		entries := smallFiles(n)
		for i := range entries {
			for j := range entries[i].Extents { // as far as packs are long
				entries[i].Extents[j].Frame.Offset &= 1<<27 - 1
			}
		}
		s := newPageStore()
		before, _ := build(b, s, entries)
		entries[len(entries)/2].Mtime.Nsec ^= 1
		after, _ := build(b, s, entries)
		entries = nil
		micro.Run(b, fmt.Sprintf("entries=%d/of=one", n), micro.Work{}, func() error {
			count := 0
			err := Diff(b.Context(), newTree(b, before, s), newTree(b, after, s), "", func(*Difference) error { count++; return nil })
			if err == nil && count != 1 {
				err = fmt.Errorf("%d differences", count)
			}
			return err
		}, func() error {
			_, err := DecodeLeaf(page)
			if err == nil {
				_, err = DecodeLeaf(page)
			}
			return err
		})
	}
}

// All files of many differ. The limit is to walk both trees.
func BenchmarkDiffAll(b *testing.B) {
	entries := smallFiles(benchEntries)
	s := newPageStore()
	before, _ := build(b, s, entries)
	for i := range entries {
		entries[i].Mtime.Nsec ^= 1
	}
	after, _ := build(b, s, entries)
	ctx := b.Context()
	micro.Run(b, fmt.Sprintf("entries=%d/of=all", len(entries)), micro.Work{Entries: len(entries)}, func() error {
		return Diff(ctx, newTree(b, before, s), newTree(b, after, s), "", func(*Difference) error { return nil })
	}, func() error {
		return errors.Join(walk(ctx, newTree(b, before, s)), walk(ctx, newTree(b, after, s)))
	})
}

// benchManifest is that of a large snapshot: 500 packs, and an inner page as its root.
func benchManifest(b *testing.B, c *chunk.Codec) []byte {
	s := newPageStore()
	root, _ := build(b, s, smallFiles(benchEntries))
	m := someManifest(b, s)
	m.Root, m.Packs = root.Page, nil
	r := newRand(1)
	for range 500 {
		m.Packs = append(m.Packs, PackUse{randomID(r), 1 + r.Uint64N(16<<20)})
	}
	slices.SortFunc(m.Packs, func(a, b PackUse) int { return slices.Compare(a.ID[:], b.ID[:]) })
	object, err := m.Encode(c)
	if err != nil {
		b.Fatal(err)
	}
	return object
}

// The limit is the checksum of the object.
func BenchmarkManifestDecode(b *testing.B) {
	c := newCodec(b)
	object := benchManifest(b, c)
	micro.Run(b, "packs=500", micro.Work{Bytes: len(object), Entries: 500}, func() error {
		_, err := Decode(c, object)
		return err
	}, func() error { return checkSum(object, len(object)-sumSize) })
}

// What a listing does for each snapshot. The limit is the checksum of the head.
func BenchmarkHeadDecode(b *testing.B) {
	c := newCodec(b)
	object := benchManifest(b, c)
	n, err := HeadLen(object)
	if err != nil {
		b.Fatal(err)
	}
	micro.Run(b, "heads=1", micro.Work{Bytes: n, Entries: 1}, func() error {
		_, err := DecodeHead(c, object[:n])
		return err
	}, func() error { return checkSum(object, n-sumSize) })
}

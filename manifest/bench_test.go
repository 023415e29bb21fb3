package manifest

import (
	"testing"
)

const benchEntries = 120_000

func BenchmarkLeafDecode(b *testing.B) {
	page := leafOf(smallFiles(600))
	l, err := DecodeLeaf(page)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(page)))
	for b.Loop() {
		if _, err := DecodeLeaf(page); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(l.Len()), "entries")
}

func BenchmarkBuilder(b *testing.B) {
	entries := smallFiles(benchEntries)
	s := newPageStore()
	build(b, s, entries)
	b.ReportAllocs()
	for b.Loop() {
		build(b, s, entries)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(entries)), "ns/entry")
}

func benchTree(b *testing.B) ([]Entry, *Tree) {
	entries := smallFiles(benchEntries)
	s := newPageStore()
	root, _ := build(b, s, entries)
	tree := newTree(b, root, s)
	c, _ := tree.Seek(b.Context(), Key{})
	var e Entry
	for ok := true; ok; {
		ok, _ = c.Next(b.Context(), &e)
	}
	b.ReportAllocs()
	return entries, tree
}

func BenchmarkCursor(b *testing.B) {
	entries, tree := benchTree(b)
	for b.Loop() {
		c, err := tree.Seek(b.Context(), Key{})
		var e Entry
		for ok := true; ok && err == nil; {
			ok, err = c.Next(b.Context(), &e)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(entries)), "ns/entry")
}

func BenchmarkLookup(b *testing.B) {
	entries, tree := benchTree(b)
	var e Entry
	for i := 0; b.Loop(); i++ {
		if _, err := tree.Lookup(b.Context(), entries[i*7919%len(entries)].Key(), &e); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAt(b *testing.B) {
	entries, tree := benchTree(b)
	var e Entry
	for i := 0; b.Loop(); i++ {
		if err := tree.At(b.Context(), uint64(i*7919%len(entries)), &e); err != nil {
			b.Fatal(err)
		}
	}
}

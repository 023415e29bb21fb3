package index

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/snapctl/snapctl/chunk"
)

func TestSyncAndLookup(t *testing.T) {
	for _, n := range []int{10, keepAfter + 10, 2*bufferLimit + 5000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			dir := t.TempDir()
			b := newBucket()
			b.fill(t, 0, n)
			want := b.places(t)

			ix := open(t, dir)
			check(t, ix, nil, 100)
			b.sync(t, ix)
			check(t, ix, want, n+1500)
			mustClose(t, ix)
			if _, ok := ix.Lookup(chunkID(1)); ok {
				t.Error("a closed index finds chunks")
			}

			b.fetches.Store(0)
			ix = open(t, dir)
			check(t, ix, want, n+1500)
			b.sync(t, ix)
			if f := b.fetches.Load(); f != 0 {
				t.Errorf("%d segments fetched though nothing changed", f)
			}
			s := ix.Stats()
			if s.Chunks != int64(len(want)) || s.Packs != 4*len(b.segments) || s.Segments != len(b.segments) {
				t.Errorf("%+v, want %d chunks in %d segments of 4 packs", s, len(want), len(b.segments))
			}
			var sum int64
			for _, size := range ix.Packs() {
				sum += size
			}
			if sum != s.PackBytes {
				t.Errorf("packs have %d bytes, stats say %d", sum, s.PackBytes)
			}
			if ix.Err() != nil {
				t.Error(ix.Err())
			}
		})
	}
}

func TestNothingIsWrittenWithoutChange(t *testing.T) {
	dir := t.TempDir()
	b := newBucket()
	b.fill(t, 0, 5000)
	ix := open(t, dir)
	b.sync(t, ix)
	mustClose(t, ix)

	stat := func() map[string]time.Time {
		m := map[string]time.Time{}
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, _ error) error {
			info, err := d.Info()
			if err != nil {
				t.Fatal(err)
			}
			m[path] = info.ModTime()
			return nil
		})
		return m
	}
	before := stat()
	ix = open(t, dir)
	b.sync(t, ix)
	check(t, ix, b.places(t), 6000)
	mustClose(t, ix)
	if after := stat(); !maps.Equal(before, after) {
		t.Errorf("files changed:\n%v\n%v", before, after)
	}
}

func TestSegmentsGo(t *testing.T) {
	dir := t.TempDir()
	b := newBucket()
	p1, p2, p3 := makePack(1, 1, 2), makePack(2, 2, 3), makePack(3, 4)
	s1, _ := b.put(t, p1, p2)
	b.put(t, p3)
	ix := open(t, dir)
	b.sync(t, ix)
	check(t, ix, places(p1, p2, p3), 6)

	// p1 is listed by a new segment too, as after compaction.
	delete(b.segments, s1)
	b.put(t, p1)
	b.sync(t, ix)
	for range 2 {
		if r := checkPresent(t, ix, places(p1, p3), 6); r < 0.6 {
			t.Errorf("%.2f of the chunks are known", r)
		}
		if _, ok := ix.Lookup(chunkID(1)); !ok {
			t.Error("chunk 1 was lost with the segment that listed its pack first")
		}
		if s := ix.Stats(); s.Packs != 2 || s.Segments != 2 {
			t.Errorf("%+v", s)
		}
		mustClose(t, ix)
		ix = open(t, dir)
	}

	clear(b.segments)
	b.sync(t, ix)
	check(t, ix, nil, 6)
	mustClose(t, ix)
	if _, err := os.Stat(filepath.Join(dir, "0", dbName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty index keeps its files: %v", err)
	}
}

func TestMostlyDead(t *testing.T) {
	dir := t.TempDir()
	b := newBucket()
	b.fill(t, 0, bufferLimit+5000)
	ix := open(t, dir)
	b.sync(t, ix)
	before := ix.next
	clear(b.segments)
	b.fill(t, bufferLimit, 4000)
	b.sync(t, ix)
	check(t, ix, b.places(t), bufferLimit+6000)
	if ix.dead != 0 {
		t.Errorf("%d dead entries left", ix.dead)
	}
	for n := range ix.packs {
		if n < before {
			t.Errorf("pack number %d is used twice", n)
		}
	}
	mustClose(t, ix)
	ix = open(t, dir)
	check(t, ix, b.places(t), bufferLimit+6000)
}

func TestAddCommit(t *testing.T) {
	dir := t.TempDir()
	b := newBucket()
	p1, p2 := makePack(1, 1, 2, 3), makePack(2, 3, 4)
	ix := open(t, dir)
	b.sync(t, ix)
	ix.Add(p1, p2)
	ix.Add(p1)
	check(t, ix, places(p1, p2), 6)
	mustClose(t, ix)

	// In no segment: the next process must not believe in them.
	ix = open(t, dir)
	check(t, ix, nil, 6)
	ix.Add(p1, p2)
	id, s := b.put(t, p1)
	for range 2 {
		if err := ix.Commit(id, s); err != nil {
			t.Fatal(err)
		}
	}
	check(t, ix, places(p1, p2), 6)
	mustClose(t, ix)
	if err := ix.Commit(id, s); !errors.Is(err, ErrClosed) {
		t.Errorf("Commit after Close: %v", err)
	}

	ix = open(t, dir)
	checkPresent(t, ix, places(p1), 6)
	if _, ok := ix.Lookup(chunkID(1)); !ok {
		t.Error("a committed chunk is not known")
	}
	b.sync(t, ix)
	if f := b.fetches.Load(); f != 0 {
		t.Errorf("the committed segment was fetched %d times", f)
	}

	// Without Add first, and more than memory may keep.
	big := makePack(3, span(10, bufferLimit+100)...)
	id, s = b.put(t, big)
	if err := ix.Commit(id, s); err != nil {
		t.Fatal(err)
	}
	checkPresent(t, ix, places(p1, big), bufferLimit+200)
	// Not closed: what is on disk already must be whole.
	other := open(t, copyDir(t, dir))
	if r := checkPresent(t, other, places(p1, big), bufferLimit+200); r < 0.99 {
		t.Errorf("%.2f of the chunks are known to the next process", r)
	}
}

func TestExclude(t *testing.T) {
	dir := t.TempDir()
	b := newBucket()
	p1, p2, p3 := makePack(1, 1), makePack(2, 2), makePack(3, 3)
	b.put(t, p1, p2)
	ix := open(t, dir)
	b.sync(t, ix)
	ix.Exclude([]chunk.PackID{p1.ID, p3.ID})
	ix.Add(p3)
	check(t, ix, places(p2), 5)
	ix.Exclude([]chunk.PackID{p2.ID})
	check(t, ix, nil, 5)
	ix.Add(makePack(4, 1))
	check(t, ix, places(makePack(4, 1)), 5)
	mustClose(t, ix)

	ix = open(t, dir)
	check(t, ix, places(p1, p2), 5)
}

func TestForget(t *testing.T) {
	dir := t.TempDir()
	b := newBucket()
	p1, p2 := makePack(1, 1), makePack(2, 2)
	seg, _ := b.put(t, p1, p2)
	ix := open(t, dir)
	b.sync(t, ix)
	mustClose(t, ix)
	ix = open(t, dir)
	ix.Forget(p1.ID)
	ix.Forget(makePack(9).ID)
	check(t, ix, places(p2), 5)
	mustClose(t, ix)

	ix = open(t, dir)
	b.sync(t, ix)
	check(t, ix, places(p2), 5)
	// Stored again, it comes back.
	id, s := b.put(t, p1)
	if err := ix.Commit(id, s); err != nil {
		t.Fatal(err)
	}
	delete(b.segments, seg)
	b.sync(t, ix)
	mustClose(t, ix)
	ix = open(t, dir)
	check(t, ix, places(p1), 5)
}

func TestSyncErrors(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	b := newBucket()
	old, _ := b.put(t, makePack(1, 1))
	ix := open(t, dir)
	b.sync(t, ix)

	delete(b.segments, old)
	good, _ := b.put(t, makePack(2, 2))
	want := places(makePack(2, 2))
	check2 := func(name string) {
		t.Helper()
		check(t, ix, want, 5)
	}

	gone := SegmentID{1}
	if err := ix.Sync(ctx, append(b.list(), gone, good), b.fetch); err != nil {
		t.Errorf("a segment that has gone since the listing: %v", err)
	}
	check2("gone")

	third, _ := b.put(t, makePack(3, 3))
	right := b.segments[third]
	for name, data := range map[string][]byte{
		"of another name": b.segments[good],
		"truncated":       right[:len(right)-1],
		"empty":           nil,
	} {
		b.segments[third] = data
		if err := ix.Sync(ctx, b.list(), b.fetch); !errors.Is(err, ErrBadSegment) {
			t.Errorf("%s: %v", name, err)
		}
		check2(name)
	}
	nonsense := []byte("not a segment at all, but under its right name")
	b.segments[SumSegment(nonsense)] = nonsense
	b.segments[third] = right
	if err := ix.Sync(ctx, b.list(), b.fetch); !errors.Is(err, ErrBadSegment) {
		t.Errorf("nonsense: %v", err)
	}
	want = places(makePack(2, 2), makePack(3, 3))
	check2("beside nonsense")

	// A store that fails: what has gone is gone all the same.
	failed := errors.New("no network")
	err := ix.Sync(ctx, []SegmentID{third, {2}, {3}}, func(context.Context, SegmentID) ([]byte, error) { return nil, failed })
	if !errors.Is(err, failed) {
		t.Errorf("failing store: %v", err)
	}
	want = places(makePack(3, 3))
	check2("failing store")

	ctx, cancel := context.WithCancel(ctx)
	err = ix.Sync(ctx, []SegmentID{third, {2}, {3}}, func(ctx context.Context, _ SegmentID) ([]byte, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	check2("cancelled")
	mustClose(t, ix)
	if err := ix.Sync(t.Context(), nil, b.fetch); !errors.Is(err, ErrClosed) {
		t.Errorf("Sync after Close: %v", err)
	}
}

func TestInMemory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, testRepo, testCodec, nil); err == nil {
		t.Error("a file is taken for a folder")
	}
	b := newBucket()
	b.fill(t, 0, bufferLimit+5000)
	ix := open(t, "")
	b.sync(t, ix)
	check(t, ix, b.places(t), bufferLimit+6000)
	clear(b.segments)
	b.fill(t, 0, 1000)
	b.sync(t, ix)
	check(t, ix, b.places(t), 2000)
	mustClose(t, ix)
}

// One writer and many readers; run it with -race.
func TestConcurrency(t *testing.T) {
	dir := t.TempDir()
	b := newBucket()
	b.fill(t, 0, 20_000)
	want := b.places(t)
	ix := open(t, dir)
	b.sync(t, ix)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for r := range 4 {
		readers.Go(func() {
			for i := r; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				id := chunkID(i % 20_000)
				if loc, ok := ix.Lookup(id); !ok || !contains(want[id], loc) {
					t.Errorf("chunk %d: %v, %v", i, loc, ok)
					return
				}
				if i%1000 == 0 {
					ix.Stats()
					ix.Packs()
				}
			}
		})
	}
	for i := range 20 {
		p := makePack(i, span(100_000+i*5000, 5000)...)
		ix.Add(p)
		id, s := b.put(t, p)
		if err := ix.Commit(id, s); err != nil {
			t.Error(err)
		}
		if i%5 == 4 {
			b.sync(t, ix)
			ix.Exclude([]chunk.PackID{p.ID})
			ix.Forget(p.ID)
		}
	}
	close(stop)
	readers.Wait()
	mustClose(t, ix)
}

// copyDir copies an index's folder while it is in use: what a process leaves
// that is killed now. The copies have other inodes and times, so every byte is
// verified.
func copyDir(t interface {
	Helper()
	Fatalf(string, ...any)
}, dir string) string {
	t.Helper()
	to, err := os.MkdirTemp(filepath.Dir(dir), "copy-")
	if err != nil {
		t.Fatalf("%v", err)
	}
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatalf("%v", err)
	}
	return to
}

// TestExcludedLeavesThePlace: of a chunk that lies in an excluded pack and another one
// the place in the other is known, in whatever order they come.
func TestExcludedLeavesThePlace(t *testing.T) {
	dir := t.TempDir()
	b := newBucket()
	doomed, other := makePack(1, span(0, 5000)...), makePack(2, span(0, 5000)...)
	b.put(t, other)
	first := open(t, dir)
	first.Exclude([]chunk.PackID{doomed.ID})
	b.sync(t, first)
	b.put(t, doomed)
	b.sync(t, first)
	mustClose(t, first)
	for _, dir := range []string{dir, t.TempDir()} {
		ix := open(t, dir)
		ix.Exclude([]chunk.PackID{doomed.ID})
		b.sync(t, ix)
		for _, n := range []int{0, 4999} {
			if loc, ok := ix.Lookup(chunkID(n)); !ok || loc.Pack != other.ID {
				t.Errorf("chunk %d: %+v, %v", n, loc, ok)
			}
		}
		mustClose(t, ix)
	}
}

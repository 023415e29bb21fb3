package index

import (
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/snapctl/snapctl/chunk"
	"github.com/zeebo/blake3"
)

var testRepo = [16]byte{1, 2, 3}

// testCodec is shared: each codec makes encoders.
var testCodec = func() *chunk.Codec {
	c, err := chunk.NewCodec(1)
	if err != nil {
		panic(err)
	}
	return c
}()

// chunkID is the n-th chunk of the tests.
func chunkID(n int) chunk.ID {
	return chunk.ID(blake3.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(n))))
}

// makePack makes a pack of the chunks with these numbers, eight to a frame. Its
// id depends on salt too.
func makePack(salt int, chunks ...int) Pack {
	x := &chunk.PackIndex{Kind: chunk.DataPack}
	offset := uint32(chunk.PackHeaderSize)
	for len(chunks) > 0 {
		n := min(8, len(chunks))
		f := chunk.FrameIndex{Frame: chunk.Frame{Offset: offset}}
		for _, c := range chunks[:n] {
			f.Chunks = append(f.Chunks, chunk.SizedID{ID: chunkID(c), Length: uint32(1 + c%5000)})
			f.Raw += uint32(1 + c%5000)
		}
		f.Stored = 1 + f.Raw/2
		offset = f.End()
		x.Frames = append(x.Frames, f)
		chunks = chunks[n:]
	}
	raw := binary.LittleEndian.AppendUint64(x.AppendTo(nil), uint64(salt))
	return Pack{ID: chunk.SumPack(raw), Size: int64(offset) + 1000, Index: x}
}

// span is the numbers from first on.
func span(first, n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = first + i
	}
	return s
}

// bucket is a repository's segments.
type bucket struct {
	segments map[SegmentID][]byte
	fetches  atomic.Int64
}

func newBucket() *bucket { return &bucket{segments: map[SegmentID][]byte{}} }

func (b *bucket) put(t testing.TB, packs ...Pack) (SegmentID, *Segment) {
	t.Helper()
	s := &Segment{Packs: packs}
	data, err := s.Encode(testCodec)
	if err != nil {
		t.Fatal(err)
	}
	id := SumSegment(data)
	b.segments[id] = data
	return id, s
}

// fill puts segments of 1,000 chunks in packs of 250 until there are n chunks.
func (b *bucket) fill(t testing.TB, first, n int) {
	t.Helper()
	for end := first + n; first < end; first += 1000 {
		var packs []Pack
		for i := 0; i < 1000; i += 250 {
			packs = append(packs, makePack(first, span(first+i, 250)...))
		}
		b.put(t, packs...)
	}
}

func (b *bucket) list() (ids []SegmentID) {
	for id := range b.segments {
		ids = append(ids, id)
	}
	return ids
}

func (b *bucket) fetch(_ context.Context, id SegmentID) ([]byte, error) {
	b.fetches.Add(1)
	data, ok := b.segments[id]
	if !ok {
		return nil, fmt.Errorf("segment %s: %w", id, fs.ErrNotExist)
	}
	return data, nil
}

// open opens an index, and closes it with the test if nobody has.
func open(t testing.TB, dir string) *Index {
	t.Helper()
	ix, err := Open(dir, testRepo, testCodec, &Options{Log: func(msg string) { t.Log(msg) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ix.Close() })
	return ix
}

func (b *bucket) sync(t testing.TB, ix *Index) {
	t.Helper()
	if err := ix.Sync(t.Context(), b.list(), b.fetch); err != nil {
		t.Fatal(err)
	}
}

func mustClose(t testing.TB, ix *Index) {
	t.Helper()
	if err := ix.Close(); err != nil {
		t.Fatal(err)
	}
}

// places is where the packs say that chunks lie: a chunk may lie in several.
func places(packs ...Pack) map[chunk.ID][]chunk.Location {
	m := map[chunk.ID][]chunk.Location{}
	for _, p := range packs {
		for id, loc := range p.Index.All(p.ID) {
			m[id] = append(m[id], loc)
		}
	}
	return m
}

func (b *bucket) places(t testing.TB) map[chunk.ID][]chunk.Location {
	t.Helper()
	var packs []Pack
	for _, data := range b.segments {
		s, err := DecodeSegment(testCodec, data)
		if err != nil {
			t.Fatal(err)
		}
		packs = append(packs, s.Packs...)
	}
	return places(packs...)
}

// check holds lookups of the chunks 0 to n against where they lie.
func check(t interface {
	Helper()
	Fatalf(string, ...any)
}, ix *Index, want map[chunk.ID][]chunk.Location, n int) {
	t.Helper()
	for i := range n {
		id := chunkID(i)
		loc, ok := ix.Lookup(id)
		if !ok && len(want[id]) > 0 {
			t.Fatalf("chunk %d is absent, it lies at %v", i, want[id])
		}
		if ok && !contains(want[id], loc) {
			t.Fatalf("chunk %d: found at %v, it lies at %v", i, loc, want[id])
		}
	}
}

// checkPresent looks only for false presents, and gives the share of the chunks
// 0 to n that are there and were found.
func checkPresent(t interface {
	Helper()
	Fatalf(string, ...any)
}, ix *Index, want map[chunk.ID][]chunk.Location, n int) float64 {
	t.Helper()
	found, there := 0, 0
	for i := range n {
		id := chunkID(i)
		loc, ok := ix.Lookup(id)
		if ok && !contains(want[id], loc) {
			t.Fatalf("chunk %d: found at %v, it lies at %v", i, loc, want[id])
		}
		if ok {
			found++
		}
		if len(want[id]) > 0 {
			there++
		}
	}
	if there == 0 {
		return 1
	}
	return float64(found) / float64(there)
}

func contains(locs []chunk.Location, loc chunk.Location) bool {
	for _, l := range locs {
		if l == loc {
			return true
		}
	}
	return false
}

// tree is the files below dir, with their contents.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	m := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		m[path] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

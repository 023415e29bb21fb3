package engine

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/wire/wiretest"
	"github.com/zeebo/blake3"
)

func sampleStones() []*tombstone {
	id := func(b byte) (p chunk.PackID) { p[0], p[31] = b, b; return p }
	return []*tombstone{
		{packs: []doomedPack{{id: id(1), size: 100}}},
		{packs: []doomedPack{{id: id(1)}, {id: id(2), size: chunk.MaxPack, moved: []chunk.PackID{id(1), id(7)}}, {id: id(9), size: 3, moved: []chunk.PackID{id(8)}}}},
	}
}

func TestTombstone(t *testing.T) {
	for _, want := range sampleStones() {
		b := want.encode()
		got, err := decodeTombstone(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
		for i := range b {
			bad := bytes.Clone(b)
			bad[i] ^= 1 << (i % 8)
			for _, d := range [][]byte{bad, b[:i]} {
				if _, err := decodeTombstone(d); !errors.Is(err, errTombstone) {
					t.Fatalf("damaged at %d: %v", i, err)
				}
			}
		}
	}
	id := func(b byte) (p chunk.PackID) { p[0] = b; return p }
	for name, bad := range map[string]*tombstone{
		"empty":           {},
		"out of order":    {packs: []doomedPack{{id: id(2)}, {id: id(1)}}},
		"twice":           {packs: []doomedPack{{id: id(2)}, {id: id(2)}}},
		"moved to itself": {packs: []doomedPack{{id: id(2), moved: []chunk.PackID{id(2)}}}},
		"moved unordered": {packs: []doomedPack{{id: id(2), moved: []chunk.PackID{id(4), id(3)}}}},
		"too large":       {packs: []doomedPack{{id: id(2), size: chunk.MaxPack + 1}}},
	} {
		if _, err := decodeTombstone(bad.encode()); !errors.Is(err, errTombstone) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzTombstone(f *testing.F) {
	for _, s := range sampleStones() {
		b := s.encode()
		f.Add(b[:len(b)-tombSum])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		// With the right checksum, or nearly nothing would come through.
		sum := blake3.Sum256(body)
		b := append(bytes.Clone(body), sum[:]...)
		var s *tombstone
		var err error
		wiretest.Bounded(t, 16*len(b), func() { s, err = decodeTombstone(b) })
		if err == nil && !bytes.Equal(s.encode(), b) {
			t.Error("re-encodes to other bytes")
		}
	})
}

func TestGCNames(t *testing.T) {
	const id = "0193a5b2-7c1e-7000-8000-000000000001"
	for name, want := range map[string]gcName{
		"gc/" + id:           {id, ""},
		"gc/" + id + "-seen": {id, seenSuffix},
		"gc/" + id + "-done": {id, doneSuffix},
		"gc/clock-" + id:     {},
	} {
		if got, ok := parseGCName(name); !ok || got != want {
			t.Errorf("%s: %+v, %v", name, got, ok)
		}
	}
	for _, name := range []string{"gc/", "gc/x", "gc/" + id + "-other", "gc/clock-x", "gc/" + id + "/x", "gc/clock-" + id + "-seen"} {
		if got, ok := parseGCName(name); ok {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

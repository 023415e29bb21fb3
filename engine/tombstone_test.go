package engine

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/wire/wiretest"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/zeebo/blake3"
)

func sampleStones() []*repo.Tombstone {
	id := func(b byte) (p chunk.PackID) { p[0], p[31] = b, b; return p }
	return []*repo.Tombstone{
		{Packs: []repo.DoomedPack{{Id: id(1), Size: 100}}},
		{Packs: []repo.DoomedPack{{Id: id(1)}, {Id: id(2), Size: chunk.MaxPack, Moved: []chunk.PackID{id(1), id(7)}}, {Id: id(9), Size: 3, Moved: []chunk.PackID{id(8)}}}},
	}
}

func TestTombstone(t *testing.T) {
	for _, want := range sampleStones() {
		b := want.Encode()
		got, err := repo.DecodeTombstone(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
		for i := range b {
			bad := bytes.Clone(b)
			bad[i] ^= 1 << (i % 8)
			for _, d := range [][]byte{bad, b[:i]} {
				if _, err := repo.DecodeTombstone(d); !errors.Is(err, repo.ErrTombstone) {
					t.Fatalf("damaged at %d: %v", i, err)
				}
			}
		}
	}
	id := func(b byte) (p chunk.PackID) { p[0] = b; return p }
	for name, bad := range map[string]*repo.Tombstone{
		"empty":           {},
		"out of order":    {Packs: []repo.DoomedPack{{Id: id(2)}, {Id: id(1)}}},
		"twice":           {Packs: []repo.DoomedPack{{Id: id(2)}, {Id: id(2)}}},
		"moved to itself": {Packs: []repo.DoomedPack{{Id: id(2), Moved: []chunk.PackID{id(2)}}}},
		"moved unordered": {Packs: []repo.DoomedPack{{Id: id(2), Moved: []chunk.PackID{id(4), id(3)}}}},
		"too large":       {Packs: []repo.DoomedPack{{Id: id(2), Size: chunk.MaxPack + 1}}},
	} {
		if _, err := repo.DecodeTombstone(bad.Encode()); !errors.Is(err, repo.ErrTombstone) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzTombstone(f *testing.F) {
	for _, s := range sampleStones() {
		b := s.Encode()
		f.Add(b[:len(b)-repo.TombSum])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		// With the right checksum, or nearly nothing would come through.
		sum := blake3.Sum256(body)
		b := append(bytes.Clone(body), sum[:]...)
		var s *repo.Tombstone
		var err error
		wiretest.Bounded(t, 16*len(b), func() { s, err = repo.DecodeTombstone(b) })
		if err == nil && !bytes.Equal(s.Encode(), b) {
			t.Error("re-encodes to other bytes")
		}
	})
}

func TestGCNames(t *testing.T) {
	const id = "0193a5b2-7c1e-7000-8000-000000000001"
	for name, want := range map[string]repo.GcName{
		"gc/" + id:           {Id: id, Kind: ""},
		"gc/" + id + "-seen": {Id: id, Kind: repo.SeenSuffix},
		"gc/" + id + "-done": {Id: id, Kind: repo.DoneSuffix},
		"gc/clock-" + id:     {},
	} {
		if got, ok := repo.ParseGCName(name); !ok || got != want {
			t.Errorf("%s: %+v, %v", name, got, ok)
		}
	}
	for _, name := range []string{"gc/", "gc/x", "gc/" + id + "-other", "gc/clock-x", "gc/" + id + "/x", "gc/clock-" + id + "-seen"} {
		if got, ok := repo.ParseGCName(name); ok {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

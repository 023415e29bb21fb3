package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/chunk/wire/wiretest"

	"github.com/snapctl/snapctl/chunk"
	"github.com/zeebo/blake3"
)

func TestSegmentRoundTrip(t *testing.T) {
	packs := []Pack{
		makePack(1, span(0, 100)...),
		makePack(2, span(50, 1)...),
		makePack(3), // an empty pack
	}
	a, err := (&Segment{Packs: packs}).Encode(testCodec)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(packs)
	b, err := (&Segment{Packs: packs}).Encode(testCodec)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("the bytes depend on the order of the packs")
	}
	if packs[0].ID != makePack(3).ID {
		t.Error("Encode changed the order of what it was given")
	}
	s, err := DecodeSegment(testCodec, a)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Packs) != len(packs) {
		t.Fatalf("%d packs, want %d", len(s.Packs), len(packs))
	}
	for _, want := range packs {
		i := slices.IndexFunc(s.Packs, func(p Pack) bool { return p.ID == want.ID })
		if i < 0 {
			t.Fatalf("pack %s is missing", want.ID)
		}
		got := s.Packs[i]
		if got.Size != want.Size || !bytes.Equal(got.Index.AppendTo(nil), want.Index.AppendTo(nil)) {
			t.Errorf("pack %s came back different", want.ID)
		}
	}
	id := SumSegment(a)
	if back, err := ParseSegmentID(id.String()); err != nil || back != id {
		t.Errorf("ParseSegmentID(%s) = %v, %v", id, back, err)
	}
	if _, err := ParseSegmentID(strings.ToUpper(id.String())); err == nil {
		t.Error("ParseSegmentID takes upper-case digits")
	}
}

func TestSegmentEncodeRefuses(t *testing.T) {
	p := makePack(1, 1, 2, 3)
	small, large := p, p
	small.Size = 20
	large.Size = chunk.MaxPack + 1
	var many []Pack
	for i := range 10 {
		many = append(many, makePack(i, span(0, 50_000)...))
	}
	for name, packs := range map[string][]Pack{
		"no packs":            nil,
		"pack twice":          {p, p},
		"smaller than frames": {small},
		"too large":           {large},
		"too long":            many,
	} {
		if _, err := (&Segment{Packs: packs}).Encode(testCodec); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// reseal puts a right checksum to a damaged segment, so that what is behind
// the checksum has to notice.
func reseal(data []byte) []byte {
	sum := blake3.Sum256(data[:len(data)-segmentSumSize])
	copy(data[len(data)-segmentSumSize:], sum[:])
	return data
}

func TestSegmentDecodeRefuses(t *testing.T) {
	good, err := (&Segment{Packs: []Pack{makePack(1, 1, 2), makePack(2, 3)}}).Encode(testCodec)
	if err != nil {
		t.Fatal(err)
	}
	const first = segmentHeaderSize // of the first pack
	firstLen := segmentEntrySize + int(binary.LittleEndian.Uint32(good[first+36:]))
	put := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint32(b[at:], v); return b }
	}
	for _, tt := range []struct {
		name, want string
		damage     func([]byte) []byte
	}{
		{"magic", "no magic", func(b []byte) []byte { b[0]++; return b }},
		{"version", "format version 2", func(b []byte) []byte { b[8] = 2; return b }},
		{"no packs", "0 packs", put(12, 0)},
		{"fewer packs", "too many", put(12, 1)},
		{"more packs", "pack 2", func(b []byte) []byte {
			b = slices.Insert(b, len(b)-segmentSumSize, make([]byte, segmentEntrySize)...)
			return put(12, 3)(b)
		}},
		{"absurd number of packs", "packs in", put(12, 1<<31)},
		{"order", "out of order", func(b []byte) []byte {
			a := slices.Clone(b[first : first+firstLen])
			b = slices.Delete(b, first, first+firstLen)
			return slices.Insert(b, len(b)-segmentSumSize, a...)
		}},
		{"twice", "out of order", func(b []byte) []byte {
			a := slices.Clone(b[first : first+firstLen])
			return put(12, 3)(slices.Insert(b, first, a...))
		}},
		{"pack size", "frames end at", put(first+32, 30)},
		{"pack size over", "size of", put(first+32, chunk.MaxPack+1)},
		{"stored length", "stored for", put(first+36, 1<<30)},
		{"plaintext length", "stored for", put(first+40, 1<<30)},
		{"no plaintext", "not within", put(first+40, 0)},
		{"pack kind", "pack kind", func(b []byte) []byte { b[first+segmentEntrySize] = 9; return b }},
		{"short", "bytes", func(b []byte) []byte { return b[:segmentSumSize+3] }},
	} {
		b := tt.damage(slices.Clone(good))
		_, err := DecodeSegment(testCodec, reseal(b))
		if !errors.Is(err, ErrBadSegment) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want an ErrBadSegment with %q", tt.name, err, tt.want)
		}
	}
	for i := range good {
		b := slices.Clone(good)
		b[i] ^= 0x10
		if _, err := DecodeSegment(testCodec, b); !errors.Is(err, ErrBadSegment) {
			t.Fatalf("a flipped bit at byte %d: %v", i, err)
		}
	}
}

// TestSegmentBomb: packs whose indexes are one chunk again and again, which compresses to
// nothing.
func TestSegmentBomb(t *testing.T) {
	chunks := make([]chunk.SizedID, 100_000)
	for i := range chunks {
		chunks[i].Length = 1
	}
	one := Pack{Size: 1 << 20, Index: &chunk.PackIndex{Kind: chunk.DataPack, Frames: []chunk.FrameIndex{
		{Frame: chunk.Frame{Offset: chunk.PackHeaderSize, Stored: 9, Raw: uint32(len(chunks))}, Chunks: chunks},
	}}}
	var body []byte
	var all Segment
	const packs = 100
	for i := range packs {
		one.ID[0] = byte(i)
		b, err := (&Segment{Packs: []Pack{one}}).Encode(testCodec)
		if err != nil {
			t.Fatal(err)
		}
		body = append(body, b[segmentHeaderSize:len(b)-segmentSumSize]...)
		all.Packs = append(all.Packs, one)
	}
	b := append([]byte(segmentMagic), segmentVersion, 0, 0, 0)
	b = append(append(binary.LittleEndian.AppendUint32(b, packs), body...), make([]byte, segmentSumSize)...)
	reseal(b)
	var err error
	wiretest.Bounded(t, 3*MaxSegment, func() { _, err = DecodeSegment(testCodec, b) })
	if !errors.Is(err, ErrBadSegment) || !strings.Contains(err.Error(), "indexes of more") {
		t.Errorf("%d bytes decode: %v", len(b), err)
	}
	if _, err := all.Encode(testCodec); err == nil {
		t.Error("it is encoded")
	}
}

func FuzzDecodeSegment(f *testing.F) {
	for _, packs := range [][]Pack{
		{makePack(1, 1)},
		{makePack(1, span(0, 40)...), makePack(2, 7), makePack(3)},
	} {
		b, err := (&Segment{Packs: packs}).Encode(testCodec)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < segmentSumSize {
			return
		}
		var s *Segment
		var err error
		sealed := reseal(slices.Clone(data))
		wiretest.Bounded(t, 64*len(data)+3*MaxSegment, func() { s, err = DecodeSegment(testCodec, sealed) })
		if err != nil {
			if !errors.Is(err, ErrBadSegment) {
				t.Fatal(err)
			}
			return
		}
		// The stored form may be one that our codec would not choose; from
		// there on nothing may change.
		a, err := s.Encode(testCodec)
		if err != nil {
			t.Fatalf("decodes, but does not encode: %v", err)
		}
		again, err := DecodeSegment(testCodec, a)
		if err != nil {
			t.Fatalf("what was encoded does not decode: %v", err)
		}
		b, err := again.Encode(testCodec)
		if err != nil || !bytes.Equal(a, b) {
			t.Fatalf("encoding is not canonical: %v", err)
		}
		for i := range s.Packs {
			if s.Packs[i].ID != again.Packs[i].ID || s.Packs[i].Size != again.Packs[i].Size ||
				!bytes.Equal(s.Packs[i].Index.AppendTo(nil), again.Packs[i].Index.AppendTo(nil)) {
				t.Fatalf("pack %d came back different", i)
			}
		}
	})
}

// TestSegmentSalt: the same packs with another salt are another segment.
func TestSegmentSalt(t *testing.T) {
	packs := []Pack{makePack(1, span(0, 100)...)}
	seen := map[SegmentID]bool{}
	for _, salt := range [][3]byte{{}, {1}, {0, 0, 1}} {
		data, err := (&Segment{Packs: packs, Salt: salt}).Encode(testCodec)
		if err != nil {
			t.Fatal(err)
		}
		seen[SumSegment(data)] = true
		s, err := DecodeSegment(testCodec, data)
		if err != nil || s.Salt != salt || len(s.Packs) != 1 {
			t.Errorf("%+v, %v", s, err)
		}
	}
	if len(seen) != 3 {
		t.Errorf("%d segments", len(seen))
	}
}

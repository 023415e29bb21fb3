package index

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/snapctl/snapctl/chunk"
)

// TestSealedSegment exchanges what two sealed packs are said to hold, as somebody can
// who has no key.
func TestSealedSegment(t *testing.T) {
	c, err := chunk.NewSealingCodec(1, chunk.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	// Of the same size, and with as many chunks.
	s := &Segment{Packs: []Pack{makePack(1, 1, 2, 3), makePack(2, 4, 5, 6)}}
	for i := range s.Packs {
		s.Packs[i].Size = 1000
	}
	data, err := s.Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := DecodeSegment(c, data); err != nil || len(back.Packs) != 2 {
		t.Fatal(err)
	}
	if (len(data)-segmentHeaderSize-segmentSumSize)%2 != 0 {
		t.Fatalf("the packs take different room in %d bytes", len(data))
	}
	at := func(pack int) (from, to int) {
		each := (len(data) - segmentHeaderSize - segmentSumSize) / 2
		return segmentHeaderSize + pack*each + segmentEntrySize, segmentHeaderSize + (pack+1)*each
	}
	swapped := slices.Clone(data)
	from1, to1 := at(0)
	from2, to2 := at(1)
	copy(swapped[from1:to1], data[from2:to2])
	copy(swapped[from2:to2], data[from1:to1])
	if _, err := DecodeSegment(c, reseal(swapped)); !errors.Is(err, ErrBadSegment) || !errors.Is(err, chunk.ErrSeal) {
		t.Error("exchanged:", err)
	}
	size := slices.Clone(data)
	size[segmentHeaderSize+chunk.IDSize]++
	if _, err := DecodeSegment(c, reseal(size)); !errors.Is(err, chunk.ErrSeal) {
		t.Error("another size:", err)
	}
	if !bytes.Equal(reseal(slices.Clone(data)), data) {
		t.Error("what is resealed is another")
	}
}

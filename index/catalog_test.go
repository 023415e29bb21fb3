package index

import (
	"strings"
	"testing"

	"github.com/snapctl/snapctl/chunk"
)

// TestCatalogNumbers: a catalog in which a pack's number could be handed out again is not
// believed: old entries would come to point into a new pack.
func TestCatalogNumbers(t *testing.T) {
	some := func(next uint32) *catalog {
		return &catalog{next: next, packs: map[uint32]*pack{
			3: {id: chunk.PackID{1}, size: 100, chunks: 1},
			7: {id: chunk.PackID{2}, size: 100, chunks: 1},
		}, segments: map[SegmentID][]uint32{{9}: {3, 7}}}
	}
	for next, ok := range map[uint32]bool{0: false, 3: false, 7: false, 8: true, 1 << 31: true} {
		c, err := decodeCatalog(some(next).encode())
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "pack number") {
			t.Errorf("next number %d: %v", next, err)
		}
		if ok && (len(c.packs) != 2 || c.packs[7].segments != 1) {
			t.Errorf("next number %d: %+v", next, c)
		}
	}
	c := some(8)
	c.segments[SegmentID{9}] = []uint32{3, 4}
	if _, err := decodeCatalog(c.encode()); err == nil {
		t.Error("a segment of a pack that is not there is believed")
	}
}

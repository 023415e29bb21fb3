package index

import (
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/wire"
)

// An entry is where a chunk lies, with the pack by its number in this slot. In
// Badger the key is the chunk's id, all 32 bytes of it: a shorter one would
// halve the slot, but then two chunks could be made to meet in one key. The
// value, about 22 bytes:
//
//	number of the pack        uvarint
//	frame: offset in the pack uvarint
//	       stored length      uvarint
//	       plaintext length   uvarint
//	offset in the frame       uvarint
//	length                    uvarint
//	CRC-32C                   4 bytes, little-endian, of chunk id, pack id and
//	                          the six numbers
//
// The checksum binds the value to its key and to the pack itself: Badger
// verifies no block unless told to, and a place must never be believed because
// bytes moved, or because a pack's number came to mean another pack.
type entry struct {
	pack   uint32
	frame  chunk.Frame
	offset uint32
	length uint32
}

const (
	entrySumSize = 4
	// maxEntrySize bounds the value: six numbers of at most five bytes.
	maxEntrySize = 6*5 + entrySumSize
)

var (
	errEntrySum = errors.New("checksum of an entry does not match")
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
)

func entrySum(id *chunk.ID, pack *chunk.PackID, numbers []byte) uint32 {
	sum := crc32.Update(0, castagnoli, id[:])
	sum = crc32.Update(sum, castagnoli, pack[:])
	return crc32.Update(sum, castagnoli, numbers)
}

// appendEntry appends the value that stands for e under the key id, where the
// number e.pack means pack.
func appendEntry(dst []byte, id *chunk.ID, pack *chunk.PackID, e entry) []byte {
	start := len(dst)
	for _, n := range [...]uint32{e.pack, e.frame.Offset, e.frame.Stored, e.frame.Raw, e.offset, e.length} {
		dst = binary.AppendUvarint(dst, uint64(n))
	}
	return binary.LittleEndian.AppendUint32(dst, entrySum(id, pack, dst[start:]))
}

// readEntryPack reads the pack number alone: whether that pack is live decides
// whether the rest is worth reading, and its id is needed to verify it.
func readEntryPack(value []byte) (uint32, error) {
	n, w := binary.Uvarint(value)
	if w <= 0 || n > 1<<32-1 {
		return 0, errEntrySum
	}
	return uint32(n), nil
}

// readEntry is the inverse of appendEntry.
func readEntry(value []byte, id *chunk.ID, pack *chunk.PackID) (e entry, err error) {
	if len(value) < entrySumSize {
		return e, errEntrySum
	}
	numbers := value[:len(value)-entrySumSize]
	if entrySum(id, pack, numbers) != binary.LittleEndian.Uint32(value[len(numbers):]) {
		return e, errEntrySum
	}
	r := wire.NewReader(numbers)
	for _, n := range [...]*uint32{&e.pack, &e.frame.Offset, &e.frame.Stored, &e.frame.Raw, &e.offset, &e.length} {
		*n = uint32(r.Uvarint("entry", 1<<32-1))
	}
	return e, r.Close()
}

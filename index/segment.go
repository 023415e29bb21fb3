package index

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/wire"
	"github.com/zeebo/blake3"
)

// A segment is an immutable object named by the BLAKE3-256 of its bytes. All
// numbers are little-endian:
//
//	offset  size  field
//	0       8     magic "snapsgmt"
//	8       1     format version, 1
//	9       3     salt: random where garbage collection writes packs of old segments
//	              anew, so that no segment is ever made twice; else zero
//	12      4     number of packs, at least 1; then for each pack, by ascending id
//	        32      pack id
//	        4       size of the pack in bytes
//	        4       stored length of its index
//	        4       plaintext length of its index
//	        n       its index: chunk.PackIndex, stored like a frame; if it is sealed,
//	                with the first 36 of these bytes
//	end-32  32    BLAKE3-256 of everything before
//
// The indexes are those at the ends of the packs, so a segment can be made
// again from its packs. The checksum is for tools that hold the bytes without
// the name.
const (
	segmentMagic      = "snapsgmt"
	segmentVersion    = 1
	segmentHeaderSize = 16
	segmentEntrySize  = chunk.IDSize + 12
	segmentSumSize    = 32

	// MaxSegment is the longest segment in bytes, some 400,000 chunks. It bounds
	// the memory of a Sync, which holds several.
	MaxSegment = 16 << 20

	// maxIndexes bounds the plaintext of all indexes of a segment together. Nine tenths
	// of it are ids, which do not compress: only a forged one comes near.
	maxIndexes = 2 * MaxSegment
)

// SegmentID names a segment by its bytes: BLAKE3-256, never keyed. So a put
// that is retried makes the same object.
type SegmentID [32]byte

// String is the id in lower-case hex.
func (id SegmentID) String() string { return hex.EncodeToString(id[:]) }

// ParseSegmentID is the inverse of [SegmentID.String].
func ParseSegmentID(s string) (SegmentID, error) {
	id, err := chunk.ParsePackID(s) // of the same form
	return SegmentID(id), err
}

// SumSegment is the id of a segment with these bytes.
func SumSegment(segment []byte) SegmentID { return SegmentID(blake3.Sum256(segment)) }

// A Pack is a pack as the index knows it.
type Pack struct {
	ID    chunk.PackID
	Size  int64 // of the whole object in bytes, at most chunk.MaxPack
	Index *chunk.PackIndex
}

// A Segment lists packs and what lies in them.
type Segment struct {
	Packs []Pack // in any order when encoding; by ascending ID when decoded
	Salt  [3]byte
}

// Encode gives the segment's bytes. The same packs give the same bytes whatever
// their order, as long as salt and the codec's library are the same and it does not
// seal. It is an error if there are no packs, if one comes twice, or if the result would
// be longer than [MaxSegment].
func (s *Segment) Encode(c *chunk.Codec) ([]byte, error) {
	packs := slices.Clone(s.Packs)
	slices.SortFunc(packs, func(a, b Pack) int { return bytes.Compare(a.ID[:], b.ID[:]) })

	dst := append([]byte(segmentMagic), segmentVersion)
	dst = append(dst, s.Salt[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(packs)))
	var raw []byte
	total := 0
	for i, p := range packs {
		if i > 0 && p.ID == packs[i-1].ID {
			return nil, fmt.Errorf("encoding segment: pack %s comes twice", p.ID)
		}
		raw = p.Index.AppendTo(raw[:0])
		if err := checkPack(p, len(raw)); err != nil {
			return nil, fmt.Errorf("encoding segment: pack %s: %w", p.ID, err)
		}
		if total += len(raw); total > maxIndexes {
			return nil, fmt.Errorf("encoding segment: indexes of more than %d bytes", maxIndexes)
		}
		place := binary.LittleEndian.AppendUint32(p.ID[:], uint32(p.Size))
		dst = append(dst, place...)
		lengths := len(dst)
		dst = append(dst, make([]byte, 8)...)
		dst = c.For(chunk.UseSegmentedPack, place).Encode(dst, raw)
		binary.LittleEndian.PutUint32(dst[lengths:], uint32(len(dst)-lengths-8))
		binary.LittleEndian.PutUint32(dst[lengths+4:], uint32(len(raw)))
		if len(dst)+segmentSumSize > MaxSegment {
			return nil, fmt.Errorf("encoding segment: longer than %d bytes", MaxSegment)
		}
	}
	if len(packs) == 0 {
		return nil, errors.New("encoding segment: no packs")
	}
	sum := blake3.Sum256(dst)
	return append(dst, sum[:]...), nil
}

// checkPack holds a pack's size against what its index, rawLen bytes of
// plaintext, says.
func checkPack(p Pack, rawLen int) error {
	if rawLen > chunk.MaxPackIndex {
		return fmt.Errorf("index of %d bytes, the most is %d", rawLen, chunk.MaxPackIndex)
	}
	end := int64(chunk.PackHeaderSize)
	if n := len(p.Index.Frames); n > 0 {
		end = int64(p.Index.Frames[n-1].End())
	}
	if p.Size < end+chunk.PackFooterSize || p.Size > chunk.MaxPack {
		return fmt.Errorf("size of %d bytes, frames end at %d", p.Size, end)
	}
	return nil
}

// DecodeSegment is the inverse of [Segment.Encode]. Errors wrap [ErrBadSegment].
func DecodeSegment(c *chunk.Codec, data []byte) (*Segment, error) {
	s, err := decodeSegment(c, data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadSegment, err)
	}
	return s, nil
}

func decodeSegment(c *chunk.Codec, data []byte) (*Segment, error) {
	if len(data) < segmentHeaderSize+segmentSumSize || len(data) > MaxSegment {
		return nil, fmt.Errorf("%d bytes", len(data))
	}
	body, sum := data[:len(data)-segmentSumSize], data[len(data)-segmentSumSize:]
	if blake3.Sum256(body) != [segmentSumSize]byte(sum) {
		return nil, errors.New("checksum does not match")
	}
	r := wire.NewReader(body)
	if string(r.Fixed("magic", len(segmentMagic))) != segmentMagic {
		return nil, errors.New("no magic")
	}
	if v := r.Byte("version"); v != segmentVersion {
		return nil, fmt.Errorf("format version %d, this snapctl reads %d", v, segmentVersion)
	}
	salt := r.Fixed("salt", 3)
	n := binary.LittleEndian.Uint32(r.Fixed("number of packs", 4))
	if n == 0 || int64(n) > int64(r.Len()/segmentEntrySize) {
		return nil, fmt.Errorf("%d packs in %d bytes", n, r.Len())
	}
	s := &Segment{Packs: make([]Pack, n), Salt: [3]byte(salt)}
	var plain []byte
	left := uint32(maxIndexes)
	for i := range s.Packs {
		p, err := readPack(c, r, &plain, &left)
		if err != nil {
			return nil, fmt.Errorf("pack %d: %w", i, err)
		}
		if i > 0 && bytes.Compare(s.Packs[i-1].ID[:], p.ID[:]) >= 0 {
			return nil, fmt.Errorf("pack %d: %s out of order", i, p.ID)
		}
		s.Packs[i] = p
	}
	return s, r.Close()
}

// readPack reads one pack of a segment. buf is memory to decode into, left how many bytes
// the indexes of this pack and of those behind it may have.
func readPack(c *chunk.Codec, r *wire.Reader, buf *[]byte, left *uint32) (Pack, error) {
	head := r.Fixed("pack", segmentEntrySize)
	if head == nil {
		return Pack{}, r.Err()
	}
	p := Pack{ID: chunk.PackID(head[:chunk.IDSize])}
	place := head[:chunk.IDSize+4]
	head = head[chunk.IDSize:]
	p.Size = int64(binary.LittleEndian.Uint32(head))
	stored := binary.LittleEndian.Uint32(head[4:])
	rawLen := binary.LittleEndian.Uint32(head[8:])
	if stored > chunk.MaxPackIndex+chunk.MaxOverhead || rawLen > chunk.MaxPackIndex {
		return p, fmt.Errorf("index of %d bytes stored for %d", stored, rawLen)
	}
	if rawLen > *left {
		return p, fmt.Errorf("indexes of more than %d bytes", maxIndexes)
	}
	*left -= rawLen
	part := r.Fixed("pack index", int(stored))
	if part == nil {
		return p, r.Err()
	}
	raw, err := c.For(chunk.UseSegmentedPack, place).Decode(*buf, part, int(rawLen))
	if err != nil {
		return p, err
	}
	// What is stored raw aliases the segment, which is not ours to decode into.
	if len(part) != len(raw) {
		*buf = raw
	}
	ir := wire.NewReader(raw)
	p.Index = chunk.ReadPackIndex(ir)
	if err := ir.Close(); err != nil {
		return p, fmt.Errorf("index: %w", err)
	}
	return p, checkPack(p, len(raw))
}

package chunk

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/snapctl/snapctl/chunk/wire"
	"github.com/zeebo/blake3"
)

// A pack is an immutable object named by the BLAKE3-256 of its bytes:
//
//	offset    size  field
//	0         8     magic "snappack"
//	8         1     format version, 1
//	9         1     kind: 1 data, 2 tree
//	10        6     salt: random, so that no pack is ever made twice under one name;
//	                zero in packs of before there was one
//	16        ...   frames, back to back
//	end-40-n  n     index: the encoding of PackIndex (see AppendTo), stored like a frame
//	end-40    4     n, stored length of the index, little-endian
//	end-36    4     plaintext length of the index, little-endian
//	end-32    24    BLAKE3 (first 24 bytes) of the stored index and the two lengths
//	end-8     8     magic "snapfoot"
//
// The index names every frame and chunk, so that a lost index of the whole
// repository can be rebuilt from the packs alone.
const (
	packMagic      = "snappack"
	packVersion    = 1
	footMagic      = "snapfoot"
	PackHeaderSize = 16
	PackFooterSize = 40
	footSumSize    = 24
	packSaltSize   = 6

	// MaxPack is the longest pack in bytes: a bound for decoders.
	MaxPack = 256 << 20
	// MaxPackIndex is the longest plaintext of a pack's index in bytes. A chunk
	// takes 33 to 36 of them, so a pack can hold more than 100,000 chunks.
	MaxPackIndex = MaxFrame
)

// ErrNotPack says that bytes are no pack, or a damaged one.
var ErrNotPack = errors.New("not a valid pack")

// PackKind tells packs of file contents from packs of tree pages.
type PackKind uint8

// The kinds of pack.
const (
	DataPack PackKind = 1
	TreePack PackKind = 2
)

// Frame says where a frame lies in its pack.
type Frame struct {
	Offset uint32 // from the start of the pack
	Stored uint32 // length as stored
	Raw    uint32 // length of the plaintext
}

// End is the offset behind the frame.
func (f Frame) End() uint32 { return f.Offset + f.Stored }

// Check reports bounds that no pack can hold.
func (f Frame) Check() error {
	switch {
	case f.Raw == 0 || f.Raw > MaxFrame:
		return fmt.Errorf("frame of %d plaintext bytes, 1 to %d expected", f.Raw, MaxFrame)
	case f.Stored == 0 || f.Stored > f.Raw+MaxOverhead:
		return fmt.Errorf("frame of %d stored bytes for %d of plaintext", f.Stored, f.Raw)
	case f.Offset < PackHeaderSize || uint64(f.Offset)+uint64(f.Stored) > MaxPack:
		return fmt.Errorf("frame at %d with %d bytes lies outside of any pack", f.Offset, f.Stored)
	}
	return nil
}

// Location says where a chunk lies.
type Location struct {
	Pack   PackID
	Frame  Frame
	Offset uint32 // in the plaintext of the frame
	Length uint32
}

// PackIndex lists what a pack holds, in the order in which it lies there.
type PackIndex struct {
	Kind   PackKind
	Frames []FrameIndex
}

// FrameIndex lists the chunks of one frame, back to back.
type FrameIndex struct {
	Frame
	Chunks []SizedID
}

// SizedID is a chunk's name and length.
type SizedID struct {
	ID     ID
	Length uint32
}

// All calls yield for every chunk with its place in the pack named id.
func (x *PackIndex) All(id PackID) func(yield func(ID, Location) bool) {
	return func(yield func(ID, Location) bool) {
		for _, f := range x.Frames {
			var off uint32
			for _, c := range f.Chunks {
				if !yield(c.ID, Location{Pack: id, Frame: f.Frame, Offset: off, Length: c.Length}) {
					return
				}
				off += c.Length
			}
		}
	}
}

// AppendTo appends the encoding of the index:
//
//	kind              byte
//	number of frames  uvarint; then for each frame
//	  stored length   uvarint
//	  number of chunks uvarint; then for each chunk
//	    length        uvarint
//	    id            32 bytes
//	  raw length      is the sum of the chunks' lengths, and not stored
//
// Frames lie back to back from offset 16, so offsets are not stored either.
func (x *PackIndex) AppendTo(dst []byte) []byte {
	size := 0
	for i := range x.Frames {
		size += 2*binary.MaxVarintLen32 + len(x.Frames[i].Chunks)*(IDSize+4)
	}
	dst = slices.Grow(dst, 1+binary.MaxVarintLen32+size)
	dst = append(dst, byte(x.Kind))
	dst = binary.AppendUvarint(dst, uint64(len(x.Frames)))
	for _, f := range x.Frames {
		dst = binary.AppendUvarint(dst, uint64(f.Stored))
		dst = binary.AppendUvarint(dst, uint64(len(f.Chunks)))
		for _, c := range f.Chunks {
			dst = binary.AppendUvarint(dst, uint64(c.Length))
			dst = append(dst, c.ID[:]...)
		}
	}
	return dst
}

// ReadPackIndex decodes what [PackIndex.AppendTo] wrote; errors are left in r.
func ReadPackIndex(r *wire.Reader) *PackIndex {
	x := &PackIndex{Kind: PackKind(r.Byte("pack kind"))}
	if x.Kind != DataPack && x.Kind != TreePack {
		r.Failf("pack kind %d is unknown", x.Kind)
	}
	x.Frames = make([]FrameIndex, r.Count("number of frames", 2+1+IDSize))
	off := uint64(PackHeaderSize)
	for i := range x.Frames {
		f := &x.Frames[i]
		f.Offset = uint32(off)
		f.Stored = uint32(r.Uvarint("stored length", MaxFrame+MaxOverhead))
		f.Chunks = make([]SizedID, r.Count("number of chunks", 1+IDSize))
		var raw uint64
		for j := range f.Chunks {
			c := &f.Chunks[j]
			c.Length = uint32(r.Uvarint("chunk length", MaxFrame))
			copy(c.ID[:], r.Fixed("chunk id", IDSize))
			if c.Length == 0 {
				r.Failf("empty chunk")
			}
			raw += uint64(c.Length)
		}
		f.Raw = uint32(min(raw, MaxFrame+1))
		if r.Err() != nil {
			return x
		}
		if err := f.Check(); err != nil {
			r.Failf("%v", err)
			return x
		}
		off = uint64(f.End())
	}
	return x
}

// A PackBuilder gathers frames into one pack. It is not safe for parallel use.
type PackBuilder struct {
	buf   []byte
	index PackIndex
}

// NewPackBuilder starts a pack, reusing the memory of buf. Two packs of the same
// frames have different names, so that whoever deletes one by its name, however
// late, deletes no other.
func NewPackBuilder(kind PackKind, buf []byte) *PackBuilder {
	buf = append(buf[:0], packMagic...)
	buf = append(buf, packVersion, byte(kind))
	var salt [packSaltSize]byte
	rand.Read(salt[:]) // never fails
	buf = append(buf, salt[:]...)
	return &PackBuilder{buf: buf, index: PackIndex{Kind: kind}}
}

// Size is the size of the pack so far in bytes, without index and footer.
func (b *PackBuilder) Size() int { return len(b.buf) }

// Empty reports whether the pack holds no frame.
func (b *PackBuilder) Empty() bool { return len(b.index.Frames) == 0 }

// Add appends a frame in its stored form and says where it lies. The builder
// keeps chunks.
func (b *PackBuilder) Add(stored []byte, chunks []SizedID) Frame {
	f := Frame{Offset: uint32(len(b.buf)), Stored: uint32(len(stored))}
	for _, c := range chunks {
		f.Raw += c.Length
	}
	b.buf = append(b.buf, stored...)
	b.index.Frames = append(b.index.Frames, FrameIndex{Frame: f, Chunks: chunks})
	return f
}

// Finish appends index and footer, and returns the pack's name, bytes and
// index. The bytes are the builder's memory. The builder is used up. It panics
// if the pack or its index is longer than a pack's may be, for no reader would
// take it.
func (b *PackBuilder) Finish(c *Codec) (PackID, []byte, *PackIndex) {
	raw := b.index.AppendTo(nil)
	if len(raw) > MaxPackIndex || len(b.buf) > MaxPack {
		panic(fmt.Sprintf("pack of %d bytes with an index of %d", len(b.buf), len(raw)))
	}
	start := len(b.buf)
	b.buf = c.For(UsePackIndex, nil).Encode(b.buf, raw)
	b.buf = binary.LittleEndian.AppendUint32(b.buf, uint32(len(b.buf)-start))
	b.buf = binary.LittleEndian.AppendUint32(b.buf, uint32(len(raw)))
	sum := blake3.Sum256(b.buf[start:])
	b.buf = append(b.buf, sum[:footSumSize]...)
	b.buf = append(b.buf, footMagic...)
	return SumPack(b.buf), b.buf, &b.index
}

// PackIndexSize tells from the last [PackFooterSize] bytes of a pack how many
// bytes index and footer take together, at the end of the pack.
func PackIndexSize(footer []byte) (int, error) {
	if len(footer) != PackFooterSize || string(footer[PackFooterSize-len(footMagic):]) != footMagic {
		return 0, fmt.Errorf("%w: no footer", ErrNotPack)
	}
	n := binary.LittleEndian.Uint32(footer)
	if n > MaxPackIndex+MaxOverhead {
		return 0, fmt.Errorf("%w: index of %d bytes", ErrNotPack, n)
	}
	return int(n) + PackFooterSize, nil
}

// DecodePackTail decodes the index from the last bytes of a pack of size bytes:
// as many as [PackIndexSize] told.
func DecodePackTail(c *Codec, tail []byte, size int64) (*PackIndex, error) {
	if len(tail) < PackFooterSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrNotPack, len(tail))
	}
	n, err := PackIndexSize(tail[len(tail)-PackFooterSize:])
	if err != nil {
		return nil, err
	}
	if n != len(tail) {
		return nil, fmt.Errorf("%w: index and footer have %d bytes, %d given", ErrNotPack, n, len(tail))
	}
	sumAt := len(tail) - len(footMagic) - footSumSize
	sum := blake3.Sum256(tail[:sumAt])
	if string(sum[:footSumSize]) != string(tail[sumAt:sumAt+footSumSize]) {
		return nil, fmt.Errorf("%w: checksum of the index does not match", ErrNotPack)
	}
	rawLen := binary.LittleEndian.Uint32(tail[sumAt-4:])
	raw, err := c.For(UsePackIndex, nil).Decode(nil, tail[:sumAt-8], int(rawLen))
	if err != nil {
		return nil, fmt.Errorf("%w: index: %w", ErrNotPack, err)
	}
	r := wire.NewReader(raw)
	x := ReadPackIndex(r)
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("%w: index: %w", ErrNotPack, err)
	}
	end := int64(PackHeaderSize)
	if len(x.Frames) > 0 {
		end = int64(x.Frames[len(x.Frames)-1].End())
	}
	if end+int64(n) != size {
		return nil, fmt.Errorf("%w: frames end at %d, index begins at %d", ErrNotPack, end, size-int64(n))
	}
	return x, nil
}

package chunk

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
)

const (
	// MaxFrame is the longest plaintext of a frame in bytes: a bound for decoders.
	MaxFrame = 4 << 20
	// MaxOverhead is how much longer than its plaintext a stored frame can be,
	// in bytes: more than [SealOverhead].
	MaxOverhead = 64
)

// A Codec turns the plaintext of frames into what is stored and back. It is
// safe for parallel use and is meant to be shared: it pools its encoders.
//
// A stored frame is one zstd frame (RFC 8878) without a checksum, or, where
// that would not be shorter, the plaintext itself: the two are told apart by
// the stored length, which is that of the plaintext only for the second. In an
// encrypted repository that is then sealed, which makes it [SealOverhead] bytes
// longer.
type Codec struct {
	enc *zstd.Encoder
	dec *zstd.Decoder

	// Of a codec that seals; else nil.
	key    *Key
	sealer *sealer
	opened *sync.Pool // of *[]byte: what was opened and is to be decompressed
}

// NewCodec makes a codec for a compression level of zstd, 1 to 22.
func NewCodec(level int) (*Codec, error) {
	if level < 1 || level > 22 {
		return nil, fmt.Errorf("compression level %d is not within 1 to 22", level)
	}
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)),
		zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)),
		zstd.WithEncoderCRC(false), // BLAKE3 verifies every chunk
		zstd.WithWindowSize(1<<20),
		zstd.WithLowerEncoderMem(true),
	)
	if err != nil {
		return nil, err
	}
	dec, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(0),
		zstd.WithDecoderMaxMemory(MaxFrame),
		zstd.WithDecodeAllCapLimit(true), // a bomb stops at the length that the index names
	)
	if err != nil {
		return nil, err
	}
	return &Codec{enc: enc, dec: dec}, nil
}

// Encode appends the stored form of raw, 1 to [MaxFrame] bytes, to dst.
func (c *Codec) Encode(dst, raw []byte) []byte {
	start := len(dst)
	if c.sealer == nil {
		return c.pack(dst, raw)
	}
	return c.sealer.end(c.pack(c.sealer.begin(dst), raw), start)
}

// pack appends raw to dst, compressed if that is shorter.
func (c *Codec) pack(dst, raw []byte) []byte {
	start := len(dst)
	dst = c.enc.EncodeAll(raw, dst)
	if len(dst)-start >= len(raw) {
		dst = append(dst[:start], raw...)
	}
	return dst
}

// Decode gives the plaintext, rawLen bytes long, of a stored frame. It decodes
// into dst[:0] where dst is large enough. The result may alias stored, whose bytes
// do not change.
func (c *Codec) Decode(dst, stored []byte, rawLen int) ([]byte, error) {
	if rawLen <= 0 || rawLen > MaxFrame {
		return nil, fmt.Errorf("frame: plaintext of %d bytes is not within 1 to %d", rawLen, MaxFrame)
	}
	if c.sealer != nil {
		return c.decodeSealed(dst, stored, rawLen)
	}
	if len(stored) == rawLen {
		return stored, nil
	}
	if len(stored) > rawLen {
		return nil, fmt.Errorf("frame: %d stored bytes for %d of plaintext", len(stored), rawLen)
	}
	return c.unpack(dst, stored, rawLen)
}

// unpack decompresses what pack has compressed.
func (c *Codec) unpack(dst, stored []byte, rawLen int) ([]byte, error) {
	if cap(dst) < rawLen {
		dst = make([]byte, rawLen)
	}
	raw, err := c.dec.DecodeAll(stored, dst[:0:rawLen])
	if err != nil {
		return nil, fmt.Errorf("frame: %w", err)
	}
	if len(raw) != rawLen {
		return nil, fmt.Errorf("frame: %d bytes of plaintext, %d expected", len(raw), rawLen)
	}
	return raw, nil
}

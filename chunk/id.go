package chunk

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"sync"

	"github.com/zeebo/blake3"
)

// IDSize is the size of an [ID] and of a [PackID] in bytes.
const IDSize = 32

// ID names a chunk by its plaintext: BLAKE3-256, keyed in an encrypted
// repository (see [Hasher]).
type ID [IDSize]byte

// String is the id in lower-case hex.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// ParseID is the inverse of [ID.String].
func ParseID(s string) (ID, error) {
	b, err := parseHex(s)
	return ID(b), err
}

// PackID names a pack by its bytes as they are stored: BLAKE3-256, never keyed,
// so that whoever holds a pack can check it.
type PackID [IDSize]byte

// String is the id in lower-case hex.
func (id PackID) String() string { return hex.EncodeToString(id[:]) }

// ParsePackID is the inverse of [PackID.String].
func ParsePackID(s string) (PackID, error) {
	b, err := parseHex(s)
	return PackID(b), err
}

// SumPack is the id of a pack with these bytes.
func SumPack(pack []byte) PackID { return PackID(blake3.Sum256(pack)) }

func parseHex(s string) (b [IDSize]byte, err error) {
	if len(s) != hex.EncodedLen(IDSize) {
		return b, fmt.Errorf("%q is not an id: %d hex digits wanted", s, hex.EncodedLen(IDSize))
	}
	raw, err := hex.DecodeString(s)
	if err != nil {
		return b, fmt.Errorf("%q is not an id: %w", s, err)
	}
	if hex.EncodeToString(raw) != s {
		return b, fmt.Errorf("%q is not an id: upper-case digits", s)
	}
	return [IDSize]byte(raw), nil
}

// A Hasher names chunks. It is safe for parallel use. The zero Hasher is the
// unkeyed one.
type Hasher struct {
	pool sync.Pool // *blake3.Hasher: each holds 8 KiB, too much to make per chunk
	key  []byte
}

// NewKeyedHasher gives ids that nobody without the key can compute, so that a
// stranger cannot test whether a known file is in the repository.
func NewKeyedHasher(key [32]byte) *Hasher { return &Hasher{key: key[:]} }

// Alike reports whether two hashers give the same bytes the same id.
func (h *Hasher) Alike(o *Hasher) bool { return bytes.Equal(h.key, o.key) }

// Sum is the id of a chunk with these bytes.
func (h *Hasher) Sum(data []byte) (id ID) {
	b, _ := h.pool.Get().(*blake3.Hasher)
	if b == nil {
		b = h.new()
	}
	// One Write per chunk lets BLAKE3 hash eight KiB side by side.
	b.Write(data)
	b.Sum(id[:0])
	b.Reset()
	h.pool.Put(b)
	return id
}

func (h *Hasher) new() *blake3.Hasher {
	if h.key == nil {
		return blake3.New()
	}
	b, err := blake3.NewKeyed(h.key)
	if err != nil {
		panic(err) // only a key of another length is refused
	}
	return b
}

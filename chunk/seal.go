package chunk

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/zeebo/blake3"
)

// In an encrypted repository what a [Codec] stores is sealed: by XAES-256-GCM
// (c2sp.org/XAES-256-GCM), which is AES-256-GCM with a key of its own for each
// message.
//
//	offset  size  field
//	0       24    nonce, random
//	24      n     ciphertext of what would be stored without encryption
//	24+n    16    tag
//
// AES-256-GCM fails when a nonce comes twice under one key, and its own nonces have
// 96 bits: random ones are good for 2^32 messages, which a repository that is
// written for years by many machines may reach, and counters need a state that
// nothing here has, as writers know nothing of each other and may be copied
// with the machine that they run on. Here 96 random bits choose the key, by the
// KDF of NIST SP 800-108r1 with CMAC, and 96 more are the nonce: 2^80 messages are
// sealed before two are under the same with a chance of 2^-32. It costs two blocks of
// AES and a key schedule, about half a microsecond.
//
// Each [Use] of the repository's key has a key of its own, so that nothing that is sealed
// for one opens as another. What else is known of the place of a message is
// authenticated with it, or stands in it:
//
//	use             authenticated with it            checked when it is open
//	frame           nothing: frames may be moved     each chunk's id, a keyed hash
//	pack index      nothing: it is in the pack       frames must fill the pack
//	manifest info   nothing                          the id in it is the object's name
//	manifest tree   BLAKE3-256 of the sealed info    the id in it is the info's
//	segment's pack  the pack's name and size
//	profile         the snapshot's id                the id in it, too
//	key details     the rest of the key object
//
// So a valid object in the place of another one is found out.
const (
	sealNonce = 24
	sealTag   = 16
	// SealOverhead is how much longer something gets by being sealed.
	SealOverhead = sealNonce + sealTag
)

// ErrSeal says that bytes are not what was sealed with this key in this place.
var ErrSeal = errors.New("the seal is broken: changed, put in the place of something else, or sealed with another key")

// A Key is the master key of an encrypted repository: all others are derived from
// it. Printing one does not show it.
type Key [32]byte

// NewKey makes a random key.
func NewKey() *Key {
	k := &Key{}
	rand.Read(k[:]) // never fails
	return k
}

// Format is fmt.Formatter: whatever the verb, the key stays secret.
func (Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(secret key)") }

// A Use is what a key is derived for: a string that stands for one purpose all over
// the world, as BLAKE3's key derivation wants it.
type Use string

// The uses of a repository's key in packages chunk, manifest and index.
const (
	UseChunkID       Use = "snapctl 2026-11-26 chunk ids"
	UseFrame         Use = "snapctl 2026-11-26 frames"
	UsePackIndex     Use = "snapctl 2026-11-26 pack indexes"
	UseManifestInfo  Use = "snapctl 2026-11-26 manifest infos"
	UseManifestTree  Use = "snapctl 2026-11-26 manifest trees"
	UseSegmentedPack Use = "snapctl 2026-11-26 packs in index segments"
)

// Derive gives the key for a use.
func (k *Key) Derive(use Use) (derived [32]byte) {
	blake3.DeriveKey(string(use), k[:], derived[:])
	return derived
}

// sealer seals for one use and place. It is safe for parallel use.
type sealer struct {
	block cipher.Block // AES-256 with the derived key
	mask  [aes.BlockSize]byte
	about []byte
}

func newSealer(key *Key, use Use, about []byte) *sealer {
	derived := key.Derive(use)
	s := &sealer{block: newAES(derived[:]), about: about}
	s.subkey()
	return s
}

// subkey makes that of CMAC for a whole block: E(0) doubled in GF(2^128).
func (s *sealer) subkey() {
	s.block.Encrypt(s.mask[:], s.mask[:])
	var carry byte
	for i := len(s.mask) - 1; i >= 0; i-- {
		s.mask[i], carry = s.mask[i]<<1|carry, s.mask[i]>>7
	}
	s.mask[len(s.mask)-1] ^= carry * 0x87
}

func newAES(key []byte) cipher.Block {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // only a key of another length is refused
	}
	return b
}

// gcm is AES-256-GCM with the key that the first half of the nonce chooses.
func (s *sealer) gcm(nonce []byte) cipher.AEAD {
	var key [32]byte
	for i := range 2 {
		b := key[i*aes.BlockSize:][:aes.BlockSize]
		b[1], b[2] = byte(i+1), 'X'
		copy(b[4:], nonce[:12])
		for j := range b {
			b[j] ^= s.mask[j]
		}
		s.block.Encrypt(b, b)
	}
	aead, err := cipher.NewGCM(newAES(key[:]))
	if err != nil {
		panic(err) // only a block of another size is refused
	}
	return aead
}

// begin appends a nonce to dst. What is appended then is sealed by end.
func (s *sealer) begin(dst []byte) []byte {
	var nonce [sealNonce]byte
	rand.Read(nonce[:]) // never fails
	return append(dst, nonce[:]...)
}

// end seals, in place, what was appended to dst[:start] since begin.
func (s *sealer) end(dst []byte, start int) []byte {
	nonce := dst[start : start+sealNonce]
	return s.gcm(nonce).Seal(dst[:start+sealNonce], nonce[12:], dst[start+sealNonce:], s.about)
}

// open appends what was sealed to dst, which must not overlap sealed.
func (s *sealer) open(dst, sealed []byte) ([]byte, error) {
	if len(sealed) < SealOverhead {
		return nil, ErrSeal
	}
	nonce := sealed[:sealNonce]
	plain, err := s.gcm(nonce).Open(dst, nonce[12:], sealed[sealNonce:], s.about)
	if err != nil {
		return nil, ErrSeal
	}
	return plain, nil
}

// NewSealingCodec makes a codec that seals what it encodes, with keys derived from
// key: as frames, unless [Codec.For] says otherwise.
func NewSealingCodec(level int, key *Key) (*Codec, error) {
	c, err := NewCodec(level)
	if err != nil {
		return nil, err
	}
	own := *key
	c.key, c.opened = &own, &sync.Pool{}
	c.sealer = newSealer(c.key, UseFrame, nil)
	return c, nil
}

// Sealing reports whether the codec seals what it encodes.
func (c *Codec) Sealing() bool { return c.sealer != nil }

// For gives a codec that shares all with c but seals for another use, and
// authenticates about, which it keeps, with what it seals. A codec that does not
// seal gives itself.
func (c *Codec) For(use Use, about []byte) *Codec {
	if c.sealer == nil {
		return c
	}
	other := *c
	other.sealer = newSealer(c.key, use, about)
	return &other
}

// Seal appends plain to dst, sealed if the codec seals. It does not compress.
func (c *Codec) Seal(dst, plain []byte) []byte {
	if c.sealer == nil {
		return append(dst, plain...)
	}
	start := len(dst)
	return c.sealer.end(append(c.sealer.begin(dst), plain...), start)
}

// Open appends to dst what [Codec.Seal] has sealed. dst must not overlap sealed.
// The error is [ErrSeal].
func (c *Codec) Open(dst, sealed []byte) ([]byte, error) {
	if c.sealer == nil {
		return append(dst, sealed...), nil
	}
	return c.sealer.open(dst, sealed)
}

// decodeSealed is Decode of a codec that seals. The result never aliases stored.
func (c *Codec) decodeSealed(dst, stored []byte, rawLen int) ([]byte, error) {
	n := len(stored) - SealOverhead
	if n > rawLen {
		return nil, fmt.Errorf("frame: %d stored bytes for %d of plaintext", len(stored), rawLen)
	}
	if n == rawLen {
		if cap(dst) < rawLen {
			dst = make([]byte, 0, rawLen)
		}
		raw, err := c.sealer.open(dst[:0], stored)
		if err != nil {
			return nil, fmt.Errorf("frame: %w", err)
		}
		return raw, nil
	}
	buf, _ := c.opened.Get().(*[]byte)
	if buf == nil {
		buf = &[]byte{}
	}
	defer c.opened.Put(buf)
	packed, err := c.sealer.open((*buf)[:0], stored)
	if err != nil {
		return nil, fmt.Errorf("frame: %w", err)
	}
	*buf = packed
	return c.unpack(dst, packed, rawLen)
}

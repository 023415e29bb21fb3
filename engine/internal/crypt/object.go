// Package crypt holds the keys of encrypted repositories: the objects that keep the master
// key for a passphrase or a recipient, what the config says of it, and what this
// machine remembers of it.
package crypt

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/wire"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/zeebo/blake3"
)

// A key object holds the master key for one who may open the repository. It lies at
// keys/ID, where ID is the BLAKE3-256 of its bytes. All numbers are little-endian:
//
//	offset  size  field
//	0       8     magic "snapkey\x00"
//	8       1     format version, 1
//	9       1     kind: 1 passphrase, 2 recipient
//	10      2     zero
//	12      4     length of the age file, a
//	16      4     length of the details, d
//	20      a     an age file (age-encryption.org/v1, binary) of 33 bytes: 1, and the
//	              master key. For a passphrase its one stanza is scrypt's
//	20+a    d     details, sealed by a key derived from the master key together with
//	              all bytes before them: see Details.append
//
// Anybody can wrap a key for a recipient. So a key object says nothing of whether
// the key in it is the repository's: that is for the config (Check, mac) and for what
// this machine remembers (pin).
type Object struct {
	Id     string // lower-case hex
	Kind   Kind
	age    []byte
	head   []byte // all before the details
	sealed []byte // details
}

// Kind is what opens a key object.
type Kind byte

const (
	PassphraseKey Kind = 1
	RecipientKey  Kind = 2
)

const (
	KeyPrefix  = "keys/"
	KeyMagic   = "snapkey\x00"
	keyVersion = 1
	keyHead    = 20

	MaxKeyObject  = 64 << 10
	maxRecipient  = 8 << 10 // post-quantum ones have 2,000 characters
	payloadLen    = 1 + len(chunk.Key{})
	KeysAtOnce    = 8
	MaxKeyObjects = 1000
)

// Work factors are the logarithm of scrypt's N, which is time and memory of each
// trial. With 17, the one that OWASP recommends, a trial takes 0.37 s and 128 MiB; age's
// own 18 takes twice that, of every command. The limit keeps an object that somebody
// put there from taking more than 1 GiB.
const (
	defaultWorkFactor = 17
	MaxWorkFactor     = 20
)

// Details are what is known of a key, for those who can open the repository.
type Details struct {
	Created   time.Time // whole seconds
	Label     string
	Recipient string // "" for a passphrase
}

// Append appends the encoding of the details:
//
//	created     uvarint, seconds since 1970
//	label       length-prefixed
//	recipient   length-prefixed
func (d *Details) Append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(d.Created.Unix()))
	return wire.AppendBytes(wire.AppendBytes(b, d.Label), d.Recipient)
}

// DecodeKeyDetails is the inverse of Details.Append. It takes no other bytes.
func DecodeKeyDetails(b []byte) (*Details, error) {
	r := wire.NewReader(b)
	d := &Details{Created: time.Unix(int64(r.Uvarint("created", 1<<40)), 0).UTC()}
	d.Label = string(r.Bytes("label", manifest.MaxLabel))
	d.Recipient = string(r.Bytes("recipient", maxRecipient))
	if d.Label != "" {
		if err := manifest.CheckLabel(d.Label); err != nil {
			r.Failf("label %v", err)
		}
	}
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("details: %w", err)
	}
	return d, nil
}

// WrapKey makes the object that holds a master key for a recipient.
func WrapKey(key *chunk.Key, kind Kind, recipient age.Recipient, details *Details) (*Object, error) {
	var file bytes.Buffer
	w, err := age.Encrypt(&file, recipient)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(append([]byte{keyVersion}, key[:]...)); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	plain := details.Append(nil)
	k := &Object{Kind: kind, age: file.Bytes()}
	k.head = append([]byte(KeyMagic), keyVersion, byte(kind), 0, 0)
	k.head = binary.LittleEndian.AppendUint32(k.head, uint32(len(k.age)))
	k.head = binary.LittleEndian.AppendUint32(k.head, uint32(len(plain)+chunk.SealOverhead))
	k.head = append(k.head, k.age...)
	c, err := detailsCodec(key, k.head)
	if err != nil {
		return nil, err
	}
	k.sealed = c.Seal(nil, plain)
	_, err = Decode(k.Encode())
	k.Id = SumHex(k.Encode())
	return k, err
}

func detailsCodec(key *chunk.Key, head []byte) (*chunk.Codec, error) {
	c, err := chunk.NewSealingCodec(1, key) // it compresses nothing
	if err != nil {
		return nil, err
	}
	return c.For(UseKeyDetails, head), nil
}

// Encode gives the bytes of the object, as they are stored.
func (k *Object) Encode() []byte { return bytes.Join([][]byte{k.head, k.sealed}, nil) }

// Decode is the inverse of Object.Encode. The details stay sealed.
func Decode(b []byte) (*Object, error) {
	r := wire.NewReader(b)
	if len(b) > MaxKeyObject {
		r.Failf("%d bytes, the most is %d", len(b), MaxKeyObject)
	}
	if string(r.Fixed("magic", len(KeyMagic))) != KeyMagic {
		r.Failf("no key object")
	}
	if v := r.Byte("version"); v != keyVersion {
		r.Failf("version %d, this program knows %d", v, keyVersion)
	}
	k := &Object{Kind: Kind(r.Byte("kind"))}
	if k.Kind != PassphraseKey && k.Kind != RecipientKey {
		r.Failf("kind %d is unknown", k.Kind)
	}
	if !bytes.Equal(r.Fixed("padding", 2), []byte{0, 0}) {
		r.Failf("padding is not zero")
	}
	lengths := r.Fixed("lengths", 8)
	if lengths != nil {
		k.age = r.Fixed("age file", int(binary.LittleEndian.Uint32(lengths)))
		k.sealed = r.Fixed("details", int(binary.LittleEndian.Uint32(lengths[4:])))
	}
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("%w: key object: %w", snapshot.ErrIntegrity, err)
	}
	k.head = b[:keyHead+len(k.age)]
	k.Id = SumHex(b)
	return k, nil
}

// SumHex is the BLAKE3-256 of b in hex.
func SumHex(b []byte) string {
	sum := blake3.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Unwrap gives the key in the object. The error is *age.NoIdentityMatchError if it
// is not for these identities, or the passphrase is another.
func (k *Object) Unwrap(identities []age.Identity) (*chunk.Key, error) {
	plain, err := age.Decrypt(bytes.NewReader(k.age), identities...)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(plain, int64(payloadLen)+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", snapshot.ErrIntegrity, err)
	}
	if len(b) != payloadLen || b[0] != keyVersion {
		return nil, fmt.Errorf("%w: it does not hold a key", snapshot.ErrIntegrity)
	}
	key := chunk.Key(b[1:])
	return &key, nil
}

// Details gives what is known of the key. It fails for an object of another
// repository.
func (k *Object) Details(key *chunk.Key) (*Details, error) {
	c, err := detailsCodec(key, k.head)
	if err != nil {
		return nil, err
	}
	plain, err := c.Open(nil, k.sealed)
	if err == nil {
		var d *Details
		if d, err = DecodeKeyDetails(plain); err == nil {
			return d, nil
		}
	}
	return nil, fmt.Errorf("%w: %w", snapshot.ErrIntegrity, err)
}

// DecodeAt decodes the key object of a name.
func DecodeAt(name string, b []byte) (*Object, error) {
	k, err := Decode(b)
	if err == nil && KeyPrefix+k.Id != name {
		err = fmt.Errorf("%w: it is not what its name says", snapshot.ErrIntegrity)
	}
	return k, err
}

// IsName reports whether a key object may have the name.
func IsName(name string) bool {
	id, ok := strings.CutPrefix(name, KeyPrefix)
	return ok && len(id) == 2*len(chunk.ID{})
}

// Wrap makes a key object of the master key, as n says. It fails with ErrInvalid where n makes no sense.
func Wrap(n *snapshot.NewKey, key *chunk.Key, now time.Time) (*Object, error) {
	if n.Label != "" {
		if err := manifest.CheckLabel(n.Label); err != nil {
			return nil, fmt.Errorf("%w: label %q %w", snapshot.ErrInvalid, n.Label, err)
		}
	}
	details := &Details{Created: now.UTC().Truncate(time.Second), Label: n.Label}
	if _, ok := n.Recipient.(*age.ScryptRecipient); ok || (n.Recipient == nil) == (n.Passphrase == "") {
		return nil, fmt.Errorf("%w: a key takes a passphrase that is not empty, or a recipient", snapshot.ErrInvalid)
	}
	if n.Recipient != nil {
		if s, ok := n.Recipient.(fmt.Stringer); ok && len(s.String()) <= maxRecipient {
			details.Recipient = s.String()
		}
		return WrapKey(key, RecipientKey, n.Recipient, details)
	}
	recipient, err := age.NewScryptRecipient(n.Passphrase)
	if err != nil {
		return nil, err
	}
	work := n.WorkFactor
	if work == 0 {
		work = defaultWorkFactor
	}
	if work < 1 || work > MaxWorkFactor {
		return nil, fmt.Errorf("%w: work factor %d is not within 1 to %d", snapshot.ErrInvalid, work, MaxWorkFactor)
	}
	recipient.SetWorkFactor(work)
	return WrapKey(key, PassphraseKey, recipient, details)
}

// Info is what users are shown of a key.
func (k *Object) Info(d *Details) *snapshot.KeyInfo {
	kind := "passphrase"
	if k.Kind == RecipientKey {
		kind = "recipient"
	}
	return &snapshot.KeyInfo{ID: k.Id, Kind: kind, Label: d.Label, Recipient: d.Recipient, CreatedAt: d.Created}
}

package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/wire"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
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
//	              all bytes before them: see keyDetails.append
//
// Anybody can wrap a key for a recipient. So a key object says nothing of whether
// the key in it is the repository's: that is for the config (keyCheck, mac) and for what
// this machine remembers (pin).
type keyObject struct {
	id     string // lower-case hex
	kind   keyKind
	age    []byte
	head   []byte // all before the details
	sealed []byte // details
}

type keyKind byte

const (
	passphraseKey keyKind = 1
	recipientKey  keyKind = 2
)

const (
	keyPrefix  = "keys/"
	keyMagic   = "snapkey\x00"
	keyVersion = 1
	keyHead    = 20

	maxKeyObject  = 64 << 10
	maxRecipient  = 8 << 10 // post-quantum ones have 2,000 characters
	payloadLen    = 1 + len(chunk.Key{})
	keysAtOnce    = 8
	maxKeyObjects = 1000
)

// Work factors are the logarithm of scrypt's N, which is time and memory of each
// trial. With 17, the one that OWASP recommends, a trial takes 0.37 s and 128 MiB; age's
// own 18 takes twice that, of every command. The limit keeps an object that somebody
// put there from taking more than 1 GiB.
const (
	defaultWorkFactor = 17
	maxWorkFactor     = 20
)

// keyDetails are what is known of a key, for those who can open the repository.
type keyDetails struct {
	created   time.Time // whole seconds
	label     string
	recipient string // "" for a passphrase
}

// append appends the encoding of the details:
//
//	created     uvarint, seconds since 1970
//	label       length-prefixed
//	recipient   length-prefixed
func (d *keyDetails) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(d.created.Unix()))
	return wire.AppendBytes(wire.AppendBytes(b, d.label), d.recipient)
}

func decodeKeyDetails(b []byte) (*keyDetails, error) {
	r := wire.NewReader(b)
	d := &keyDetails{created: time.Unix(int64(r.Uvarint("created", 1<<40)), 0).UTC()}
	d.label = string(r.Bytes("label", manifest.MaxLabel))
	d.recipient = string(r.Bytes("recipient", maxRecipient))
	if d.label != "" {
		if err := manifest.CheckLabel(d.label); err != nil {
			r.Failf("label %v", err)
		}
	}
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("details: %w", err)
	}
	return d, nil
}

// wrapKey makes the object that holds a master key for a recipient.
func wrapKey(key *chunk.Key, kind keyKind, recipient age.Recipient, details *keyDetails) (*keyObject, error) {
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
	plain := details.append(nil)
	k := &keyObject{kind: kind, age: file.Bytes()}
	k.head = append([]byte(keyMagic), keyVersion, byte(kind), 0, 0)
	k.head = binary.LittleEndian.AppendUint32(k.head, uint32(len(k.age)))
	k.head = binary.LittleEndian.AppendUint32(k.head, uint32(len(plain)+chunk.SealOverhead))
	k.head = append(k.head, k.age...)
	c, err := detailsCodec(key, k.head)
	if err != nil {
		return nil, err
	}
	k.sealed = c.Seal(nil, plain)
	_, err = decodeKeyObject(k.encode())
	k.id = sumHex(k.encode())
	return k, err
}

func detailsCodec(key *chunk.Key, head []byte) (*chunk.Codec, error) {
	c, err := chunk.NewSealingCodec(defaultCompression, key)
	if err != nil {
		return nil, err
	}
	return c.For(useKeyDetails, head), nil
}

func (k *keyObject) encode() []byte { return bytes.Join([][]byte{k.head, k.sealed}, nil) }

func decodeKeyObject(b []byte) (*keyObject, error) {
	r := wire.NewReader(b)
	if len(b) > maxKeyObject {
		r.Failf("%d bytes, the most is %d", len(b), maxKeyObject)
	}
	if string(r.Fixed("magic", len(keyMagic))) != keyMagic {
		r.Failf("no key object")
	}
	if v := r.Byte("version"); v != keyVersion {
		r.Failf("version %d, this program knows %d", v, keyVersion)
	}
	k := &keyObject{kind: keyKind(r.Byte("kind"))}
	if k.kind != passphraseKey && k.kind != recipientKey {
		r.Failf("kind %d is unknown", k.kind)
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
	k.id = sumHex(b)
	return k, nil
}

func sumHex(b []byte) string {
	sum := blake3.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// unwrap gives the key in the object. The error is *age.NoIdentityMatchError if it
// is not for these identities, or the passphrase is another.
func (k *keyObject) unwrap(identities []age.Identity) (*chunk.Key, error) {
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

// details gives what is known of the key. It fails for an object of another
// repository.
func (k *keyObject) details(key *chunk.Key) (*keyDetails, error) {
	c, err := detailsCodec(key, k.head)
	if err != nil {
		return nil, err
	}
	plain, err := c.Open(nil, k.sealed)
	if err == nil {
		var d *keyDetails
		if d, err = decodeKeyDetails(plain); err == nil {
			return d, nil
		}
	}
	return nil, fmt.Errorf("%w: %w", snapshot.ErrIntegrity, err)
}

func countKeys(keys []*keyObject, kind keyKind) (n int) {
	for _, k := range keys {
		if k.kind == kind {
			n++
		}
	}
	return n
}

// keyObjects gives the repository's key objects, in the order of their names. If some
// cannot be read, it gives the others together with an error.
func (r *Repository) keyObjects(ctx context.Context) ([]*keyObject, error) {
	names, err := r.keyNames(ctx)
	if err != nil {
		return nil, err
	}
	keys := make([]*keyObject, len(names))
	var mu sync.Mutex
	var errs error
	var g errgroup.Group
	g.SetLimit(keysAtOnce)
	for i, name := range names {
		g.Go(func() error {
			k, err := r.keyObject(ctx, name)
			if err == nil {
				keys[i] = k
			} else if !errors.Is(err, remote.ErrNotExist) { // removed since it was listed
				mu.Lock()
				errs = errors.Join(errs, err)
				mu.Unlock()
			}
			return nil
		})
	}
	_ = g.Wait()
	all := keys[:0]
	for _, k := range keys {
		if k != nil {
			all = append(all, k)
		}
	}
	return all, errs
}

func (r *Repository) keyObject(ctx context.Context, name string) (*keyObject, error) {
	b, err := r.store.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	k, err := decodeKeyAt(name, b)
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", name, err)
	}
	return k, nil
}

// decodeKeyAt decodes the key object of a name.
func decodeKeyAt(name string, b []byte) (*keyObject, error) {
	k, err := decodeKeyObject(b)
	if err == nil && keyPrefix+k.id != name {
		err = fmt.Errorf("%w: it is not what its name says", snapshot.ErrIntegrity)
	}
	return k, err
}

// isKeyName reports whether a key object may have the name.
func isKeyName(name string) bool {
	id, ok := strings.CutPrefix(name, keyPrefix)
	return ok && len(id) == 2*len(chunk.ID{})
}

// keyNames lists key objects.
func (r *Repository) keyNames(ctx context.Context) ([]string, error) {
	if wait := r.ahead.takeKeys(); wait != nil {
		if names, err := wait(ctx); !errors.Is(err, context.Canceled) || ctx.Err() != nil {
			return names, err
		}
	}
	return r.listKeys(ctx)
}

func (r *Repository) listKeys(ctx context.Context) (names []string, err error) {
	err = r.store.List(ctx, keyPrefix, func(o remote.Info) error {
		if !isKeyName(o.Name) || len(names) == maxKeyObjects || o.Size > maxKeyObject {
			r.log.Warn("not a key", "object", o.Name)
			return nil
		}
		names = append(names, o.Name)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing keys: %w", err)
	}
	return names, nil
}

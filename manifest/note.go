package manifest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/snapctl/snapctl/chunk/wire"
	"github.com/zeebo/blake3"
)

// A note object, all numbers little-endian:
//
//	offset  size  field
//	0       8     magic "snapnote"
//	8       1     format version, 1
//	9       1     what it changes: 1 name, 2 tags, 4 lifetime; at least one
//	10      6     zero
//	16      16    id of the snapshot
//	32      16    id of the note, a UUIDv7
//	48      n     the changes: see Note.append
//	48+n    32    BLAKE3-256 of all before
//
// It lies at notes/<snapshot id>/<note id>. A manifest never changes; its notes,
// applied in the order of their names, say what is different now.
const (
	noteMagic   = "snapnote"
	noteVersion = 1
	noteHeader  = 48

	noteName     = 1
	noteTags     = 2
	noteLifetime = 4

	// NotePrefix is where all notes lie.
	NotePrefix = "notes/"
	// MaxNote is the longest note in bytes: a bound for decoders.
	MaxNote = noteHeader + 3*(MaxLabel+2) + 3*MaxTags*(MaxLabel+2) + 32 + sumSize
)

// NoteID identifies a note: a UUIDv7, so that notes sort by time.
type NoteID uuid.UUID

// NewNoteID makes an id that sorts behind another one, whatever this machine's clock
// says: a change must follow those that its maker knew of. The zero id is before all.
func NewNoteID(after NoteID) NoteID {
	id := NoteID(uuid.Must(uuid.NewV7()))
	if id.Compare(after) <= 0 {
		ms := after.ms() + 1
		for i := range 6 {
			id[i] = byte(ms >> (40 - 8*i))
		}
	}
	return id
}

// ms is the time in milliseconds, of 48 bits.
func (id NoteID) ms() (ms uint64) {
	for _, b := range id[:6] {
		ms = ms<<8 | uint64(b)
	}
	return ms
}

// ParseNoteID parses the 36-character form of [NoteID.String].
func ParseNoteID(s string) (NoteID, error) {
	u, err := uuid.Parse(s)
	if err != nil || u.String() != s || u.Version() != 7 || u.Variant() != uuid.RFC4122 {
		return NoteID{}, fmt.Errorf("%q is not the id of a note", s)
	}
	return NoteID(u), nil
}

// String is the usual 36-character form in lower case.
func (id NoteID) String() string { return uuid.UUID(id).String() }

// Compare orders ids in the order in which their notes apply.
func (id NoteID) Compare(other NoteID) int { return bytes.Compare(id[:], other[:]) }

// NotesOf is the prefix of a snapshot's notes.
func (id ID) NotesOf() string { return NotePrefix + id.String() + "/" }

// A Lifetime is when a snapshot ends. The zero Lifetime is never.
type Lifetime struct {
	Expires time.Time // zero for never
	Pinned  bool      // never, and nothing but a person removes it
}

// A Note says what is different about a snapshot since it was made.
type Note struct {
	Snapshot   ID
	ID         NoteID
	Name       *string           // "" takes it away; nil leaves it
	SetTags    map[string]string // those to have
	RemoveTags []string          // those not to have, sorted
	Lifetime   *Lifetime         // nil leaves it
}

// ObjectName is the name of the object that holds the note.
func (n *Note) ObjectName() string { return n.Snapshot.NotesOf() + n.ID.String() }

// ParseNoteName is the inverse of [Note.ObjectName].
func ParseNoteName(name string) (ID, NoteID, error) {
	rest, ok := strings.CutPrefix(name, NotePrefix)
	first, second, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 {
		return ID{}, NoteID{}, fmt.Errorf("%q is not the name of a note", name)
	}
	id, err := ParseID(first)
	note, err2 := ParseNoteID(second)
	return id, note, errors.Join(err, err2)
}

// Encode gives the object's bytes. It fails for what DecodeNote would refuse.
func (n *Note) Encode() ([]byte, error) {
	b := append(make([]byte, 0, 256), noteMagic...)
	b = append(b, noteVersion, n.changes(), 0, 0, 0, 0, 0, 0)
	b = append(append(b, n.Snapshot[:]...), n.ID[:]...)
	b = appendSum(n.append(b))
	_, err := DecodeNote(b)
	return b, err
}

func (n *Note) changes() (c byte) {
	if n.Name != nil {
		c |= noteName
	}
	if len(n.SetTags)+len(n.RemoveTags) > 0 {
		c |= noteTags
	}
	if n.Lifetime != nil {
		c |= noteLifetime
	}
	return c
}

// append appends what the note changes, each only where the header says so:
//
//	name       length-prefixed, "" for none
//	tags       number of those to have, then key and value, length-prefixed, sorted
//	           by key; number of those not to have, then keys, sorted
//	lifetime   byte: 0 for ever, 1 pinned, 2 until a time, which follows: seconds
//	           varint (zigzag), nanoseconds uvarint
func (n *Note) append(b []byte) []byte {
	if n.Name != nil {
		b = wire.AppendBytes(b, *n.Name)
	}
	if n.changes()&noteTags != 0 {
		b = binary.AppendUvarint(b, uint64(len(n.SetTags)))
		for _, k := range slices.Sorted(maps.Keys(n.SetTags)) {
			b = wire.AppendBytes(wire.AppendBytes(b, k), n.SetTags[k])
		}
		b = binary.AppendUvarint(b, uint64(len(n.RemoveTags)))
		for _, k := range n.RemoveTags {
			b = wire.AppendBytes(b, k)
		}
	}
	if l := n.Lifetime; l != nil {
		switch {
		case l.Pinned:
			b = append(b, 1)
		case l.Expires.IsZero():
			b = append(b, 0)
		default:
			b = appendTime(append(b, 2), l.Expires)
		}
	}
	return b
}

// DecodeNote decodes a note.
func DecodeNote(b []byte) (*Note, error) {
	if len(b) > MaxNote {
		return nil, fmt.Errorf("%w: note of %d bytes", ErrDamaged, len(b))
	}
	if len(b) < noteHeader+sumSize || string(b[:len(noteMagic)]) != noteMagic {
		return nil, fmt.Errorf("%w: no note", ErrDamaged)
	}
	end := len(b) - sumSize
	if sum := blake3.Sum256(b[:end]); !bytes.Equal(b[end:], sum[:]) {
		return nil, fmt.Errorf("%w: checksum of the note does not match", ErrDamaged)
	}
	r := wire.NewReader(b[:end])
	r.Fixed("magic", len(noteMagic))
	if v := r.Byte("version"); v != noteVersion {
		r.Failf("version %d, this program knows %d", v, noteVersion)
	}
	changes := r.Byte("what it changes")
	if changes == 0 || changes&^(noteName|noteTags|noteLifetime) != 0 {
		r.Failf("unknown changes %#x", changes)
	}
	zero(r, 6)
	n := &Note{}
	copy(n.Snapshot[:], r.Fixed("snapshot", len(n.Snapshot)))
	copy(n.ID[:], r.Fixed("id", len(n.ID)))
	if _, err := ParseID(n.Snapshot.String()); err != nil {
		r.Failf("%v", err)
	}
	if _, err := ParseNoteID(n.ID.String()); err != nil {
		r.Failf("%v", err)
	}
	if changes&noteName != 0 {
		name := string(r.Bytes("name", MaxLabel))
		if err := CheckLabel(name); name != "" && err != nil {
			r.Failf("name %q %v", name, err)
		}
		n.Name = &name
	}
	if changes&noteTags != 0 {
		n.decodeTags(r)
	}
	if changes&noteLifetime != 0 {
		n.Lifetime = decodeLifetime(r)
	}
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("%w: note: %w", ErrDamaged, err)
	}
	return n, nil
}

func (n *Note) decodeTags(r *wire.Reader) {
	last := ""
	key := func() string {
		k := string(r.Bytes("tag", MaxLabel))
		if err := CheckLabel(k); r.Err() == nil && err != nil {
			r.Failf("tag %q %v", k, err)
		}
		if k <= last {
			r.Failf("tags out of order")
		}
		last = k
		return k
	}
	set := r.Uvarint("number of tags", MaxTags)
	for range set {
		k, v := key(), string(r.Bytes("tag value", MaxLabel))
		if err := CheckLabel(v); v != "" && err != nil {
			r.Failf("value %q of tag %q %v", v, k, err)
		}
		if r.Err() != nil {
			return
		}
		if n.SetTags == nil {
			n.SetTags = map[string]string{}
		}
		n.SetTags[k] = v
	}
	last = ""
	removed := r.Uvarint("number of tags that go", MaxTags)
	for range removed {
		k := key()
		if _, ok := n.SetTags[k]; ok {
			r.Failf("tag %q comes and goes", k)
		}
		if r.Err() != nil {
			return
		}
		n.RemoveTags = append(n.RemoveTags, k)
	}
	if set+removed == 0 {
		r.Failf("no tags")
	}
}

func decodeLifetime(r *wire.Reader) *Lifetime {
	l := &Lifetime{}
	switch kind := r.Byte("lifetime"); kind {
	case 0:
	case 1:
		l.Pinned = true
	case 2:
		if l.Expires = readTime(r); l.Expires.IsZero() {
			r.Failf("a time that is none")
		}
	default:
		r.Failf("unknown lifetime %d", kind)
	}
	return l
}

// Supersedes reports whether nothing that old says counts once n, which is later,
// applies too.
func (n *Note) Supersedes(old *Note) bool {
	if old.Name != nil && n.Name == nil || old.Lifetime != nil && n.Lifetime == nil {
		return false
	}
	says := func(key string) bool {
		_, ok := n.SetTags[key]
		return ok || slices.Contains(n.RemoveTags, key)
	}
	for key := range old.SetTags {
		if !says(key) {
			return false
		}
	}
	for _, key := range old.RemoveTags {
		if !says(key) {
			return false
		}
	}
	return n.Snapshot == old.Snapshot && n.ID.Compare(old.ID) > 0
}

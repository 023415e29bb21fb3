package manifest

import (
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

// ID names a snapshot: a UUIDv7 (RFC 9562), so that ids sort by the time they
// were made, whose last byte is the snapshot's [Class]. So an id alone says
// which object holds the manifest, and opening one takes no listing.
type ID [16]byte

// NewID makes an id for a snapshot of that lifetime class.
func NewID(c Class) ID {
	id := ID(uuid.Must(uuid.NewV7()))
	id[15] = byte(c)
	return id
}

// Next makes an id that comes right behind id in the order of snapshots, of the same
// class: for one that is to take its place.
func (id ID) Next() ID {
	return NewID(id.Class()).At(id.Time().Add(time.Millisecond))
}

// At is the id with another time: for one that was made by a clock that is known to be off.
func (id ID) At(t time.Time) ID {
	ms := t.UnixMilli()
	for i := range 6 {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	return id
}

// ParseID parses the 36-character form of [ID.String].
func ParseID(s string) (ID, error) {
	u, err := uuid.Parse(s)
	if err != nil || u.String() != s {
		return ID{}, fmt.Errorf("%q is not a snapshot id", s)
	}
	id := ID(u)
	if u.Version() != 7 || u.Variant() != uuid.RFC4122 || !id.Class().valid() {
		return ID{}, fmt.Errorf("%q is not a snapshot id: not a UUIDv7 of ours", s)
	}
	return id, nil
}

// String is the usual 36-character form in lower case.
func (id ID) String() string { return uuid.UUID(id).String() }

// IsZero reports whether id names no snapshot.
func (id ID) IsZero() bool { return id == ID{} }

// Time is when the id was made, to the millisecond, by its maker's clock.
func (id ID) Time() time.Time {
	var ms int64
	for _, b := range id[:6] {
		ms = ms<<8 | int64(b)
	}
	return time.UnixMilli(ms)
}

// Class is the lifetime class that the id carries.
func (id ID) Class() Class { return Class(id[15]) }

// InClass is the id with another lifetime class.
func (id ID) InClass(c Class) ID {
	id[15] = byte(c)
	return id
}

// Compare orders ids by time, then by their random part.
func (id ID) Compare(other ID) int { return strings.Compare(string(id[:]), string(other[:])) }

// MarshalText and UnmarshalText make an id a string in JSON.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText parses what MarshalText wrote.
func (id *ID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseID(string(b))
	return err
}

// Class is a lifetime class: snapshots with a TTL lie under a prefix of their
// class, so that a bucket's lifecycle rule can remove them even if nothing of
// ours ever runs again. The zero Class has no such prefix.
type Class uint8

// classDays is part of the format: a class is an index into it. A rule per
// class is far below the 1,000 that a bucket may have.
var classDays = [...]int{0, 1, 2, 3, 7, 14, 30, 60, 90, 180, 365}

// ClassFor is the shortest class that outlives ttl; the zero Class for no TTL
// and for one too long for any class, which only garbage collection ends.
func ClassFor(ttl time.Duration) Class {
	if ttl <= 0 {
		return 0
	}
	for c, days := range classDays {
		if ttl <= time.Duration(days)*24*time.Hour {
			return Class(c)
		}
	}
	return 0
}

// Classes lists the classes that have a prefix.
func Classes() []Class {
	var all []Class
	for c := 1; c < len(classDays); c++ {
		all = append(all, Class(c))
	}
	return all
}

func (c Class) valid() bool { return int(c) < len(classDays) }

// Days is the lifetime that the class promises at least, 0 for ever.
func (c Class) Days() int { return classDays[c] }

// Prefix is where the manifests of the class lie.
func (c Class) Prefix() string {
	if c == 0 {
		return Prefix
	}
	return fmt.Sprintf("%sttl-%dd/", Prefix, c.Days())
}

// Prefix is where all manifests lie.
const Prefix = "manifests/"

// ObjectName is the name of the object that holds the manifest.
func (id ID) ObjectName() string { return id.Class().Prefix() + id.String() }

// KeptName is where the manifest of a snapshot that is to outlive its class lies too,
// byte for byte: no bucket's lifecycle rule is about that name. Where the id has no
// class it is ObjectName.
func (id ID) KeptName() string { return Prefix + id.String() }

// ParseObjectName is the inverse of [ID.ObjectName] and [ID.KeptName].
func ParseObjectName(name string) (ID, error) {
	id, err := ParseID(name[strings.LastIndexByte(name, '/')+1:])
	if err == nil && id.ObjectName() != name && id.KeptName() != name {
		err = fmt.Errorf("%q does not belong under that name", name)
	}
	return id, err
}

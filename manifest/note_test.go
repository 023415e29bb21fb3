package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func someNotes() []*Note {
	name, none := "a name: ü", ""
	id := NewID(ClassFor(time.Hour))
	var all []*Note
	for _, n := range []Note{
		{Name: &name},
		{Name: &none},
		{SetTags: map[string]string{"b": "", "a": "1", "c": "x y"}},
		{RemoveTags: []string{"a", "b"}},
		{SetTags: map[string]string{"k": "v"}, RemoveTags: []string{"a", "z"}},
		{Lifetime: &Lifetime{}},
		{Lifetime: &Lifetime{Pinned: true}},
		{Lifetime: &Lifetime{Expires: time.Unix(1_800_000_000, 123)}},
		{Lifetime: &Lifetime{Expires: time.Unix(-1, 999_999_999)}},
		{Name: &name, SetTags: map[string]string{"k": "v"}, Lifetime: &Lifetime{Pinned: true}},
	} {
		n.Snapshot = id
		n.ID = NewNoteID(NoteID{})
		all = append(all, &n)
	}
	return all
}

func TestNote(t *testing.T) {
	for _, n := range someNotes() {
		b, err := n.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeNote(b)
		if err != nil || !reflect.DeepEqual(got, n) {
			t.Fatalf("%+v, %v; want %+v", got, err, n)
		}
		for i := range b {
			bad := bytes.Clone(b)
			bad[i] ^= 1
			if _, err := DecodeNote(bad); !errors.Is(err, ErrDamaged) {
				t.Fatalf("byte %d: %v", i, err)
			}
			if _, err := DecodeNote(b[:i]); !errors.Is(err, ErrDamaged) {
				t.Fatalf("%d bytes: %v", i, err)
			}
		}
		id, note, err := ParseNoteName(n.ObjectName())
		if err != nil || id != n.Snapshot || note != n.ID {
			t.Errorf("%s: %v, %v, %v", n.ObjectName(), id, note, err)
		}
	}
}

// A note of what a note may hold at most has room.
func TestLargestNote(t *testing.T) {
	name := strings.Repeat("n", MaxLabel)
	n := &Note{Snapshot: NewID(0), ID: NewNoteID(NoteID{}), Name: &name, SetTags: map[string]string{}, Lifetime: &Lifetime{Expires: time.Unix(1<<38, 999_999_999)}}
	long := func(i int) string { return fmt.Sprintf("%0*d", MaxLabel, i) }
	for i := range MaxTags {
		n.SetTags[long(i)] = strings.Repeat("v", MaxLabel)
		n.RemoveTags = append(n.RemoveTags, long(MaxTags+i))
	}
	if b, err := n.Encode(); err != nil || len(b) > MaxNote {
		t.Errorf("%d bytes: %v", len(b), err)
	}
	n.SetTags["one more"] = ""
	if _, err := n.Encode(); err == nil {
		t.Error("a tag too many")
	}
}

func TestNoteRefuses(t *testing.T) {
	bad := "a\nb"
	good := *someNotes()[0]
	for what, change := range map[string]func(*Note){
		"nothing":              func(n *Note) { n.Name = nil },
		"a bad name":           func(n *Note) { n.Name = &bad },
		"a bad tag":            func(n *Note) { n.SetTags = map[string]string{bad: ""} },
		"a tag without a name": func(n *Note) { n.SetTags = map[string]string{"": "v"} },
		"a bad value":          func(n *Note) { n.SetTags = map[string]string{"k": bad} },
		"tags out of order":    func(n *Note) { n.RemoveTags = []string{"b", "a"} },
		"a tag twice":          func(n *Note) { n.RemoveTags = []string{"a", "a"} },
		"a tag both ways":      func(n *Note) { n.SetTags, n.RemoveTags = map[string]string{"a": ""}, []string{"a"} },
		"no snapshot":          func(n *Note) { n.Snapshot = ID{} },
		"no id":                func(n *Note) { n.ID = NoteID{} },
	} {
		n := good
		change(&n)
		if _, err := n.Encode(); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, name := range []string{"", "notes/", "notes/x/y", "notes/" + good.Snapshot.String(), "leases/" + good.Snapshot.String() + "/" + good.ID.String(), good.ObjectName() + "/x"} {
		if _, _, err := ParseNoteName(name); err == nil {
			t.Errorf("%q is taken for the name of a note", name)
		}
	}
}

// An id is behind the one that its maker knew of, though that is of a clock ahead.
func TestNoteIDOrder(t *testing.T) {
	ahead := NewNoteID(NoteID{})
	ahead[0]++ // 35 years
	last := ahead
	var all []NoteID
	for range 100 {
		last = NewNoteID(last)
		all = append(all, last)
		if _, err := ParseNoteID(last.String()); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.IsSortedFunc(all, NoteID.Compare) || all[0].Compare(ahead) <= 0 {
		t.Errorf("%v after %v", all, ahead)
	}
}

func TestSupersedes(t *testing.T) {
	name := "n"
	id := NewID(0)
	old := NewNoteID(NoteID{})
	for _, c := range []struct {
		old, new Note
		want     bool
	}{
		{Note{Name: &name}, Note{Name: &name}, true},
		{Note{Name: &name}, Note{Lifetime: &Lifetime{}}, false},
		{Note{Lifetime: &Lifetime{Pinned: true}}, Note{Lifetime: &Lifetime{}}, true},
		{Note{SetTags: map[string]string{"a": "1"}}, Note{RemoveTags: []string{"a"}}, true},
		{Note{SetTags: map[string]string{"a": "1"}}, Note{SetTags: map[string]string{"a": "2", "b": ""}}, true},
		{Note{SetTags: map[string]string{"a": "1", "b": ""}}, Note{SetTags: map[string]string{"a": "2"}}, false},
		{Note{RemoveTags: []string{"a"}}, Note{Name: &name}, false},
		{Note{Name: &name, Lifetime: &Lifetime{}}, Note{Lifetime: &Lifetime{}}, false},
	} {
		c.old.Snapshot, c.new.Snapshot, c.old.ID, c.new.ID = id, id, old, NewNoteID(old)
		if got := c.new.Supersedes(&c.old); got != c.want {
			t.Errorf("%+v, then %+v: %v", c.old, c.new, got)
		}
		if c.old.Supersedes(&c.new) {
			t.Errorf("the older of %+v and %+v", c.old, c.new)
		}
	}
}

// A snapshot kept longer than its class is known by either name, and by no other.
func TestKeptName(t *testing.T) {
	for _, ttl := range []time.Duration{0, time.Hour, 30 * 24 * time.Hour} {
		id := NewID(ClassFor(ttl))
		for _, name := range []string{id.ObjectName(), id.KeptName()} {
			if got, err := ParseObjectName(name); err != nil || got != id {
				t.Errorf("%s: %v, %v", name, got, err)
			}
		}
		if _, err := ParseObjectName(Class(2).Prefix() + id.String()); err == nil {
			t.Errorf("%v under another class", id)
		}
	}
}

// A note is canonical: what decodes re-encodes to the same bytes.
func FuzzNote(f *testing.F) {
	for _, n := range someNotes() {
		b, err := n.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > sumSize { // without the checksum the fuzzer would come nowhere
			b = appendSum(bytes.Clone(b[:len(b)-sumSize]))
		}
		n, err := DecodeNote(b)
		if err != nil {
			return
		}
		if again, err := n.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x is re-encoded to %x: %v", b, again, err)
		}
	})
}

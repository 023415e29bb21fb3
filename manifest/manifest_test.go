package manifest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/blake3"
	"pgregory.net/rapid"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/wire/wiretest"
)

func newCodec(t testing.TB) *chunk.Codec {
	t.Helper()
	c, err := chunk.NewCodec(3)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func someManifest(t testing.TB, s *pageStore) *Manifest {
	t.Helper()
	root, _ := build(t, s, randomEntries(newRand(4), 3000))
	m := &Manifest{Info: Info{
		ID: NewID(3), Parent: NewID(0), Created: time.Unix(1_700_000_000, 123), Expires: time.Unix(1_800_000_000, 0),
		Dir: "/home/me/\xffproject", Name: "nightly", Tags: map[string]string{"branch": "main", "empty": "", "ä": "ö"},
		Host: "box", User: "me", Version: "v1.0.0",
		Files: 2, Bytes: 3, NewBytes: 4, StoredBytes: 5, Skipped: 6, Unreadable: 7,
	}}
	m.SetTree(root)
	return m
}

func TestManifestRoundTrip(t *testing.T) {
	c, s := newCodec(t), newPageStore()
	m := someManifest(t, s)
	if !m.Xattrs || !m.HardLinks || m.Entries != 3000 || !m.Incomplete() || len(m.Packs) < len(somePacks) {
		t.Fatalf("%+v", m.Info)
	}
	for i, p := range m.Packs {
		if i > 0 && bytes.Compare(m.Packs[i-1].ID[:], p.ID[:]) >= 0 {
			t.Fatal("packs are not sorted")
		}
	}
	b, err := m.Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(c, b)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Created.Equal(m.Created) || !got.Expires.Equal(m.Expires) || got.Digest() != m.Digest() {
		t.Fatalf("%+v", got.Info)
	}
	got.Created, got.Expires = m.Created, m.Expires
	if !reflect.DeepEqual(got, m) {
		t.Fatalf("%+v, expected %+v", got.Info, m.Info)
	}
	if tree, err := got.Tree(s.source()); err != nil || tree.Len() != 3000 {
		t.Fatal(err)
	}
}

// TestManifestLies: a manifest that says something else than its root page is damaged.
func TestManifestLies(t *testing.T) {
	s := newPageStore()
	got := someManifest(t, s)
	for name, lie := range map[string]func(*Manifest){
		"entries":    func(m *Manifest) { m.Entries++ },
		"attributes": func(m *Manifest) { m.Xattrs = false },
		"hard links": func(m *Manifest) { m.HardLinks = false },
		"root":       func(m *Manifest) { m.Root = nil },
	} {
		m := *got
		lie(&m)
		if _, err := m.Tree(s.source()); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestManifestHead: the first bytes are enough for the info.
func TestManifestHead(t *testing.T) {
	c := newCodec(t)
	m := someManifest(t, newPageStore())
	b, err := m.Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	n, err := HeadLen(b[:headerSize])
	if err != nil || n > HeadSize || n >= len(b) {
		t.Fatal(n, err)
	}
	for _, head := range [][]byte{b[:n], b[:min(HeadSize, len(b))], b} {
		info, err := DecodeHead(c, head)
		if err != nil || info.ID != m.ID || info.Name != m.Name {
			t.Fatal(info, err)
		}
	}
}

func TestDamagedManifests(t *testing.T) {
	c := newCodec(t)
	m := someManifest(t, newPageStore())
	b, err := m.Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	head, _ := HeadLen(b)
	for i := range len(b) {
		if _, err := Decode(c, b[:i]); !errors.Is(err, ErrDamaged) {
			t.Fatalf("%d bytes of %d: %v", i, len(b), err)
		}
		if i < head {
			if _, err := DecodeHead(c, b[:i]); !errors.Is(err, ErrDamaged) {
				t.Fatalf("%d bytes of a head of %d: %v", i, head, err)
			}
		}
		bad := slices.Clone(b[:min(len(b), max(head, i+1))])
		bad[i] ^= 1 << (i % 8)
		if _, err := DecodeHead(c, bad); (err == nil) != (i >= head) {
			t.Fatalf("byte %d of the head flipped: %v", i, err)
		}
		bad = append(bad, b[len(bad):]...)
		if _, err := Decode(c, bad); !errors.Is(err, ErrDamaged) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
	}
	if _, err := Decode(c, append(slices.Clone(b), 0)); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}

	// Info of one snapshot and tree of another, with right checksums.
	other := *m
	other.ID = NewID(0)
	o, err := other.Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	h, _ := decodeHeader(o)
	mixed := slices.Clone(o[:headerSize+h.storedInfo])
	copy(mixed[24:32], b[24:32])
	mixed = appendSum(mixed)
	mixed = appendSum(append(mixed, b[head:len(b)-sumSize]...))
	if _, err := DecodeHead(c, mixed); err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(c, mixed); !errors.Is(err, ErrDamaged) {
		t.Fatalf("info and tree of two snapshots: %v", err)
	}
}

func TestManifestThatCannotBe(t *testing.T) {
	c := newCodec(t)
	for name, change := range map[string]func(m *Manifest){
		"no id":            func(m *Manifest) { m.ID = ID{} },
		"parent":           func(m *Manifest) { m.Parent = ID{1} },
		"control in name":  func(m *Manifest) { m.Name = "a\nb" },
		"name not UTF-8":   func(m *Manifest) { m.Name = "\xff" },
		"long name":        func(m *Manifest) { m.Name = strings.Repeat("a", MaxLabel+1) },
		"long directory":   func(m *Manifest) { m.Dir = strings.Repeat("a", MaxPath+1) },
		"control in host":  func(m *Manifest) { m.Host = "a\x1b[2J" },
		"empty tag":        func(m *Manifest) { m.Tags = map[string]string{"": "a"} },
		"control in tag":   func(m *Manifest) { m.Tags = map[string]string{"a\n": "a"} },
		"control in value": func(m *Manifest) { m.Tags = map[string]string{"a": "\x1b"} },
		"too many tags": func(m *Manifest) {
			m.Tags = map[string]string{}
			for i := range MaxTags + 1 {
				m.Tags[fmt.Sprint(i)] = ""
			}
		},
		"total":          func(m *Manifest) { m.Bytes = 1 << 63 },
		"packs unsorted": func(m *Manifest) { slices.Reverse(m.Packs) },
		"pack twice":     func(m *Manifest) { m.Packs[1] = m.Packs[0] },
		"root too large": func(m *Manifest) { m.Root = make([]byte, MaxPage+1) },
		"all files":      func(m *Manifest) { m.Files = m.Entries },
		"files":          func(m *Manifest) { m.Files = 1 << 62 },
		"files alone":    func(m *Manifest) { m.Entries, m.Files = 0, 1 },
		"entries":        func(m *Manifest) { m.Entries = maxEntries + 1 },
		"bytes":          func(m *Manifest) { m.Files, m.HardLinks = 0, false },
		"hard links":     func(m *Manifest) { m.Files, m.Bytes, m.HardLinks = 0, 0, true },
		"attributes":     func(m *Manifest) { m.Info = Info{ID: m.ID, Xattrs: true} },
		"bytes of packs": func(m *Manifest) { m.Packs[0].Bytes, m.Packs[1].Bytes = 1<<62, 1<<62 },
	} {
		m := someManifest(t, newPageStore())
		if change(m); m == nil {
			continue
		}
		if _, err := m.Encode(c); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
	for label, ok := range map[string]bool{"a": true, "ä b": true, "": false, "\t": false, "\xff": false, strings.Repeat("a", 256): true, strings.Repeat("a", 257): false} {
		if err := CheckLabel(label); (err == nil) != ok {
			t.Errorf("%.20q: %v", label, err)
		}
	}
}

func TestHeaderThatLies(t *testing.T) {
	c := newCodec(t)
	b, err := someManifest(t, newPageStore()).Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{16, 20, 24, 28} {
		for _, n := range []uint32{0, 1, 1<<31 - 1, 1<<32 - 1} {
			bad := slices.Clone(b)
			binary.LittleEndian.PutUint32(bad[at:], n)
			// With checksums that match, as far as they can.
			if h, err := decodeHeader(bad); err == nil && h.size() == len(bad) {
				sum := blake3.Sum256(bad[:headerSize+h.storedInfo])
				copy(bad[headerSize+h.storedInfo:], sum[:])
				sum = blake3.Sum256(bad[:len(bad)-sumSize])
				copy(bad[len(bad)-sumSize:], sum[:])
			}
			if _, err := Decode(c, bad); !errors.Is(err, ErrDamaged) {
				t.Errorf("%d at %d: %v", n, at, err)
			}
		}
	}
}

// Info is canonical: what decodes re-encodes to the same bytes.
func FuzzInfo(f *testing.F) {
	m := someManifest(f, newPageStore())
	f.Add(m.Info.append(nil))
	f.Add((&Info{ID: NewID(0)}).append(nil))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var info *Info
		var err error
		wiretest.Bounded(t, 64*len(raw), func() { info, err = decodeInfo(raw) })
		if err != nil {
			return
		}
		if got := info.append(nil); !bytes.Equal(got, raw) {
			t.Fatalf("%x is re-encoded to %x", raw, got)
		}
	})
}

func FuzzManifest(f *testing.F) {
	c := newCodec(f)
	m := someManifest(f, newPageStore())
	m.Root = leafOf(randomEntries(newRand(1), 5))
	b, err := m.Encode(c)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:100])
	f.Fuzz(func(t *testing.T, b []byte) {
		// Without the checksums the fuzzer would come nowhere.
		b = slices.Clone(b)
		if h, err := decodeHeader(b); err == nil && h.size() == len(b) {
			b = append(appendSum(b[:headerSize+h.storedInfo:headerSize+h.storedInfo]), b[h.headLen():]...)
			b = appendSum(b[: len(b)-sumSize : len(b)-sumSize])
		}
		var m *Manifest
		var err error
		wiretest.Bounded(t, 64*len(b)+2*chunk.MaxFrame, func() { m, err = Decode(c, b) })
		if err == nil {
			if _, err := m.Encode(c); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestIDs(t *testing.T) {
	var last ID
	for i := range 1000 {
		c := Class(i % len(classDays))
		before := time.Now().Add(-2 * time.Millisecond)
		id := NewID(c)
		if id.Class() != c || id.IsZero() || id.Time().Before(before) || id.Time().After(time.Now().Add(2*time.Millisecond)) {
			t.Fatal(id, id.Class(), id.Time())
		}
		if last.Compare(id) >= 0 || last.String() >= id.String() {
			t.Fatalf("%v comes after %v", last, id)
		}
		if last = id; id.Compare(id) != 0 {
			t.Fatal(id)
		}
		if got, err := ParseID(id.String()); err != nil || got != id {
			t.Fatal(got, err)
		}
		if got, err := ParseObjectName(id.ObjectName()); err != nil || got != id {
			t.Fatal(got, err)
		}
		text, _ := id.MarshalText()
		var got ID
		if err := got.UnmarshalText(text); err != nil || got != id {
			t.Fatal(got, err)
		}
	}
}

func TestParseIDRefuses(t *testing.T) {
	id := NewID(2)
	s := id.String()
	v4, variant, class := id, id, id
	v4[6] = v4[6]&0x0f | 0x40
	variant[8] = 0xff
	class[15] = byte(len(classDays))
	for _, bad := range []string{
		"", s[:35], s + "0", strings.ToUpper(s), "{" + s + "}", "urn:uuid:" + s, strings.ReplaceAll(s, "-", ""),
		ID{}.String(), v4.String(), variant.String(), class.String(), s[:35] + "g",
	} {
		if got, err := ParseID(bad); err == nil || !got.IsZero() {
			t.Errorf("%q is %v", bad, got)
		}
	}
	for _, bad := range []string{"", "manifests/", s, "x" + id.ObjectName(), id.ObjectName() + "/", Class(3).Prefix() + s, "/" + id.ObjectName()} {
		if got, err := ParseObjectName(bad); err == nil {
			t.Errorf("%q is %v", bad, got)
		}
	}
}

func TestClasses(t *testing.T) {
	const day = 24 * time.Hour
	for ttl, days := range map[time.Duration]int{
		0: 0, -1: 0, 1: 1, day: 1, day + 1: 2, 72 * time.Hour: 3, 4 * day: 7, 7 * day: 7, 8 * day: 14, 30 * day: 30, 31 * day: 60,
		365 * day: 365, 365*day + 1: 0, 1<<63 - 1: 0,
	} {
		if c := ClassFor(ttl); c.Days() != days {
			t.Errorf("%v is kept %d days, expected %d", ttl, c.Days(), days)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		ttl := time.Duration(rapid.Int64Range(1, int64(400*day)).Draw(t, "ttl"))
		c := ClassFor(ttl)
		if c != 0 && time.Duration(c.Days())*day < ttl {
			t.Fatalf("%v is removed after %d days", ttl, c.Days())
		}
	})
	seen := map[string]bool{Prefix: true}
	for _, c := range Classes() {
		if c == 0 || seen[c.Prefix()] || !strings.HasPrefix(c.Prefix(), Prefix) {
			t.Errorf("class %d lies in %q", c, c.Prefix())
		}
		seen[c.Prefix()] = true
	}
	if Class(4).Prefix() != "manifests/ttl-7d/" || Class(0).Prefix() != "manifests/" {
		t.Error("the layout is part of the format")
	}
}

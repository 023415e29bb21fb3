package manifest

import (
	"bytes"
	"errors"
	"testing"

	"github.com/snapctl/snapctl/chunk/wire/wiretest"
	"time"
)

func someLease(t testing.TB) *Lease {
	t.Helper()
	m := someManifest(t, newPageStore())
	m.Root = leafOf(randomEntries(newRand(1), 5))
	b, err := m.Encode(newCodec(t))
	if err != nil {
		t.Fatal(err)
	}
	return &Lease{Hold: time.Hour, Manifest: b}
}

func TestLease(t *testing.T) {
	l := someLease(t)
	b, err := l.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeLease(b)
	if err != nil || got.Hold != l.Hold || !bytes.Equal(got.Manifest, l.Manifest) {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := Decode(newCodec(t), got.Manifest); err != nil {
		t.Error(err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		if _, err := DecodeLease(bad); !errors.Is(err, ErrDamaged) {
			t.Fatalf("byte %d: %v", i, err)
		}
		if _, err := DecodeLease(b[:i]); !errors.Is(err, ErrDamaged) {
			t.Fatalf("%d bytes: %v", i, err)
		}
	}
	if _, err := DecodeLease(append(bytes.Clone(b), 0)); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
	for name, bad := range map[string]Lease{
		"no hold":       {0, l.Manifest},
		"negative hold": {-time.Second, l.Manifest},
		"half a second": {time.Second / 2, l.Manifest},
		"a long hold":   {MaxHold + time.Second, l.Manifest},
		"a longer hold": {1 << 62, l.Manifest},
		"no manifest":   {time.Hour, nil},
		"a piece of it": {time.Hour, l.Manifest[:len(l.Manifest)-1]},
		"and more":      {time.Hour, append(bytes.Clone(l.Manifest), 0)},
	} {
		if _, err := bad.Encode(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A lease is canonical: what decodes re-encodes to the same bytes.
func FuzzLease(f *testing.F) {
	b, err := someLease(f).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:leaseHeader])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > sumSize { // without the checksum the fuzzer would come nowhere
			b = appendSum(bytes.Clone(b[:len(b)-sumSize]))
		}
		var l *Lease
		var err error
		wiretest.Bounded(t, 2*len(b), func() { l, err = DecodeLease(b) })
		if err != nil {
			return
		}
		if again, err := l.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x is re-encoded to %x: %v", b, again, err)
		}
	})
}

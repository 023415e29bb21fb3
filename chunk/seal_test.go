package chunk

import (
	"bytes"
	"crypto/sha3"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"testing"
)

func sealingCodec(t testing.TB, key *Key) *Codec {
	t.Helper()
	c, err := NewSealingCodec(1, key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// newXAES is a sealer whose key is not derived.
func newXAES(key []byte) *sealer {
	s := &sealer{block: newAES(key)}
	s.subkey()
	return s
}

// sealAs seals with a nonce that is given.
func (s *sealer) sealAs(nonce, plain []byte) []byte {
	return s.end(append(slices.Clone(nonce), plain...), 0)
}

// TestXAES holds the construction against the vectors of c2sp.org/XAES-256-GCM.
func TestXAES(t *testing.T) {
	nonce, plain := []byte("ABCDEFGHIJKLMNOPQRSTUVWX"), []byte("XAES-256-GCM")
	for _, v := range []struct {
		key         byte
		about, want string
	}{
		{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
		{3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
	} {
		s := newXAES(bytes.Repeat([]byte{v.key}, 32))
		s.about = []byte(v.about)
		sealed := s.sealAs(nonce, plain)
		if got := hex.EncodeToString(sealed[sealNonce:]); got != v.want {
			t.Errorf("key %d: %s, want %s", v.key, got, v.want)
		}
		if got, err := s.open(nil, sealed); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("key %d: opens as %q, %v", v.key, got, err)
		}
	}

	// The accumulated vector: keys whose subkey has the carry, and those without.
	in, out := sha3.NewSHAKE128(), sha3.NewSHAKE128()
	read := func(n int) []byte {
		b := make([]byte, n)
		in.Read(b)
		return b
	}
	for range 10_000 {
		s := newXAES(read(32))
		nonce := read(sealNonce)
		plain := read(int(read(1)[0]))
		s.about = read(int(read(1)[0]))
		out.Write(s.sealAs(nonce, plain)[sealNonce:])
	}
	sum := make([]byte, 32)
	out.Read(sum)
	if got := hex.EncodeToString(sum); got != "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939" {
		t.Errorf("accumulated: %s", got)
	}
}

func TestSealedFrames(t *testing.T) {
	c := sealingCodec(t, NewKey())
	for _, raw := range [][]byte{
		{0}, bytes.Repeat([]byte("ab"), 1000), randomBytes(1, 100), randomBytes(1, 1<<20), make([]byte, MaxFrame), randomBytes(2, MaxFrame),
	} {
		stored := c.Encode([]byte("before"), raw)
		if string(stored[:6]) != "before" {
			t.Fatal("what was in dst has changed")
		}
		stored = stored[6:]
		if err := (Frame{Offset: PackHeaderSize, Stored: uint32(len(stored)), Raw: uint32(len(raw))}).Check(); err != nil {
			t.Error(err)
		}
		if again := c.Encode(nil, raw); bytes.Equal(again, stored) {
			t.Error("the same is sealed as the same")
		}
		before := slices.Clone(stored)
		got, err := c.Decode(make([]byte, 10), stored, len(raw))
		if err != nil || !bytes.Equal(got, raw) {
			t.Fatal(len(got), err)
		}
		clear(got)
		if !bytes.Equal(stored, before) {
			t.Error("the result aliases what is stored")
		}
		for _, n := range []int{-1, 0, len(raw) - 1, len(raw) + 1, len(stored), MaxFrame + 1} {
			if got, err := c.Decode(nil, stored, n); err == nil {
				t.Fatalf("%d bytes are decoded as %d", len(raw), len(got))
			}
		}
	}
}

// TestSealBreaks: whatever is done to what was sealed, it does not open.
func TestSealBreaks(t *testing.T) {
	key := NewKey()
	c := sealingCodec(t, key)
	raw := []byte("some bytes that hardly anybody would compress")
	stored := c.Encode(nil, raw)
	fails := func(what string, c *Codec, stored []byte) {
		t.Helper()
		if got, err := c.Decode(nil, stored, len(raw)); !errors.Is(err, ErrSeal) || got != nil {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	for i := range stored {
		for bit := range 8 {
			b := slices.Clone(stored)
			b[i] ^= 1 << bit
			fails(fmt.Sprintf("byte %d, bit %d", i, bit), c, b)
		}
		fails(fmt.Sprintf("cut to %d bytes", i), c, stored[:i])
	}
	fails("as another use", c.For(UsePackIndex, nil), stored)
	fails("of another place", c.For(UseFrame, []byte("place")), stored)
	fails("with another key", sealingCodec(t, NewKey()), stored)
	if got, err := c.For(UseFrame, nil).Decode(nil, stored, len(raw)); err != nil || !bytes.Equal(got, raw) {
		t.Error("the codec's own use, by name:", err)
	}
	if got, err := sealingCodec(t, key).Decode(nil, stored, len(raw)); err != nil || !bytes.Equal(got, raw) {
		t.Error("the same key elsewhere:", err)
	}
}

func TestSealOpen(t *testing.T) {
	plain := []byte("plain")
	open := newCodec(t)
	if got := open.Seal([]byte("x"), plain); string(got) != "xplain" || open.Sealing() || open.For(UseFrame, plain) != open {
		t.Errorf("without a key: %q", got)
	}
	c := sealingCodec(t, NewKey())
	sealed := c.Seal([]byte("x"), plain)[1:]
	if len(sealed) != len(plain)+SealOverhead || !c.Sealing() {
		t.Errorf("%d bytes", len(sealed))
	}
	if got, err := c.Open([]byte("y"), sealed); err != nil || string(got) != "yplain" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := c.For("another use", nil).Open(nil, sealed); !errors.Is(err, ErrSeal) {
		t.Error(err)
	}
}

// TestKeysDiffer: no two uses have one key, and a key is not printed.
func TestKeysDiffer(t *testing.T) {
	k := NewKey()
	seen := map[[32]byte]Use{*k: "itself"}
	for _, use := range []Use{UseChunkID, UseFrame, UsePackIndex, UseManifestInfo, UseManifestTree, UseSegmentedPack} {
		d := k.Derive(use)
		if other, ok := seen[d]; ok {
			t.Errorf("%q has the key of %q", use, other)
		}
		seen[d] = use
	}
	for _, format := range []string{"%v", "%x", "%d", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(format, k) + fmt.Sprintf(format, *k); s != "(secret key)(secret key)" {
			t.Errorf("%s: %s", format, s)
		}
	}
}

func FuzzSealedFrame(f *testing.F) {
	c := sealingCodec(f, &Key{1})
	f.Add(c.Encode(nil, []byte("frame")), 5)
	f.Add([]byte{}, 1)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		raw, err := c.Decode(nil, b, n)
		if err == nil && string(raw) != "frame" {
			t.Errorf("%x opens as %q", b, raw)
		}
	})
}

package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"testing"

	"pgregory.net/rapid"
)

func TestUvarint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.Uint64().Draw(t, "v") >> rapid.IntRange(0, 63).Draw(t, "shift")
		b := binary.AppendUvarint(nil, v)
		r := NewReader(b)
		if got := r.Uvarint("v", v); got != v || r.Close() != nil || r.Offset() != len(b) {
			t.Fatal(got, r.Err())
		}
		if v > 0 {
			r = NewReader(b)
			if got := r.Uvarint("v", v-1); got != 0 || !errors.Is(r.Err(), ErrMalformed) {
				t.Fatalf("%d within %d", v, v-1)
			}
		}
		for i := range b {
			r = NewReader(b[:i])
			if got := r.Uvarint("v", math.MaxUint64); got != 0 || r.Err() == nil {
				t.Fatalf("%d of %d bytes: %d", i, len(b), got)
			}
		}
	})
	for name, b := range map[string][]byte{
		"zero in two bytes":  {0x80, 0},
		"one in two bytes":   {0x81, 0},
		"65 bits":            {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02},
		"eleven bytes":       {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x81, 0x00},
		"eleven bytes, zero": {0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00},
	} {
		r := NewReader(b)
		if got := r.Uvarint("v", math.MaxUint64); got != 0 || !errors.Is(r.Err(), ErrMalformed) {
			t.Errorf("%s: %d", name, got)
		}
	}
}

func TestReader(t *testing.T) {
	b := AppendBytes([]byte{7}, "name")
	b = append(AppendBytes(b, []byte(nil)), "fixed"...)
	r := NewReader(b)
	if v := r.Byte("b"); v != 7 {
		t.Error(v)
	}
	if v := r.Bytes("s", 4); string(v) != "name" || cap(v) != 4 {
		t.Errorf("%q", v)
	}
	if v := r.Bytes("s", 0); len(v) != 0 {
		t.Errorf("%q", v)
	}
	if v := r.Fixed("f", 5); string(v) != "fixed" {
		t.Errorf("%q", v)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}

	for name, read := range map[string]func(r *Reader){
		"too long a string": func(r *Reader) { r.Byte("b"); r.Bytes("s", 3) },
		"too many bytes":    func(r *Reader) { r.Fixed("f", len(b)+1) },
		"bytes left":        func(r *Reader) { r.Fixed("f", len(b)-1) },
		"count":             func(r *Reader) { r.Count("c", 2) },
	} {
		r := NewReader(b)
		read(r)
		if err := r.Close(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
		// The first failure stays, and nothing is read behind it.
		err := r.Err()
		if r.Byte("b") != 0 || r.Fixed("f", 1) != nil || r.Uvarint("u", 9) != 0 || r.Bytes("s", 9) != nil || r.Len() != 0 {
			t.Errorf("%s: something was read after a failure", name)
		}
		if r.Failf("another"); r.Err() != err {
			t.Errorf("%s: %v", name, r.Err())
		}
	}
}

func TestCountBoundsAllocation(t *testing.T) {
	b := append(binary.AppendUvarint(nil, 3), make([]byte, 6)...)
	if n := NewReader(b).Count("n", 2); n != 3 {
		t.Error(n)
	}
	r := NewReader(b[:len(b)-1])
	if n := r.Count("n", 2); n != 0 || r.Err() == nil {
		t.Errorf("%d items of 2 bytes in 5", n)
	}
}

func TestReadingDoesNotAllocate(t *testing.T) {
	b := AppendBytes(binary.AppendUvarint(nil, 1<<40), "name")
	var r Reader
	if n := testing.AllocsPerRun(100, func() {
		r.Reset(b, 0)
		r.Uvarint("number", 1<<41)
		r.Bytes("string", 9)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// Whatever is read can be written again, to the same bytes.
func FuzzReader(f *testing.F) {
	f.Add([]byte{1, 2, 3})
	f.Add(AppendBytes([]byte{0x80, 1}, "abc"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(b)
		n, s, c := r.Uvarint("n", math.MaxUint64), r.Bytes("s", 100), r.Byte("c")
		if r.Err() != nil {
			return
		}
		out := append(AppendBytes(binary.AppendUvarint(nil, n), s), c)
		if !bytes.Equal(out, b[:r.Offset()]) {
			t.Fatalf("%x is written as %x", b[:r.Offset()], out)
		}
	})
}

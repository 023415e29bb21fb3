package chunk

import (
	"bytes"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/snapctl/snapctl/chunk/wire/wiretest"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"
)

func newCodec(t testing.TB) *Codec {
	t.Helper()
	c, err := NewCodec(3)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCodecRoundTrip(t *testing.T) {
	for _, level := range []int{1, 3, 9, 22} {
		c, err := NewCodec(level)
		if err != nil {
			t.Fatal(err)
		}
		var buf []byte
		for _, raw := range [][]byte{
			{0}, []byte("a"), []byte(strings.Repeat("ab", 1000)), randomBytes(1, 100), randomBytes(1, 1<<20), make([]byte, MaxFrame), randomBytes(2, MaxFrame),
		} {
			stored := c.Encode([]byte("before"), raw)
			if string(stored[:6]) != "before" {
				t.Fatal("what was in dst has changed")
			}
			stored = stored[6:]
			if len(stored) > len(raw) || len(raw) > 1000 && raw[0] == raw[2] && len(stored) == len(raw) {
				t.Fatalf("%d bytes are stored as %d", len(raw), len(stored))
			}
			got, err := c.Decode(buf, stored, len(raw))
			if err != nil || !bytes.Equal(got, raw) {
				t.Fatal(len(got), err)
			}
			if len(stored) < len(raw) {
				buf = got
			}
			// Any other length is an error, not other bytes.
			for _, n := range []int{-1, 0, 1, len(raw) - 1, len(raw) + 1, 2 * len(raw), MaxFrame + 1} {
				if n == len(raw) || n == len(stored) {
					continue
				}
				if got, err := c.Decode(nil, stored, n); err == nil {
					t.Fatalf("%d bytes are decoded as %d", len(raw), len(got))
				}
			}
		}
	}
	for _, level := range []int{-1, 0, 23} {
		if _, err := NewCodec(level); err == nil {
			t.Errorf("level %d", level)
		}
	}
}

func TestIncompressibleIsStoredRaw(t *testing.T) {
	c := newCodec(t)
	raw := randomBytes(9, 10_000)
	stored := c.Encode(nil, raw)
	if !bytes.Equal(stored, raw) {
		t.Fatalf("%d bytes are stored as %d", len(raw), len(stored))
	}
	got, err := c.Decode(nil, stored, len(raw))
	if err != nil || &got[0] != &stored[0] {
		t.Fatal("raw bytes are copied", err)
	}
}

func TestBombStops(t *testing.T) {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	bomb := enc.EncodeAll(make([]byte, 256<<20), nil)
	unknown := new(bytes.Buffer) // without its length in the header
	enc.Reset(unknown)
	for range 64 {
		enc.Write(make([]byte, 1<<20))
	}
	enc.Close()
	c := newCodec(t)
	for _, stored := range [][]byte{bomb, unknown.Bytes()} {
		for _, n := range []int{len(stored) + 1, 1 << 20, MaxFrame} {
			if n <= len(stored) || n > MaxFrame {
				continue
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := c.Decode(nil, stored, n)
			runtime.ReadMemStats(&after)
			if err == nil {
				t.Errorf("a bomb decoded as %d bytes", n)
			}
			// The decoder's own window comes on top, once.
			if got := after.TotalAlloc - before.TotalAlloc; got > uint64(2*n+MaxFrame) {
				t.Errorf("%d bytes allocated for at most %d", got, n)
			}
		}
	}
}

func TestDamagedFrames(t *testing.T) {
	c := newCodec(t)
	raw := []byte(strings.Repeat("some text that shrinks, ", 50) + "and an end")
	stored := c.Encode(nil, raw)
	for i := range stored {
		if got, err := c.Decode(nil, stored[:i], len(raw)); err == nil {
			t.Errorf("%d of %d bytes decode to %d", i, len(stored), len(got))
		}
		// Without a checksum a flipped bit may decode; chunk ids tell then.
		bad := bytes.Clone(stored)
		bad[i] ^= 1 << (i % 8)
		if got, err := c.Decode(nil, bad, len(raw)); err == nil && len(got) != len(raw) {
			t.Errorf("byte %d flipped: %d bytes", i, len(got))
		}
	}
}

func TestCodecInParallel(t *testing.T) {
	c := newCodec(t)
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() {
			raw := bytes.Repeat(randomBytes(uint64(g), 500), 200)
			var buf, stored []byte
			for range 20 {
				stored = c.Encode(stored[:0], raw)
				got, err := c.Decode(buf, stored, len(raw))
				if err != nil || !bytes.Equal(got, raw) {
					t.Error(err)
					return
				}
				buf = got
			}
		})
	}
	wg.Wait()
}

func TestDecodeReusesMemory(t *testing.T) {
	c := newCodec(t)
	raw := []byte(strings.Repeat("text", 50_000))
	stored := c.Encode(nil, raw)
	buf := make([]byte, len(raw))
	if n := testing.AllocsPerRun(20, func() {
		if got, err := c.Decode(buf, stored, len(raw)); err != nil || &got[0] != &buf[0] {
			t.Error("another buffer", err)
		}
	}); n > 4 {
		t.Errorf("%v allocations", n)
	}
}

func TestCodecProperty(t *testing.T) {
	c := newCodec(t)
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.SliceOfN(rapid.ByteRange(0, 3), 1, 5000).Draw(t, "raw")
		stored := c.Encode(nil, raw)
		f := Frame{PackHeaderSize, uint32(len(stored)), uint32(len(raw))}
		got, err := c.Decode(nil, stored, len(raw))
		if err != nil || !bytes.Equal(got, raw) || f.Check() != nil {
			t.Fatal(err, f.Check())
		}
	})
}

func FuzzDecodeFrame(f *testing.F) {
	c, err := NewCodec(3)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(c.Encode(nil, []byte(strings.Repeat("abc", 100))), 300)
	f.Add([]byte("raw"), 3)
	f.Fuzz(func(t *testing.T, stored []byte, n int) {
		// What a frame says of itself does not count, but what the index does.
		wiretest.Bounded(t, 2*min(max(n, 0), MaxFrame), func() {
			if raw, err := c.Decode(nil, stored, n); err == nil && (len(raw) != n || n > MaxFrame) {
				t.Fatalf("%d bytes, %d expected", len(raw), n)
			}
		})
	})
}

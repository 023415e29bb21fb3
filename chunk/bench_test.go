package chunk

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

func BenchmarkSplit(b *testing.B) {
	s := newSplitter(b, DefaultCDCParams)
	data := randomBytes(1, 16<<20)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		for rest := data; len(rest) > 0; {
			rest = rest[s.Next(rest):]
		}
	}
}

func BenchmarkHash(b *testing.B) {
	for _, n := range []int{1 << 10, 8 << 10, 256 << 10} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var h Hasher
			data := randomBytes(1, n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				h.Sum(data)
			}
		})
	}
}

// benchFrame is 1 MiB that shrinks to about a third, as source code does.
func benchFrame() []byte {
	var raw []byte
	words := bytes.Split(randomBytes(1, 256<<10), []byte{7, 9})
	for r := rand.New(rand.NewPCG(1, 2)); len(raw) < 1<<20; {
		w := words[r.IntN(len(words))]
		raw = append(raw, w[:min(len(w), 4+r.IntN(30))]...)
		raw = append(raw, byte('a'+r.IntN(26)), '\n')
	}
	return raw[:1<<20]
}

func BenchmarkEncodeFrame(b *testing.B) {
	c, raw := newCodec(b), benchFrame()
	var dst []byte
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		dst = c.Encode(dst[:0], raw)
	}
	b.ReportMetric(float64(len(dst))/float64(len(raw)), "ratio")
}

func BenchmarkDecodeFrame(b *testing.B) {
	c, raw := newCodec(b), benchFrame()
	stored := c.Encode(nil, raw)
	dst := make([]byte, len(raw))
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Decode(dst, stored, len(raw)); err != nil {
			b.Fatal(err)
		}
	}
}

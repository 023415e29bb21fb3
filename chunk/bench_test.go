package chunk

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/restic/chunker"
	"github.com/snapctl/snapctl/bench/micro"
	"github.com/snapctl/snapctl/chunk/wire"
	"github.com/zeebo/blake3"
)

// benchInputs are n bytes that compress like source code, and n that do not.
func benchInputs(n int) []benchInput {
	return []benchInput{{"text", sourceText(n)}, {"random", randomBytes(1, n)}}
}

type benchInput struct {
	name string
	data []byte
}

// sourceText is n bytes that look like programs: lines of words, the common ones much
// more often than the rare ones, and a third of the lines as they were before. As the
// sources of a node_modules tree do, they shrink to about a quarter.
func sourceText(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	words := make([]string, 4000)
	for i := range words {
		word := make([]byte, 2+r.IntN(12))
		for j := range word {
			word[j] = byte('a' + r.IntN(26))
		}
		words[i] = string(word)
	}
	common := rand.NewZipf(r, 1.3, 3, uint64(len(words)-1))
	marks := []string{" ", ".", "(", ") ", ", ", " = "}
	var lines []string
	var text []byte
	for len(text) < n {
		if i := len(lines); i > 0 && r.IntN(3) == 0 {
			text = append(text, lines[r.IntN(i)]...)
			continue
		}
		line := strings.Repeat("  ", r.IntN(4))
		for range 2 + r.IntN(6) {
			line += words[common.Uint64()] + marks[r.IntN(len(marks))]
		}
		lines = append(lines, line+";\n")
		text = append(text, lines[len(lines)-1]...)
	}
	return text[:n]
}

// The limit is the Rabin fingerprint, one step after the other, of those bytes that must
// be looked at: what lies behind the minimum of each chunk, and a window of 64 before.
func BenchmarkSplit(b *testing.B) {
	const size, window = 16 << 20, 64
	s := newSplitter(b, DefaultCDCParams)
	roll := chunker.NewBase(chunker.Pol(DefaultCDCParams.Polynomial),
		chunker.WithBaseBoundaries(window, MaxFrame), chunker.WithBaseAverageBits(24))
	for _, in := range benchInputs(size) {
		var seen [][]byte
		for _, piece := range split(s, in.data) {
			seen = append(seen, piece[min(len(piece), s.MinChunk()-window):])
		}
		micro.Run(b, "input="+in.name, micro.Work{Bytes: size}, func() error {
			for rest := in.data; len(rest) > 0; {
				rest = rest[s.Next(rest):]
			}
			return nil
		}, func() error {
			for _, rest := range seen {
				for len(rest) > 0 {
					c := *roll
					n := c.NextSplitPoint(rest)
					if n <= 0 { // which at 24 bits it hardly ever is
						break
					}
					rest = rest[n:]
				}
			}
			return nil
		})
	}
}

// The limit is the library alone on a megabyte: BLAKE3 at the rate of AVX2, eight KiB
// side by side, on one core. Of less than that there is less to be done side by side.
func BenchmarkHash(b *testing.B) {
	data := randomBytes(1, 1<<20)
	one := blake3.New()
	limit := func() error {
		one.Reset()
		one.Write(data)
		return nil
	}
	for _, n := range []int{1 << 10, 8 << 10, 256 << 10} {
		for _, ids := range []struct {
			name string
			h    *Hasher
		}{{"plain", &Hasher{}}, {"keyed", NewKeyedHasher([32]byte{1})}} {
			micro.Run(b, fmt.Sprintf("ids=%s/size=%dK", ids.name, n>>10), micro.Work{Bytes: n}, func() error {
				ids.h.Sum(data[:n])
				return nil
			}, nil)
		}
	}
	micro.Run(b, "ids=pack/size=1024K", micro.Work{Bytes: len(data)}, func() error {
		SumPack(data)
		return nil
	}, limit)
}

// The limit is the encoder alone.
func BenchmarkFrameEncode(b *testing.B) {
	const size = 1 << 20
	var dst []byte
	for _, in := range benchInputs(size) {
		for _, c := range benchCodecs(b) {
			for range runtime.GOMAXPROCS(0) { // each processor's encoder is made when it is first used
				dst = c.Encode(dst[:0], in.data)
			}
			micro.Run(b, fmt.Sprintf("input=%s/sealed=%t", in.name, c.Sealing()), micro.Work{Bytes: size}, func() error {
				dst = c.Encode(dst[:0], in.data)
				return nil
			}, func() error {
				dst = c.enc.EncodeAll(in.data, dst[:0])
				return nil
			})
		}
	}
}

// benchCodecs are those of a repository that is not encrypted, and of one that is, at the
// level of new repositories.
func benchCodecs(b *testing.B) []*Codec {
	const level = 1
	plain, err := NewCodec(level)
	if err != nil {
		b.Fatal(err)
	}
	sealing, err := NewSealingCodec(level, NewKey())
	if err != nil {
		b.Fatal(err)
	}
	return []*Codec{plain, sealing}
}

// The limit is the decoder alone. What does not compress is not decoded.
func BenchmarkFrameDecode(b *testing.B) {
	const size = 1 << 20
	raw, dst := sourceText(size), make([]byte, size)
	for _, c := range benchCodecs(b) {
		stored, packed := c.Encode(nil, raw), c.enc.EncodeAll(raw, nil)
		for range runtime.GOMAXPROCS(0) {
			if _, err := c.Decode(dst, stored, size); err != nil {
				b.Fatal(err)
			}
		}
		micro.Run(b, fmt.Sprintf("input=text/sealed=%t", c.Sealing()), micro.Work{Bytes: size}, func() error {
			_, err := c.Decode(dst, stored, size)
			return err
		}, func() error {
			_, err := c.dec.DecodeAll(packed, dst[:0])
			return err
		})
	}
}

// aesGCM is the limit of sealing and opening: the cipher alone, its key schedule made, at
// the rate of AES-NI and CLMUL. A schedule for each message are our three allocations.
func aesGCM(b *testing.B) cipher.AEAD {
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		b.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		b.Fatal(err)
	}
	return aead
}

func BenchmarkSeal(b *testing.B) {
	c, aead := sealingCodec(b, NewKey()), aesGCM(b)
	nonce := make([]byte, 12)
	var out []byte
	for _, size := range []int{4 << 10, 64 << 10, 512 << 10} {
		raw := randomBytes(1, size)
		micro.Run(b, fmt.Sprintf("size=%dK", size>>10), micro.Work{Bytes: size}, func() error {
			out = c.Seal(out[:0], raw)
			return nil
		}, func() error {
			out = aead.Seal(out[:0], nonce, raw, nil)
			return nil
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	c, aead := sealingCodec(b, NewKey()), aesGCM(b)
	nonce := make([]byte, 12)
	var out []byte
	for _, size := range []int{4 << 10, 64 << 10, 512 << 10} {
		raw := randomBytes(1, size)
		sealed, bare := c.Seal(nil, raw), aead.Seal(nil, nonce, raw, nil)
		micro.Run(b, fmt.Sprintf("size=%dK", size>>10), micro.Work{Bytes: size}, func() (err error) {
			out, err = c.Open(out[:0], sealed)
			return err
		}, func() (err error) {
			out, err = aead.Open(out[:0], nonce, bare, nil)
			return err
		})
	}
}

// benchIndex is the index of a pack of small files: 4,000 chunks in 16 frames.
func benchIndex() *PackIndex {
	x := &PackIndex{Kind: DataPack}
	r := rand.New(rand.NewPCG(1, 2))
	for range 16 {
		f := FrameIndex{Frame: Frame{Stored: 256 << 10}}
		for range 250 {
			c := SizedID{Length: 1 + uint32(r.IntN(8<<10))}
			copy(c.ID[:], randomBytes(r.Uint64(), IDSize))
			f.Chunks = append(f.Chunks, c)
			f.Raw += c.Length
		}
		x.Frames = append(x.Frames, f)
	}
	return x
}

// The limit of building a pack is to name it, the hash of all its bytes, behind which
// the copy of them is hardly to be seen.
func BenchmarkPackBuild(b *testing.B) {
	c, x := benchCodecs(b)[0], benchIndex()
	stored := randomBytes(1, 256<<10)
	var buf, all []byte
	for range x.Frames {
		all = append(all, stored...)
	}
	micro.Run(b, "frames=16", micro.Work{Bytes: len(all)}, func() error {
		p := NewPackBuilder(DataPack, buf)
		for i := range x.Frames {
			p.Add(stored, x.Frames[i].Chunks)
		}
		_, buf, _ = p.Finish(c)
		return nil
	}, func() error {
		SumPack(all)
		return nil
	})
}

// Index segments hold such indexes: a machine that does not know the repository decodes
// all of them. The limit is a copy.
func BenchmarkPackIndexDecode(b *testing.B) {
	raw := benchIndex().AppendTo(nil)
	micro.Run(b, "chunks=4000", micro.Work{Bytes: len(raw), Entries: 4000}, func() error {
		r := wire.NewReader(raw)
		ReadPackIndex(r)
		return r.Close()
	}, micro.Copy(raw))
}

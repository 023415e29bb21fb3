package chunk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"runtime"
	"slices"
	"testing"

	"github.com/snapctl/snapctl/chunk/wire/wiretest"

	"github.com/snapctl/snapctl/chunk/wire"
	"github.com/zeebo/blake3"
	"pgregory.net/rapid"
)

// place is a chunk and where it was put.
type place struct {
	id   ID
	data []byte
}

// buildPack makes a pack of so many frames, and lists its chunks.
func buildPack(t testing.TB, c *Codec, kind PackKind, frames int) (PackID, []byte, *PackIndex, []place) {
	t.Helper()
	var h Hasher
	var all []place
	b := NewPackBuilder(kind, []byte("memory that is reused"))
	if !b.Empty() || b.Size() != PackHeaderSize {
		t.Fatal("a new pack is not empty")
	}
	for i := range frames {
		var raw []byte
		var chunks []SizedID
		for j := range 1 + i%5 {
			data := bytes.Repeat(randomBytes(uint64(i*7+j), 50), 1+(i+j)%4)
			chunks = append(chunks, SizedID{h.Sum(data), uint32(len(data))})
			all = append(all, place{h.Sum(data), data})
			raw = append(raw, data...)
		}
		size := b.Size()
		f := b.Add(c.Encode(nil, raw), chunks)
		if f.Check() != nil || int(f.Offset) != size || int(f.End()) != b.Size() || int(f.Raw) != len(raw) || b.Empty() {
			t.Fatalf("frame %+v", f)
		}
	}
	id, data, index := b.Finish(c)
	return id, data, index, all
}

func tailOf(t testing.TB, pack []byte) []byte {
	t.Helper()
	n, err := PackIndexSize(pack[len(pack)-PackFooterSize:])
	if err != nil {
		t.Fatal(err)
	}
	return pack[len(pack)-n:]
}

func TestPackRoundTrip(t *testing.T) {
	c := newCodec(t)
	for _, kind := range []PackKind{DataPack, TreePack} {
		for _, frames := range []int{0, 1, 3, 200} {
			id, pack, index, all := buildPack(t, c, kind, frames)
			if id != SumPack(pack) || string(pack[:8]) != packMagic || pack[9] != byte(kind) {
				t.Fatal("name or header of the pack")
			}
			got, err := DecodePackTail(c, tailOf(t, pack), int64(len(pack)))
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Frames) != frames || frames > 0 && !reflect.DeepEqual(got, index) || got.Kind != kind {
				t.Fatalf("%+v, expected %+v", got, index)
			}
			i := 0
			for chunkID, at := range got.All(id) {
				raw, err := c.Decode(nil, pack[at.Frame.Offset:at.Frame.End()], int(at.Frame.Raw))
				if err != nil || at.Pack != id {
					t.Fatal(err)
				}
				if chunkID != all[i].id || !bytes.Equal(raw[at.Offset:at.Offset+at.Length], all[i].data) {
					t.Fatalf("chunk %d is not where the index says", i)
				}
				i++
			}
			if i != len(all) {
				t.Fatalf("%d chunks, expected %d", i, len(all))
			}
			for range got.All(id) {
				break // must not panic
			}
		}
	}
}

func TestDamagedTails(t *testing.T) {
	c := newCodec(t)
	_, pack, _, _ := buildPack(t, c, DataPack, 9)
	tail, size := tailOf(t, pack), int64(len(pack))
	for i := range tail {
		bad := slices.Clone(tail)
		bad[i] ^= 1 << (i % 8)
		for name, b := range map[string][]byte{"flipped": bad, "cut from the front": tail[i+1:], "cut from the end": tail[:i]} {
			if _, err := DecodePackTail(c, b, size); !errors.Is(err, ErrNotPack) {
				t.Fatalf("%s at %d of %d: %v", name, i, len(tail), err)
			}
		}
	}
	for _, n := range []int64{0, -1, size - 1, size + 1, int64(len(tail))} {
		if _, err := DecodePackTail(c, tail, n); !errors.Is(err, ErrNotPack) {
			t.Errorf("a pack of %d bytes said to have %d: %v", size, n, err)
		}
	}
	if _, err := PackIndexSize(nil); !errors.Is(err, ErrNotPack) {
		t.Error(err)
	}
}

// forge makes a tail with right checksums of an index with any bytes.
func forge(c *Codec, raw []byte, rawLen int) []byte {
	tail := c.Encode(nil, raw)
	stored := len(tail)
	tail = binary.LittleEndian.AppendUint32(tail, uint32(stored))
	tail = binary.LittleEndian.AppendUint32(tail, uint32(rawLen))
	sum := blake3.Sum256(tail)
	return append(append(tail, sum[:footSumSize]...), footMagic...)
}

func TestHostileIndexes(t *testing.T) {
	c := newCodec(t)
	id := make([]byte, IDSize)
	uv := func(n ...uint64) (b []byte) {
		for _, v := range n {
			b = binary.AppendUvarint(b, v)
		}
		return b
	}
	one := append(uv(1, 1, 5, 1, 5), id...) // data pack of a frame of 5 bytes with a chunk of 5
	const end = PackHeaderSize + 5
	if _, err := DecodePackTail(c, forge(c, one, len(one)), int64(end+len(forge(c, one, len(one))))); err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{
		"no kind":               append(uv(0, 1, 5, 1, 5), id...),
		"unknown kind":          append(uv(3, 1, 5, 1, 5), id...),
		"frames that are not":   uv(1, 1<<40),
		"chunks that are not":   append(uv(1, 1, 5, 1<<40), make([]byte, 99)...),
		"frame without chunks":  append(uv(1, 1, 5, 0), make([]byte, 99)...),
		"empty chunk":           append(append(uv(1, 1, 5, 2, 5), id...), append(uv(0), id...)...),
		"stored over raw":       append(uv(1, 1, 6+MaxOverhead, 1, 5), id...),
		"nothing stored":        append(uv(1, 1, 0, 1, 5), id...),
		"chunk over a frame":    append(uv(1, 1, 5, 1, MaxFrame+1), id...),
		"frame over a frame":    append(append(uv(1, 1, 5, 2, MaxFrame), id...), append(uv(MaxFrame), id...)...),
		"bytes too many":        append(slices.Clone(one), 0),
		"number is not minimal": append([]byte{1, 0x81, 0, 5, 1, 5}, id...),
		"frames end elsewhere":  append(uv(1, 1, 4, 1, 5), id...),
		"nothing":               {},
	} {
		tail := forge(c, raw, len(raw))
		if _, err := DecodePackTail(c, tail, int64(end+len(tail))); !errors.Is(err, ErrNotPack) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, n := range []int{0, len(one) - 1, len(one) + 1, MaxPackIndex, MaxPackIndex + 1, 1<<32 - 1} {
		tail := forge(c, one, n)
		if _, err := DecodePackTail(c, tail, int64(end+len(tail))); !errors.Is(err, ErrNotPack) {
			t.Errorf("length %d: %v", n, err)
		}
	}
	// Frames beyond any pack.
	far := uv(1, 70)
	for range 70 {
		far = append(append(far, uv(MaxFrame, 1, MaxFrame)...), id...)
	}
	tail := forge(c, far, len(far))
	if _, err := DecodePackTail(c, tail, 70*MaxFrame+PackHeaderSize+int64(len(tail))); !errors.Is(err, ErrNotPack) {
		t.Errorf("pack of 280 MiB: %v", err)
	}
	// Memory is bounded by what is given.
	for name, raw := range map[string][]byte{
		"frames": append(uv(1, 1<<20/35), make([]byte, 1<<20)...),
		"chunks": append(uv(1, 1, 5, 1<<20/33), make([]byte, 1<<20)...),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		ReadPackIndex(wire.NewReader(raw))
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 2*uint64(len(raw)) {
			t.Errorf("%s: %d bytes allocated for %d", name, got, len(raw))
		}
	}
}

func TestFrameCheck(t *testing.T) {
	for f, ok := range map[Frame]bool{
		{16, 1, 1}: true, {16, MaxFrame, MaxFrame}: true, {MaxPack - 9, 9, 9}: true,
		{16, 10 + MaxOverhead, 10}: true, // encrypted, and did not shrink
		{16, 11 + MaxOverhead, 10}: false, {15, 1, 1}: false, {16, 0, 1}: false, {16, 1, 0}: false,
		{16, 1, MaxFrame + 1}: false, {MaxPack - 9, 10, 10}: false, {1<<32 - 1, 1, 1}: false, {0, 1, 1}: false,
	} {
		if err := f.Check(); (err == nil) != ok {
			t.Errorf("%+v: %v", f, err)
		}
	}
}

// A pack that nobody could read is not made.
func TestPackWithTooManyChunks(t *testing.T) {
	c := newCodec(t)
	b := NewPackBuilder(DataPack, nil)
	b.Add([]byte("raw"), make([]SizedID, MaxPackIndex/IDSize))
	defer func() {
		if recover() == nil {
			t.Error("finished")
		}
	}()
	b.Finish(c)
}

func FuzzPackIndex(f *testing.F) {
	c, err := NewCodec(1)
	if err != nil {
		f.Fatal(err)
	}
	for _, n := range []int{0, 1, 7} {
		_, _, x, _ := buildPack(f, c, TreePack, n)
		f.Add(x.AppendTo(nil))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := wire.NewReader(raw)
		var x *PackIndex
		wiretest.Bounded(t, 16*len(raw), func() { x = ReadPackIndex(r) })
		if r.Close() != nil {
			return
		}
		if got := x.AppendTo(nil); !bytes.Equal(got, raw) {
			t.Fatalf("%x is re-encoded to %x", raw, got)
		}
		for _, f := range x.Frames {
			if err := f.Check(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzPackTail(f *testing.F) {
	c, err := NewCodec(1)
	if err != nil {
		f.Fatal(err)
	}
	_, pack, _, _ := buildPack(f, c, DataPack, 3)
	f.Add(tailOf(f, pack), int64(len(pack)))
	f.Fuzz(func(t *testing.T, tail []byte, size int64) {
		var x *PackIndex
		var err error
		wiretest.Bounded(t, 2*MaxPackIndex, func() { x, err = DecodePackTail(c, tail, size) })
		if (x == nil) == (err == nil) {
			t.Fatal(x, err)
		}
	})
}

func TestPackIndexProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := &PackIndex{Kind: PackKind(rapid.IntRange(1, 2).Draw(t, "kind")), Frames: []FrameIndex{}}
		off := uint32(PackHeaderSize)
		for range rapid.IntRange(0, 9).Draw(t, "frames") {
			f := FrameIndex{Frame: Frame{Offset: off}}
			for range rapid.IntRange(1, 9).Draw(t, "chunks") {
				s := SizedID{Length: rapid.Uint32Range(1, 300_000).Draw(t, "length")}
				s.ID[0] = rapid.Byte().Draw(t, "id")
				f.Raw += s.Length
				f.Chunks = append(f.Chunks, s)
			}
			f.Stored = rapid.Uint32Range(1, f.Raw+MaxOverhead).Draw(t, "stored")
			off += f.Stored
			x.Frames = append(x.Frames, f)
		}
		r := wire.NewReader(x.AppendTo(nil))
		if got := ReadPackIndex(r); r.Close() != nil || !reflect.DeepEqual(got, x) {
			t.Fatalf("%+v, expected %+v, %v", got, x, r.Err())
		}
	})
}

// TestPackSalt: the same frames twice are two packs, so that a delete that comes late
// never hits a pack that was made anew.
func TestPackSalt(t *testing.T) {
	c := newCodec(t)
	a, _, ax, _ := buildPack(t, c, DataPack, 3)
	b, _, bx, _ := buildPack(t, c, DataPack, 3)
	if a == b {
		t.Error("a pack was made twice under one name")
	}
	if !reflect.DeepEqual(ax, bx) {
		t.Error("the salt shows in the index")
	}
}

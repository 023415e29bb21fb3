package chunk

import (
	"errors"
	"testing"
)

// wholePack is a pack of one frame.
func wholePack(t testing.TB, c *Codec) []byte {
	t.Helper()
	b := NewPackBuilder(TreePack, nil)
	data := []byte("the plaintext of a chunk")
	b.Add(c.Encode(nil, data), []SizedID{{ID: (&Hasher{}).Sum(data), Length: uint32(len(data))}})
	_, pack, _ := b.Finish(c)
	return pack
}

func TestDecodePack(t *testing.T) {
	c, err := NewCodec(1)
	if err != nil {
		t.Fatal(err)
	}
	pack := wholePack(t, c)
	x, err := DecodePack(c, pack)
	if err != nil || x.Kind != TreePack || len(x.Frames) != 1 {
		t.Fatalf("%+v, %v", x, err)
	}
	for name, f := range map[string]func([]byte) []byte{
		"empty":            func([]byte) []byte { return nil },
		"footer alone":     func(b []byte) []byte { return b[len(b)-PackFooterSize:] },
		"magic":            func(b []byte) []byte { b[0]++; return b },
		"version":          func(b []byte) []byte { b[8]++; return b },
		"another kind":     func(b []byte) []byte { b[9] = byte(DataPack); return b },
		"cut":              func(b []byte) []byte { return b[:len(b)-1] },
		"longer":           func(b []byte) []byte { return append(b, 0) },
		"bytes in between": func(b []byte) []byte { return append(append(append([]byte(nil), b[:20]...), 0), b[20:]...) },
		"index too long":   func(b []byte) []byte { b[len(b)-PackFooterSize+2]++; return b },
	} {
		if _, err := DecodePack(c, f(append([]byte(nil), pack...))); !errors.Is(err, ErrNotPack) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecodePack(f *testing.F) {
	c, err := NewCodec(1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wholePack(f, c))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := DecodePack(c, b)
		if err != nil {
			return
		}
		for id, loc := range x.All(PackID{}) {
			if err := loc.Frame.Check(); err != nil || uint64(loc.Frame.End()) > uint64(len(b)) || loc.Offset+loc.Length > loc.Frame.Raw {
				t.Errorf("chunk %v at %+v of %d bytes: %v", id, loc, len(b), err)
			}
		}
	})
}

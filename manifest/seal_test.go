package manifest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/snapctl/snapctl/chunk"
)

func sealingCodec(t testing.TB) *chunk.Codec {
	t.Helper()
	c, err := chunk.NewSealingCodec(1, chunk.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// splice puts the tree of another manifest behind the info of one, as somebody can
// who has no key.
func splice(t *testing.T, info, tree []byte) []byte {
	t.Helper()
	hi, err := decodeHeader(info)
	if err != nil {
		t.Fatal(err)
	}
	ht, err := decodeHeader(tree)
	if err != nil {
		t.Fatal(err)
	}
	b := slices.Clone(info[:headerSize+hi.storedInfo])
	binary.LittleEndian.PutUint32(b[24:], uint32(ht.storedTree))
	binary.LittleEndian.PutUint32(b[28:], uint32(ht.tree))
	b = appendSum(b)
	return appendSum(append(b, tree[ht.headLen():ht.headLen()+ht.storedTree]...))
}

func TestSealedManifest(t *testing.T) {
	c := sealingCodec(t)
	one, two := someManifest(t, newPageStore()), someManifest(t, newPageStore())
	two.ID = NewID(0)
	later := *one // the same snapshot, written twice
	later.Name = "later"
	encode := func(m *Manifest, c *chunk.Codec) []byte {
		b, err := m.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	a := encode(one, c)
	back, err := Decode(c, a)
	if err != nil || !reflect.DeepEqual(back.Root, one.Root) || back.ID != one.ID {
		t.Fatal(err)
	}
	if b := encode(one, c); bytes.Equal(a, b) || len(a) != len(b) {
		t.Error("sealed as the same again")
	}
	for what, b := range map[string][]byte{
		"the tree of another":                  splice(t, a, encode(two, c)),
		"the tree of another of the same id":   splice(t, a, encode(&later, c)),
		"of somebody without the key":          encode(one, newCodec(t)),
		"with the tree of somebody without it": splice(t, a, encode(one, newCodec(t))),
		"of somebody with another key":         encode(one, sealingCodec(t)),
	} {
		if m, err := Decode(c, b); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v, %v", what, m, err)
		}
	}
	if b := splice(t, a, a); !bytes.Equal(a, b) {
		t.Error("the splice is wrong")
	}
	if _, err := Decode(newCodec(t), a); !errors.Is(err, ErrDamaged) {
		t.Error("without the key:", err)
	}
}

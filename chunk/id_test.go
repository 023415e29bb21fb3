package chunk

import (
	"encoding/hex"
	"strings"
	"sync"
	"testing"

	"github.com/zeebo/blake3"
	"pgregory.net/rapid"
)

func TestIDs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := [IDSize]byte(rapid.SliceOfN(rapid.Byte(), IDSize, IDSize).Draw(t, "raw"))
		s := ID(raw).String()
		if s != PackID(raw).String() || s != hex.EncodeToString(raw[:]) {
			t.Fatal(s)
		}
		if id, err := ParseID(s); err != nil || id != ID(raw) {
			t.Fatal(id, err)
		}
		if id, err := ParsePackID(s); err != nil || id != PackID(raw) {
			t.Fatal(id, err)
		}
	})
	good := strings.Repeat("ab", IDSize)
	for _, bad := range []string{"", good[1:], good + "0", strings.ToUpper(good), good[1:] + "g", good[2:] + "A0", strings.Repeat("é", IDSize)} {
		if id, err := ParseID(bad); err == nil || id != (ID{}) {
			t.Errorf("%q is %v", bad, id)
		}
		if id, err := ParsePackID(bad); err == nil || id != (PackID{}) {
			t.Errorf("%q is %v", bad, id)
		}
	}
}

func TestHasher(t *testing.T) {
	var plain Hasher
	a, b := NewKeyedHasher([32]byte{1}), NewKeyedHasher([32]byte{2})
	if a.Alike(b) || a.Alike(&plain) || plain.Alike(a) || !a.Alike(NewKeyedHasher([32]byte{1})) || !plain.Alike(&Hasher{}) {
		t.Error("hashers are alike that are not, or not that are")
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 300 {
				data := []byte(strings.Repeat("x", g*1000+i))
				if plain.Sum(data) != ID(blake3.Sum256(data)) {
					t.Error("no BLAKE3-256")
					return
				}
				keyed, err := blake3.NewKeyed(append([]byte{1}, make([]byte, 31)...))
				if err != nil {
					t.Error(err)
					return
				}
				keyed.Write(data)
				if got := a.Sum(data); string(got[:]) != string(keyed.Sum(nil)) || got == b.Sum(data) {
					t.Error("no keyed BLAKE3-256")
					return
				}
			}
		})
	}
	wg.Wait()
	if SumPack([]byte("abc")) != PackID(blake3.Sum256([]byte("abc"))) {
		t.Error("name of a pack")
	}
}

// The caller may wipe the key.
func TestHasherKeepsItsKey(t *testing.T) {
	key := [32]byte{1}
	h := NewKeyedHasher(key)
	want := h.Sum([]byte("a"))
	key = [32]byte{}
	if NewKeyedHasher([32]byte{1}).Sum([]byte("a")) != want || NewKeyedHasher(key).Sum([]byte("a")) == want {
		t.Error("the key changed")
	}
}

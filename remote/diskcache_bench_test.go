package remote_test

import (
	"fmt"
	"testing"

	"github.com/snapctl/snapctl/remote"
)

// BenchmarkCachedRead measures reads that the disk has, at offsets that are not
// a block's. What it must not do is allocate.
func BenchmarkCachedRead(b *testing.B) {
	const size, packs = 16 << 20, 8
	m := remote.NewMemory()
	c := openCache(b, b.TempDir(), 1<<30, nil)
	s := c.Wrap(m, "repo")
	var names []string
	for i := range packs {
		name := fmt.Sprintf("packs/%02d", i)
		names = append(names, name)
		if err := m.Put(b.Context(), name, randomBytes(uint64(i), size)); err != nil {
			b.Fatal(err)
		}
		if err := s.Fill(b.Context(), name, 0, -1); err != nil {
			b.Fatal(err)
		}
	}
	requests := c.Stats().Requests
	for _, n := range []int{4 << 10, 64 << 10, 300_000, 1 << 20, 8 << 20} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := make([]byte, n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				off := int64(i) * 1_234_567 % int64(size-n)
				if err := s.ReadAt(b.Context(), names[i%packs], off, p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	if got := c.Stats(); got.Requests != requests || got.Damaged != 0 {
		b.Errorf("%+v", got)
	}
}

// BenchmarkCachedMiss measures what the cache adds to a fetch: the copy to the
// disk and the CRC.
func BenchmarkCachedMiss(b *testing.B) {
	const size = 16 << 20
	m := remote.NewMemory()
	if err := m.Put(b.Context(), "packs/a", randomBytes(1, size)); err != nil {
		b.Fatal(err)
	}
	s := openCache(b, b.TempDir(), 1<<30, nil).Wrap(m, "repo")
	b.Run("read", func(b *testing.B) {
		p := make([]byte, 300_000)
		b.SetBytes(1 << 20) // the window
		for i := 0; b.Loop(); i++ {
			off := int64(i) % 16 << 20
			if err := s.ReadAt(b.Context(), "packs/a", off+100, p); err != nil {
				b.Fatal(err)
			}
			s.Invalidate("packs/a", off, 1<<20)
		}
	})
	b.Run("fill", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			s.Invalidate("packs/a", 0, size)
			if err := s.Fill(b.Context(), "packs/a", 0, -1); err != nil {
				b.Fatal(err)
			}
		}
	})
}

package diskcache_test

import (
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/snapctl/snapctl/bench/micro"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// BenchmarkCachedRead measures reads that the disk has, at offsets that are not
// a block's. What it must not do is allocate. The limit is to read as many bytes of a
// file that is in the page cache, and their CRC, by which a block is believed.
func BenchmarkCachedRead(b *testing.B) {
	const size, packs = 16 << 20, 8
	m := remotetest.NewMemory()
	c := openCache(b, b.TempDir(), 1<<30, nil)
	s := c.Wrap(m, "repo")
	var names []string
	for i := range packs {
		name := fmt.Sprintf("packs/%02d", i)
		names = append(names, name)
		if err := m.Put(b.Context(), name, remotetest.Random(uint64(i), size)); err != nil {
			b.Fatal(err)
		}
		if err := s.Fill(b.Context(), name, 0, -1); err != nil {
			b.Fatal(err)
		}
	}
	requests := c.Stats().Requests
	file := filepath.Join(b.TempDir(), "pack")
	if err := os.WriteFile(file, remotetest.Random(1, size), 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	for _, n := range []int{4 << 10, 64 << 10, 300_000, 1 << 20, 8 << 20} {
		p := make([]byte, n)
		i := 0
		next := func() int64 {
			i++
			return int64(i) * 1_234_567 % int64(size-n)
		}
		micro.Run(b, fmt.Sprintf("size=%dK", n>>10), micro.Work{Bytes: n}, func() error {
			return s.ReadAt(b.Context(), names[i%packs], next(), p)
		}, func() error {
			_, err := f.ReadAt(p, next())
			crc32.Checksum(p, castagnoli)
			return err
		})
	}
	if got := c.Stats(); got.Requests != requests || got.Damaged != 0 {
		b.Errorf("%+v", got)
	}
}

// BenchmarkCachedMiss measures what the cache adds to a fetch: the copy to the
// disk and the CRC. The limit is to write as many bytes to a file.
func BenchmarkCachedMiss(b *testing.B) {
	const size = 16 << 20
	m := remotetest.NewMemory()
	if err := m.Put(b.Context(), "packs/a", remotetest.Random(1, size)); err != nil {
		b.Fatal(err)
	}
	s := openCache(b, b.TempDir(), 1<<30, nil).Wrap(m, "repo")
	pack := remotetest.Random(1, size)
	limit := func(n int64) func() error {
		name := filepath.Join(b.TempDir(), "pack")
		return func() error { return os.WriteFile(name, pack[:n], 0o600) }
	}
	const window = 1 << 20
	p := make([]byte, 300_000)
	i := int64(0)
	micro.Run(b, "of=window", micro.Work{Bytes: window}, func() error {
		off := i % (size / window) * window
		i++
		if err := s.ReadAt(b.Context(), "packs/a", off+100, p); err != nil {
			return err
		}
		s.Invalidate("packs/a", off, window)
		return nil
	}, limit(window))
	micro.Run(b, "of=pack", micro.Work{Bytes: size}, func() error {
		s.Invalidate("packs/a", 0, size)
		return s.Fill(b.Context(), "packs/a", 0, -1)
	}, limit(size))
}

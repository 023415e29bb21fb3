package remote_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// Set TMPDIR to a tmpfs to measure the code rather than the disk.

const packSize = 16 << 20

func BenchmarkFile(b *testing.B) { benchmark(b, remotetest.OpenFile(b, b.TempDir())) }

func BenchmarkS3(b *testing.B) {
	benchmark(b, openS3(b, remotetest.StartVersityGW(b).Config("bench")))
}

func benchmark(b *testing.B, s remote.Store) {
	pack := make([]byte, packSize)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(pack)
	var n counter
	run := func(name string, size int64, f func(pb *testing.PB, i int64) error) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				if err := f(pb, n.next()); err != nil {
					b.Error(err)
				}
			})
		})
	}
	ctx := b.Context()
	if err := s.Put(ctx, "packs/00/pack", pack); err != nil {
		b.Fatal(err)
	}
	run("Put16M", packSize, func(pb *testing.PB, _ int64) error {
		for pb.Next() {
			name := n.name("packs/01/p")
			if err := s.Put(ctx, name, pack); err != nil {
				return err
			}
			if err := s.Delete(ctx, name); err != nil { // or the tmpfs fills up
				return err
			}
		}
		return nil
	})
	run("Put1K", 1<<10, func(pb *testing.PB, _ int64) error {
		for pb.Next() {
			if err := s.Put(ctx, n.name("index/p"), pack[:1<<10]); err != nil {
				return err
			}
		}
		return nil
	})
	run("Get16M", packSize, func(pb *testing.PB, _ int64) error {
		for pb.Next() {
			if _, err := s.Get(ctx, "packs/00/pack"); err != nil {
				return err
			}
		}
		return nil
	})
	for _, size := range []int64{4 << 10, 128 << 10, 1 << 20} {
		run(fmt.Sprintf("ReadAt%dK", size>>10), size, func(pb *testing.PB, i int64) error {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			p := make([]byte, size)
			for pb.Next() {
				if err := s.ReadAt(ctx, "packs/00/pack", r.Int64N(packSize-size), p); err != nil {
					return err
				}
			}
			return nil
		})
	}
	b.Run("StatNone", func(b *testing.B) {
		for b.Loop() {
			_, _ = s.Stat(ctx, "packs/00/none")
		}
	})
}

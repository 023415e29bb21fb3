//go:build linux

package engine

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/snapctl/snapctl/bench/micro"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/access"
	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/engine/internal/read"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/manifest"
)

// What every create does of the part of a tree that did not change. The limit is two
// system calls for a directory and one for each entry: to list and to stat them, in one
// goroutine, as find does.
func BenchmarkCreateUnchanged(b *testing.B) {
	const files = 10_000
	p := newPlace(b)
	r := p.init()
	src := p.path("src")
	for i := range files {
		writeFile(b, fmt.Sprintf("%s/package-%d/module-%d.js", src, i/20, i), fmt.Appendf(nil, "exports.n = %d\n", i))
	}
	id := complete(b, r, src, nil).ID
	// Of a tree that was restored nothing is read again, however new it is.
	src = p.path("again")
	restore(b, r, id.String(), src, nil)
	var again *CreateResult
	micro.Run(b, fmt.Sprintf("files=%d", files), micro.Work{Entries: files}, func() (err error) {
		again, err = r.Create(b.Context(), src, nil)
		return err
	}, func() error {
		return filepath.WalkDir(src, func(_ string, d fs.DirEntry, err error) error {
			if err == nil {
				_, err = d.Info()
			}
			return err
		})
	})
	if again != nil && again.NewBytes != 0 {
		b.Errorf("%d bytes are new in an unchanged tree", again.NewBytes)
	}
}

// The stat cache of such a create. The limit is to read the file and to hash it.
func BenchmarkStatCacheRead(b *testing.B) {
	const entries = 1_000_000
	c := local.Dir{Root: b.TempDir()}
	prints := make([]uint64, entries)
	for i := range prints {
		prints[i] = rand.Uint64()
	}
	must(b, repo.WriteStats(c, "/src", manifest.NewID(0), prints))
	micro.Run(b, fmt.Sprintf("entries=%d", entries), micro.Work{Bytes: 8 * entries, Entries: entries}, func() error {
		if repo.ReadStats(c, "/src") == nil {
			return fs.ErrNotExist
		}
		return nil
	}, func() error {
		data, err := os.ReadFile(c.Path("dirs", repo.DirKey("/src")))
		chunk.SumPack(data)
		return err
	})
}

// What a restore does before it fetches: which chunk of which frame goes where, and
// which frames are fetched together. The limit is to sort as many numbers, which come,
// as chunks mostly do, nearly in order.
func BenchmarkRestorePlan(b *testing.B) {
	const chunks, perFrame, perPack = 100_000, 250, 4000
	p := newPlace(b)
	x := &restorer{repo: p.init()}
	extents := make([]manifest.Extent, chunks)
	places := make([]uint64, chunks)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range extents {
		at := i
		if r.IntN(20) == 0 { // an older chunk
			at = r.IntN(chunks)
		}
		e := &extents[i]
		e.Pack = chunk.PackID{byte(at / perPack)}
		e.Frame = chunk.Frame{Offset: chunk.PackHeaderSize + uint32(at%perPack/perFrame)<<18, Stored: 1 << 18, Raw: 1 << 20}
		e.Offset, e.Length = uint32(at%perFrame)<<12, 1<<12
		places[i] = uint64(at)
	}
	sorted := make([]uint64, chunks)
	micro.Run(b, fmt.Sprintf("chunks=%d", chunks), micro.Work{Entries: chunks}, func() error {
		x.plan = newPlan(chunks)
		for i := range extents {
			x.plan.want(uint64(i), 0, &extents[i])
		}
		if n := len(x.planFetches()); n > chunks/perFrame {
			return fmt.Errorf("%d fetches", n)
		}
		return nil
	}, func() error {
		copy(sorted, places)
		slices.Sort(sorted)
		return nil
	})
}

// Chunks of a frame that is decoded, as a read of a mounted file finds them. The limit is
// a look into a map, once for the frame and once for the chunk.
func BenchmarkChunkAtHand(b *testing.B) {
	const files = 64
	p := newPlace(b)
	r := p.init()
	src := p.path("src")
	for i := range files {
		writeFile(b, fmt.Sprintf("%s/%02d", src, i), random(uint64(i), 8<<10))
	}
	id := complete(b, r, src, nil).ID
	m, err := r.repo.Manifest(b.Context(), id)
	must(b, err)
	tree, err := manifest.NewTree(m.Root, r.repo)
	must(b, err)
	c := read.New(b.Context(), r.repo, r.repo.PackStore(), 64<<20)
	frames := map[access.FrameKey]*read.PlainFrame{}
	chunks := map[chunk.ID]uint32{}
	var extents []manifest.Extent
	var e manifest.Entry
	for rank := range m.Entries {
		must(b, tree.At(b.Context(), rank, &e))
		for _, x := range e.Extents {
			extents = append(extents, x)
			frames[access.FrameKey{Pack: x.Pack, Offset: x.Frame.Offset}], chunks[x.ID] = nil, x.Offset
		}
	}
	micro.Run(b, fmt.Sprintf("chunks=%d", len(extents)), micro.Work{Entries: len(extents)}, func() error {
		for i := range extents {
			if _, err := c.Chunk(b.Context(), &extents[i]); err != nil {
				return err
			}
		}
		return nil
	}, func() error {
		for i := range extents {
			x := &extents[i]
			_, framed := frames[access.FrameKey{Pack: x.Pack, Offset: x.Frame.Offset}]
			if _, ok := chunks[x.ID]; !ok || !framed {
				return fs.ErrNotExist
			}
		}
		return nil
	})
}

package index

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/snapctl/snapctl/bench/micro"
	"github.com/snapctl/snapctl/chunk"
)

var long = flag.Bool("long", false, "measure with a million chunks too")

// sizes are numbers of chunks: of an index of one large tree, and of many.
func sizes() []int {
	if *long {
		return []int{100_000, 1_000_000}
	}
	return []int{100_000}
}

func filled(b *testing.B, n int) (*bucket, string) {
	dir := b.TempDir()
	bk := newBucket()
	bk.fill(b, 0, n)
	ix := open(b, dir)
	bk.sync(b, ix)
	mustClose(b, ix)
	return bk, dir
}

// The limit is a map of all chunks in memory, at 80 bytes each. Of a chunk that is
// there, badger allocates the transaction and what it iterates with.
func BenchmarkIndexLookup(b *testing.B) {
	for _, n := range sizes() {
		_, dir := filled(b, n)
		ids := make([]chunk.ID, 2*n)
		all := make(map[chunk.ID]entry, n)
		for i := range ids {
			ids[i] = chunkID(i)
			if i < n {
				all[ids[i]] = entry{pack: uint32(i / 250)}
			}
		}
		ix := open(b, dir)
		for _, of := range []struct {
			name string
			ids  []chunk.ID
			want bool
		}{{"hit", ids[:n], true}, {"miss", ids[n:], false}} {
			i := 0
			next := func() chunk.ID {
				i = (i + 7919) % n
				return of.ids[i]
			}
			micro.Run(b, fmt.Sprintf("chunks=%d/of=%s", n, of.name), micro.Work{Entries: 1}, func() error {
				if _, ok := ix.Lookup(next()); ok != of.want {
					return errors.New("the index is wrong")
				}
				return nil
			}, func() error {
				if _, ok := all[next()]; ok != of.want {
					return errors.New("the map is wrong")
				}
				return nil
			})
		}
		mustClose(b, ix)
	}
}

// Segments of a repository that this machine does not know yet. The limit is to decode
// them; the rest is what badger takes to sort and write the chunks.
func BenchmarkIndexSync(b *testing.B) {
	for _, n := range sizes() {
		bk := newBucket()
		bk.fill(b, 0, n)
		work := micro.Work{Entries: n}
		micro.Run(b, fmt.Sprintf("chunks=%d", n), work, func() error {
			dir, err := os.MkdirTemp(b.TempDir(), "")
			if err != nil {
				return err
			}
			ix, err := Open(dir, testRepo, testCodec, nil)
			if err == nil {
				err = errors.Join(ix.Sync(b.Context(), bk.list(), bk.fetch), ix.Close())
			}
			return errors.Join(err, os.RemoveAll(dir))
		}, func() error {
			for _, data := range bk.segments {
				if _, err := DecodeSegment(testCodec, data); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// Opening, syncing without change and closing: what every command pays that has
// something to look up. The limit is to stat the files, by which the catalog knows them.
func BenchmarkIndexOpen(b *testing.B) {
	for _, n := range append([]int{0}, sizes()...) {
		bk, dir := filled(b, n)
		micro.Run(b, fmt.Sprintf("chunks=%d", n), micro.Work{}, func() error {
			ix, err := Open(dir, testRepo, testCodec, nil)
			if err != nil {
				return err
			}
			return errors.Join(ix.Sync(b.Context(), bk.list(), bk.fetch), ix.Close())
		}, func() error {
			return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				_, err = os.Lstat(path)
				return err
			})
		})
	}
}

// Short runs that each add one segment of a few chunks.
func BenchmarkIndexShortRuns(b *testing.B) {
	bk, dir := filled(b, 100_000)
	i := 2_000_000
	micro.Run(b, "chunks=100000", micro.Work{Entries: 10}, func() error {
		id, s := bk.put(b, makePack(i, span(i, 10)...))
		i += 10
		ix, err := Open(dir, testRepo, testCodec, nil)
		if err != nil {
			return err
		}
		err = ix.Sync(b.Context(), bk.list(), bk.fetch)
		ix.Add(s.Packs...)
		return errors.Join(err, ix.Commit(id, s), ix.Close())
	}, nil)
}

// BenchmarkIndexSyncMemory tells how much memory a Sync of many chunks takes, the
// segments being on disk.
func BenchmarkIndexSyncMemory(b *testing.B) {
	for _, n := range []int{300_000, 3_000_000} {
		if n > 1_000_000 && !*long {
			continue
		}
		b.Run(fmt.Sprintf("chunks=%d", n), func(b *testing.B) {
			objects := b.TempDir()
			var ids []SegmentID
			for first := 0; first < n; first += 10_000 {
				bk := newBucket()
				id, _ := bk.put(b, makePack(first, span(first, 5000)...), makePack(first, span(first+5000, 5000)...))
				if err := os.WriteFile(filepath.Join(objects, id.String()), bk.segments[id], 0o600); err != nil {
					b.Fatal(err)
				}
				ids = append(ids, id)
			}
			for b.Loop() {
				b.StopTimer()
				ix := open(b, b.TempDir())
				anon := watchMemory(b)
				b.StartTimer()
				err := ix.Sync(b.Context(), ids, func(_ context.Context, id SegmentID) ([]byte, error) {
					return os.ReadFile(filepath.Join(objects, id.String()))
				})
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(anon())/(1<<20), "MiB-more")
				mustClose(b, ix)
			}
		})
	}
}

// watchMemory gives a function that tells by how many bytes the memory of this
// process, files that it has mapped left out, has grown at most since.
func watchMemory(b *testing.B) func() int64 {
	debug.FreeOSMemory()
	before := anonymous(b)
	peak, stop, done := before, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				peak = max(peak, anonymous(b))
			}
		}
	}()
	return func() int64 {
		close(stop)
		<-done
		return peak - before
	}
}

func anonymous(b *testing.B) (n int64) {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Error(err)
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			fmt.Sscan(v, &n)
		}
	}
	return n << 10
}

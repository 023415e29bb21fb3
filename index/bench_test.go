package index

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/snapctl/snapctl/chunk"
)

func filled(b *testing.B, n int) (*bucket, string) {
	dir := b.TempDir()
	bk := newBucket()
	bk.fill(b, 0, n)
	ix := open(b, dir)
	bk.sync(b, ix)
	mustClose(b, ix)
	return bk, dir
}

func BenchmarkLookup(b *testing.B) {
	const n = 120_000
	_, dir := filled(b, n)
	ids := make([]chunk.ID, 2*n)
	for i := range ids {
		ids[i] = chunkID(i)
	}
	run := func(name, dir string, ids []chunk.ID) {
		b.Run(name, func(b *testing.B) {
			ix := open(b, dir)
			b.ResetTimer()
			for i := range b.N {
				ix.Lookup(ids[i*7919%len(ids)])
			}
		})
	}
	run("present", dir, ids[:n])
	run("absent", dir, ids[n:])
	run("empty", b.TempDir(), ids)
}

func BenchmarkSync120k(b *testing.B) {
	bk := newBucket()
	bk.fill(b, 0, 120_000)
	for b.Loop() {
		b.StopTimer()
		ix := open(b, b.TempDir())
		b.StartTimer()
		bk.sync(b, ix)
		b.StopTimer()
		mustClose(b, ix)
		b.StartTimer()
	}
}

// Opening, syncing without change and closing: what every command pays.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{0, 120_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			bk, dir := filled(b, n)
			for b.Loop() {
				ix := open(b, dir)
				bk.sync(b, ix)
				mustClose(b, ix)
			}
		})
	}
}

// Short runs that each add one segment of a few chunks.
func BenchmarkShortRuns(b *testing.B) {
	bk, dir := filled(b, 120_000)
	i := 1_000_000
	var slowest time.Duration
	for b.Loop() {
		id, s := bk.put(b, makePack(i, span(i, 10)...))
		i += 10
		start := time.Now()
		ix := open(b, dir)
		bk.sync(b, ix)
		ix.Add(s.Packs...)
		if err := ix.Commit(id, s); err != nil {
			b.Fatal(err)
		}
		mustClose(b, ix)
		slowest = max(slowest, time.Since(start))
	}
	b.ReportMetric(float64(slowest.Microseconds())/1000, "slowest-ms")
	b.ReportMetric(float64(len(tree(b, dir))), "files")
}

// One Sync of a new slot of many chunks, the segments being on disk.
func BenchmarkSyncMemory(b *testing.B) {
	for _, n := range []int{300_000, 3_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
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

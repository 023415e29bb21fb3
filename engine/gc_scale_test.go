//go:build linux

package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/gc"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/manifest"
)

// scale is a repository that a collector has much to do with: pack tables, index
// segments and packs without contents.
type scale struct {
	snapshots int
	packs     int // of which every tenth is needed by nobody
	chunks    int // of each pack
	needs     int // packs that a snapshot names
}

// make writes the repository to a folder, as two hours ago, without going through its
// store, which would sync each object.
func (s scale) make(t testing.TB, r *Repository) {
	t.Helper()
	old := time.Now().Add(-2 * time.Hour)
	put := func(name string, data []byte, size int64) {
		t.Helper()
		path := filepath.Join(r.repo.Dir, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(t, os.WriteFile(path, data, 0o600))
		must(t, os.Truncate(path, size))
		must(t, os.Chtimes(path, old, old))
	}
	rnd := rand.NewChaCha8([32]byte{1})
	ids := make([]chunk.PackID, s.packs)
	for i := range ids {
		x := &chunk.PackIndex{Kind: chunk.DataPack}
		offset := uint32(chunk.PackHeaderSize)
		for left := s.chunks; left > 0; left -= 150 {
			f := chunk.FrameIndex{Frame: chunk.Frame{Offset: offset, Stored: 250 << 10}}
			for range min(left, 150) {
				c := chunk.SizedID{Length: 6600}
				rnd.Read(c.ID[:])
				f.Chunks = append(f.Chunks, c)
				f.Raw += c.Length
			}
			offset = f.End()
			x.Frames = append(x.Frames, f)
		}
		rnd.Read(ids[i][:])
		size := int64(offset) + 200<<10
		put(repo.PackName(ids[i]), nil, size)
		data, err := (&index.Segment{Packs: []index.Pack{{ID: ids[i], Size: size, Index: x}}}).Encode(r.repo.Codec)
		must(t, err)
		put(repo.SegmentPrefix+index.SumSegment(data).String(), data, int64(len(data)))
	}
	for i := range s.snapshots {
		m := &manifest.Manifest{Info: manifest.Info{ID: manifest.NewID(0), Created: old, Dir: "/work/app"}, Root: binary.LittleEndian.AppendUint64(nil, uint64(i))}
		for j := range s.needs {
			if n := (i*7 + j) % s.packs; n%10 != 0 {
				m.Packs = append(m.Packs, manifest.PackUse{ID: ids[n], Bytes: uint64(s.chunks) * 6600})
			}
		}
		slices.SortFunc(m.Packs, func(a, b manifest.PackUse) int { return bytes.Compare(a.ID[:], b.ID[:]) })
		data, err := m.Encode(r.repo.Codec)
		must(t, err)
		put(m.ID.ObjectName(), data, int64(len(data)))
	}
}

// TestGCScale: what a collection of a large repository takes. With -long it is one of
// 10,000 snapshots and 10 million chunks, which must do with 300 MB.
func TestGCScale(t *testing.T) {
	s := scale{snapshots: 200, packs: 100, chunks: 1000, needs: 60}
	if *long {
		s = scale{snapshots: 10_000, packs: 2000, chunks: 5000, needs: 500}
	}
	p := newPlace(t)
	r, err := Init(t.Context(), p.repo, &snapshot.InitOptions{GCGrace: time.Hour}, &Options{CacheDir: p.cache})
	must(t, err)
	defer r.Close()
	begun := time.Now()
	s.make(t, r)
	t.Logf("made in %v", time.Since(begun).Round(time.Millisecond))
	for _, round := range []string{"dooms, and puts segments together", "has nothing to do", "deletes", "has nothing to do"} {
		debug.FreeOSMemory()
		grown := watchMemory(t)
		rep, err := gc.Run(t.Context(), r.repo, nil)
		memory := grown()
		must(t, err)
		t.Logf("a run that %s: %v, %d MB more than before; %+v", round, rep.Duration.Round(time.Millisecond), memory/1e6, rep)
		if memory > 300e6 {
			t.Errorf("a run that %s took %d MB", round, memory/1e6)
		}
		if rep.Snapshots != s.snapshots || rep.Live.Packs != s.packs-s.packs/10 {
			t.Errorf("%+v", rep)
		}
		switch {
		case round == "deletes" && (rep.Freed.Packs != s.packs/10 || rep.SegmentsAfter > rep.SegmentsBefore):
			t.Errorf("%+v", rep)
		case strings.HasPrefix(round, "dooms") && (rep.Doomed.Packs != s.packs/10 || rep.SegmentsAfter > 2+s.packs*s.chunks/(write.SegmentFull/2)):
			t.Errorf("%+v", rep)
		}
		if round == "has nothing to do" {
			past := time.Now().Add(-2 * time.Hour)
			seen, err := filepath.Glob(filepath.Join(r.repo.Dir, repo.GcPrefix, "*"+repo.SeenSuffix))
			must(t, err)
			for _, name := range seen {
				must(t, os.Chtimes(name, past, past))
			}
		}
	}
	// The index knows all that is left, and no more.
	have, err := r.repo.ListSegments(t.Context())
	must(t, err)
	if !*long {
		ix, err := r.repo.SyncIndex(t.Context(), have)
		must(t, err)
		if got := ix.Stats(); got.Packs != s.packs-s.packs/10 || got.Chunks != int64(got.Packs*s.chunks) {
			t.Errorf("%+v", got)
		}
	}
}

// watchMemory gives a function that tells by how many bytes the memory of this process,
// files that it has mapped left out, has grown at most since.
func watchMemory(t testing.TB) func() int64 {
	before := anonymous(t)
	peak, stop, done := before, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				peak = max(peak, anonymous(t))
			}
		}
	}()
	return func() int64 {
		close(stop)
		<-done
		return peak - before
	}
}

func anonymous(t testing.TB) (n int64) {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			fmt.Sscan(v, &n)
		}
	}
	return n << 10
}

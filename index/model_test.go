package index

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/snapctl/snapctl/chunk"
)

// model is what an index has to know, in plain maps.
type model struct {
	packs    []Pack                 // that exist at all
	bucket   map[SegmentID]*Segment // the repository
	data     map[SegmentID][]byte
	all      map[SegmentID]*Segment // that ever were in it
	synced   map[SegmentID]*Segment // that the index was told of
	added    map[chunk.PackID]Pack
	excluded map[chunk.PackID]bool
	missing  map[chunk.PackID]bool // forgotten
}

const modelChunks = 60

func (m *model) live() map[chunk.ID][]chunk.Location {
	var packs []Pack
	for _, s := range m.synced {
		packs = append(packs, s.Packs...)
	}
	packs = append(packs, slices.Collect(maps.Values(m.added))...)
	packs = slices.DeleteFunc(packs, func(p Pack) bool { return m.excluded[p.ID] || m.missing[p.ID] })
	return places(packs...)
}

// TestModel runs random operations against the model. A chunk that is found
// must be there, always. One that is there must be found if no pack that held
// it has ever gone, been excluded or been forgotten: then another pack's entry
// may have hidden it.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		root, err := os.MkdirTemp("", "index-model-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(root)
		dir := filepath.Join(root, "index")
		m := &model{
			bucket:   map[SegmentID]*Segment{},
			data:     map[SegmentID][]byte{},
			all:      map[SegmentID]*Segment{},
			synced:   map[SegmentID]*Segment{},
			added:    map[chunk.PackID]Pack{},
			excluded: map[chunk.PackID]bool{},
			missing:  map[chunk.PackID]bool{},
		}
		hidden := map[chunk.ID]bool{} // chunks that a pack which went has held
		hide := func(packs ...Pack) {
			for id := range places(packs...) {
				hidden[id] = true
			}
		}
		for i := range 12 {
			first := rapid.IntRange(0, modelChunks-1).Draw(t, "first chunk")
			n := rapid.IntRange(1, min(20, modelChunks-first)).Draw(t, "chunks")
			m.packs = append(m.packs, makePack(i, span(first, n)...))
		}
		openIndex := func() *Index {
			ix, err := Open(dir, testRepo, testCodec, nil)
			if err != nil {
				t.Fatal(err)
			}
			return ix
		}
		ix := openIndex()
		defer func() { ix.Close() }()

		drawPacks := func() []Pack {
			return rapid.SliceOfNDistinct(rapid.SampledFrom(m.packs), 1, 4, func(p Pack) chunk.PackID { return p.ID }).Draw(t, "packs")
		}
		newSegment := func() (SegmentID, *Segment) {
			s := &Segment{Packs: drawPacks()}
			data, err := s.Encode(testCodec)
			if err != nil {
				t.Fatal(err)
			}
			id := SumSegment(data)
			m.bucket[id], m.data[id], m.all[id] = s, data, s
			return id, s
		}
		listed := func() []SegmentID {
			return slices.SortedFunc(maps.Keys(m.bucket), func(a, b SegmentID) int { return slices.Compare(a[:], b[:]) })
		}
		// A process ends, and what it added and excluded goes with it.
		ended := func() {
			hide(slices.Collect(maps.Values(m.added))...)
			clear(m.added)
			clear(m.excluded)
		}
		syncNow := func() {
			b := &bucket{segments: m.data}
			if err := ix.Sync(t.Context(), listed(), b.fetch); err != nil {
				t.Fatal(err)
			}
			for id, s := range m.synced {
				if m.bucket[id] == nil {
					hide(s.Packs...)
					delete(m.synced, id)
				}
			}
			for id, s := range m.bucket {
				if m.synced[id] == nil {
					m.synced[id] = s
					for _, p := range s.Packs {
						delete(m.missing, p.ID)
					}
				}
				for _, p := range s.Packs {
					delete(m.added, p.ID)
				}
			}
		}
		rebuilt := func() {
			ended()
			clear(m.synced)
			clear(m.missing)
		}

		t.Repeat(map[string]func(*rapid.T){
			"segment appears": func(t *rapid.T) { newSegment() },
			"segment goes": func(t *rapid.T) {
				if len(m.bucket) == 0 {
					t.Skip()
				}
				id := rapid.SampledFrom(listed()).Draw(t, "segment")
				delete(m.bucket, id)
				delete(m.data, id)
			},
			"sync": func(t *rapid.T) { syncNow() },
			"add": func(t *rapid.T) {
				packs := drawPacks()
				known := map[chunk.PackID]bool{}
				for _, s := range m.synced {
					for _, p := range s.Packs {
						known[p.ID] = !m.missing[p.ID]
					}
				}
				ix.Add(packs...)
				for _, p := range packs {
					if !known[p.ID] {
						m.added[p.ID] = p
						delete(m.missing, p.ID)
					}
				}
			},
			"commit": func(t *rapid.T) {
				id, s := newSegment()
				if m.synced[id] != nil {
					t.Skip()
				}
				if err := ix.Commit(id, s); err != nil {
					t.Fatal(err)
				}
				m.synced[id] = s
				for _, p := range s.Packs {
					delete(m.added, p.ID)
					delete(m.missing, p.ID)
				}
			},
			"exclude": func(t *rapid.T) {
				p := rapid.SampledFrom(m.packs).Draw(t, "pack")
				ix.Exclude([]chunk.PackID{p.ID})
				m.excluded[p.ID] = true
				hide(p)
			},
			"forget": func(t *rapid.T) {
				p := rapid.SampledFrom(m.packs).Draw(t, "pack")
				ix.Forget(p.ID)
				delete(m.added, p.ID)
				m.missing[p.ID] = true
				hide(p)
			},
			"write": func(t *rapid.T) {
				ix.writing.Lock()
				defer ix.writing.Unlock()
				if err := ix.settle(true); err != nil {
					t.Fatal(err)
				}
			},
			"close and open": func(t *rapid.T) {
				if err := ix.Close(); err != nil {
					t.Fatal(err)
				}
				ended()
				ix = openIndex()
			},
			"kill": func(t *rapid.T) {
				copied := copyDir(t, dir)
				// The index in memory, with what it has not written, dies.
				ix.Close()
				if err := os.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(copied, dir); err != nil {
					t.Fatal(err)
				}
				ended()
				ix = openIndex()
				// The slot is as it was written last: older than the model.
				clear(m.synced)
				for id := range ix.segments {
					m.synced[id] = m.all[id]
				}
				for id := range m.missing {
					if _, ok := ix.numbers[id]; ok {
						delete(m.missing, id)
					}
				}
			},
			"corrupt": func(t *rapid.T) {
				if err := ix.Close(); err != nil {
					t.Fatal(err)
				}
				var files []string
				filepath.WalkDir(filepath.Join(dir, "0"), func(path string, d os.DirEntry, err error) error {
					if err == nil && !d.IsDir() && d.Name() != lockName {
						files = append(files, path)
					}
					return err
				})
				if len(files) > 0 {
					path := rapid.SampledFrom(files).Draw(t, "file")
					data, err := os.ReadFile(path)
					if err != nil {
						t.Fatal(err)
					}
					if n := len(data); n > 0 {
						data = flip(data, rapid.IntRange(0, n-1).Draw(t, "byte"))
					}
					if rapid.Bool().Draw(t, "truncate") {
						data = data[:len(data)/2]
					}
					if err := os.WriteFile(path, append(data, 1), 0o600); err != nil {
						t.Fatal(err)
					}
					rebuilt()
				} else {
					ended()
				}
				ix = openIndex()
			},
			"": func(t *rapid.T) {
				live := m.live()
				for i := range modelChunks {
					id := chunkID(i)
					loc, ok := ix.Lookup(id)
					if ok && !contains(live[id], loc) {
						t.Fatalf("chunk %d is found at %v, it lies at %v", i, loc, live[id])
					}
					if !ok && len(live[id]) > 0 && !hidden[id] {
						t.Fatalf("chunk %d is absent, it lies at %v", i, live[id])
					}
				}
				if err := ix.Err(); err != nil {
					t.Fatal(err)
				}
			},
		})
	})
}

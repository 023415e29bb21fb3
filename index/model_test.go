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

// model is what an index has to know, in plain maps, and the index that is held
// against it.
type model struct {
	dir string
	ix  *Index

	packs    []Pack                 // that exist at all
	bucket   map[SegmentID]*Segment // the repository
	data     map[SegmentID][]byte
	all      map[SegmentID]*Segment // that ever were in it
	synced   map[SegmentID]*Segment // that the index was told of
	added    map[chunk.PackID]Pack
	excluded map[chunk.PackID]bool
	missing  map[chunk.PackID]bool // forgotten
	hidden   map[chunk.ID]bool     // chunks that a pack which went has held
}

const modelChunks = 60

// newModel has packs, and an empty index in dir.
func newModel(t *rapid.T, dir string) *model {
	m := &model{
		dir:      dir,
		bucket:   map[SegmentID]*Segment{},
		data:     map[SegmentID][]byte{},
		all:      map[SegmentID]*Segment{},
		synced:   map[SegmentID]*Segment{},
		added:    map[chunk.PackID]Pack{},
		excluded: map[chunk.PackID]bool{},
		missing:  map[chunk.PackID]bool{},
		hidden:   map[chunk.ID]bool{},
	}
	for i := range 12 {
		first := rapid.IntRange(0, modelChunks-1).Draw(t, "first chunk")
		n := rapid.IntRange(1, min(20, modelChunks-first)).Draw(t, "chunks")
		m.packs = append(m.packs, makePack(i, span(first, n)...))
	}
	m.open(t)
	return m
}

func (m *model) open(t *rapid.T) {
	ix, err := Open(m.dir, testRepo, testCodec, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.ix = ix
}

func (m *model) live() map[chunk.ID][]chunk.Location {
	var packs []Pack
	for _, s := range m.synced {
		packs = append(packs, s.Packs...)
	}
	packs = append(packs, slices.Collect(maps.Values(m.added))...)
	packs = slices.DeleteFunc(packs, func(p Pack) bool { return m.excluded[p.ID] || m.missing[p.ID] })
	return places(packs...)
}

// hide takes note of the chunks of packs that go.
func (m *model) hide(packs ...Pack) {
	for id := range places(packs...) {
		m.hidden[id] = true
	}
}

// ended: a process ends, and what it added and excluded goes with it.
func (m *model) ended() {
	m.hide(slices.Collect(maps.Values(m.added))...)
	clear(m.added)
	clear(m.excluded)
}

func (m *model) drawPack(t *rapid.T) Pack { return rapid.SampledFrom(m.packs).Draw(t, "pack") }

func (m *model) drawPacks(t *rapid.T) []Pack {
	return rapid.SliceOfNDistinct(rapid.SampledFrom(m.packs), 1, 4, func(p Pack) chunk.PackID { return p.ID }).Draw(t, "packs")
}

// listed are the segments in the repository.
func (m *model) listed() []SegmentID {
	return slices.SortedFunc(maps.Keys(m.bucket), func(a, b SegmentID) int { return slices.Compare(a[:], b[:]) })
}

func (m *model) segmentAppears(t *rapid.T) { m.newSegment(t) }

func (m *model) newSegment(t *rapid.T) (SegmentID, *Segment) {
	s := &Segment{Packs: m.drawPacks(t)}
	data, err := s.Encode(testCodec)
	if err != nil {
		t.Fatal(err)
	}
	id := SumSegment(data)
	m.bucket[id], m.data[id], m.all[id] = s, data, s
	return id, s
}

func (m *model) segmentGoes(t *rapid.T) {
	if len(m.bucket) == 0 {
		t.Skip()
	}
	id := rapid.SampledFrom(m.listed()).Draw(t, "segment")
	delete(m.bucket, id)
	delete(m.data, id)
}

func (m *model) sync(t *rapid.T) {
	b := &bucket{segments: m.data}
	if err := m.ix.Sync(t.Context(), m.listed(), b.fetch); err != nil {
		t.Fatal(err)
	}
	for id, s := range m.synced {
		if m.bucket[id] == nil {
			m.hide(s.Packs...)
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

func (m *model) add(t *rapid.T) {
	packs := m.drawPacks(t)
	known := map[chunk.PackID]bool{}
	for _, s := range m.synced {
		for _, p := range s.Packs {
			known[p.ID] = !m.missing[p.ID]
		}
	}
	m.ix.Add(packs...)
	for _, p := range packs {
		if !known[p.ID] {
			m.added[p.ID] = p
			delete(m.missing, p.ID)
		}
	}
}

func (m *model) commit(t *rapid.T) {
	id, s := m.newSegment(t)
	if m.synced[id] != nil {
		t.Skip()
	}
	if err := m.ix.Commit(id, s); err != nil {
		t.Fatal(err)
	}
	m.synced[id] = s
	for _, p := range s.Packs {
		delete(m.added, p.ID)
		delete(m.missing, p.ID)
	}
}

func (m *model) exclude(t *rapid.T) {
	p := m.drawPack(t)
	m.ix.Exclude([]chunk.PackID{p.ID})
	m.excluded[p.ID] = true
	m.hide(p)
}

func (m *model) forget(t *rapid.T) {
	p := m.drawPack(t)
	m.ix.Forget(p.ID)
	delete(m.added, p.ID)
	m.missing[p.ID] = true
	m.hide(p)
}

func (m *model) write(t *rapid.T) {
	m.ix.writing.Lock()
	defer m.ix.writing.Unlock()
	if err := m.ix.settle(true); err != nil {
		t.Fatal(err)
	}
}

func (m *model) reopen(t *rapid.T) {
	m.close(t)
	m.ended()
	m.open(t)
}

func (m *model) close(t *rapid.T) {
	if err := m.ix.Close(); err != nil {
		t.Fatal(err)
	}
}

// kill: the index in memory, with what it has not written, dies.
func (m *model) kill(t *rapid.T) {
	copied := copyDir(t, m.dir)
	m.ix.Close()
	if err := os.RemoveAll(m.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(copied, m.dir); err != nil {
		t.Fatal(err)
	}
	m.ended()
	m.open(t)
	// The slot is as it was written last: older than the model.
	clear(m.synced)
	for id := range m.ix.segments {
		m.synced[id] = m.all[id]
	}
	for id := range m.missing {
		if _, ok := m.ix.numbers[id]; ok {
			delete(m.missing, id)
		}
	}
}

// corrupt damages a file of the index, which is then rebuilt.
func (m *model) corrupt(t *rapid.T) {
	m.close(t)
	m.ended()
	var files []string
	filepath.WalkDir(filepath.Join(m.dir, "0"), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != lockName {
			files = append(files, path)
		}
		return err
	})
	if len(files) > 0 {
		damageFile(t, rapid.SampledFrom(files).Draw(t, "file"))
		clear(m.synced)
		clear(m.missing)
	}
	m.open(t)
}

// damageFile flips a bit of a file, or cuts it off, and makes it longer by a byte.
func damageFile(t *rapid.T, path string) {
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
}

// check holds the index against the model.
func (m *model) check(t *rapid.T) {
	live := m.live()
	for i := range modelChunks {
		id := chunkID(i)
		loc, ok := m.ix.Lookup(id)
		if ok && !contains(live[id], loc) {
			t.Fatalf("chunk %d is found at %v, it lies at %v", i, loc, live[id])
		}
		if !ok && len(live[id]) > 0 && !m.hidden[id] {
			t.Fatalf("chunk %d is absent, it lies at %v", i, live[id])
		}
	}
	if err := m.ix.Err(); err != nil {
		t.Fatal(err)
	}
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
		m := newModel(t, filepath.Join(root, "index"))
		defer func() { m.ix.Close() }()
		t.Repeat(map[string]func(*rapid.T){
			"segment appears": m.segmentAppears,
			"segment goes":    m.segmentGoes,
			"sync":            m.sync,
			"add":             m.add,
			"commit":          m.commit,
			"exclude":         m.exclude,
			"forget":          m.forget,
			"write":           m.write,
			"close and open":  m.reopen,
			"kill":            m.kill,
			"corrupt":         m.corrupt,
			"":                m.check,
		})
	})
}

package manifest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/snapctl/snapctl/chunk"
)

// pageStore is a PageSink and PageSource in memory. As in a repository, a page
// that is known stays where it is.
type pageStore struct {
	mu      sync.Mutex
	pages   map[chunk.ID][]byte
	refs    map[chunk.ID]PageRef
	pending []chunk.ID
	added   []chunk.ID // in order, what was known before included
	flushes int

	reads  atomic.Int64
	onRead func(ctx context.Context, ref PageRef) error
}

func newPageStore() *pageStore {
	return &pageStore{pages: map[chunk.ID][]byte{}, refs: map[chunk.ID]PageRef{}}
}

var unkeyed chunk.Hasher

func (s *pageStore) Add(_ context.Context, page []byte) (chunk.ID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := unkeyed.Sum(page)
	s.added = append(s.added, id)
	if s.pages[id] == nil {
		s.pages[id] = slices.Clone(page)
		s.pending = append(s.pending, id)
	}
	return id, nil
}

func (s *pageStore) Flush(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flushes++
	var ids []byte
	for _, id := range s.pending {
		ids = append(ids, id[:]...)
	}
	off := uint32(chunk.PackHeaderSize)
	for _, id := range s.pending {
		n := uint32(len(s.pages[id]))
		s.refs[id] = PageRef{ID: id, Pack: chunk.SumPack(ids), Frame: chunk.Frame{Offset: off, Stored: n, Raw: n}}
		off += n
	}
	s.pending = nil
	return nil
}

func (s *pageStore) Page(id chunk.ID) PageRef {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refs[id]
}

// source reads the store: Page of a PageSource is another method.
func (s *pageStore) source() PageSource { return pageReads{s} }

type pageReads struct{ *pageStore }

func (s pageReads) Page(ctx context.Context, ref PageRef) ([]byte, error) {
	s.reads.Add(1)
	if s.onRead != nil {
		if err := s.onRead(ctx, ref); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refs[ref.ID] != ref || s.pages[ref.ID] == nil {
		return nil, fmt.Errorf("no page %v there", ref.ID)
	}
	return s.pages[ref.ID], nil
}

// build makes a tree of entries and tells the ids of its pages.
func build(t testing.TB, s *pageStore, entries []Entry) (*Root, []chunk.ID) {
	t.Helper()
	s.added = nil
	b := NewBuilder(s)
	for i := range entries {
		e := entries[i]
		if err := b.Add(t.Context(), &e); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return root, slices.Clone(s.added)
}

func newTree(t testing.TB, root *Root, s *pageStore) *Tree {
	t.Helper()
	tree, err := NewTree(root.Page, s.source())
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// plain makes entries comparable: reused slices may be empty and not nil.
func plain(e Entry) Entry {
	e.Extents, e.Xattrs = slices.Clone(e.Extents), slices.Clone(e.Xattrs)
	if len(e.Extents) == 0 {
		e.Extents = nil
	}
	if len(e.Xattrs) == 0 {
		e.Xattrs = nil
	}
	for i := range e.Xattrs {
		e.Xattrs[i].Value = append([]byte{}, e.Xattrs[i].Value...)
	}
	return e
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

func randomID(r *rand.Rand) (id [32]byte) {
	for i := range id {
		id[i] = byte(r.Uint32())
	}
	return id
}

// somePacks is where the chunks of generated entries lie.
var somePacks = func() (all [5]chunk.PackID) {
	r := newRand(99)
	for i := range all {
		all[i] = randomID(r)
	}
	return all
}()

func randomExtent(r *rand.Rand) Extent {
	frame := chunk.Frame{Offset: chunk.PackHeaderSize + 1<<20*uint32(r.IntN(8)), Stored: 1 << 19, Raw: 1 << 20}
	n := 1 + uint32(r.IntN(1<<12))
	return Extent{ID: randomID(r), Location: chunk.Location{
		Pack: somePacks[r.IntN(len(somePacks))], Frame: frame, Offset: uint32(r.IntN(1 << 19)), Length: n,
	}}
}

func randomFile(r *rand.Rand, extents int, holes bool) (e Entry) {
	e = Entry{Type: File, Mode: 0o644, Links: 1}
	for range extents {
		x := randomExtent(r)
		if holes && r.IntN(2) == 0 {
			x.Hole = uint64(r.IntN(1 << 30))
		}
		e.Size += x.Hole + uint64(x.Length)
		e.Extents = append(e.Extents, x)
	}
	if holes {
		e.Size += uint64(r.IntN(1 << 40))
	}
	return e
}

func randomName(r *rand.Rand) string {
	n := 1 + r.IntN(24)
	if r.IntN(50) == 0 {
		n = MaxName
	}
	b := make([]byte, n)
	for i := range b {
		for b[i] == 0 || b[i] == '/' {
			if b[i] = byte('!' + r.IntN(90)); r.IntN(8) == 0 {
				b[i] = byte(r.Uint32()) // not UTF-8
			}
		}
	}
	if s := string(b); s == "." || s == ".." {
		return "dot"
	}
	return string(b)
}

func randomTime(r *rand.Rand) Time {
	t := Time{Sec: 1_700_000_000 + int64(r.IntN(1<<27)), Nsec: uint32(r.IntN(1e9))}
	switch r.IntN(20) {
	case 0:
		t.Sec = -t.Sec
	case 1:
		t.Sec = -1 << 63
	case 2:
		t.Sec = 1<<63 - 1
	}
	return t
}

// randomEntries is a tree of about n entries of all types but for spilled files.
func randomEntries(r *rand.Rand, n int) []Entry {
	dirs := []string{""}
	seen := map[Key]bool{{}: true}
	entries := []Entry{{Type: Dir, Mode: 0o755, Links: 1}}
	for len(entries) < n {
		k := Key{dirs[r.IntN(len(dirs))], randomName(r)}
		if seen[k] || len(k.Dir) > 4000 {
			continue
		}
		seen[k] = true
		var e Entry
		switch r.IntN(16) {
		case 0, 1:
			e.Type = Dir
			dirs = append(dirs, k.Path())
		case 2:
			e.Type, e.Target = Symlink, strings.Repeat("../x", 1+r.IntN(20))
		case 3:
			e.Type = Fifo
		case 4:
			e.Type, e.Device = CharDevice, Device{r.Uint32(), r.Uint32N(300)}
		case 5:
			e.Type, e.Device = BlockDevice, Device{r.Uint32N(300), r.Uint32()}
		case 6:
			e = randomFile(r, r.IntN(6), true)
		case 7:
			e = Entry{Type: Link} // settled below
		default:
			e = randomFile(r, 1, false)
		}
		if e.Type != Link {
			e.Mode, e.UID, e.GID, e.Mtime, e.Links = r.Uint32()&PermMask, r.Uint32(), r.Uint32N(3), randomTime(r), 1+r.Uint32N(3)
			if r.IntN(12) == 0 {
				e.Xattrs = []Xattr{{"security.capability", []byte{1, 0, 0, 2}}, {"user.empty", []byte{}}}
			}
		}
		e.Dir, e.Name = k.Dir, k.Name
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b Entry) int { return a.Key().Compare(b.Key()) })
	var files []Key
	for i := range entries {
		switch e := &entries[i]; {
		case e.Type == File:
			files = append(files, e.Key())
		case e.Type == Link && len(files) > 0:
			e.First = files[r.IntN(len(files))]
		case e.Type == Link:
			*e = Entry{Dir: e.Dir, Name: e.Name, Type: Fifo, Links: 1}
		}
	}
	return entries
}

// smallFiles is a tree as a node_modules is: n files of one chunk each.
func smallFiles(n int) []Entry {
	r := newRand(uint64(n))
	entries := []Entry{{Type: Dir, Mode: 0o755, Links: 1}}
	for i := 0; len(entries) < n; i++ {
		pkg := fmt.Sprintf("node_modules/package-%05d", i)
		dir := pkg + "/lib"
		if i == 0 {
			entries = append(entries, Entry{Name: "node_modules", Type: Dir, Mode: 0o755, Links: 1})
		}
		entries = append(entries,
			Entry{Dir: "node_modules", Name: pkg[13:], Type: Dir, Mode: 0o755, Links: 1},
			Entry{Dir: pkg, Name: "lib", Type: Dir, Mode: 0o755, Links: 1})
		for j := range 1 + r.IntN(20) {
			e := randomFile(r, 1, false)
			// In tree order, neighbours share a frame.
			x := &e.Extents[0]
			x.Pack = somePacks[len(entries)*len(somePacks)/(n+64)]
			x.Frame.Offset = chunk.PackHeaderSize + 1<<19*uint32(len(entries)/300)
			e.Dir, e.Name = dir, fmt.Sprintf("module-%d.js", j)
			e.Mtime, e.UID, e.GID = Time{1_700_000_000 + int64(i), r.Uint32N(1e9)}, 1000, 1000
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b Entry) int { return a.Key().Compare(b.Key()) })
	return entries
}

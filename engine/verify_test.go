//go:build linux

package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/check"
	"github.com/snapctl/snapctl/engine/internal/gc"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/engine/view"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

func verify(t testing.TB, r *Repository, opts *snapshot.VerifyOptions, refs ...string) *snapshot.VerifyReport {
	t.Helper()
	rep, err := check.Verify(t.Context(), r.repo, refs, opts)
	must(t, err)
	return rep
}

// clean is verify of what is not damaged.
func clean(t testing.TB, r *Repository, opts *snapshot.VerifyOptions, refs ...string) *snapshot.VerifyReport {
	t.Helper()
	rep := verify(t, r, opts, refs...)
	if rep.Err() != nil || len(rep.Findings) > 0 {
		t.Fatalf("%v: %+v", rep.Err(), rep.Findings)
	}
	return rep
}

// TestVerifyClean: nothing is found where nothing is damaged: trees of everything,
// of many pages, of a file with extents in pages of their own, of hard links, made
// one from another; and each page is read once.
func TestVerifyClean(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	clean(t, r, nil)
	src := manyFiles(p, "src")
	must(t, os.Link(src+"/large", src+"/linked"))
	first := complete(t, r, src, nil)
	one := clean(t, r, &snapshot.VerifyOptions{ReadData: 1})
	if one.Snapshots != 1 || one.Entries != first.Files+first.Dirs || one.Pages < 3 || one.Segments == 0 ||
		one.Read != one.Packs || one.ReadBytes != one.PackBytes || one.Packs < 2 {
		t.Errorf("%+v", one)
	}
	for i := range 5 {
		writeFile(t, src+"/change", random(uint64(i), 100))
		complete(t, p.open("other"), src, nil)
	}
	many := clean(t, r, &snapshot.VerifyOptions{ReadData: 1})
	// A change of the root directory's entries costs a leaf each.
	if many.Snapshots != 6 || many.Pages > one.Pages+2*5 || many.Entries < 6*one.Entries {
		t.Errorf("%d pages of %d snapshots, and %d of one", many.Pages, many.Snapshots, one.Pages)
	}
	some := clean(t, r, &snapshot.VerifyOptions{ReadData: 1}, first.ID.String())
	if some.Snapshots != 1 || some.Packs != one.Packs || some.Read != one.Packs {
		t.Errorf("%+v", some)
	}
}

// inStore calls f with a repository in a store, and what opens it with an empty cache.
func inStore(p *place, url string, store func() remote.Store, f func(p *place, r *Repository, open func() *Repository)) {
	n := 0
	opts := func() *Options {
		n++
		return &Options{CacheDir: p.path(fmt.Sprint("cache-", n)), Store: store()}
	}
	r, err := Init(p.Context(), url, nil, opts())
	must(p, err)
	defer r.Close()
	f(p, r, func() *Repository {
		r, err := Open(p.Context(), url, opts())
		must(p, err)
		p.Cleanup(func() { r.Close() })
		return r
	})
}

type inRepository func(t *testing.T, p *place, r *Repository, open func() *Repository)

// eachStore is inStore for each kind of store.
func eachStore(t *testing.T, f inRepository) {
	t.Run("file", func(t *testing.T) {
		p := newPlace(t)
		inStore(p, p.repo, func() remote.Store { return nil }, func(p *place, r *Repository, open func() *Repository) { f(t, p, r, open) })
	})
	t.Run("memory", func(t *testing.T) { inMemory(t, f) })
	t.Run("s3", func(t *testing.T) {
		b := newBucket(t)
		inStore(b.place, "", func() remote.Store { return b.store(nil) }, func(p *place, r *Repository, open func() *Repository) { f(t, p, r, open) })
	})
}

// inMemory is inStore for one in memory.
func inMemory(t *testing.T, f inRepository) {
	m := remotetest.NewMemory()
	inStore(newPlace(t), "", func() remote.Store { return m }, func(p *place, r *Repository, open func() *Repository) { f(t, p, r, open) })
}

// alter replaces an object's bytes, whatever the store; nil deletes it.
func alter(t testing.TB, r *Repository, name string, f func([]byte) []byte) {
	t.Helper()
	ctx := t.Context()
	b, err := r.repo.Store.Get(ctx, name)
	must(t, err)
	must(t, r.repo.Store.Delete(ctx, name))
	if b = f(slices.Clone(b)); b != nil {
		must(t, r.repo.Store.Put(ctx, name, b))
	}
}

func flipAt(at int) func([]byte) []byte {
	return func(b []byte) []byte { b[at] ^= 0x10; return b }
}

// TestVerifyFindsFiles: of a damaged frame exactly those files are named, in every
// snapshot, whose bytes are gone, with data read or not as far as that can be known;
// and a reader finds the same.
func TestVerifyFindsFiles(t *testing.T) {
	eachStore(t, func(t *testing.T, p *place, r *Repository, open func() *Repository) {
		files := map[string]string{}
		for i := range 6 { // frames of their own
			files["d/"+string(rune('a'+i))] = string(random(uint64(i), 900_000))
		}
		src := p.files("src", files)
		first := complete(t, r, src, &CreateOptions{Name: "one"})
		writeFile(t, src+"/later", random(77, 900_000))
		must(t, os.Remove(src+"/d/a"))
		second := complete(t, r, src, &CreateOptions{Name: "two"})
		pack := repo.PackName(packsOf(t, r, first.ID, chunk.DataPack)[0])
		alter(t, r, pack, flipAt(20)) // in the frame of d/a and maybe another one

		// The bytes are read by no one: nothing to see.
		clean(t, r, nil)
		rep := verify(t, r, &snapshot.VerifyOptions{ReadData: 1, MaxFiles: -1})
		if len(rep.Findings) != 1 || rep.Findings[0].Object != pack || !errors.Is(rep.Err(), snapshot.ErrIntegrity) || rep.Damaged() != 1 {
			t.Fatalf("%+v", rep.Findings)
		}
		hit := rep.Findings[0].Affected
		if len(hit) != 1 || hit[0].ID != first.ID || hit[0].Name != "one" || hit[0].Files != 1 || !slices.Equal(hit[0].Paths, []string{"d/a"}) || len(hit[0].Ranges) > 0 {
			t.Errorf("%+v", hit)
		}
		clean(t, r, nil)
		_, err := r.Restore(t.Context(), second.ID.String(), p.path("out"), nil)
		must(t, err)

		// Cut in half: what lies behind is lost, to both of them.
		alter(t, r, pack, func(b []byte) []byte { return b[:len(b)/2] })
		rep = verify(t, r, &snapshot.VerifyOptions{MaxFiles: 2})
		if len(rep.Findings) != 1 || len(rep.Findings[0].Affected) != 2 {
			t.Fatalf("%+v", rep.Findings)
		}
		for _, a := range rep.Findings[0].Affected {
			if a.Files < 3 || len(a.Paths) != 2 {
				t.Errorf("%+v", a)
			}
			s, err := view.Open(t.Context(), open().repo, a.ID.String())
			must(t, err)
			if _, err := s.ReadFile(a.Paths[0]); !errors.Is(err, snapshot.ErrIntegrity) {
				t.Errorf("%s is said to be lost: %v", a.Paths[0], err)
			}
		}

		// Gone.
		must(t, r.repo.Store.Delete(t.Context(), pack))
		rep = verify(t, r, nil, "two")
		if len(rep.Findings) != 2 || rep.Findings[1].Object != pack || len(rep.Findings[1].Affected) != 1 || rep.Findings[1].Affected[0].Files != 5 {
			t.Errorf("%+v", rep.Findings)
		}
		if !strings.HasPrefix(rep.Findings[0].Object, repo.SegmentPrefix) {
			t.Errorf("a segment lists a pack that is missing: %+v", rep.Findings[0])
		}
	})
}

// TestVerifyPages: what a damaged page names cannot be named, but counted; pages of
// the tree are found damaged without reading data.
func TestVerifyPages(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := manyFiles(p, "src")
	first := complete(t, r, src, nil)
	writeFile(t, src+"/dd/new", []byte("new"))
	second := complete(t, r, src, nil)
	clean(t, r, nil)

	m, err := r.repo.Manifest(t.Context(), first.ID)
	must(t, err)
	tree, err := m.Tree(r.repo)
	must(t, err)
	var parts []manifest.Part
	must(t, tree.Parts(t.Context(), func(p manifest.Part) error { parts = append(parts, p); return nil }, nil))
	leaf := parts[2] // of two and more; the first leaf holds the root
	name := repo.PackName(leaf.Pack)
	alter(t, r, name, flipAt(int(leaf.Frame.Offset+leaf.Frame.Stored/2)))
	rep := verify(t, r, nil)
	if len(rep.Findings) != 1 || rep.Findings[0].Object != name || len(rep.Findings[0].Affected) == 0 {
		t.Fatalf("%+v", rep.Findings)
	}
	a := rep.Findings[0].Affected[0]
	if a.ID != first.ID || a.Files != 0 || len(a.Ranges) != 1 || a.Ranges[0].Entries != int64(leaf.Entries) || a.Ranges[0].From != leaf.First.Path() {
		t.Errorf("%+v, %+v expected", a, leaf)
	}
	shared := slices.ContainsFunc(rep.Findings[0].Affected, func(a snapshot.Affected) bool { return a.ID == second.ID })
	if _, err := r.Restore(t.Context(), second.ID.String(), p.path("out"), nil); shared != errors.Is(err, snapshot.ErrIntegrity) {
		t.Errorf("said to be affected: %v, and restore: %v", shared, err)
	}
}

// TestVerifyExtents: a large file, whose extents are in pages.
func TestVerifyExtents(t *testing.T) {
	if testing.Short() {
		t.Skip("a large file")
	}
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"small": "x"})
	writeFile(t, src+"/huge", random(1, 210<<20)) // more than manifest.MaxInline chunks
	id := complete(t, r, src, nil).ID
	rep := clean(t, r, &snapshot.VerifyOptions{ReadData: 1})
	if rep.ReadBytes < 210<<20 {
		t.Errorf("%+v", rep)
	}
	// Its extents lie in a tree pack.
	for _, pack := range packsOf(t, r, id, chunk.TreePack) {
		alter(t, r, repo.PackName(pack), flipAt(40))
	}
	rep = verify(t, r, nil)
	if len(rep.Findings) != 1 || len(rep.Findings[0].Affected) != 1 || !slices.Equal(rep.Findings[0].Affected[0].Paths, []string{"huge"}) {
		t.Errorf("%+v", rep.Findings)
	}
}

// TestVerifyTable: a table that does not name all that the tree refers to, or says
// something else of it, is what garbage collection would be misled by.
func TestVerifyTable(t *testing.T) {
	for name, change := range map[string]func(m *manifest.Manifest){
		"pack left out":  func(m *manifest.Manifest) { m.Packs = m.Packs[1:] },
		"bytes":          func(m *manifest.Manifest) { m.Packs[0].Bytes++ },
		"files":          func(m *manifest.Manifest) { m.Files++ },
		"bytes of files": func(m *manifest.Manifest) { m.Bytes-- },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			r := p.init()
			id := complete(t, r, manyFiles(p, "src"), nil).ID
			m, err := r.repo.Manifest(t.Context(), id)
			must(t, err)
			change(m)
			data, err := m.Encode(r.repo.Codec)
			must(t, err)
			alter(t, r, id.ObjectName(), func([]byte) []byte { return data })
			rep := verify(t, r, nil)
			if len(rep.Findings) != 1 || rep.Findings[0].Object != id.ObjectName() || !errors.Is(rep.Err(), snapshot.ErrIntegrity) {
				t.Errorf("%+v", rep.Findings)
			}
		})
	}
}

// TestVerifyHostile: an extent that is not where its pack's index has the chunk.
func TestVerifyHostile(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"f": "contents of a file"})
	good := complete(t, r, src, nil)
	s, err := view.Open(t.Context(), r.repo, good.ID.String())
	must(t, err)
	var e manifest.Entry
	_, err = s.Tree().Lookup(t.Context(), manifest.Key{Name: "f"}, &e)
	must(t, err)
	e.Extents[0].Offset++
	e.Extents[0].Length--
	e.Size--
	id := forge(t, r, e)
	rep := verify(t, r, nil)
	i := slices.IndexFunc(rep.Findings, func(f snapshot.Finding) bool { return f.Object == repo.PackName(e.Extents[0].Pack) })
	if i < 0 || len(rep.Findings[i].Affected) != 1 || rep.Findings[i].Affected[0].ID != id {
		t.Errorf("%+v", rep.Findings)
	}
}

// TestVerifyRace: what is removed, and what comes, while a repository is verified is
// no damage.
func TestVerifyRace(t *testing.T) {
	w := newWobbly(t)
	_, _ = w.snapshot()
	r := w.open()
	writeFile(t, w.path("src", "dir", "more"), random(99, 200_000))
	second := complete(t, r, w.path("src"), nil)
	segments, err := r.repo.ListSegments(t.Context())
	must(t, err)
	var calls atomic.Int64
	w.fail(func(op remote.Op, name string) remotetest.Fault {
		if op == remote.OpList && name == gc.PacksPrefix {
			calls.Add(1)
			// The snapshot goes, and a collector takes what only it held.
			ctx := context.Background()
			only := packsOf(t, &Repository{repo: &repo.Repo{Store: w.mem, Codec: r.repo.Codec, Ahead: nil, Logger: r.repo.Logger}}, second.ID, chunk.DataPack)
			must(t, w.mem.Delete(ctx, second.ID.ObjectName()))
			for _, id := range segments {
				b, err := w.mem.Get(ctx, repo.SegmentPrefix+id.String())
				must(t, err)
				if strings.Contains(string(b), string(only[len(only)-1][:])) {
					must(t, w.mem.Delete(ctx, repo.SegmentPrefix+id.String()))
				}
			}
		}
		return remotetest.Fault{}
	})
	rep := verify(t, r, nil)
	if rep.Damaged() != 0 || calls.Load() != 1 || rep.Snapshots != 1 {
		t.Errorf("%+v", rep)
	}
}

// TestVerifyResume: a run that was stopped is gone on with; what was damaged is read
// again, and so is what came meanwhile.
func TestVerifyResume(t *testing.T) {
	w := newWobbly(t)
	r, err := Init(t.Context(), "", nil, w.options())
	must(t, err)
	defer r.Close()
	src := w.path("src")
	for i := range 2*check.PacksAtOnce(r.repo) + 1 {
		writeFile(t, src+"/f", random(uint64(i), 50_000))
		complete(t, r, src, nil)
	}
	var packs []chunk.PackID
	must(t, w.mem.List(t.Context(), gc.PacksPrefix, func(o remote.Info) error {
		id, err := repo.ParsePackName(o.Name)
		packs = append(packs, id)
		return err
	}))
	alter(t, r, repo.PackName(packs[1]), flipAt(30))
	all := len(packs)
	last := repo.PackName(packs[all-1])
	// Trees are read first: the run is stopped while packs are read only if that one is
	// none of a tree.
	if packsKind(t, w.mem, packs[all-1]) == chunk.TreePack {
		t.Skip("that one is a tree pack")
	}
	var reads atomic.Int64
	// The first pack may still be read when the last one is asked for, and then there is
	// nothing to go on from.
	for tries := 0; r.repo.Cache.Read(check.ReadLogKind, check.ReadLogName) == nil; tries++ {
		if tries == 100 {
			t.Fatal("no run that was stopped has noted what it read")
		}
		ctx, cancel := context.WithCancel(t.Context())
		w.fail(func(op remote.Op, name string) remotetest.Fault {
			if name == last {
				cancel()
			}
			return remotetest.Fault{}
		})
		if _, err := check.Verify(ctx, r.repo, nil, &snapshot.VerifyOptions{ReadData: 1}); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		cancel()
	}
	w.fail(func(op remote.Op, name string) remotetest.Fault {
		if name == repo.PackName(packs[1]) {
			reads.Add(1)
		}
		return remotetest.Fault{}
	})
	if _, err := check.Verify(t.Context(), r.repo, nil, &snapshot.VerifyOptions{ReadData: 0.5, Resume: true}); !errors.Is(err, snapshot.ErrInvalid) {
		t.Errorf("another share: %v", err)
	}
	rep := verify(t, r, &snapshot.VerifyOptions{ReadData: 1, Resume: true})
	if rep.Skipped == 0 || rep.Read == 0 || rep.Skipped+rep.Read != all || rep.SkippedSince.IsZero() {
		t.Errorf("%+v", rep)
	}
	if reads.Load() == 0 || rep.Damaged() != 1 || rep.Findings[0].Object != repo.PackName(packs[1]) {
		t.Errorf("the damaged pack was read %d times: %+v", reads.Load(), rep.Findings)
	}
	// That one is over.
	if rep = verify(t, r, &snapshot.VerifyOptions{ReadData: 1, Resume: true}); rep.Skipped != 0 || rep.Read != all {
		t.Errorf("%+v", rep)
	}
}

func packsKind(t testing.TB, s remote.Store, id chunk.PackID) chunk.PackKind {
	t.Helper()
	b := make([]byte, 16)
	must(t, s.ReadAt(t.Context(), repo.PackName(id), 0, b))
	return chunk.PackKind(b[9])
}

// TestVerifySample: a share of the packs, by bytes.
func TestVerifySample(t *testing.T) {
	w := newWobbly(t)
	r, err := Init(t.Context(), "", nil, w.options())
	must(t, err)
	defer r.Close()
	for i := range 30 {
		writeFile(t, w.path("src", "f"), random(uint64(i), 50_000+100*i))
		complete(t, r, w.path("src"), nil)
	}
	seen := map[int64]bool{}
	for range 6 {
		rep := clean(t, r, &snapshot.VerifyOptions{ReadData: 0.3})
		if share := float64(rep.ReadBytes) / float64(rep.PackBytes); share < 0.3 || share > 0.4 {
			t.Errorf("%d of %d bytes", rep.ReadBytes, rep.PackBytes)
		}
		seen[rep.ReadBytes] = true
	}
	if len(seen) < 2 {
		t.Error("it is always the same sample")
	}
	for _, share := range []float64{-0.1, 1.01} {
		if _, err := check.Verify(t.Context(), r.repo, nil, &snapshot.VerifyOptions{ReadData: share}); !errors.Is(err, snapshot.ErrInvalid) {
			t.Errorf("%v: %v", share, err)
		}
	}
}

// TestVerifyForeign: what is no object of a repository, by its name, is not damaged but
// somebody else's, wherever it lies; and gc leaves it alone.
func TestVerifyForeign(t *testing.T) {
	y := newYard(t)
	r := y.enter()
	id := complete(t, r, y.dirOf("a", 1), nil).ID.String()
	names := []string{
		"mine", "gc/mine", "hot/mine", "hot/" + id + "/mine", "index/mine", "keys/mine", "leases/mine",
		"leases/" + id + "/mine", "manifests/mine", "notes/mine", "notes/" + id + "/mine", "packs/mine",
	}
	for _, name := range names {
		must(t, y.mem.Put(t.Context(), name, []byte("mine")))
	}
	rep := verify(t, r, nil)
	if rep.Err() != nil || len(rep.Findings) != len(names) {
		t.Errorf("%v: %+v", rep.Err(), rep.Findings)
	}
	must(t, y.remove(r, manifest.ID(uuid.MustParse(id))))
	y.pass(yardGrace + time.Second)
	y.collectAll(r)
	if left := y.objects(""); !slices.Equal(left, slices.Sorted(slices.Values(append(names, repo.ConfigName)))) {
		t.Errorf("left: %q", left)
	}
}

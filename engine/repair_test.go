//go:build linux

package engine

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/check"
	"github.com/snapctl/snapctl/engine/internal/gc"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/engine/view"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// everyObject gives every object of a repository.
func everyObject(t testing.TB, r *Repository) map[string]string {
	t.Helper()
	all := map[string]string{}
	must(t, r.repo.Store.List(t.Context(), "", func(o remote.Info) error {
		b, err := r.repo.Store.Get(t.Context(), o.Name)
		all[o.Name] = string(b)
		return err
	}))
	return all
}

// repair runs Repair, first dry, which must change nothing and say the same.
func repair(t testing.TB, r *Repository, opts snapshot.RepairOptions) *snapshot.RepairReport {
	t.Helper()
	before := everyObject(t, r)
	opts.Apply = false
	dry, err := check.Repair(t.Context(), r.repo, &opts)
	must(t, err)
	if !maps.Equal(before, everyObject(t, r)) {
		t.Fatal("a dry run has changed something")
	}
	opts.Apply = true
	rep, err := check.Repair(t.Context(), r.repo, &opts)
	must(t, err)
	for i := range rep.Snapshots {
		a, b := &rep.Snapshots[i], &dry.Snapshots[i]
		if a.Files != b.Files || !slices.Equal(a.Lost, b.Lost) || !slices.Equal(a.Ranges, b.Ranges) || a.Nothing != b.Nothing || a.ID != b.ID {
			t.Errorf("dry: %+v\ndone: %+v", b, a)
		}
	}
	if dry.Indexed != rep.Indexed || dry.SavedChunks != rep.SavedChunks || len(dry.Snapshots) != len(rep.Snapshots) || len(dry.BadSegments) != len(rep.BadSegments) {
		t.Errorf("dry: %+v\ndone: %+v", dry, rep)
	}
	after := everyObject(t, r)
	for name := range before {
		// With a snapshot go its notes, and the manifest that is kept longer.
		removed := func(s snapshot.RepairedSnapshot) bool { return s.Removed && strings.Contains(name, s.ID.String()) }
		if _, ok := after[name]; !ok && !slices.Contains(rep.BadSegments, name) && !slices.ContainsFunc(rep.Snapshots, removed) {
			t.Errorf("%s is gone", name)
		}
	}
	return rep
}

// TestRepairIndex: without any index segment, or with damaged ones, all is listed
// again, and a create stores nothing anew.
func TestRepairIndex(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			in := eachStore
			if name != "halved" {
				in = inMemory
			}
			in(t, func(t *testing.T, p *place, r *Repository, open func() *Repository) {
				src := manyFiles(p, "src")
				complete(t, r, src, nil)
				writeFile(t, src+"/new", random(1, 100_000))
				complete(t, r, src, nil)
				segments, err := r.repo.ListSegments(t.Context())
				must(t, err)
				for _, id := range segments {
					file := p.path("segment")
					alter(t, r, repo.SegmentPrefix+id.String(), func(b []byte) []byte {
						writeFile(t, file, b)
						must(t, damage(file))
						b, _ = os.ReadFile(file)
						return b // nil if it was deleted
					})
				}
				bad := verify(t, open(), nil)
				if name != "deleted" && bad.Damaged() != len(segments) || name == "deleted" && (bad.Damaged() != 0 || len(bad.Findings) != 1) {
					t.Errorf("%+v", bad.Findings)
				}
				rep := repair(t, open(), snapshot.RepairOptions{})
				if rep.Indexed != bad.Packs || len(rep.Snapshots) > 0 || name != "deleted" && len(rep.BadSegments) != len(segments) {
					t.Errorf("%+v", rep)
				}
				clean(t, open(), &snapshot.VerifyOptions{ReadData: 1})
				if res := complete(t, open(), src, nil); res.NewBytes != 0 {
					t.Errorf("%d bytes are stored again", res.NewBytes)
				}
				if rep := repair(t, open(), snapshot.RepairOptions{}); !rep.Nothing() {
					t.Errorf("again: %+v", rep)
				}
			})
		})
	}
}

// survivors compares a repaired snapshot with the tree that it was made of: what is
// not said to be lost is there, byte for byte, and nothing else.
func survivors(t testing.TB, p *place, r *Repository, s *snapshot.RepairedSnapshot, want tree) {
	t.Helper()
	want = maps.Clone(want)
	for _, path := range s.Lost {
		if _, ok := want[path]; !ok {
			t.Errorf("%q is said to be lost, and never was there", path)
		}
		delete(want, path)
	}
	for _, lost := range s.Ranges {
		n := int64(0)
		for path := range want {
			k := manifest.KeyOf(path)
			if k.Compare(manifest.KeyOf(lost.From)) >= 0 && (lost.Before == "" || k.Compare(manifest.KeyOf(lost.Before)) < 0) {
				delete(want, path)
				n++
			}
		}
		if n != lost.Entries {
			t.Errorf("%+v, %d entries are in it", lost, n)
		}
	}
	out := p.path("survivors")
	restore(t, r, s.New.String(), out, &RestoreOptions{Verify: true})
	got := scan(t, out)
	for _, dir := range s.Made {
		if n, ok := got[dir]; !ok || n.Mode != 0o40755 {
			t.Errorf("directory %q: %+v", dir, n)
		}
		delete(got, dir)
	}
	for path, n := range got {
		n.Same = "" // the first name of a file may be lost
		got[path] = n
		if w, ok := want[path]; ok {
			w.Same = ""
			want[path] = w
		}
	}
	compare(t, want, got)
	must(t, os.RemoveAll(out))
}

// TestRepairData: of a snapshot with a damaged pack all but what is lost is in a new
// one, which needs nothing of the damaged pack; the old one stays, or goes.
func TestRepairData(t *testing.T) {
	eachStore(t, func(t *testing.T, p *place, r *Repository, open func() *Repository) {
		src := manyFiles(p, "src")
		must(t, os.Link(src+"/large", src+"/linked"))
		first := complete(t, r, src, &CreateOptions{Name: "app", Tags: map[string]string{"k": "v"}, TTL: time.Hour})
		until := time.Now().Add(400 * 24 * time.Hour)
		_, err := retain.Change(t.Context(), r.repo, &snapshot.Changes{SetTags: map[string]string{"since": "then"}, Until: until}, first.ID.String())
		must(t, err)
		want := scan(t, src)
		writeFile(t, src+"/other", random(5, 100))
		second := complete(t, r, src, &CreateOptions{Name: "app"})
		damagedPack := packsOf(t, r, first.ID, chunk.DataPack)[0]
		alter(t, r, repo.PackName(damagedPack), flipAt(100_000))
		r = open()
		found := verify(t, r, &snapshot.VerifyOptions{ReadData: 1, MaxFiles: -1})
		if found.Damaged() != 1 {
			t.Fatalf("%+v", found.Findings)
		}
		rep := repair(t, r, snapshot.RepairOptions{ReadData: true})
		if len(rep.Snapshots) != 2 || rep.SavedChunks == 0 || rep.BytesWritten == 0 || len(rep.BadSegments) != 1 {
			t.Fatalf("%+v", rep)
		}
		s := &rep.Snapshots[0]
		if s.ID != first.ID || len(s.Lost) == 0 || s.Nothing || s.Removed || s.New.IsZero() || s.Before {
			t.Fatalf("%+v", s)
		}
		survivors(t, p, r, s, want)
		info, err := r.Get(t.Context(), s.New.String())
		must(t, err)
		if !info.Incomplete || info.Unreadable != int64(len(s.Lost)) || *info.Parent != first.ID || info.Name != "app" || info.Tags["k"] != "v" ||
			info.Tags["since"] != "then" || info.ExpiresAt == nil || !info.ExpiresAt.Equal(until) || s.New.Class() != 0 || !info.CreatedAt.Equal(first.CreatedAt) || info.Files != s.Files {
			t.Errorf("%+v", info)
		}
		for _, ref := range []struct {
			ref string
			id  manifest.ID
		}{{"app", rep.Snapshots[1].New}, {"app~1", second.ID}, {"app~2", s.New}, {"app~3", first.ID}} {
			if got, err := r.Get(t.Context(), ref.ref); err != nil || got.ID != ref.id {
				t.Errorf("%s is %v now, not %v: %v", ref.ref, got, ref.id, err)
			}
		}
		m, err := r.repo.Manifest(t.Context(), s.New)
		must(t, err)
		if slices.ContainsFunc(m.Packs, func(u manifest.PackUse) bool { return u.ID == damagedPack }) {
			t.Error("the new snapshot needs the damaged pack")
		}

		// Again it finds what it has done, and removes on request what is of no use.
		rep = repair(t, r, snapshot.RepairOptions{ReadData: true, RemoveDamaged: true})
		if len(rep.Snapshots) != 2 || rep.Snapshots[0].New != s.New || !rep.Snapshots[0].Before || !rep.Snapshots[1].Removed || rep.BytesWritten != 0 {
			t.Errorf("%+v", rep)
		}
		after := verify(t, r, &snapshot.VerifyOptions{ReadData: 1})
		// The pack is still there, and nothing needs it.
		if after.Snapshots != 2 || after.Damaged() != 1 || len(after.Findings[0].Affected) != 0 {
			t.Errorf("%+v", after)
		}
		writeFile(t, src+"/large", random(9999, 3<<20)) // what it lost comes again
		res := complete(t, open(), src, nil)
		clean(t, r, &snapshot.VerifyOptions{ReadData: 1}, res.ID.String())
	})
}

// TestRepairElsewhere: what lies in another pack too is not lost.
func TestRepairElsewhere(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := manyFiles(p, "src")
	first := complete(t, r, src, nil)
	want := scan(t, src)
	// Whoever does not know of it stores all of it again.
	segments, err := r.repo.ListSegments(t.Context())
	must(t, err)
	for _, id := range segments {
		must(t, r.repo.Store.Delete(t.Context(), repo.SegmentPrefix+id.String()))
	}
	second := complete(t, p.open("other"), src, nil)
	if second.NewBytes == 0 {
		t.Fatal("that is no test")
	}
	// Trees name packs, and are never the same.
	for _, pack := range packsOf(t, r, first.ID, chunk.DataPack) {
		alter(t, r, repo.PackName(pack), func(b []byte) []byte { clear(b); return b[:len(b)-1] })
	}
	r = p.open("fresh")
	rep := repair(t, r, snapshot.RepairOptions{})
	if len(rep.Snapshots) != 1 || rep.Snapshots[0].LostEntries() != 0 || rep.Snapshots[0].ID != first.ID {
		t.Fatalf("%+v", rep)
	}
	survivors(t, p, r, &rep.Snapshots[0], want)
	if info, err := r.Get(t.Context(), rep.Snapshots[0].New.String()); err != nil || info.Incomplete {
		t.Errorf("%+v, %v", info, err)
	}
}

// TestRepairTree: of a snapshot whose tree is damaged all that can be found is in a
// new one, also what is below directories that are lost themselves.
func TestRepairTree(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := manyFiles(p, "src")
	for i := range 300 { // directories whose entries are in other pages than what is in them
		writeFile(t, src+"/many/"+strings.Repeat("long name ", 15)+chunk.ID{byte(i), byte(i >> 8)}.String()+"/sub/f", random(uint64(i), 50))
	}
	must(t, os.Link(src+"/large", src+"/zlinked"))
	first := complete(t, r, src, nil)
	want := scan(t, src)
	m, err := r.repo.Manifest(t.Context(), first.ID)
	must(t, err)
	tree, err := m.Tree(r.repo)
	must(t, err)
	var parts []manifest.Part
	must(t, tree.Parts(t.Context(), func(p manifest.Part) error { parts = append(parts, p); return nil }, nil))
	if len(parts) < 6 {
		t.Fatal("that is no test")
	}
	pristine := everyObject(t, r)
	made := 0
	for i, part := range parts {
		if part.IsRoot() {
			continue
		}
		name := repo.PackName(part.Pack)
		alter(t, r, name, func([]byte) []byte {
			b := []byte(pristine[name])
			b[int(part.Frame.Offset+part.Frame.Stored/2)] ^= 4
			return b
		})
		r := p.open("fresh")
		rep := repair(t, r, snapshot.RepairOptions{})
		if len(rep.Snapshots) != 1 || rep.Snapshots[0].LostEntries() < int64(part.Entries) || rep.Snapshots[0].Nothing {
			t.Fatalf("page %d: %+v", i, rep)
		}
		survivors(t, p, r, &rep.Snapshots[0], want)
		made += len(rep.Snapshots[0].Made)
		clean(t, r, nil, rep.Snapshots[0].New.String())
		// As it was.
		for name := range everyObject(t, r) {
			if _, ok := pristine[name]; !ok {
				must(t, r.repo.Store.Delete(t.Context(), name))
			}
		}
		for name, b := range pristine {
			must(t, r.repo.Store.Delete(t.Context(), name))
			must(t, r.repo.Store.Put(t.Context(), name, []byte(b)))
		}
		must(t, r.Close())
	}
	if made == 0 {
		t.Error("no directory was lost of which something is left")
	}
}

// TestRepairManifest: a manifest that cannot be read is lost, unless a mount has it in
// its lease.
func TestRepairManifest(t *testing.T) {
	w := newWobbly(t)
	id, _ := w.snapshot()
	r := w.open()
	_, encoded, err := r.repo.EncodedManifest(t.Context(), id)
	must(t, err)
	alter(t, r, id.ObjectName(), flipAt(100))
	rep := repair(t, w.open(), snapshot.RepairOptions{})
	if len(rep.Snapshots) != 1 || !rep.Snapshots[0].Nothing || !errors.Is(rep.Snapshots[0].Why, snapshot.ErrIntegrity) || rep.Snapshots[0].Removed {
		t.Errorf("%+v", rep)
	}
	lease := &manifest.Lease{Hold: write.LeaseHold, Manifest: encoded}
	object, err := lease.Encode()
	must(t, err)
	must(t, r.repo.Store.Put(t.Context(), write.LeasePrefix+id.String()+"/01a20950-ee91-776f-9786-6056b138ef00", object))
	rep = repair(t, w.open(), snapshot.RepairOptions{RemoveDamaged: true})
	if len(rep.Snapshots) != 1 || rep.Snapshots[0].Nothing || !rep.Snapshots[0].Removed || rep.Snapshots[0].LostEntries() != 0 {
		t.Fatalf("%+v", rep)
	}
	survivors(t, w.place, w.open(), &rep.Snapshots[0], scan(t, w.path("src")))
	clean(t, w.open(), &snapshot.VerifyOptions{ReadData: 1})
	// One that nobody has goes only if it is to.
	alter(t, r, rep.Snapshots[0].New.ObjectName(), flipAt(100))
	rep = repair(t, w.open(), snapshot.RepairOptions{RemoveDamaged: true})
	if len(rep.Snapshots) != 1 || !rep.Snapshots[0].Removed || !rep.Snapshots[0].Nothing {
		t.Errorf("%+v", rep)
	}
}

// TestRepairNotes: what is said of a snapshot that lost something is said of what is left
// of it, and where nobody can know when it ends it does not.
func TestRepairNotes(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := manyFiles(p, "src")
	pinned := complete(t, r, src, &CreateOptions{Name: "old", TTL: time.Hour}).ID
	changed(t, r, pinned.String(), &snapshot.Changes{Name: renamed("new").Name, Pin: true})
	unknown := complete(t, r, src, &CreateOptions{TTL: time.Hour}).ID
	changed(t, r, unknown.String(), &snapshot.Changes{Until: time.Now().Add(100 * time.Hour)})
	alter(t, r, objects(t, r.repo.Store, unknown.NotesOf())[0], flipAt(60))
	alter(t, r, repo.PackName(packsOf(t, r, pinned, chunk.DataPack)[0]), flipAt(100_000))
	r = p.open("fresh")
	rep := repair(t, r, snapshot.RepairOptions{ReadData: true, RemoveDamaged: true})
	if len(rep.Snapshots) != 2 || rep.Snapshots[0].ID != pinned || rep.Snapshots[0].Name != "new" {
		t.Fatalf("%+v", rep.Snapshots)
	}
	for _, f := range rep.Found.Findings {
		if len(f.Affected) > 0 && f.Affected[0].Name != "new" {
			t.Errorf("%+v", f)
		}
	}
	if s, err := r.Get(t.Context(), "new"); err != nil || s.ID != rep.Snapshots[0].New || !s.Pinned {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := r.Get(t.Context(), rep.Snapshots[1].New.String()); err != nil || s.ExpiresAt != nil {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestRepairKept: of two copies of a manifest one is enough, and both are looked at.
func TestRepairKept(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"f": "text"})
	id := complete(t, r, src, &CreateOptions{TTL: time.Hour}).ID
	changed(t, r, id.String(), &snapshot.Changes{Pin: true})
	clean(t, r, nil)
	good, err := r.repo.Store.Get(t.Context(), id.KeptName())
	must(t, err)
	alter(t, r, id.KeptName(), flipAt(100))
	if rep := verify(t, p.open("a"), nil); rep.Damaged() != 1 || rep.Findings[0].Object != id.KeptName() || len(rep.Findings[0].Affected) > 0 {
		t.Errorf("%+v", rep.Findings)
	}
	must(t, r.repo.Store.Delete(t.Context(), id.ObjectName()))
	if rep := verify(t, p.open("b"), nil); rep.Damaged() != 1 || rep.Findings[0].Object != id.KeptName() || len(rep.Findings[0].Affected) != 1 {
		t.Errorf("%+v", rep.Findings)
	}
	alter(t, r, id.KeptName(), func([]byte) []byte { return good })
	must(t, r.repo.Store.Put(t.Context(), id.ObjectName(), good[1:]))
	rep := repair(t, p.open("c"), snapshot.RepairOptions{RemoveDamaged: true})
	if len(rep.Snapshots) != 1 || rep.Snapshots[0].Nothing || !rep.Snapshots[0].Removed {
		t.Fatalf("%+v", rep.Snapshots)
	}
	survivors(t, p, p.open("d"), &rep.Snapshots[0], scan(t, src))
	clean(t, p.open("e"), nil)
}

// TestRepairGuarded: repair is a writer: what is doomed neither comes into the index
// nor into a snapshot.
func TestRepairGuarded(t *testing.T) {
	w := newWobbly(t)
	id, _ := w.snapshot()
	r := w.open()
	writeFile(t, w.path("src", "more"), random(50, 300_000))
	second := complete(t, r, w.path("src"), nil)
	shared := packsOf(t, r, id, chunk.DataPack)
	var doomed repo.Tombstone
	for _, pack := range shared {
		doomed.Packs = append(doomed.Packs, repo.DoomedPack{Id: pack, Size: 1})
	}
	doomed.Sort()
	must(t, r.repo.Store.Put(t.Context(), repo.GcPrefix+"01a20950-ee91-776f-9786-6056b138ef00", doomed.Encode()))
	segments, err := r.repo.ListSegments(t.Context())
	must(t, err)
	for _, s := range segments {
		must(t, r.repo.Store.Delete(t.Context(), repo.SegmentPrefix+s.String()))
	}
	// What only the second needs is damaged.
	for _, pack := range packsOf(t, r, second.ID, chunk.DataPack) {
		if !slices.Contains(shared, pack) {
			alter(t, r, repo.PackName(pack), func(b []byte) []byte { clear(b); return b })
		}
	}
	rep := repair(t, w.open(), snapshot.RepairOptions{})
	if len(rep.Snapshots) != 1 || !slices.Equal(rep.Snapshots[0].Lost, []string{"more"}) {
		t.Fatalf("%+v", rep)
	}
	m, err := r.repo.Manifest(t.Context(), rep.Snapshots[0].New)
	must(t, err)
	for _, use := range m.Packs {
		if slices.Contains(shared, use.ID) {
			t.Error("the new snapshot refers to what is doomed")
		}
	}
	segments, err = r.repo.ListSegments(t.Context())
	must(t, err)
	for _, id := range segments {
		s, err := r.repo.Segment(t.Context(), id)
		must(t, err)
		for _, p := range s.Packs {
			if slices.Contains(shared, p.ID) {
				t.Error("the index has what is doomed")
			}
		}
	}
}

// TestRepairHostile: a manifest that tells lies of a good pack costs nobody but itself.
func TestRepairHostile(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"f": "contents of a file", "g": "of another"})
	good := complete(t, r, src, nil)
	s, err := view.Open(t.Context(), r.repo, good.ID.String())
	must(t, err)
	var f, g manifest.Entry
	for name, e := range map[string]*manifest.Entry{"f": &f, "g": &g} {
		_, err = s.Tree().Lookup(t.Context(), manifest.Key{Name: name}, e)
		must(t, err)
	}
	f.Extents[0].Offset++
	f.Extents[0].Length--
	f.Size--
	id := forge(t, r, f, g)
	rep := repair(t, r, snapshot.RepairOptions{ReadData: true})
	if len(rep.Doomed) > 0 || len(rep.Snapshots) != 1 || rep.Snapshots[0].ID != id || !slices.Equal(rep.Snapshots[0].Lost, []string{"f"}) || rep.Snapshots[0].Files != 1 {
		t.Errorf("%+v", rep)
	}
	clean(t, r, &snapshot.VerifyOptions{ReadData: 1}, good.ID.String(), rep.Snapshots[0].New.String())
	if res := complete(t, p.open("other"), src, nil); res.NewBytes != 0 {
		t.Errorf("%d bytes are stored again", res.NewBytes)
	}
}

// TestVerifyRepacked: a pack that was repacked and deleted is no damage: what snapshots
// need of it is where its tombstone says.
func TestVerifyRepacked(t *testing.T) {
	y, r, dir, id, pack := thinned(t)
	y.gc(r, nil)
	clean(t, r, &snapshot.VerifyOptions{ReadData: 1})
	y.pass(yardGrace + time.Second)
	y.gc(r, nil)
	if y.has(pack) {
		t.Fatal("that is no test")
	}
	clean(t, y.enter(), &snapshot.VerifyOptions{ReadData: 1})
	if rep := repair(t, y.enter(), snapshot.RepairOptions{ReadData: true}); !rep.Nothing() {
		t.Errorf("%+v", rep)
	}
	// And where that is damaged, it is damage.
	for _, name := range y.objects(gc.PacksPrefix) {
		alter(t, r, name, func(b []byte) []byte { clear(b); return b })
	}
	r = y.enter()
	rep := repair(t, r, snapshot.RepairOptions{ReadData: true})
	if len(rep.Snapshots) != 1 || rep.Snapshots[0].ID != id || !slices.Contains(rep.Snapshots[0].Lost, "0") || len(rep.Doomed) == 0 {
		t.Errorf("%s: %+v", dir, rep)
	}
}

// TestRepairStopped: wherever a repair stops, what could be read before can be read, and
// the next one ends where one that was not stopped does.
func TestRepairStopped(t *testing.T) {
	seed := remotetest.NewMemory()
	p := newPlace(t)
	r, err := Init(t.Context(), "", nil, &Options{CacheDir: p.cache, Store: seed})
	must(t, err)
	defer r.Close()
	src := p.files("src", map[string]string{"a": string(random(1, 900_000)), "b": string(random(2, 900_000)), "c": "3"})
	first := complete(t, r, src, nil)
	firstTree := scan(t, src)
	must(t, os.Remove(src+"/a"))
	second := complete(t, r, src, nil) // which shares the pack, and not what is lost of it
	secondTree := scan(t, src)
	alter(t, r, repo.PackName(packsOf(t, r, first.ID, chunk.DataPack)[0]), flipAt(20))
	before := everyObject(t, r)

	var writes atomic.Int64
	for stop := int64(1); ; stop++ {
		mem := remotetest.NewMemory()
		for name, b := range before {
			must(t, mem.Put(t.Context(), name, []byte(b)))
		}
		writes.Store(0)
		stopped := errors.New("stopped")
		store := remotetest.NewFaulty(mem, func(op remote.Op, _ string) remotetest.Fault {
			if op == remote.OpPut || op == remote.OpDelete {
				if writes.Add(1) >= stop {
					return remotetest.Fault{Err: stopped}
				}
			}
			return remotetest.Fault{}
		})
		cut, err := Open(t.Context(), "", &Options{CacheDir: t.TempDir(), Store: store, patience: calm()})
		must(t, err)
		_, err = check.Repair(t.Context(), cut.repo, &snapshot.RepairOptions{Apply: true, ReadData: true, RemoveDamaged: true})
		cut.Close()
		if err != nil && !errors.Is(err, stopped) {
			t.Fatal(err)
		}
		fresh, err := Open(t.Context(), "", &Options{CacheDir: t.TempDir(), Store: mem})
		must(t, err)
		holds := func() {
			out := t.TempDir() + "/out"
			restore(t, fresh, second.ID.String(), out, nil)
			compare(t, secondTree, scan(t, out))
		}
		holds()
		if err != nil || writes.Load() >= stop {
			_, err := check.Repair(t.Context(), fresh.repo, &snapshot.RepairOptions{Apply: true, ReadData: true, RemoveDamaged: true})
			must(t, err)
			holds()
		}
		all, err := fresh.List(t.Context(), nil)
		must(t, err)
		if len(all) != 2 || all[0].ID != second.ID || all[1].Parent == nil || *all[1].Parent != first.ID {
			t.Fatalf("stopped at write %d: %+v", stop, all)
		}
		survivors(t, p, fresh, &snapshot.RepairedSnapshot{New: all[1].ID, Lost: []string{"a"}}, firstTree)
		rep := verify(t, fresh, &snapshot.VerifyOptions{ReadData: 1})
		if rep.Damaged() != 1 || len(rep.Findings[0].Affected) > 0 {
			t.Errorf("stopped at write %d: %+v", stop, rep.Findings)
		}
		must(t, fresh.Close())
		if writes.Load() < stop {
			break
		}
	}
	if writes.Load() < 6 {
		t.Errorf("%d writes: that is no test", writes.Load())
	}
}

// TestRepairThenGC: gc, which refuses to run while a snapshot needs what is missing, runs
// again after a repair, and frees damaged packs.
func TestRepairThenGC(t *testing.T) {
	y := newYard(t)
	r := y.enter()
	dir := y.dirOf("a", 5)
	first := complete(t, r, dir, nil).ID
	for name := range y.packsOf(r, first) {
		alter(t, r, name, flipAt(20))
	}
	lost := y.dirOf("b", 2)
	writeFile(t, lost+"/own", random(999, 200_000))
	second := complete(t, r, lost, nil).ID
	for name := range y.packsOf(r, second) {
		if !y.packsOf(r, first)[name] {
			must(t, r.repo.Store.Delete(t.Context(), name))
		}
	}
	if _, err := gc.Run(t.Context(), r.repo, nil); !errors.Is(err, snapshot.ErrIntegrity) {
		t.Fatalf("gc with a pack missing: %v", err)
	}
	rep := repair(t, y.enter(), snapshot.RepairOptions{ReadData: true, RemoveDamaged: true})
	if len(rep.Snapshots) != 2 || len(rep.Doomed) == 0 {
		t.Fatalf("%+v", rep)
	}
	for range 2 {
		y.gc(y.enter(), nil)
		y.pass(yardGrace + time.Second)
	}
	y.gc(y.enter(), nil)
	for _, name := range rep.Doomed {
		if y.has(name) {
			t.Errorf("%s is still there", name)
		}
	}
	clean(t, y.enter(), &snapshot.VerifyOptions{ReadData: 1})
}

//go:build linux

package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/gc"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/internal/transfer"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
	"golang.org/x/sys/unix"
)

// emptyRepo makes a repository in memory.
func emptyRepo(t testing.TB) (*wobbly, *Repository) {
	t.Helper()
	w := newWobbly(t)
	r, err := Init(t.Context(), "", initOf(t), keyed(t, w.options()))
	must(t, err)
	t.Cleanup(func() { r.Close() })
	return w, r
}

func copyTo(t testing.TB, from, to *Repository, ids ...manifest.ID) []*snapshot.Copied {
	t.Helper()
	res, err := transfer.Run(t.Context(), from.repo, to.repo, refsOf(ids), nil)
	must(t, err)
	if len(res.Snapshots) != len(ids) {
		t.Fatalf("%d snapshots copied of %d", len(res.Snapshots), len(ids))
	}
	for i, s := range res.Snapshots {
		if s.ID != ids[i] {
			t.Fatalf("snapshot %d is %v, not %v", i, s.ID, ids[i])
		}
	}
	return res.Snapshots
}

func refsOf(ids []manifest.ID) (refs []string) {
	for _, id := range ids {
		refs = append(refs, id.String())
	}
	return refs
}

// sameSnapshot checks that two repositories say the same of a snapshot, entry for entry.
func sameSnapshot(t testing.TB, a, b *Repository, id manifest.ID) {
	t.Helper()
	ma, err := a.repo.Manifest(t.Context(), id)
	must(t, err)
	mb, err := b.repo.Manifest(t.Context(), id)
	must(t, err)
	if x, y := fmt.Sprintf("%+v", ma.Info), fmt.Sprintf("%+v", mb.Info); x != y {
		t.Errorf("the manifests say\n\t%s\n\t%s", x, y)
	}
	equalEntries(t, namesAlike(a, b, entriesOf(t, a, id)), namesAlike(a, b, entriesOf(t, b, id)))
	packsAreUsed(t, b, mb)
}

// namesAlike leaves out the ids of chunks if the repositories have different ones.
func namesAlike(a, b *Repository, entries []string) []string {
	if a.repo.Hasher.Alike(b.repo.Hasher) {
		return entries
	}
	var all []string
	for _, e := range entries {
		words := strings.Fields(e)
		for i, w := range words {
			if at, id, ok := strings.Cut(w, ":"); ok && len(id) == 2*chunk.IDSize {
				words[i] = at
			}
		}
		all = append(all, strings.Join(words, " "))
	}
	return all
}

// packsAreUsed checks a manifest's table of packs against what its tree refers to.
func packsAreUsed(t testing.TB, r *Repository, m *manifest.Manifest) {
	t.Helper()
	tree, err := m.Tree(r.repo)
	must(t, err)
	use := map[chunk.PackID]uint64{}
	must(t, tree.Uses(t.Context(), func(chunk.ID) bool { return true }, func(_ chunk.ID, at *chunk.Location) {
		use[at.Pack] += uint64(at.Length)
	}))
	for _, p := range m.Packs {
		if use[p.ID] != p.Bytes {
			t.Errorf("%d bytes of pack %v are used, the manifest says %d", use[p.ID], p.ID, p.Bytes)
		}
		delete(use, p.ID)
	}
	if len(use) > 0 {
		t.Errorf("packs that the manifest does not name: %v", use)
	}
}

// storedTwice gives the chunks of files that lie in more than one place of a repository.
func storedTwice(t testing.TB, r *Repository) (twice int) {
	t.Helper()
	seen := map[chunk.ID]bool{}
	must(t, r.repo.Store.List(t.Context(), gc.PacksPrefix, func(o remote.Info) error {
		id, err := chunk.ParsePackID(o.Name[strings.LastIndexByte(o.Name, '/')+1:])
		must(t, err)
		x, err := r.repo.PackIndex(t.Context(), id, o.Size)
		must(t, err)
		for c := range x.All(id) {
			if x.Kind == chunk.DataPack && seen[c] {
				twice++
			}
			seen[c] = true
		}
		return nil
	}))
	return twice
}

// TestCopy copies a tree with everything from a folder to memory, from there to memory
// with other names of chunks, and back to a folder.
func TestCopy(t *testing.T) {
	p := newPlace(t)
	first := p.smallChunks()
	src := p.path("src")
	plant(t, src)
	writeFile(t, src+"/many", random(3, 3<<20)) // its extents are in pages of their own
	writeFile(t, src+"/twice", random(3, 1<<20))
	for i := range unlessShort(1500, 300) {
		writeFile(t, fmt.Sprintf("%s/more/%d/%d", src, i%7, i), random(uint64(i), 200))
	}
	id := create(t, first, src, &CreateOptions{Name: "it", Tags: map[string]string{"k": "v"}, TTL: 48 * time.Hour}).ID
	if m, err := first.repo.Manifest(t.Context(), id); err != nil || !m.HardLinks {
		t.Errorf("no hard links: %v", err)
	}
	want := scan(t, src)

	_, second := emptyRepo(t)
	_, third := emptyRepo(t)
	third.repo.Hasher = chunk.NewKeyedHasher([32]byte{1, 2, 3})
	q := newPlace(t)
	fourth := q.init()
	at := first
	for i, to := range []*Repository{second, third, fourth} {
		got := copyTo(t, at, to, id)[0]
		if got.Existed || got.CopiedBytes == 0 || got.PutBytes == 0 {
			t.Errorf("%d: %+v", i, got)
		}
		sameSnapshot(t, at, to, id)
		if n := storedTwice(t, to); n > 0 {
			t.Errorf("%d: %d chunks are stored twice", i, n)
		}
		again := copyTo(t, at, to, id)[0]
		if !again.Existed || again.CopiedBytes != 0 || again.PutBytes != 0 {
			t.Errorf("%d, again: %+v", i, again)
		}
		for name := range leasesOf(t, to) {
			t.Errorf("%d: %s is left", i, name)
		}
		at = to
	}
	sameSnapshot(t, first, fourth, id)
	out := p.path("out")
	restore(t, fourth, "it", out, nil)
	compare(t, want, scan(t, out))

	// The next one, with a change in the middle of the many extents.
	f, err := os.OpenFile(src+"/many", os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("a change"), 1<<20)
	must(t, errors.Join(err, f.Close()))
	must(t, os.Remove(src+"/twice"))
	next := create(t, first, src, nil).ID
	at = first
	for i, to := range []*Repository{second, third, fourth} {
		if got := copyTo(t, at, to, next)[0]; got.CopiedBytes == 0 || got.CopiedBytes > 100_000 {
			t.Errorf("%d: %d bytes for a change of eight", i, got.CopiedBytes)
		}
		sameSnapshot(t, first, to, next)
		at = to
	}
	restore(t, fourth, next.String(), out, &RestoreOptions{Delete: true})
	compare(t, scan(t, src), scan(t, out))
}

// leasesOf gives the names of the leases in a repository.
func leasesOf(t testing.TB, r *Repository) map[string]bool {
	all := map[string]bool{}
	must(t, r.repo.Store.List(t.Context(), write.LeasePrefix, func(o remote.Info) error {
		all[o.Name] = true
		return nil
	}))
	return all
}

// TestCopyNotes: what was changed of a snapshot since it was made is so in the copy.
func TestCopyNotes(t *testing.T) {
	w, from := emptyRepo(t)
	src := w.files("src", map[string]string{"f": "1"})
	id := complete(t, from, src, &CreateOptions{Name: "old", TTL: time.Hour}).ID
	name := "new"
	_, err := retain.Change(t.Context(), from.repo, &snapshot.Changes{Name: &name, SetTags: map[string]string{"a": "b"}, Pin: true}, id.String())
	must(t, err)
	later := func() time.Time { return time.Now().Add(48 * time.Hour) }
	there, to := emptyRepo(t)
	setClocks(from, later)
	setClocks(to, later)
	copyTo(t, from, to, id)
	next := there.open()
	setClocks(next, later)
	s, err := next.Get(t.Context(), "new")
	must(t, err)
	if s.ID != id || !s.Pinned || s.Tags["a"] != "b" || s.ExpiresAt != nil {
		t.Errorf("%+v", s)
	}
	if _, err := there.mem.Get(t.Context(), id.KeptName()); err != nil {
		t.Error(err)
	}
}

// TestCopyMany copies snapshots that share most, in one call and one after the other: of
// the second only what differs is looked at.
func TestCopyMany(t *testing.T) {
	w, from := emptyRepo(t)
	src := w.path("src")
	for i := range 8000 {
		writeFile(t, fmt.Sprintf("%s/%02d/%03d", src, i%40, i), random(uint64(i), 150))
	}
	writeFile(t, src+"/large", random(1, 5<<20))
	var ids []manifest.ID
	for round := range 5 {
		writeFile(t, fmt.Sprintf("%s/20/changed", src), []byte{byte(round)})
		must(t, os.Remove(fmt.Sprintf("%s/20/%03d", src, 20+40*round)))
		if round == 2 {
			// Of a file that is read no more the number of links changes.
			must(t, os.Link(src+"/20/380", src+"/20/linked"))
		}
		ids = append(ids, complete(t, from, src, nil).ID)
	}
	want := scan(t, src)
	for name, hasher := range map[string]*chunk.Hasher{"alike": {}, "keyed": chunk.NewKeyedHasher([32]byte{9})} {
		t.Run(name, func(t *testing.T) {
			_, to := emptyRepo(t)
			to.repo.Hasher = hasher
			// The order is not that of their making.
			given := []manifest.ID{ids[2], ids[0], ids[1], ids[2]}
			res, err := transfer.Run(t.Context(), from.repo, to.repo, refsOf(given), nil)
			must(t, err)
			if len(res.Snapshots) != 3 || res.Snapshots[0].ID != ids[2] || res.Snapshots[1].ID != ids[0] {
				t.Fatalf("%+v", res.Snapshots)
			}
			for _, s := range res.Snapshots {
				if first := s.ID == ids[0]; (s.CopiedBytes > 5<<20) != first {
					t.Errorf("%d bytes copied, of the first: %v", s.CopiedBytes, first)
				}
			}
			before := to.Requests().Ops
			var said bytes.Buffer
			from.repo.Logger = slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelDebug}))
			last := copyTo(t, from, to, ids[3], ids[4])
			if n := last[1].CopiedBytes; n > 1000 {
				t.Errorf("%d bytes of the last", n)
			}
			if n := to.Requests().Ops.Sub(before)[remote.OpPut].Calls; n != 8 {
				t.Errorf("%d puts for two snapshots", n)
			}
			from.repo.Logger = slog.New(slog.DiscardHandler)
			if strings.Count(said.String(), "base=true frames=1\n") != 2 {
				t.Errorf("all of it was looked at:\n%s", &said)
			}
			for _, id := range ids[unlessShort(0, 3):] {
				sameSnapshot(t, from, to, id)
			}
			// What a copy makes of a base is what it makes of nothing, but for the places.
			_, alone := emptyRepo(t)
			alone.repo.Hasher = to.repo.Hasher
			copyTo(t, from, alone, ids[4])
			equalEntries(t, entriesOf(t, alone, ids[4]), entriesOf(t, to, ids[4]))
			out := w.path("out-" + name)
			restore(t, to, ids[4].String(), out, nil)
			compare(t, want, scan(t, out))
		})
	}
}

// TestCopyListsOnce: several names are looked up in one listing.
func TestCopyListsOnce(t *testing.T) {
	p := newPlace(t)
	_, from := emptyRepo(t)
	_, to := emptyRepo(t)
	src := p.files("src", map[string]string{"f": "x"})
	var refs []string
	for _, name := range []string{"one", "two", "three"} {
		create(t, from, src, &CreateOptions{Name: name})
		refs = append(refs, name)
	}
	before := from.Requests().List
	res, err := transfer.Run(t.Context(), from.repo, to.repo, refs, nil)
	must(t, err)
	// Of all manifests and of all notes, and of the notes of each before it is put.
	if n := from.Requests().List - before; n != 2+3 || len(res.Snapshots) != len(refs) {
		t.Errorf("%d lists for %d snapshots", n, len(res.Snapshots))
	}
}

// TestCopyKilled kills a copy at each of its operations there; the next one continues.
func TestCopyKilled(t *testing.T) {
	w, from := emptyRepo(t)
	src := w.path("src")
	for i := range 12 {
		writeFile(t, fmt.Sprintf("%s/%02d", src, i), random(uint64(i), 1<<20))
	}
	first := complete(t, from, src, nil).ID
	writeFile(t, src+"/new", random(100, 1<<20))
	second := complete(t, from, src, nil).ID
	want := scan(t, src)
	killed := errors.New("killed")
	for n := 0; ; n += unlessShort(1, 3) {
		there, to := emptyRepo(t)
		var k atomic.Int64
		there.fail(func(remote.Op, string) remotetest.Fault {
			if k := int(k.Add(1)); k > n {
				return remotetest.Fault{Err: killed, Done: k == n+1}
			}
			return remotetest.Fault{}
		})
		_, err := transfer.Run(t.Context(), from.repo, to.repo, refsOf([]manifest.ID{first, second}), nil)
		there.heal()
		if err != nil && !errors.Is(err, killed) {
			t.Fatalf("killed at operation %d: %v", n, err)
		}
		next := there.open()
		copyTo(t, from, next, first, second)
		sameSnapshot(t, from, next, first)
		sameSnapshot(t, from, next, second)
		if err == nil {
			t.Logf("%d operations", n)
			if n < 10 {
				t.Error("there are more than that")
			}
			out := w.path("out")
			restore(t, next, second.String(), out, nil)
			compare(t, want, scan(t, out))
			return
		}
	}
}

// TestCopyContinued: what a copy that failed had put is not put again.
func TestCopyContinued(t *testing.T) {
	for name, interrupted := range map[string]bool{"source away": false, "interrupted": true} {
		t.Run(name, func(t *testing.T) {
			w, from := emptyRepo(t)
			src := w.path("src")
			for i := range 60 {
				writeFile(t, fmt.Sprintf("%s/%02d", src, i), random(uint64(i), 1<<20))
			}
			id := complete(t, from, src, nil).ID
			there, to := emptyRepo(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			away := errors.New("away")
			var puts atomic.Int64
			there.fail(func(op remote.Op, name string) remotetest.Fault {
				if op == remote.OpPut && strings.HasPrefix(name, gc.PacksPrefix) && puts.Add(1) == 4 {
					if interrupted {
						cancel()
					} else {
						w.fail(func(remote.Op, string) remotetest.Fault { return remotetest.Fault{Err: away} })
					}
				}
				return remotetest.Fault{}
			})
			_, err := transfer.Run(ctx, from.repo, to.repo, []string{id.String()}, nil)
			w.heal()
			there.heal()
			switch {
			case interrupted && !errors.Is(err, context.Canceled):
				t.Fatal(err)
			case !interrupted && (!errors.Is(err, away) || !strings.Contains(err.Error(), "reading from repository") || !strings.Contains(err.Error(), id.String())):
				t.Fatal(err)
			}
			if list, err := there.open().List(t.Context(), nil); len(list) > 0 || err != nil {
				t.Errorf("%v, %v", list, err)
			}
			next := there.open()
			got := copyTo(t, from, next, id)[0]
			if got.CopiedBytes == 0 || got.CopiedBytes > 45<<20 {
				t.Errorf("%d bytes were copied then", got.CopiedBytes)
			}
			if n := storedTwice(t, next); n > 0 {
				t.Errorf("%d chunks are stored twice", n)
			}
			sameSnapshot(t, from, next, id)
		})
	}
}

// TestCopyEncrypted copies to a repository that is encrypted, to another one, and back.
func TestCopyEncrypted(t *testing.T) {
	w, from := emptyRepo(t)
	src := manyFiles(w.place, "src")
	id := complete(t, from, src, nil).ID
	at := from
	for range 2 {
		o := newWobbly(t).options()
		o.Identities = []age.Identity{testIdentity()}
		to, err := Init(t.Context(), "", &snapshot.InitOptions{Keys: []*snapshot.NewKey{{Recipient: testIdentity().Recipient()}}}, o)
		must(t, err)
		t.Cleanup(func() { to.Close() })
		copyTo(t, at, to, id)
		sameSnapshot(t, at, to, id)
		at = to
	}
	_, back := emptyRepo(t)
	copyTo(t, at, back, id)
	sameSnapshot(t, from, back, id)
	out := w.path("out")
	restore(t, back, id.String(), out, nil)
	compare(t, scan(t, src), scan(t, out))
}

// TestCopyTwice copies the same snapshots several times at once.
func TestCopyTwice(t *testing.T) {
	w, from := emptyRepo(t)
	src := manyFiles(w.place, "src")
	a := complete(t, from, src, nil).ID
	writeFile(t, src+"/more", random(1, 2<<20))
	b := complete(t, from, src, nil).ID
	there, _ := emptyRepo(t)
	var wg sync.WaitGroup
	var fresh atomic.Int64
	for range 4 {
		to := there.open()
		wg.Go(func() {
			res, err := transfer.Run(context.Background(), from.repo, to.repo, refsOf([]manifest.ID{a, b}), nil)
			if err != nil || len(res.Snapshots) != 2 {
				t.Errorf("%+v, %v", res, err)
				return
			}
			for _, s := range res.Snapshots {
				if !s.Existed {
					fresh.Add(1)
				}
			}
		})
	}
	wg.Wait()
	// Two that put the same bytes both did.
	if n := fresh.Load(); n < 2 {
		t.Errorf("%d snapshots were put first", n)
	}
	to := there.open()
	sameSnapshot(t, from, to, a)
	sameSnapshot(t, from, to, b)
}

// TestCopyTaken: a copy whose manifest cannot be put does not take back the one that
// another has put, be it another one or the same.
func TestCopyTaken(t *testing.T) {
	w, from := emptyRepo(t)
	id := complete(t, from, manyFiles(w.place, "src"), nil).ID
	for _, before := range []string{gc.PacksPrefix, manifest.Prefix} {
		there, to := emptyRepo(t)
		other := there.open()
		lost := errors.New("lost")
		var copied atomic.Bool
		there.fail(func(op remote.Op, name string) remotetest.Fault {
			if op == remote.OpPut && strings.HasPrefix(name, before) && copied.CompareAndSwap(false, true) {
				hook := there.hook.Load()
				there.heal()
				copyTo(t, from, other, id)
				there.hook.Store(hook)
			}
			if op == remote.OpPut && strings.HasPrefix(name, manifest.Prefix) {
				return remotetest.Fault{Err: lost}
			}
			return remotetest.Fault{}
		})
		_, err := transfer.Run(t.Context(), from.repo, to.repo, []string{id.String()}, nil)
		there.heal()
		// With a segment of its packs the other has put the same bytes.
		if err != nil && (!errors.Is(err, lost) || !strings.Contains(err.Error(), "writing to repository")) {
			t.Errorf("%s: %v", before, err)
		}
		sameSnapshot(t, from, to, id)
	}
}

// TestCopyAnswerLost: the manifest was put, and the answer lost.
func TestCopyAnswerLost(t *testing.T) {
	w, from := emptyRepo(t)
	id := complete(t, from, manyFiles(w.place, "src"), nil).ID
	there, to := emptyRepo(t)
	there.fail(func(op remote.Op, name string) remotetest.Fault {
		if op == remote.OpPut && strings.HasPrefix(name, manifest.Prefix) {
			return remotetest.Fault{Err: errors.New("lost"), Done: true}
		}
		return remotetest.Fault{}
	})
	if got := copyTo(t, from, to, id)[0]; got.Existed {
		t.Errorf("%+v", got)
	}
	sameSnapshot(t, from, to, id)
}

// TestCopyStale: a copy that is stopped for more than half a grace while it puts the
// manifest begins anew if what it refers to was collected meanwhile.
func TestCopyStale(t *testing.T) {
	here := newYard(t)
	from := here.enter()
	src := here.dirOf("a", 2)
	first := complete(t, from, src, nil).ID
	writeFile(t, src+"/new", random(7, 1000))
	second := complete(t, from, src, nil).ID
	for name, collect := range map[string]func(*yard, *Repository){
		"doomed":  func(y *yard, r *Repository) { y.gc(r, nil) },
		"deleted": func(y *yard, r *Repository) { y.collectAll(r) },
	} {
		t.Run(name, func(t *testing.T) {
			there := newYard(t)
			to := there.enter()
			copyTo(t, from, to, first)
			must(t, there.remove(to, first))
			there.pass(yardGrace + time.Second)
			old := there.objects(gc.PacksPrefix)
			collector := there.enter()
			there.at(remote.OpPut, manifest.Prefix, func() {
				collect(there, collector)
				there.pass(yardGrace/2 + time.Second)
			})
			copyTo(t, from, to, second)
			for p := range there.packsOf(to, second) {
				if slices.Contains(old, p) {
					t.Error("it refers to what is doomed")
				}
			}
			sameSnapshot(t, from, to, second)
			there.settle(to, second, scan(t, src))
		})
	}
}

// TestCopyS3 copies to a real bucket and back.
func TestCopyS3(t *testing.T) {
	b := newBucket(t)
	p := newPlace(t)
	from := p.init()
	src := manyFiles(p, "src")
	id := complete(t, from, src, nil).ID
	to := b.init()
	copyTo(t, from, to, id)
	sameSnapshot(t, from, b.open("second", nil), id)
	back := newPlace(t).init()
	copyTo(t, b.open("third", nil), back, id)
	sameSnapshot(t, from, back, id)
	out := p.path("out")
	restore(t, back, id.String(), out, nil)
	compare(t, scan(t, src), scan(t, out))
}

// TestCopyDamaged: of what is damaged or missing nothing is copied, and the error tells
// which repository, pack and files.
func TestCopyDamaged(t *testing.T) {
	for name, spoil := range map[string]func(string) error{
		"flipped": func(path string) error { return change(path, func(b []byte) []byte { b[1000] ^= 1; return b }) },
		"missing": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			from := p.init()
			files := map[string]string{}
			for i := range 12 {
				files[fmt.Sprintf("file-%02d", i)] = string(random(uint64(i), 1<<20))
			}
			src := p.files("src", files)
			id := complete(t, from, src, nil).ID
			m, err := from.repo.Manifest(t.Context(), id)
			must(t, err)
			var pack chunk.PackID
			tree, err := m.Tree(from.repo)
			must(t, err)
			var e manifest.Entry
			_, err = tree.Lookup(t.Context(), manifest.KeyOf("file-00"), &e)
			must(t, err)
			pack = e.Extents[0].Pack
			must(t, spoil(p.repo+"/"+repo.PackName(pack)))
			from = p.open("second")
			there, to := emptyRepo(t)
			res, err := transfer.Run(t.Context(), from.repo, to.repo, []string{id.String()}, nil)
			if !errors.Is(err, snapshot.ErrIntegrity) || len(res.Snapshots) > 0 {
				t.Fatalf("%+v, %v", res, err)
			}
			for _, want := range []string{id.String(), "reading from repository " + p.repo, pack.String(), `"file-00"`} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
			if several := strings.Contains(err.Error(), `"file-01"`); several != (name == "missing") {
				t.Error(err)
			}
			if list, err := there.open().List(t.Context(), nil); len(list) > 0 || err != nil {
				t.Errorf("%v, %v", list, err)
			}
		})
	}
}

// TestCopyDamagedBase: a snapshot that is damaged in the destination is nothing to begin
// with; what is stored of it in pages that are whole is referred to all the same.
func TestCopyDamagedBase(t *testing.T) {
	w, from := emptyRepo(t)
	src := w.path("src")
	for i := range 3000 {
		writeFile(t, fmt.Sprintf("%s/%02d/%03d", src, i%10, i), random(uint64(i), 150))
	}
	a := complete(t, from, src, nil).ID
	writeFile(t, src+"/05/005", []byte("new"))
	b := complete(t, from, src, nil).ID
	q := newPlace(t)
	copyTo(t, from, q.init(), a)
	for _, f := range filesBelow(t, q.repo+"/packs") {
		data, err := os.ReadFile(f)
		must(t, err)
		if chunk.PackKind(data[9]) == chunk.TreePack {
			must(t, change(f, func(b []byte) []byte { clear(b[20 : len(b)/2]); return b }))
		}
	}
	to := q.open("second")
	var warned warnings
	res, err := transfer.Run(t.Context(), from.repo, to.repo, []string{b.String()}, &snapshot.CopyOptions{Progress: &warned})
	if err != nil || len(res.Snapshots) != 1 {
		t.Fatal(err)
	}
	if !warned.about(a.String()) {
		t.Errorf("no warning: %v", warned.all)
	}
	sameSnapshot(t, from, q.open("third"), b)
}

// warnings is a Progress that keeps them.
type warnings struct {
	mu  sync.Mutex
	all []string
}

func (w *warnings) Update(snapshot.Stats) {}
func (w *warnings) Warn(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, err.Error())
}

func (w *warnings) about(text string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.all, func(s string) bool { return strings.Contains(s, text) })
}

// TestCopyToFull: the destination's disk is full.
func TestCopyToFull(t *testing.T) {
	p := newPlace(t)
	q := newPlace(t)
	q.repo = q.path("disk/repo")
	mount(t, q.path("disk"), "size=40m")
	from := p.init()
	src := p.files("src", map[string]string{"f": string(random(1, 12<<20))})
	id := complete(t, from, src, nil).ID
	to := q.init()
	makeRoom := fill(t, q.path("disk"), 9<<20)
	_, err := transfer.Run(t.Context(), from.repo, to.repo, []string{id.String()}, nil)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "writing to repository "+q.repo) {
		t.Error(err)
	}
	if list, err := to.List(t.Context(), nil); len(list) > 0 || err != nil {
		t.Errorf("%v, %v", list, err)
	}
	makeRoom()
	copyTo(t, from, to, id)
	sameSnapshot(t, from, to, id)
}

// TestCopyRefused: what cannot be copied.
func TestCopyRefused(t *testing.T) {
	w, from := emptyRepo(t)
	_, to := emptyRepo(t)
	src := w.files("src", map[string]string{"f": "1"})
	good := complete(t, from, src, &CreateOptions{Name: "good"}).ID
	late := complete(t, from, src, &CreateOptions{TTL: time.Hour}).ID
	setClocks(from, func() time.Time { return time.Now().Add(2 * time.Hour) })
	for name, c := range map[string]struct {
		to   *Repository
		refs []string
		err  error
	}{
		"expired": {to, []string{"good", late.String()}, snapshot.ErrExpired},
		"none":    {to, []string{"good", "other"}, snapshot.ErrNotFound},
		"nothing": {to, nil, snapshot.ErrInvalid},
		"itself":  {from, []string{"good"}, snapshot.ErrInvalid},
	} {
		if res, err := transfer.Run(t.Context(), from.repo, c.to.repo, c.refs, nil); !errors.Is(err, c.err) || len(res.Snapshots) > 0 {
			t.Errorf("%s: %+v, %v", name, res, err)
		}
	}
	if list, err := to.List(t.Context(), nil); len(list) > 0 || err != nil {
		t.Errorf("%v, %v", list, err)
	}
	copyTo(t, from, to, good)
}

// TestCopyAndGC: collectors in both repositories while a copy runs.
func TestCopyAndGC(t *testing.T) {
	here, there := newYard(t), newYard(t)
	from, to := here.enter(), there.enter()
	src := here.dirOf("a", 3)
	want := scan(t, src)
	id := complete(t, from, src, nil).ID
	// What it needs lies there in packs of a snapshot that was removed.
	copyTo(t, from, to, id)
	must(t, there.remove(to, id))
	there.pass(yardGrace + time.Second)
	old := there.objects(gc.PacksPrefix)
	writeFile(t, src+"/new", random(7, 1000))
	second := complete(t, from, src, nil).ID
	wantSecond := scan(t, src)
	collector := there.enter()
	there.at(remote.OpPut, gc.PacksPrefix, func() {
		there.gc(collector, nil)
		there.pass(time.Minute)
		// Its source is removed meanwhile, and collected as far as that goes.
		must(t, here.remove(here.enter(), second))
		here.pass(yardGrace + time.Second)
		here.gc(here.enter(), nil)
		here.pass(write.LeaseHold / 2)
	})
	copyTo(t, from, to, second)
	m, err := to.repo.Manifest(t.Context(), second)
	must(t, err)
	for _, p := range m.Packs {
		if slices.Contains(old, repo.PackName(p.ID)) {
			t.Error("it refers to what is doomed")
		}
	}
	there.settle(to, second, wantSecond)
	here.whole(id, want)
}

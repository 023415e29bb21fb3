//go:build linux

package engine

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/gc"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// These tests are the interleavings of a create with collectors. In all of them an old
// pack that no snapshot refers to holds what the create is about to snapshot, and the
// index tells of it.

// abandoned gives a yard with a directory whose contents lie in such packs, old enough
// to be doomed, and their names.
func abandoned(t *testing.T) (y *yard, dir string, packs map[string]bool) {
	y = newYard(t)
	dir = y.dirOf("a", 2)
	return y, dir, y.abandon(dir)
}

// abandon makes a snapshot and removes it, and gives its packs.
func (y *yard) abandon(dir string) map[string]bool {
	y.Helper()
	t, r := y.TB, y.enter()
	id := complete(t, r, dir, nil).ID
	packs := y.packsOf(r, id)
	_, err := retain.Remove(t.Context(), r.repo, id.String())
	must(t, err)
	y.pass(yardGrace + time.Second)
	return packs
}

// at runs f before the first operation of its kind on a name that begins with prefix.
func (y *yard) at(op remote.Op, prefix string, f func()) {
	var once sync.Once
	y.fail(func(o remote.Op, name string) remotetest.Fault {
		if o == op && strings.HasPrefix(name, prefix) {
			once.Do(func() {
				y.heal()
				f()
			})
		}
		return remotetest.Fault{}
	})
}

func (y *yard) shares(r *Repository, id manifest.ID, packs map[string]bool) bool {
	y.Helper()
	for name := range y.packsOf(r, id) {
		if packs[name] {
			return true
		}
	}
	return false
}

// settle collects until nothing changes, and checks that a snapshot is whole and alone.
func (y *yard) settle(r *Repository, id manifest.ID, want tree) {
	y.Helper()
	for range 4 {
		y.pass(yardGrace + time.Second)
		y.gc(r, &snapshot.GCOptions{Repack: -1}) // or packs have other names
	}
	y.whole(id, want)
	// The index may still list packs that went without a collector seeing it.
	y.packsAre(y.packsOf(r, id))
	must(y, y.remove(r, id))
	y.pass(yardGrace + time.Second)
	y.collectAll(r)
	y.exactly(nil)
}

func (y *yard) remove(r *Repository, id manifest.ID) error {
	_, err := retain.Remove(context.Background(), r.repo, id.String())
	return err
}

// TestCreateAfterDoom: what is doomed is not referred to, whatever the index says: it
// is stored again.
func TestCreateAfterDoom(t *testing.T) {
	y, dir, packs := abandoned(t)
	r := y.enter()
	if rep := y.gc(r, nil); rep.Doomed.Packs != len(packs) {
		t.Fatalf("%+v", rep)
	}
	res := complete(t, y.enter(), dir, nil)
	if y.shares(r, res.ID, packs) || res.NewBytes == 0 {
		t.Error("it refers to what is doomed")
	}
	y.settle(r, res.ID, scan(t, dir))
}

// TestCreateBeforeDoom: the packs are doomed while the create runs, which sees it if it
// takes a while, and begins anew.
func TestCreateBeforeDoom(t *testing.T) {
	y, dir, packs := abandoned(t)
	writeFile(t, dir+"/new", []byte("new"))
	r, other := y.enter(), y.enter()
	y.at(remote.OpPut, gc.PacksPrefix, func() {
		y.gc(other, nil)
		y.pass(time.Minute)
	})
	res := complete(t, r, dir, nil)
	if y.shares(r, res.ID, packs) {
		t.Error("it refers to what is doomed")
	}
	y.settle(r, res.ID, scan(t, dir))
}

// revived is a yard with a snapshot that refers to doomed packs: they were doomed in
// the moment before it was put.
func revived(t *testing.T, large bool) (y *yard, r *Repository, dir string, id manifest.ID, packs map[string]bool) {
	y = newYard(t)
	dir = y.dirOf("a", 2)
	if large {
		// Its extents are in pages of their own.
		writeFile(t, dir+"/large", random(77, 24<<20))
	}
	packs = y.abandon(dir)
	r = y.enter()
	other := y.enter()
	y.at(remote.OpPut, manifest.Prefix, func() { y.gc(other, nil) })
	id = complete(t, r, dir, nil).ID
	if !y.shares(r, id, packs) {
		t.Fatal("it does not refer to them")
	}
	return y, r, dir, id, packs
}

// TestGCRevived: what is doomed and needed stays, until it is not needed.
func TestGCRevived(t *testing.T) {
	y, r, dir, id, packs := revived(t, false)
	y.pass(yardGrace + time.Second)
	for range 3 {
		if rep := y.gc(r, nil); rep.Freed.Packs != 0 || rep.Revived.Packs != len(packs) || len(rep.Waiting) != 0 {
			t.Errorf("%+v", rep)
		}
		y.pass(yardGrace + time.Second)
	}
	y.settle(r, id, scan(t, dir))
}

// TestGCLastNeed: doomed packs that only a snapshot needs which expires wait for the run
// after the one that removes it, and not for a time that has passed.
func TestGCLastNeed(t *testing.T) {
	y, r, _, id, packs := revived(t, false)
	changed(t, r, id.String(), &snapshot.Changes{TTL: time.Minute})
	y.pass(2*yardGrace + time.Hour)
	rep := y.gc(r, nil)
	waiting := 0
	for _, w := range rep.Waiting {
		waiting += w.Packs
	}
	if len(rep.Removed) != 1 || waiting < len(packs) || rep.Freed.Packs != 0 || rep.Revived.Packs != 0 {
		t.Errorf("%+v", rep)
	}
	if rep := y.gc(r, nil); rep.Freed.Packs != len(packs) {
		t.Errorf("%+v", rep)
	}
}

// TestCreateFromDoomed: a snapshot whose parent refers to doomed packs does not.
func TestCreateFromDoomed(t *testing.T) {
	y, r, dir, id, packs := revived(t, true)
	writeFile(t, dir+"/new", []byte("new"))
	for name, opts := range map[string]*CreateOptions{"stat cache": nil, "parent by name": {Parent: id.String()}} {
		at := r
		if opts != nil {
			at = y.enter()
		}
		res := complete(t, at, dir, opts)
		if y.shares(r, res.ID, packs) {
			t.Errorf("%s: it refers to what is doomed", name)
		}
		if res.Parent == nil || *res.Parent != id {
			t.Errorf("%s: parent %v", name, res.Parent)
		}
		y.whole(res.ID, scan(t, dir))
		must(t, y.remove(r, res.ID))
	}
	second := complete(t, y.enter(), dir, nil).ID
	must(t, y.remove(r, id))
	y.settle(r, second, scan(t, dir))
}

// TestCreateStale: a create that was stopped for more than half a grace begins anew,
// whatever happened meanwhile.
func TestCreateStale(t *testing.T) {
	for name, during := range map[string]func(y *yard, r *Repository){
		"nothing": func(*yard, *Repository) {},
		"doomed":  func(y *yard, r *Repository) { y.gc(r, nil) },
		"deleted": func(y *yard, r *Repository) {
			for range 2 {
				y.gc(r, nil)
				y.pass(yardGrace + time.Second)
			}
		},
		"deleted without a trace": func(y *yard, r *Repository) { y.collectAll(r) },
	} {
		for _, when := range []string{"manifest, before", "manifest, answer", gc.PacksPrefix, repo.GcPrefix} {
			t.Run(name+" at "+when, func(t *testing.T) {
				y, dir, _ := abandoned(t)
				writeFile(t, dir+"/new", []byte("new"))
				r, other := y.enter(), y.enter()
				stop := func() {
					during(y, other)
					y.pass(yardGrace/2 + time.Second)
				}
				switch when {
				case "manifest, before":
					y.at(remote.OpPut, manifest.Prefix, stop)
				case "manifest, answer":
					// It was put in time, and the answer took long.
					y.at(remote.OpPut, repo.SegmentPrefix, stop)
				case repo.GcPrefix:
					y.at(remote.OpList, when, stop)
				default:
					y.at(remote.OpPut, when, stop)
				}
				res := complete(t, r, dir, nil)
				if list, err := y.enter().List(t.Context(), nil); err != nil || len(list) != 1 || list[0].ID != res.ID {
					t.Errorf("%v, %v", list, err)
				}
				y.settle(y.enter(), res.ID, scan(t, dir))
			})
		}
	}
}

// TestCreateHopeless: a create that is too slow every time gives up, and says why.
func TestCreateHopeless(t *testing.T) {
	y, dir, _ := abandoned(t)
	writeFile(t, dir+"/new", []byte("new"))
	var tries atomic.Int64
	y.fail(func(op remote.Op, name string) remotetest.Fault {
		if op == remote.OpList && name == repo.SegmentPrefix {
			tries.Add(1)
			y.pass(yardGrace)
		}
		return remotetest.Fault{}
	})
	_, err := y.enter().Create(t.Context(), dir, nil)
	if !errors.Is(err, write.ErrAnew) || tries.Load() != write.AnewTries || !strings.Contains(err.Error(), "grace of 1h0m0s is too short") {
		t.Errorf("%d tries: %v", tries.Load(), err)
	}
	if left := y.objects(manifest.Prefix); len(left) != 0 {
		t.Error(left)
	}
}

// TestCreateFalseIndex: a segment that lists a pack which is not there, as one whose
// writer was stopped for long may, does no harm.
func TestCreateFalseIndex(t *testing.T) {
	y, dir, packs := abandoned(t)
	for name := range packs {
		must(t, y.mem.Delete(t.Context(), name))
	}
	r := y.enter()
	res := complete(t, r, dir, nil)
	y.settle(r, res.ID, scan(t, dir))
}

// putTooLate gives a yard with the manifest of a snapshot that lacks packs: its writer was
// stopped while it put it, until they had been deleted, and then killed.
func putTooLate(t *testing.T, opts *CreateOptions) (y *yard, dir string, other *Repository) {
	t.Helper()
	y, dir, _ = abandoned(t)
	r, other := y.enter(), y.enter()
	y.at(remote.OpPut, manifest.Prefix, func() {
		for range 2 {
			y.gc(other, nil)
			y.pass(yardGrace + time.Second)
		}
		// All that it does later is in vain.
		y.fail(func(op remote.Op, name string) remotetest.Fault {
			return remotetest.Fault{Err: errors.New("killed")}
		})
	})
	if _, err := r.Create(t.Context(), dir, opts); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatal(err)
	}
	y.heal()
	return y, dir, other
}

// TestGCWithdraws: a writer is stopped in the middle of putting its manifest, for so
// long that what it refers to is deleted, and killed as soon as the manifest is there.
// The snapshot that nobody was told of goes.
func TestGCWithdraws(t *testing.T) {
	y, dir, other := putTooLate(t, nil)
	if n := len(y.objects(manifest.Prefix)); n != 1 {
		t.Fatalf("%d manifests", n)
	}
	if rep := y.gc(other, nil); len(rep.Withdrawn) != 1 || rep.Snapshots != 0 {
		t.Errorf("%+v", rep)
	}
	res := complete(t, y.enter(), dir, nil)
	y.settle(other, res.ID, scan(t, dir))
}

// TestTombstonesAreCached: a machine fetches a tombstone once, and forgets it when it has
// gone.
func TestTombstonesAreCached(t *testing.T) {
	y, dir, _ := abandoned(t)
	y.gc(y.enter(), nil)
	r := y.enter()
	gets := func() int64 {
		before := r.Requests().Ops
		complete(t, r, dir, nil)
		return r.Requests().Ops.Sub(before)[remote.OpGet].Calls
	}
	// One segment that nobody knows yet and the tombstone; then the parent.
	if first, second := gets(), gets(); first != 2 || second != 1 {
		t.Errorf("%d requests, then %d", first, second)
	}
	if n := len(r.repo.Cache.Names("tombstones")); n != 1 {
		t.Errorf("%d are cached", n)
	}
	writeFile(t, r.repo.Cache.Path("tombstones", r.repo.Cache.Names("tombstones")[0]), []byte("nonsense"))
	if n := gets(); n != 2 {
		t.Errorf("%d requests, with nonsense in the cache", n)
	}
	y.pass(yardGrace + time.Second)
	y.collectAll(y.enter())
	gets()
	if names := r.repo.Cache.Names("tombstones"); len(names) != 0 {
		t.Errorf("%v are cached", names)
	}
}

// TestGuardTellsTombstones: a tombstone that cannot be read ends a create: nobody
// knows what it dooms.
func TestGuardTellsTombstones(t *testing.T) {
	y, dir, _ := abandoned(t)
	y.gc(y.enter(), nil)
	for _, name := range y.objects(repo.GcPrefix) {
		if !strings.HasSuffix(name, repo.SeenSuffix) {
			b, err := y.mem.Get(t.Context(), name)
			must(t, err)
			b[20] ^= 1
			must(t, y.mem.Replace(t.Context(), name, b))
			for what, f := range map[string]func(*Repository) error{
				"create": func(r *Repository) error { _, err := r.Create(t.Context(), dir, nil); return err },
				"gc":     func(r *Repository) error { _, err := gc.Run(t.Context(), r.repo, nil); return err },
			} {
				if err := f(y.enter()); !errors.Is(err, snapshot.ErrIntegrity) || !strings.Contains(err.Error(), name) {
					t.Errorf("%s: %v", what, err)
				}
			}
		}
	}
}

// TestCreateFromSeenBefore: a parent that was looked up when the repository was opened,
// and removed and collected since, is none.
func TestCreateFromSeenBefore(t *testing.T) {
	y := newYard(t)
	dir := y.dirOf("a", 1)
	other := y.enter()
	id := complete(t, other, dir, nil).ID
	o := y.options()
	o.Now, o.Ref = y.now, id.String()
	r, err := Open(t.Context(), "", o)
	must(t, err)
	defer r.Close()
	r.setUptime(func() time.Duration { return y.now().Sub(time.Unix(0, 0)) })
	_, err = r.repo.Ahead.Get[id.ObjectName()](t.Context()) // it has come
	must(t, err)
	must(t, y.remove(other, id))
	y.pass(yardGrace + time.Second)
	y.collectAll(other)
	if res, err := r.Create(t.Context(), dir, &CreateOptions{Parent: id.String()}); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("%+v, %v", res, err)
	}
}

// TestUptime: it goes on.
func TestUptime(t *testing.T) {
	a := fsys.Uptime()
	if b := fsys.Uptime(); a <= 0 || b < a {
		t.Errorf("%v, then %v", a, b)
	}
}

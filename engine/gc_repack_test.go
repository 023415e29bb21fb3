//go:build linux

package engine

import (
	"errors"
	"math"
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
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// thinned is a yard with a snapshot that needs one file of seven of an old pack.
func thinned(t testing.TB) (y *yard, r *Repository, dir string, id manifest.ID, pack string) {
	y = newYard(t)
	r = y.enter()
	dir = y.dirOf("a", 7)
	all := complete(t, r, dir, nil).ID
	for _, name := range []string{"1", "2", "3", "4", "5", "6"} {
		must(t, os.Rename(dir+"/"+name, y.path("gone-"+name)))
	}
	id = complete(t, r, dir, nil).ID
	must(t, y.remove(r, all))
	for name := range y.packsOf(r, id) {
		pack = name
	}
	y.pass(yardGrace + time.Second)
	return y, r, dir, id, pack
}

func (y *yard) has(pack string) bool { return slices.Contains(y.objects(gc.PacksPrefix), pack) }

// TestGCRepack: of a pack of which little is needed that is written anew, and the pack
// goes. The snapshot goes on naming it, and is read where it is now.
func TestGCRepack(t *testing.T) {
	y, r, dir, id, pack := thinned(t)
	want := scan(t, dir)
	dry := y.gc(r, &snapshot.GCOptions{DryRun: true})
	if dry.Repacked.Packs != 0 { // no time has passed that anybody saw
		t.Errorf("%+v", dry)
	}
	if rep := y.gc(r, &snapshot.GCOptions{Repack: 0.1}); rep.Repacked.Packs != 0 {
		t.Errorf("below the threshold: %+v", rep)
	}
	for _, share := range []float64{0.91, math.Inf(1), math.NaN()} {
		if _, err := gc.Run(t.Context(), r.repo, &snapshot.GCOptions{Repack: share}); !errors.Is(err, snapshot.ErrInvalid) {
			t.Errorf("%v: %v", share, err)
		}
	}
	if rep := y.gc(r, &snapshot.GCOptions{Repack: -1}); rep.Repacked.Packs != 0 {
		t.Errorf("never: %+v", rep)
	}
	rep := y.gc(r, nil)
	if rep.Repacked.Packs != 1 || rep.Repacked.NewPacks != 1 || rep.Repacked.NewBytes != 1<<20 || len(rep.Waiting) != 1 || rep.Waiting[0].Packs != 1 {
		t.Errorf("%+v", rep)
	}
	y.pass(yardGrace + time.Second)
	other := y.enter() // which knows the index as it is now
	create(t, other, y.path("a"), nil)
	rep = y.gc(r, nil)
	if rep.Freed.Packs != 1 || rep.Freed.Bytes < 7<<20 || y.has(pack) {
		t.Errorf("%+v", rep)
	}
	for range 3 { // as long as the snapshot names it, it is known where its chunks are
		y.whole(id, want)
		y.pass(yardGrace + time.Second)
		if rep := y.gc(r, nil); rep.Freed.Packs != 0 || rep.Doomed.Packs != 0 || rep.Repacked.Packs != 0 {
			t.Errorf("%+v", rep)
		}
	}
	restore(t, other, id.String(), y.path("again"), nil)
	compare(t, want, scan(t, y.path("again")))

	// What removing it frees is the new pack.
	u, err := check.Usage(t.Context(), r.repo, id.String())
	must(t, err)
	if u.Unused != 0 || u.Unique < 1<<20 || len(u.Of) != 1 || u.Of[0].Referred != u.Stored+u.Trees {
		t.Errorf("%+v", u)
	}

	// A snapshot made from it needs nothing to be read again.
	writeFile(t, dir+"/new", []byte("new"))
	res := complete(t, r, dir, nil)
	if res.NewBytes != 3 {
		t.Errorf("%d new bytes", res.NewBytes)
	}
	must(t, y.remove(r, id))
	list, err := r.List(t.Context(), nil)
	must(t, err)
	for _, s := range list {
		if s.ID != res.ID {
			must(t, y.remove(r, s.ID))
		}
	}
	y.collectAll(r)
	y.whole(res.ID, scan(t, dir))
	must(t, y.remove(r, res.ID))
	y.pass(yardGrace + time.Second)
	y.collectAll(r)
	if left := y.objects(""); !slices.Equal(left, []string{repo.ConfigName}) {
		t.Errorf("left: %v", left)
	}
}

// TestGCRepackWithoutIndex: what has moved is found by the tombstone alone.
func TestGCRepackWithoutIndex(t *testing.T) {
	y, r, dir, id, pack := thinned(t)
	y.gc(r, nil)
	y.pass(yardGrace + time.Second)
	y.gc(r, nil)
	if y.has(pack) {
		t.Fatal("it is there")
	}
	must(t, y.mem.Delete(t.Context(), y.objects(repo.SegmentPrefix)...))
	y.whole(id, scan(t, dir))
}

// TestGCRepackTree: pages of trees move too.
func TestGCRepackTree(t *testing.T) {
	y := newYard(t)
	r := y.enter()
	dir := y.path("many")
	for i := range 3000 {
		writeFile(t, dir+"/"+strings.Repeat(string(rune('a'+i%20)), 100)+"/"+strings.Repeat("x", i%100)+string(rune('a'+i%7))+"-"+time.Duration(i).String(), random(uint64(i), 600))
	}
	first := complete(t, r, dir, nil).ID
	for i := range 18 {
		must(t, os.RemoveAll(dir+"/"+strings.Repeat(string(rune('a'+i)), 100)))
	}
	second := complete(t, r, dir, nil).ID
	must(t, y.remove(r, first))
	want := scan(t, dir)
	y.pass(yardGrace + time.Second)
	rep := y.gc(r, nil)
	if rep.Repacked.Packs < 1 {
		t.Fatalf("%+v", rep)
	}
	y.pass(yardGrace + time.Second)
	rep = y.gc(r, nil)
	if rep.Freed.Packs < 1 {
		t.Fatalf("%+v", rep)
	}
	y.whole(second, want)
}

// TestGCRepackMount: a mount reads what has moved, begun before or after.
func TestGCRepackMount(t *testing.T) {
	needRoot(t)
	y, r, dir, id, pack := thinned(t)
	want, err := os.ReadFile(dir + "/0")
	must(t, err)
	before := mountAt(t, y.enter(), id, y.path("before"), nil)
	y.gc(r, nil)
	y.pass(yardGrace + time.Second)
	y.gc(r, nil)
	if y.has(pack) {
		t.Fatal("it is there")
	}
	sameFile(t, before.Dir+"/0", want)
	sameFile(t, mountAt(t, y.enter(), id, y.path("after"), nil).Dir+"/0", want)
}

// TestGCRepackRaced: a snapshot that comes to need, just before a pack is announced,
// what nobody needed when it was repacked, keeps it.
func TestGCRepackRaced(t *testing.T) {
	y, r, dir, id, pack := thinned(t)
	must(t, os.Rename(y.path("gone-3"), dir+"/3"))
	other := y.enter()
	var res *CreateResult
	y.at(remote.OpPut, repo.GcPrefix, func() {
		// The clock of the run is put first, then the tombstone.
		y.at(remote.OpPut, repo.GcPrefix, func() { res = complete(t, other, dir, nil) })
	})
	if rep := y.gc(r, nil); rep.Repacked.Packs != 1 || res == nil || res.NewBytes != 0 {
		t.Fatalf("%+v, %+v", rep, res)
	}
	want := scan(t, dir)
	for range 3 {
		y.pass(yardGrace + time.Second)
		rep := y.gc(r, nil)
		if rep.Freed.Packs != 0 || !y.has(pack) {
			t.Fatalf("%+v", rep)
		}
		if rep.Revived.Packs != 1 || len(rep.Waiting) != 0 {
			t.Errorf("it is said to be of no use: %+v", rep)
		}
	}
	y.whole(res.ID, want)
	// Without it the pack can go.
	must(t, y.remove(r, res.ID))
	y.gc(r, nil)
	if y.has(pack) {
		t.Error("it is there still")
	}
	must(t, os.Remove(dir+"/3"))
	restore(t, y.enter(), id.String(), y.path("out"), nil)
}

// TestCreateFromMoved: a snapshot does not refer to a repacked pack, though its parent
// does: it finds what it needs where that is now.
func TestCreateFromMoved(t *testing.T) {
	for _, gone := range []bool{false, true} {
		y, r, dir, id, pack := thinned(t)
		y.gc(r, nil)
		if gone {
			y.pass(yardGrace + time.Second)
			y.gc(r, nil)
		}
		if y.has(pack) == gone {
			t.Fatal("it is there, or not")
		}
		writeFile(t, dir+"/new", []byte("new"))
		// On another machine, where nothing else is known of the files.
		res := complete(t, y.enter(), dir, &CreateOptions{Parent: id.String()})
		if y.packsOf(r, res.ID)[pack] || res.NewBytes > 3 {
			t.Errorf("%d new bytes, packs %v", res.NewBytes, y.packsOf(r, res.ID))
		}
		must(t, y.remove(r, id))
		y.settle(r, res.ID, scan(t, dir))
	}
}

// TestCreateOfForkFromDoomed: a create of a fork whose snapshot refers to packs that are
// doomed, or repacked and gone, refers to none of them.
func TestCreateOfForkFromDoomed(t *testing.T) {
	needFUSE(t)
	for name, of := range map[string]func() (*yard, *Repository, manifest.ID, map[string]bool){
		"doomed": func() (*yard, *Repository, manifest.ID, map[string]bool) {
			y, r, _, id, packs := revived(t, false)
			return y, r, id, packs
		},
		"repacked": func() (*yard, *Repository, manifest.ID, map[string]bool) {
			y, r, _, id, pack := thinned(t)
			y.gc(r, nil)
			y.pass(yardGrace + time.Second)
			y.gc(r, nil)
			return y, r, id, map[string]bool{pack: true}
		},
	} {
		y, r, id, packs := of()
		at := y.enterWith(y.path("state"))
		f, err := at.Fork(t.Context(), id.String(), y.path("fork"), nil)
		must(t, err)
		writeFile(t, f.Dir+"/new", []byte("new"))
		want := scan(t, f.Dir)
		for range 2 {
			res := complete(t, at, f.Dir, nil)
			if y.shares(r, res.ID, packs) {
				t.Errorf("%s: it refers to what is doomed", name)
			}
			y.whole(res.ID, want)
		}
		_, err = f.Remove(t.Context(), nil)
		must(t, err)
	}
}

// TestGCRepackKilled kills a collector that repacks at each of its operations.
func TestGCRepackKilled(t *testing.T) {
	base, r, dir, id, _ := thinned(t)
	want := scan(t, dir)
	killed := errors.New("killed")
	operations := 0
	for range 2 {
		for n := 0; ; n += unlessShort(1, 3) {
			y := base.copy()
			r := y.enter()
			var k atomic.Int64
			y.fail(func(remote.Op, string) remotetest.Fault {
				if k := int(k.Add(1)); k > n {
					return remotetest.Fault{Err: killed, Done: k == n+1}
				}
				return remotetest.Fault{}
			})
			_, err := gc.Run(t.Context(), r.repo, nil)
			y.heal()
			if err != nil && !errors.Is(err, killed) {
				t.Fatalf("killed at operation %d: %v", n, err)
			}
			done := err == nil && int(k.Load()) <= n
			y.pass(yardGrace + time.Second)
			y.collectAll(r)
			y.whole(id, want)
			must(t, y.remove(r, id))
			y.collectAll(r)
			y.pass(yardGrace + time.Second)
			y.collectAll(r)
			if left := y.objects(""); !slices.Equal(left, []string{repo.ConfigName}) {
				t.Fatalf("killed at operation %d, left: %v", n, left)
			}
			if done {
				operations += n
				break
			}
		}
		base.gc(r, nil)
		base.pass(yardGrace + time.Second)
	}
	t.Logf("killed at %d operations", operations)
	if operations < 30 {
		t.Error("there were more than that")
	}
}

// TestGCRepackTargetGone: a pack does not go while one that it was moved to is missing
// or doomed.
func TestGCRepackTargetGone(t *testing.T) {
	for _, missing := range []bool{true, false} {
		y, r, dir, id, pack := thinned(t)
		want := scan(t, dir)
		before := y.objects(gc.PacksPrefix)
		y.gc(r, nil)
		var target string
		for _, name := range y.objects(gc.PacksPrefix) {
			if !slices.Contains(before, name) {
				target = name
			}
		}
		if missing {
			must(t, y.mem.Delete(t.Context(), target))
		} else {
			to, err := chunk.ParsePackID(target[len("packs/00/"):])
			must(t, err)
			stone := &repo.Tombstone{Packs: []repo.DoomedPack{{Id: to}}}
			must(t, y.mem.Put(t.Context(), repo.GcPrefix+"0193a5b2-7c1e-7000-8000-000000000001", stone.Encode()))
		}
		for range 3 {
			y.pass(yardGrace + time.Second)
			y.gc(r, nil)
		}
		if !y.has(pack) || y.has(target) == missing {
			t.Fatal("it is gone")
		}
		y.whole(id, want)
	}
}

// TestPackIndex: what a pack holds is read from its end, whatever its size.
func TestPackIndex(t *testing.T) {
	y := newYard(t)
	r := y.enter()
	for _, chunks := range []int{1, 5000} {
		b := chunk.NewPackBuilder(chunk.DataPack, nil)
		var all []chunk.SizedID
		var raw []byte
		for i := range chunks {
			data := random(uint64(i), 8)
			raw = append(raw, data...)
			all = append(all, chunk.SizedID{ID: r.repo.Hasher.Sum(data), Length: 8})
		}
		b.Add(r.repo.Codec.Encode(nil, raw), all)
		id, data, _ := b.Finish(r.repo.Codec)
		must(t, y.mem.Put(t.Context(), repo.PackName(id), data))
		x, err := r.repo.PackIndex(t.Context(), id, int64(len(data)))
		if err != nil || len(x.Frames[0].Chunks) != chunks {
			t.Errorf("%v", err)
		}
		for _, size := range []int64{0, 1, int64(len(data)) - 1} {
			if _, err := r.repo.PackIndex(t.Context(), id, size); !errors.Is(repo.Integrity(err), snapshot.ErrIntegrity) {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
	}
}

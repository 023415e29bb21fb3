//go:build linux

package engine

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/check"
	"github.com/snapctl/snapctl/engine/internal/gc"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// harm puts other bytes in the place of an object; nil for none.
func (y *yard) harm(name string, f func([]byte) []byte) {
	y.Helper()
	b, err := y.mem.Get(y.Context(), name)
	must(y, err)
	b = f(append([]byte(nil), b...))
	if b == nil {
		must(y, y.mem.Delete(y.Context(), name))
		return
	}
	must(y, y.mem.Replace(y.Context(), name, b))
}

// harms are what can befall a pack that its size or its footer tells of.
var harms = map[string]func([]byte) []byte{
	"deleted": func([]byte) []byte { return nil },
	"halved":  func(b []byte) []byte { return b[:len(b)/2] },
	"emptied": func([]byte) []byte { return []byte{} },
	"longer":  func(b []byte) []byte { return append(b, b...) },
	"zeroed":  func(b []byte) []byte { clear(b); return b },
}

// packsOfKind gives the names of the packs of a snapshot, of a kind.
func (y *yard) packsOfKind(r *Repository, id manifest.ID, kind chunk.PackKind) (names []string) {
	for _, p := range packsOf(y, r, id, kind) {
		names = append(names, repo.PackName(p))
	}
	return names
}

// TestCreateWithoutItsPacks: whatever a create takes over is known to be in the store,
// whether a parent tells of it or the index, on this machine or another.
func TestCreateWithoutItsPacks(t *testing.T) {
	// Its tree has several pages.
	wide := func(y *yard) string {
		dir := y.dirOf("a", 2)
		for i := range 700 {
			writeFile(t, fmt.Sprintf("%s/%0200d", dir, i), []byte(fmt.Sprint(i)))
		}
		return dir
	}
	for _, kind := range []chunk.PackKind{chunk.DataPack, chunk.TreePack} {
		for harm, f := range harms {
			for _, what := range []string{"nothing changed", "a file more", "no table", "restored", "parent by name", "another machine"} {
				seen := what != "another machine" && what != "parent by name"
				if seen && harm == "zeroed" || what == "restored" && harm != "deleted" {
					continue // nothing tells of it: see present
				}
				if what == "parent by name" && kind == chunk.TreePack {
					continue // who names a parent is told that it cannot be read
				}
				t.Run(fmt.Sprint(kind, " ", harm, ", ", what), func(t *testing.T) {
					y := newYard(t)
					dir := wide(y)
					r := y.enter()
					first := complete(t, r, dir, nil)
					opts := &CreateOptions{}
					switch what {
					case "a file more":
						writeFile(t, dir+"/new", []byte("new"))
					case "no table":
						must(t, os.RemoveAll(r.repo.Cache.Root+"/tables"))
					case "restored":
						must(t, os.RemoveAll(dir))
						restore(t, r, first.ID.String(), dir, nil)
						complete(t, r, dir, nil)
						must(t, os.RemoveAll(r.repo.Cache.Root+"/tables"))
					case "parent by name":
						r, opts.Parent = y.enter(), first.ID.String()
					case "another machine":
						r = y.enter()
					}
					if what == "no table" && harm != "deleted" {
						t.Skip("how large it was is not known")
					}
					for _, name := range y.packsOfKind(r, first.ID, kind) {
						y.harm(name, f)
					}
					var warned warnings
					opts.Progress = &warned
					res := complete(t, r, dir, opts)
					y.whole(res.ID, scan(t, dir))
					// The index may tell of what is gone, and a manifest does not tell how large
					// packs are.
					quiet := what == "another machine" && harm == "deleted" || what == "parent by name" && harm == "longer"
					if warned.about("damaged repository: ") == quiet {
						t.Errorf("warnings: %q", warned.all)
					}
				})
			}
		}
	}
}

// TestCreateAsksOnce: each pack is asked for once, however many chunks are found in it, and
// nothing is listed for it.
func TestCreateAsksOnce(t *testing.T) {
	y := newYard(t)
	dir := y.dirOf("a", 40) // several packs
	r := y.enter()
	first := complete(t, r, dir, nil)
	want := int64(len(y.packsOf(r, first.ID)))
	for name, at := range map[string]*Repository{"warm": r, "another machine": y.enter()} {
		before := at.Requests().Ops
		complete(t, at, dir, nil)
		if got := at.Requests().Ops.Sub(before); got[remote.OpStat].Calls != want || got[remote.OpList].Calls != 2 {
			t.Errorf("%s: %v, want %d stats", name, got, want)
		}
	}
}

// TestCreateCannotAsk: a create that cannot find out whether a pack is there makes no
// snapshot.
func TestCreateCannotAsk(t *testing.T) {
	y := newYard(t)
	dir := y.dirOf("a", 1)
	r := y.enter()
	complete(t, r, dir, nil)
	y.fail(func(op remote.Op, name string) remotetest.Fault {
		if op == remote.OpStat && strings.HasPrefix(name, gc.PacksPrefix) {
			return remotetest.Fault{Err: remote.ErrAccess}
		}
		return remotetest.Fault{}
	})
	if _, err := r.Create(t.Context(), dir, nil); err == nil || !strings.Contains(err.Error(), remote.ErrAccess.Error()) {
		t.Error(err)
	}
	y.heal()
	if n := len(y.objects(manifest.Prefix)); n != 1 {
		t.Errorf("%d manifests", n)
	}
}

// TestForkWithoutItsPacks: the same for a fork, whose packs are those of the snapshot below
// and those of the one before.
func TestForkWithoutItsPacks(t *testing.T) {
	p := newPlace(t)
	f := newOverlaid(p, upperTrusted, p.files("src", map[string]string{"file": "text", "d/f": "1"}))
	writeFile(t, f.dir+"/new", []byte("new"))
	settleTimes(t, f.upper())
	of := map[chunk.PackID]bool{}
	for _, pack := range packsOf(t, f.fast, f.base, chunk.DataPack) {
		of[pack] = true
	}
	first := complete(t, f.fast, f.dir, nil)
	for _, pack := range packsOf(t, f.fast, first.ID, chunk.DataPack) {
		if !of[pack] {
			must(t, os.Remove(p.repo+"/"+repo.PackName(pack)))
		}
	}
	for range 2 {
		p.check(complete(t, f.fast, f.dir, nil).ID, scan(t, f.dir))
	}
	// What was lost of the snapshot below shows nowhere any more, and is said to be lost.
	for pack := range of {
		must(t, os.Remove(p.repo+"/"+repo.PackName(pack)))
	}
	r := p.open("cache")
	res, err := r.Create(t.Context(), f.dir, nil)
	must(t, err)
	for _, pack := range packsOf(t, f.full, res.ID, chunk.DataPack) { // fails for one that is missing
		if of[pack] {
			t.Error("it refers to what is gone")
		}
	}
}

// TestCopyWithoutItsPacks: the same for a copy, whose packs are those of a snapshot that the
// destination has, or that its index tells of.
func TestCopyWithoutItsPacks(t *testing.T) {
	for _, kind := range []chunk.PackKind{chunk.DataPack, chunk.TreePack} {
		for harm, f := range harms {
			t.Run(fmt.Sprint(kind, " ", harm), func(t *testing.T) {
				w, from := emptyRepo(t)
				src := w.path("src")
				for i := range 700 {
					writeFile(t, fmt.Sprintf("%s/%0200d", src, i), random(uint64(i), 150))
				}
				a := complete(t, from, src, nil).ID
				writeFile(t, src+"/new", []byte("new"))
				b := complete(t, from, src, nil).ID
				y := newYard(t)
				copyTo(t, from, y.enter(), a)
				to := y.enter()
				for _, name := range y.packsOfKind(to, a, kind) {
					y.harm(name, f)
				}
				copyTo(t, from, to, b)
				y.whole(b, scan(t, src))
			})
		}
	}
}

// TestRepairWithoutItsPacks: a repair makes no snapshot of a pack that went after it had
// looked.
func TestRepairWithoutItsPacks(t *testing.T) {
	y := newYard(t)
	dir := y.dirOf("a", 2)
	r := y.enter()
	first := complete(t, r, dir, nil)
	y.dirOf("a/more", 2)
	second := complete(t, r, dir, nil)
	must(t, y.remove(r, first.ID))
	packs := y.packsOfKind(r, second.ID, chunk.DataPack)
	y.harm(packs[0], harms["halved"])
	y.at(remote.OpPut, gc.PacksPrefix, func() { y.harm(packs[1], harms["deleted"]) })
	before := len(y.objects(manifest.Prefix))
	if _, err := check.Repair(t.Context(), y.enter().repo, &snapshot.RepairOptions{Apply: true}); err == nil || !strings.Contains(err.Error(), "run it again") {
		t.Error(err)
	}
	if n := len(y.objects(manifest.Prefix)); n != before {
		t.Errorf("%d manifests, %d before", n, before)
	}
}

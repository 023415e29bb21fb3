//go:build linux

package engine

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/engine/view"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// TestRequests pins how often operations ask the object store, and how often they wait
// for it: each request costs money, and each wait is a round trip.
func TestRequests(t *testing.T) {
	p := newPlace(t)
	store := remotetest.NewMemory()
	at := &rendezvous{t: t}
	open := func(cache string, ahead bool) *Repository {
		r, err := Open(t.Context(), "", &Options{CacheDir: p.path(cache), Store: remotetest.NewFaulty(store, at.hook), List: ahead})
		must(t, err)
		t.Cleanup(func() { r.Close() })
		return r
	}
	first, err := Init(t.Context(), "", nil, &Options{CacheDir: p.cache, Store: store})
	must(t, err)
	must(t, first.Close())
	src := p.files("src", map[string]string{})
	for i := range 3000 {
		writeFile(t, fmt.Sprintf("%s/%d/%d", src, i%50, i), []byte(fmt.Sprint("file ", i)))
	}
	type counts map[remote.Op]int64
	var id string
	// together says which of the operations must be under way at the same time.
	holds := func(what, cache string, want counts, waits int64, f func(r *Repository), together ...string) {
		t.Helper()
		at.expect(together...)
		r := open(cache, strings.HasSuffix(what, "ahead")) // each operation is a process of its own
		f(r)
		got := r.Requests()
		t.Logf("%s: %v in %d waits", what, got.Ops, got.Waits)
		for op := remote.OpPut; op <= remote.OpReplace; op++ {
			if got.Ops[op].Calls != want[op] {
				t.Errorf("%s: %d of %v, want %d", what, got.Ops[op].Calls, op, want[op])
			}
		}
		if got.Waits != waits {
			t.Errorf("%s: %d waits, want %d", what, got.Waits, waits)
		}
		if missing := at.rest(); len(missing) > 0 {
			t.Errorf("%s: no %q", what, missing)
		}
		must(t, r.Close())
	}
	create := func(r *Repository) { id = complete(t, r, src, nil).ID.String() }

	// The config, in all of them. Then data, tree, segment, manifest; the segments and
	// the tombstones are listed meanwhile.
	const lists, publish = "list index/, list gc/", "put index/, put manifests/"
	holds("first create", "cache", counts{remote.OpGet: 1, remote.OpList: 2, remote.OpPut: 4}, 4, create, lists, "put packs/, put packs/", publish)
	// The parent's manifest, and its packs.
	const stat2, read2 = ", stat packs/, stat packs/", ", read packs/, read packs/"
	holds("create, nothing changed", "cache", counts{remote.OpGet: 2, remote.OpList: 2, remote.OpPut: 1, remote.OpStat: 2}, 3, create,
		"get manifests/, "+lists+stat2)
	writeFile(t, src+"/7/new", []byte("new"))
	holds("create, one file more", "cache", counts{remote.OpGet: 2, remote.OpList: 2, remote.OpPut: 4, remote.OpStat: 2}, 4, create,
		"get manifests/, "+lists+stat2, "put packs/, put packs/", publish)
	// Two packs of data and two of tree, of which only the index tells, are asked for, and
	// their footers.
	holds("create on another machine", "another", counts{remote.OpGet: 3, remote.OpList: 2, remote.OpPut: 1, remote.OpStat: 4, remote.OpReadAt: 4}, 5, create,
		lists, "get index/, get index/", (stat2 + stat2 + read2 + read2)[2:])
	// Manifests and notes are listed side by side.
	const listed, noted = "list manifests/, list notes/", "get manifests/, list notes/"
	list := func(r *Repository) {
		_, err := r.List(t.Context(), nil)
		must(t, err)
	}
	holds("list the first time", "third", counts{remote.OpGet: 5, remote.OpList: 2}, 3, list, listed, strings.Repeat(", get manifests/", 4)[2:])
	holds("list", "third", counts{remote.OpGet: 1, remote.OpList: 2}, 2, list, listed)
	holds("list ahead", "third", counts{remote.OpGet: 1, remote.OpList: 2}, 1, list, "get config, "+listed)
	get := func(r *Repository) {
		_, err := r.Get(t.Context(), id)
		must(t, err)
	}
	holds("get by id", "fourth", counts{remote.OpGet: 2, remote.OpList: 1}, 2, get, noted)
	// The manifest, two packs of tree one after the other, two of data.
	holds("restore by id on another machine", "fourth", counts{remote.OpGet: 2, remote.OpReadAt: 4}, 5, func(r *Repository) {
		restore(t, r, id, p.path("out"), nil)
	}, "read packs/", "read packs/", "read packs/, read packs/")
	holds("create of what was restored", "fourth", counts{remote.OpGet: 2, remote.OpList: 2, remote.OpPut: 1, remote.OpStat: 4}, 3, func(r *Repository) {
		complete(t, r, p.path("out"), nil)
	}, "get manifests/, "+lists+stat2+stat2)
	holds("list with a new one", "third", counts{remote.OpGet: 2, remote.OpList: 2}, 3, list, listed)
	// One listing for both.
	holds("diff", "third", counts{remote.OpGet: 3, remote.OpList: 2}, 3, func(r *Repository) {
		must(t, view.Diff(t.Context(), r.repo, "latest~1", "latest", "", nil, func(*view.Change) error { return nil }))
	}, listed, "get manifests/, get manifests/")
	holds("rename", "third", counts{remote.OpGet: 2, remote.OpList: 1, remote.OpPut: 1}, 3, func(r *Repository) {
		changed(t, r, id, renamed("other"))
	}, noted)
	// The note is in the cache.
	holds("list with a note", "third", counts{remote.OpGet: 1, remote.OpList: 2}, 2, list, listed)
	holds("extend", "third", counts{remote.OpGet: 2, remote.OpList: 2, remote.OpPut: 1, remote.OpStat: 1}, 5, func(r *Repository) {
		changed(t, r, id, &snapshot.Changes{Until: time.Now().Add(time.Hour)})
	}, noted)
	holds("remove", "third", counts{remote.OpGet: 2, remote.OpList: 1, remote.OpDelete: 1}, 3, func(r *Repository) {
		_, err := retain.Remove(t.Context(), r.repo, id)
		must(t, err)
	}, noted)
}

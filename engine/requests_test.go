package engine

import (
	"fmt"
	"testing"
	"time"

	"github.com/snapctl/snapctl/remote"
)

// TestRequests pins how often operations ask the object store: each request is a
// round trip, and costs money.
func TestRequests(t *testing.T) {
	p := newPlace(t)
	store := remote.NewMemory()
	open := func(cache string) *Repository {
		r, err := Open(t.Context(), "", &Options{CacheDir: p.path(cache), Store: store})
		must(t, err)
		t.Cleanup(func() { r.Close() })
		return r
	}
	first, err := Init(t.Context(), "", nil, &Options{CacheDir: p.cache, Store: store})
	must(t, err)
	must(t, first.Close())
	src := p.files("src", map[string]string{})
	for i := range 3000 {
		write(t, fmt.Sprintf("%s/%d/%d", src, i%50, i), []byte(fmt.Sprint("file ", i)))
	}
	type counts map[remote.Op]int64
	var id string
	check := func(what, cache string, want counts, f func(r *Repository)) {
		t.Helper()
		r := open(cache) // each operation is a process of its own
		f(r)
		got := r.Requests().Ops
		t.Logf("%s: %v", what, got)
		for op := remote.OpPut; op <= remote.OpReplace; op++ {
			if got[op].Calls != want[op] {
				t.Errorf("%s: %d of %v, want %d", what, got[op].Calls, op, want[op])
			}
		}
		must(t, r.Close())
	}
	create := func(r *Repository) { id = complete(t, r, src, nil).ID.String() }

	// The config, in all of them. Then data, tree, segment, manifest; the segments and
	// the tombstones are listed meanwhile.
	check("first create", "cache", counts{remote.OpGet: 1, remote.OpList: 2, remote.OpPut: 4}, create)
	// The parent's manifest.
	check("create, nothing changed", "cache", counts{remote.OpGet: 2, remote.OpList: 2, remote.OpPut: 1}, create)
	write(t, src+"/7/new", []byte("new"))
	check("create, one file more", "cache", counts{remote.OpGet: 2, remote.OpList: 2, remote.OpPut: 4}, create)
	// Two packs of data and two of tree, of which only the index tells, are asked for.
	check("create on another machine", "another", counts{remote.OpGet: 3, remote.OpList: 2, remote.OpPut: 1, remote.OpStat: 4}, create)
	// Manifests and notes are listed side by side.
	check("list the first time", "third", counts{remote.OpGet: 5, remote.OpList: 2}, func(r *Repository) {
		_, err := r.List(t.Context(), nil)
		must(t, err)
	})
	check("list", "third", counts{remote.OpGet: 1, remote.OpList: 2}, func(r *Repository) {
		_, err := r.List(t.Context(), nil)
		must(t, err)
	})
	check("get by id", "fourth", counts{remote.OpGet: 2, remote.OpList: 1}, func(r *Repository) {
		_, err := r.Get(t.Context(), id)
		must(t, err)
	})
	// The manifest, two packs of tree, two of data.
	check("restore by id on another machine", "fourth", counts{remote.OpGet: 2, remote.OpReadAt: 4}, func(r *Repository) {
		restore(t, r, id, p.path("out"), nil)
	})
	check("create of what was restored", "fourth", counts{remote.OpGet: 2, remote.OpList: 2, remote.OpPut: 1}, func(r *Repository) {
		complete(t, r, p.path("out"), nil)
	})
	check("list with a new one", "third", counts{remote.OpGet: 2, remote.OpList: 2}, func(r *Repository) {
		_, err := r.List(t.Context(), nil)
		must(t, err)
	})
	check("rename", "third", counts{remote.OpGet: 2, remote.OpList: 1, remote.OpPut: 1}, func(r *Repository) {
		changed(t, r, id, renamed("other"))
	})
	// The note is in the cache.
	check("list with a note", "third", counts{remote.OpGet: 1, remote.OpList: 2}, func(r *Repository) {
		_, err := r.List(t.Context(), nil)
		must(t, err)
	})
	check("extend", "third", counts{remote.OpGet: 2, remote.OpList: 2, remote.OpPut: 1, remote.OpStat: 1}, func(r *Repository) {
		changed(t, r, id, &Changes{Until: time.Now().Add(time.Hour)})
	})
	check("remove", "third", counts{remote.OpGet: 2, remote.OpList: 1, remote.OpDelete: 1}, func(r *Repository) {
		_, err := r.Remove(t.Context(), id)
		must(t, err)
	})
}

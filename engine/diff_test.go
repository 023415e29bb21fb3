//go:build linux

package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/engine/view"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
	"golang.org/x/sys/unix"
)

// changes is what Diff yields, a line each: kind, path, and what changed.
func changes(t testing.TB, r *Repository, a, b, path string, opts *view.DiffOptions) (all []string) {
	t.Helper()
	must(t, view.Diff(t.Context(), r.repo, a, b, path, opts, func(c *view.Change) error {
		if (c.Kind == view.Added) != (c.Old == nil) || (c.Kind == view.Removed) != (c.New == nil) || (c.Kind == view.Modified) != (c.What != 0) {
			t.Errorf("%+v", c)
		}
		for _, i := range []*view.FileInfo{c.Old, c.New} {
			if i != nil && i.Path() != c.Path {
				t.Errorf("the info of %q is that of %q", c.Path, i.Path())
			}
		}
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s %q %s", c.Kind, c.Path, strings.Join(c.What.Words(), ","))))
		return nil
	}))
	return all
}

func TestDiff(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.path("src")
	plantForFS(t, src, 1_500_000)
	a := complete(t, r, src, nil).ID.String()
	if got := changes(t, r, a, a, "", &view.DiffOptions{Times: true}); len(got) > 0 {
		t.Errorf("a snapshot and itself: %q", got)
	}
	must(t, os.Chmod(src, 0o700))
	must(t, os.WriteFile(src+"/-rf", []byte("other"), 0o644))
	must(t, os.Remove(src+"/a b/*[x]?"))
	must(t, os.Chtimes(src+"/a-", time.Time{}, time.Unix(1, 1)))
	must(t, os.Chmod(src+"/empty", 0o4640))
	must(t, os.WriteFile(src+"/empty", []byte("no more"), 0o644))
	must(t, os.Remove(src+"/a/link"))
	must(t, os.Symlink("b", src+"/a/link"))
	must(t, os.Rename(src+"/a/b/c", src+"/many/moved"))
	must(t, os.Remove(src+"/many/7"))
	must(t, os.Mkdir(src+"/many/7", 0o755))
	must(t, os.WriteFile(src+"/many/7/in it", nil, 0o644))
	must(t, os.Truncate(src+"/a/all hole", 100_001))
	must(t, os.Link(src+"/zeros", src+"/another"))
	must(t, unix.Setxattr(src+"/名前", "user.x", []byte("y"), 0))
	b := complete(t, r, src, nil).ID.String()

	want := []string{
		`modified "" mode,times`,
		`modified "-rf" content,times`,
		`modified "a-" times`,
		`added "another"`,
		`modified "empty" content,mode,times`,
		// It is a link now, to a name that comes before it.
		`modified "zeros" links`,
		`modified "名前" xattrs`,
		`modified "a" times`,
		`modified "a b" times`,
		`modified "many" times`,
		`removed "a b/*[x]?"`,
		`modified "a/all hole" content,times`,
		`modified "a/b" times`,
		`modified "a/link" content,times`,
		`removed "a/b/c"`,
		`removed "a/b/c/deep"`,
		`removed "a/b/c/up"`,
		`modified "many/7" type`,
		`added "many/moved"`,
		`added "many/7/in it"`,
		`added "many/moved/deep"`,
		`added "many/moved/up"`,
	}
	sorted := func(s []string) []string { s = slices.Clone(s); slices.Sort(s); return s }
	if got := changes(t, r, a, b, "", &view.DiffOptions{Times: true}); !slices.Equal(sorted(got), sorted(want)) {
		t.Errorf("with times:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	var untimed []string
	for _, line := range want {
		line = strings.TrimSuffix(line, ",times")
		if !strings.HasSuffix(line, " times") {
			untimed = append(untimed, line)
		}
	}
	all := changes(t, r, a, b, "", nil)
	if !slices.Equal(sorted(all), sorted(untimed)) {
		t.Errorf("without times:\n%s\nwant\n%s", strings.Join(all, "\n"), strings.Join(untimed, "\n"))
	}
	back := changes(t, r, b, a, "", nil)
	for i := range back {
		back[i] = strings.NewReplacer("added", "removed", "removed", "added").Replace(back[i])
	}
	if !slices.Equal(back, all) {
		t.Errorf("back: %q", back)
	}
	for _, path := range []string{"a", "/a/b/", "many/7", "a/./b/c", "名前", "-rf"} {
		clean, err := view.CleanPath(path)
		must(t, err)
		var in []string
		for _, line := range all {
			if manifest.Within(strings.Split(line, `"`)[1], clean) {
				in = append(in, line)
			}
		}
		if got := changes(t, r, a, b, path, nil); !slices.Equal(got, in) || len(in) == 0 {
			t.Errorf("in %q: %q, want %q", path, got, in)
		}
	}
	if got := changes(t, r, a, b, "many/8", nil); len(got) > 0 {
		t.Errorf("many/8: %q", got)
	}

	err := view.Diff(t.Context(), r.repo, a, b, "", nil, func(c *view.Change) error {
		switch c.Path {
		case "many/7":
			if !c.Old.Mode().IsRegular() || c.Old.Size() != 6 || !c.New.IsDir() {
				t.Errorf("many/7: %v, %v", c.Old, c.New)
			}
		case "zeros":
			if x, y := c.Old.Sys().(*view.FileAttr), c.New.Sys().(*view.FileAttr); c.New.Size() != 300_000 || y.First != "another" || x.First != "" {
				t.Errorf("zeros: %+v, %+v", x, y)
			}
		}
		return nil
	})
	must(t, err)

	none := func(c *view.Change) error { t.Errorf("a change: %+v", c); return nil }
	if err := view.Diff(t.Context(), r.repo, a, b, "many/none", nil, none); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a path of neither: %v", err)
	}
	if err := view.Diff(t.Context(), r.repo, a, b, "../a", nil, none); !errors.Is(err, snapshot.ErrInvalid) {
		t.Errorf("a path with ..: %v", err)
	}
	for _, refs := range [][2]string{{a, "nosuch"}, {"nosuch", a}} {
		if err := view.Diff(t.Context(), r.repo, refs[0], refs[1], "", nil, none); !errors.Is(err, snapshot.ErrNotFound) {
			t.Errorf("diff %q: %v", refs, err)
		}
	}
	stop := errors.New("stop")
	if err := view.Diff(t.Context(), r.repo, a, b, "", nil, func(*view.Change) error { return stop }); err != stop {
		t.Errorf("stopped by %v", err)
	}
}

// TestDiffRequests: beside config and manifests, the two leaves of a change.
func TestDiffRequests(t *testing.T) {
	plainOnly(t)
	p := newPlace(t)
	store := remotetest.NewMemory()
	r, err := Init(t.Context(), "", initOf(t), keyed(t, &Options{CacheDir: p.cache, Store: store}))
	must(t, err)
	defer r.Close()
	src := p.files("src", nil)
	for i := range 5000 {
		writeFile(t, fmt.Sprintf("%s/%d/%d", src, i%50, i), fmt.Append(nil, "file ", i))
	}
	a := complete(t, r, src, nil).ID.String()
	writeFile(t, src+"/7/7", []byte("changed"))
	b := complete(t, r, src, nil).ID.String()
	for _, c := range []struct {
		a, b, path string
		reads      int64
	}{{a, b, "", 2}, {a, b, "8", 2}, {a, a, "", 0}} {
		r, err := Open(t.Context(), "", keyed(t, &Options{CacheDir: p.path("cache-" + c.path + c.b), Store: store}))
		must(t, err)
		got := changes(t, r, c.a, c.b, c.path, nil)
		if c.path == "" && c.a != c.b && !slices.Equal(got, []string{`modified "7/7" content`}) {
			t.Errorf("%q", got)
		}
		n := r.Requests().Ops
		if n[remote.OpGet].Calls != 3 || n[remote.OpReadAt].Calls > c.reads || n.Total().Calls != n[remote.OpGet].Calls+n[remote.OpReadAt].Calls {
			t.Errorf("in %q: %v", c.path, n)
		}
		must(t, r.Close())
	}
}

// TestDiffOfDamaged: a page that is needed and damaged is an error, one that is
// shared is not read.
func TestDiffOfDamaged(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := manyFiles(p, "src")
	a := complete(t, r, src, nil).ID.String()
	shared := filesBelow(t, p.repo+"/packs")
	writeFile(t, src+"/dd/new", []byte("new"))
	b := complete(t, r, src, nil).ID.String()
	want := changes(t, r, a, b, "", nil)
	if !slices.Equal(want, []string{`added "dd/new"`}) {
		t.Fatal(want)
	}
	failed := 0
	for _, path := range filesBelow(t, p.repo+"/packs") {
		good, err := os.ReadFile(path)
		must(t, err)
		must(t, change(path, func(b []byte) []byte {
			for i := range b {
				b[i] ^= 1
			}
			return b
		}))
		var got []string
		err = view.Diff(t.Context(), p.open("other").repo, a, b, "", nil, func(c *view.Change) error { got = append(got, c.Path); return nil })
		switch {
		case err == nil && !slices.Equal(got, []string{"dd/new"}):
			t.Errorf("%q without an error", got)
		case err != nil && !errors.Is(err, snapshot.ErrIntegrity):
			t.Error(err)
		case err != nil:
			failed++
		}
		must(t, change(path, func([]byte) []byte { return good }))
	}
	if failed != 2 || len(shared) < 2 {
		t.Errorf("%d errors, want one for each of the two tree packs; %d packs of the first", failed, len(shared))
	}
}

// TestLog: ancestors, as far as they are there.
func TestLog(t *testing.T) {
	p := newPlace(t)
	now := time.Now()
	open := func(cache string) *Repository {
		r := p.open(cache)
		setClocks(r, func() time.Time { return now })
		return r
	}
	must(t, p.init().Close())
	r := open("cache")
	src := p.files("src", map[string]string{"f": "1"})
	var ids []manifest.ID
	for i := range 5 {
		writeFile(t, src+"/f", []byte(strings.Repeat("x", i)))
		opts := &CreateOptions{Name: "app"}
		if i == 3 {
			opts.TTL = time.Hour
		}
		ids = append(ids, complete(t, r, src, opts).ID)
	}
	complete(t, r, p.files("elsewhere", map[string]string{"f": "1"}), nil)
	check := func(r *Repository, ref string, removed *manifest.ID, want ...manifest.ID) {
		t.Helper()
		h, err := r.Log(t.Context(), ref)
		must(t, err)
		var got []manifest.ID
		for _, s := range h.Snapshots {
			got = append(got, s.ID)
		}
		if !slices.Equal(got, want) || (h.Removed == nil) != (removed == nil) || removed != nil && *h.Removed != *removed {
			t.Errorf("log of %s: %v, removed %v; want %v, %v", ref, got, h.Removed, want, removed)
		}
	}
	check(r, "app", nil, ids[4], ids[3], ids[2], ids[1], ids[0])
	check(r, ids[1].String(), nil, ids[1], ids[0])
	check(r, ids[0].String(), nil, ids[0])
	check(r, "latest", nil, mustGet(t, r, "latest").ID)
	now = now.Add(2 * time.Hour) // what has expired is an ancestor still
	check(open("second"), "app", nil, ids[4], ids[3], ids[2], ids[1], ids[0])
	if _, err := r.Log(t.Context(), ids[3].String()); !errors.Is(err, snapshot.ErrExpired) {
		t.Errorf("log of what has expired: %v", err)
	}
	if _, err := r.Log(t.Context(), "nosuch"); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("log of nothing: %v", err)
	}

	_, err := retain.Remove(t.Context(), r.repo, ids[1].String())
	must(t, err)
	for _, cache := range []string{"cache", "second", "third"} {
		check(open(cache), "app", &ids[1], ids[4], ids[3], ids[2])
		check(open(cache), ids[2].String(), &ids[1], ids[2])
	}

	// A circle, which only forgery makes.
	m, err := r.repo.Manifest(t.Context(), ids[2])
	must(t, err)
	m.Parent = ids[4]
	data, err := m.Encode(r.repo.Codec)
	must(t, err)
	path := p.repo + "/" + ids[2].ObjectName()
	must(t, change(path, func([]byte) []byte { return data }))
	h, err := open("fourth").Log(t.Context(), ids[4].String())
	if !errors.Is(err, snapshot.ErrIntegrity) || len(h.Snapshots) != 3 {
		t.Errorf("log of a circle: %v, %v", h, err)
	}
	must(t, change(path, func(b []byte) []byte { b[40] ^= 1; return b }))
	h, err = open("fifth").Log(t.Context(), ids[4].String())
	if !errors.Is(err, snapshot.ErrIntegrity) || len(h.Snapshots) != 2 {
		t.Errorf("log with a damaged ancestor: %v, %v", h, err)
	}
}

func mustGet(t testing.TB, r *Repository, ref string) *snapshot.Snapshot {
	t.Helper()
	s, err := r.Get(t.Context(), ref)
	must(t, err)
	return s
}

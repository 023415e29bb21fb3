//go:build linux

package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"golang.org/x/sys/unix"
)

// A home is somebody's home directory in the layout that is the default: repository,
// cache and state are in it.
type home struct {
	*place
	dir, repo, state string
	r                *Repository
	snapshot         string
}

func newHome(t *testing.T) *home {
	p := newPlace(t)
	h := &home{place: p, dir: p.files("home", map[string]string{"a": "1", "d/b": "2", ".local/share/other": "3"})}
	h.repo, h.state = h.dir+"/.local/share/snapctl", h.dir+"/.local/state/snapctl"
	var err error
	h.r, err = Init(t.Context(), h.repo, nil, h.options())
	must(t, err)
	t.Cleanup(func() { h.r.Close() })
	res := complete(t, h.r, h.dir, nil)
	h.snapshot = res.ID.String()
	for _, dir := range []string{h.repo, h.dir + "/.cache/snapctl/" + h.r.ID().String(), h.state + "/used"} {
		if !slices.Contains(res.LeftOut, dir) {
			t.Errorf("left out are %q, not %s", res.LeftOut, dir)
		}
	}
	return h
}

func (h *home) options() *Options {
	return &Options{CacheDir: h.dir + "/.cache/snapctl", StateDir: h.state}
}

// well makes sure that all snapshots are there, and can be restored.
func (h *home) well(t *testing.T) {
	t.Helper()
	r, err := Open(t.Context(), h.repo, h.options())
	must(t, err)
	defer r.Close()
	all, err := r.List(t.Context(), nil)
	if err != nil || len(all) == 0 {
		t.Fatalf("the repository has %d snapshots, %v", len(all), err)
	}
	for _, s := range all {
		restore(t, r, s.ID.String(), t.TempDir()+"/out", nil)
	}
	if repo.UsedHere(h.state, h.r.repo.URL()) == nil {
		t.Error("the state is gone")
	}
}

// TestOwnStays: no way of restoring deletes or replaces what is snapctl's own.
func TestOwnStays(t *testing.T) {
	t.Run("modes and layouts", func(t *testing.T) {
		for _, opts := range []RestoreOptions{{Delete: true}, {Into: true, Delete: true}, {Into: true}} {
			for name, target := range map[string]func(t *testing.T, h *home) string{
				"by name":  func(_ *testing.T, h *home) string { return h.dir },
				"relative": func(t *testing.T, h *home) string { t.Chdir(h.path()); return "./home/../home" },
				"by a link": func(t *testing.T, h *home) string {
					must(t, os.Symlink("home", h.path("link")))
					return h.path("link")
				},
				"by a bind mount": func(t *testing.T, h *home) string {
					bind(t, h.dir, h.path("bound"))
					return h.path("bound")
				},
				"above": func(_ *testing.T, h *home) string { return h.path() },
				"repository by a bind mount": func(t *testing.T, h *home) string {
					bind(t, h.repo, h.path("elsewhere"))
					h.r.Close()
					h.state = h.path("state2") // which knows of no other name
					r, err := Open(t.Context(), h.path("elsewhere"), h.options())
					must(t, err)
					t.Cleanup(func() { r.Close() })
					h.r = r
					return h.dir
				},
				"a part that is a bind mount": func(t *testing.T, h *home) string {
					bind(t, h.dir+"/.local", h.path("part"))
					return h.path("part")
				},
			} {
				if name == "above" && !opts.Delete {
					continue
				}
				t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
					h := newHome(t)
					dir := target(t, h)
					must(t, os.WriteFile(h.dir+"/a", []byte("changed"), 0o644))
					writeFile(t, h.dir+"/.local/share/more", []byte("more"))
					rec, err := h.r.Restore(t.Context(), h.snapshot, dir, &opts)
					must(t, err)
					if len(rec.Kept) == 0 && opts.Delete {
						t.Error("it is not said what was kept")
					}
					if name == "above" || strings.Contains(name, "part") {
						h.repo = find(t, h.path(), "snapctl/config")
					}
					if name == "repository by a bind mount" {
						all, err := h.r.List(t.Context(), nil)
						if err != nil || len(all) != 1 {
							t.Fatalf("%d snapshots, %v", len(all), err)
						}
					}
					h.well(t)
					if b, err := os.ReadFile(filepath.Join(rec.Target, "a")); err != nil || string(b) != "1" {
						t.Errorf("a is %q, %v", b, err)
					}
				})
			}
		}
	})
	t.Run("nothing of it in the snapshot", func(t *testing.T) {
		h := newHome(t)
		id := complete(t, h.r, h.files("plain", map[string]string{"x": "1"}), nil).ID.String()
		rec := restore(t, h.r, id, h.dir, &RestoreOptions{Into: true, Delete: true})
		h.well(t)
		if _, err := os.Stat(h.dir + "/.local/share/other"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what is beside ours: %v", err)
		}
		if !slices.Contains(rec.Kept, h.repo) {
			t.Errorf("kept are %q", rec.Kept)
		}
	})
	t.Run("a file in its place", func(t *testing.T) {
		for _, at := range []string{".local", ".local/share", ".local/share/snapctl", ".local/share/snapctl/config"} {
			for _, opts := range []RestoreOptions{{Delete: true}, {Into: true}, {Into: true, Delete: true}} {
				h := newHome(t)
				id := complete(t, h.r, h.files("odd", map[string]string{at: "1", "z": "1"}), nil).ID.String()
				rec, err := h.r.Restore(t.Context(), id, h.dir, &opts)
				must(t, err)
				if len(rec.Problems) == 0 {
					t.Errorf("%s, %+v: nobody was told", at, opts)
				}
				h.well(t)
				if b, err := os.ReadFile(h.dir + "/z"); err != nil || string(b) != "1" {
					t.Errorf("%q, %v", b, err)
				}
			}
		}
	})
	t.Run("targets in it", func(t *testing.T) {
		h := newHome(t)
		bind(t, h.repo+"/packs", h.path("packs"))
		bind(t, h.repo+"/packs", h.path("holder/packs"))
		must(t, os.Symlink(h.repo, h.path("link")))
		for _, dir := range []string{h.repo, h.repo + "/packs", h.repo + "/new", h.state + "/used", h.path("link/manifests"), h.path("packs"), h.path("packs/00"), h.path("holder")} {
			for _, opts := range []RestoreOptions{{}, {Delete: true}, {Into: true}, {Into: true, Delete: true}} {
				if _, err := h.r.Restore(t.Context(), h.snapshot, dir, &opts); !errors.Is(err, snapshot.ErrOwn) {
					t.Errorf("%s, %+v: %v", dir, opts, err)
				}
			}
		}
		h.well(t)
	})
	t.Run("another repository", func(t *testing.T) {
		h := newHome(t)
		o := h.options()
		other, err := Init(t.Context(), h.path("more/repo2"), nil, o)
		must(t, err)
		complete(t, other, h.dir+"/d", nil)
		must(t, other.Close())
		restore(t, h.r, h.snapshot, h.path("more"), &RestoreOptions{Delete: true})
		other, err = Open(t.Context(), h.path("more/repo2"), o)
		must(t, err)
		defer other.Close()
		if all, err := other.List(t.Context(), nil); err != nil || len(all) != 1 {
			t.Errorf("%d snapshots, %v", len(all), err)
		}
	})
	t.Run("a fork that is a copy", func(t *testing.T) {
		h := newHome(t)
		f, err := h.r.Fork(t.Context(), h.snapshot, h.path("copy"), &ForkOptions{Mode: ForkRestore})
		must(t, err)
		o := h.options()
		other, err := Init(t.Context(), h.path("copy/repo2"), nil, o)
		must(t, err)
		must(t, other.Close())
		if _, err := f.Remove(t.Context(), nil); !errors.Is(err, snapshot.ErrOwn) {
			t.Errorf("removing a fork that holds a repository: %v", err)
		}
		other, err = Open(t.Context(), h.path("copy/repo2"), o)
		must(t, err)
		must(t, other.Close())
		must(t, os.Rename(h.path("copy/repo2"), h.path("repo2")))
		_, err = f.Remove(t.Context(), nil)
		must(t, err)
	})
	t.Run("a fork over it", func(t *testing.T) {
		needRoot(t)
		h := newHome(t)
		for _, dir := range []string{h.dir, h.dir + "/.local", h.repo} {
			if _, err := h.r.Fork(t.Context(), h.snapshot, dir, &ForkOptions{Force: true}); !errors.Is(err, snapshot.ErrOwn) {
				t.Errorf("a fork over %s: %v", dir, err)
			}
		}
	})
}

// TestOwnLinksStay: symbolic links on the way to what is ours stay, and a snapshot holds
// them.
func TestOwnLinksStay(t *testing.T) {
	// Each gives a link in a home, and what it leads to.
	for name, c := range map[string]struct{ link, to string }{
		"repository": {".local/share/snapctl", "far/repo"},
		"above it":   {".local/share", "far/share"},
		"state":      {".local/state", "far/state"},
		"cache":      {".cache", "far/cache"},
	} {
		for _, opts := range []RestoreOptions{{Delete: true}, {Into: true, Delete: true}, {Into: true}} {
			t.Run(fmt.Sprintf("%s_%v_%v", strings.ReplaceAll(name, " ", "_"), opts.Into, opts.Delete), func(t *testing.T) {
				p := newPlace(t)
				h := &home{place: p, dir: p.files("home", map[string]string{"a": "1"})}
				link := h.dir + "/" + c.link
				must(t, errors.Join(os.MkdirAll(filepath.Dir(link), 0o755), os.MkdirAll(p.path(c.to), 0o755)))
				to := strings.Repeat("../", strings.Count(c.link, "/")+1) + c.to
				must(t, os.Symlink(to, link))
				h.repo, h.state = h.dir+"/.local/share/snapctl", h.dir+"/.local/state/snapctl"
				var err error
				h.r, err = Init(t.Context(), h.repo, nil, h.options())
				must(t, err)
				defer h.r.Close()
				is := func(when string) {
					t.Helper()
					if got, err := os.Readlink(link); err != nil || got != to {
						t.Fatalf("%s the link leads to %q, %v", when, got, err)
					}
					h.well(t)
				}
				whole := complete(t, h.r, h.dir, nil).ID.String()
				plain := complete(t, h.r, p.files("plain", map[string]string{"x": "1"}), nil).ID.String()
				rec := restore(t, h.r, plain, h.dir, &opts)
				is("of a snapshot without it,")
				if opts.Delete && !slices.Contains(rec.Kept, link) {
					t.Errorf("kept are %q", rec.Kept)
				}
				rec = restore(t, h.r, whole, h.dir, &opts)
				is("of a snapshot with it,")
				if len(rec.Problems) > 0 {
					t.Error(rec.Problems)
				}
				for i, at := range []string{c.link, c.link + "/f", filepath.Dir(c.link)} {
					if at == "." {
						continue
					}
					id := complete(t, h.r, h.files(fmt.Sprint("odd", i), map[string]string{at: "1"}), nil).ID.String()
					rec, err := h.r.Restore(t.Context(), id, h.dir, &opts)
					must(t, err)
					is("of one with something in its place,")
					if len(rec.Problems) == 0 {
						t.Errorf("%s: nobody was told", at)
					}
				}
			})
		}
	}
}

// TestUnforkKeepsLinks: a fork that is a copy, and holds a link to a repository, stays.
func TestUnforkKeepsLinks(t *testing.T) {
	h := newHome(t)
	f, err := h.r.Fork(t.Context(), h.snapshot, h.path("copy"), &ForkOptions{Mode: ForkRestore})
	must(t, err)
	must(t, errors.Join(os.Mkdir(h.path("far"), 0o755), os.Symlink(h.path("far"), h.path("copy/repo2"))))
	other, err := Init(t.Context(), h.path("copy/repo2"), nil, h.options())
	must(t, err)
	must(t, other.Close())
	if _, err := f.Remove(t.Context(), nil); !errors.Is(err, snapshot.ErrOwn) {
		t.Errorf("removing a fork that holds a link to a repository: %v", err)
	}
	must(t, os.Remove(h.path("copy/repo2")))
	_, err = f.Remove(t.Context(), nil)
	must(t, err)
}

// bind mounts a directory elsewhere too.
func bind(t *testing.T, from, to string) {
	t.Helper()
	needRoot(t)
	must(t, os.MkdirAll(to, 0o755))
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("mounting is not allowed here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(to, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// find gives the directory of a file whose path ends like this.
func find(t *testing.T, root, end string) (dir string) {
	t.Helper()
	for _, f := range filesBelow(t, root) {
		if strings.HasSuffix(f, end) {
			return filepath.Dir(f)
		}
	}
	t.Fatalf("no %s below %s", end, root)
	return ""
}

// TestRepositoryGone: a repository that this machine has used is not one that is still to
// be made.
func TestRepositoryGone(t *testing.T) {
	p := newPlace(t)
	o := &Options{CacheDir: p.cache, StateDir: p.path("state")}
	if _, err := Open(t.Context(), p.repo, o); !errors.Is(err, snapshot.ErrNotInitialised) || errors.Is(err, snapshot.ErrGone) {
		t.Errorf("one that never was: %v", err)
	}
	r, err := Init(t.Context(), p.repo, nil, o)
	must(t, err)
	must(t, r.Close())
	must(t, os.RemoveAll(p.repo))
	_, err = Open(t.Context(), p.repo, o)
	if !errors.Is(err, snapshot.ErrGone) || !errors.Is(err, snapshot.ErrNotInitialised) || !strings.Contains(err.Error(), "snapctl init") {
		t.Errorf("one that is gone: %v", err)
	}
	if _, err := Open(t.Context(), p.repo, &Options{CacheDir: p.cache}); errors.Is(err, snapshot.ErrGone) {
		t.Errorf("without a state: %v", err)
	}
	r, err = Init(t.Context(), p.repo, nil, o)
	must(t, err)
	must(t, r.Close())

	must(t, errors.Join(os.Mkdir(p.path("far"), 0o755), os.Symlink(p.path("far"), p.path("link"))))
	r, err = Init(t.Context(), p.path("link/repo"), nil, o)
	must(t, err)
	must(t, r.Close())
	must(t, os.Rename(p.path("far"), p.path("farther")))
	_, err = Open(t.Context(), p.path("link/repo"), o)
	if !errors.Is(err, snapshot.ErrGone) || !strings.Contains(err.Error(), "no "+p.path("far")+" now") {
		t.Errorf("behind a link to nowhere: %v", err)
	}
}

// TestOwnBehindClosed: a repository below a directory that its user may not list, but could
// after a chmod, is neither deleted nor replaced.
func TestOwnBehindClosed(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	must(t, p.init().Close()) // another one
	mine := forNobody(t, p)
	src := p.files("mine/src", map[string]string{"f": "1"})
	dst := mine + "/dst"
	must(t, os.MkdirAll(dst+"/closed", 0o755))
	r, err := Init(t.Context(), dst+"/closed/repo", nil, &Options{CacheDir: p.path("root-cache")})
	must(t, err)
	id := complete(t, r, src, nil).ID.String()
	must(t, r.Close())
	chownAll(t, mine)
	must(t, os.Chmod(dst+"/closed", 0o111))
	j := job{Op: "restore", Repo: dst + "/closed/repo", Cache: mine + "/cache", Dir: dst, Ref: id}
	for _, o := range []RestoreOptions{{Delete: true}, {Into: true, Delete: true}} {
		j.Restore = o
		got := j.do(t, nobody)
		if got.Err == "" && len(got.Problems) == 0 {
			t.Errorf("%+v: nobody was told", o)
		}
		if _, err := os.Stat(dst + "/closed/repo/config"); err != nil {
			t.Fatalf("%+v: %v; %+v", o, err, got)
		}
	}
}

// TestOwnInClosed: a directory that its user cannot search stays, if one of their
// repositories is somewhere below it.
func TestOwnInClosed(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	id := complete(t, r, p.files("src", map[string]string{"f": "1"}), nil).ID.String()
	inPlace := complete(t, r, p.files("src2", map[string]string{"f": "1", "closed/x": "2"}), nil).ID.String()
	mine := forNobody(t, p)
	dst, state := mine+"/dst", mine+"/state"
	repo := dst + "/closed/deeper/repo"
	other, err := Init(t.Context(), repo, nil, &Options{CacheDir: p.path("root-cache"), StateDir: state})
	must(t, err)
	must(t, other.Close())
	chownAll(t, mine)
	for _, mode := range []os.FileMode{0, 0o600} {
		must(t, os.Chmod(dst+"/closed", mode))
		for _, ref := range []string{id, inPlace} {
			for _, o := range []RestoreOptions{{Delete: true}, {Into: true, Delete: true}, {Into: true}} {
				got := job{Op: "restore", Repo: p.repo, Cache: mine + "/cache", State: state, Dir: dst, Ref: ref, Restore: o}.do(t, nobody)
				if got.Err != "" || ref == inPlace && len(got.Problems) == 0 || ref == id && o.Delete && !slices.Equal(got.Kept, []string{dst + "/closed"}) {
					t.Errorf("%o, %+v: %+v", mode, o, got)
				}
				if _, err := os.Stat(repo + "/config"); err != nil {
					t.Fatalf("%o, %+v: %v; %+v", mode, o, err, got)
				}
				if st, err := os.Stat(dst + "/closed"); err != nil || st.Mode().Perm() != mode {
					t.Errorf("%o, %+v: it is %v, %v", mode, o, st, err)
				}
			}
		}
	}
}

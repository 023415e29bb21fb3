//go:build linux

package engine

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/snapctl/snapctl/engine/snapshot"
	"golang.org/x/sys/unix"
)

// TestOwnInOverlay: a repository in the upper directory of an overlay is known through the
// mount, and one in the mount is known in the upper directory.
func TestOwnInOverlay(t *testing.T) {
	needRoot(t)
	for _, c := range []struct{ repo, target string }{
		{"upper/home/repo", "merged/home"}, {"upper/home/repo", "merged"}, {"upper/home/repo", "part"},
		{"merged/home/repo", "upper/home"}, {"merged/home/repo", "upper"},
	} {
		for _, o := range []RestoreOptions{{Delete: true}, {Into: true, Delete: true}} {
			t.Run(fmt.Sprintf("%s_%s_%v", c.repo, c.target, o.Into), func(t *testing.T) {
				p := newPlace(t)
				for _, dir := range []string{"lower", "upper/home", "work", "merged"} {
					must(t, os.MkdirAll(p.path(dir), 0o755))
				}
				options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", p.path("lower"), p.path("upper"), p.path("work"))
				if err := unix.Mount("overlay", p.path("merged"), "overlay", 0, options); err != nil {
					t.Skipf("there is no overlay here: %v", err)
				}
				t.Cleanup(func() { must(t, unix.Unmount(p.path("merged"), unix.MNT_DETACH)) })
				bind(t, p.path("merged/home"), p.path("part"))
				r, err := Init(t.Context(), p.path(c.repo), nil, &Options{CacheDir: p.cache})
				must(t, err)
				defer r.Close()
				id := complete(t, r, p.files("src", map[string]string{"f": "1"}), nil).ID.String()
				dst := p.path(c.target)
				writeFile(t, dst+"/more", []byte("goes"))
				rec := restore(t, r, id, dst, &o)
				if _, err := os.Stat(p.path(c.repo + "/config")); err != nil || len(rec.Kept) != 1 {
					t.Fatalf("%v; kept are %q", err, rec.Kept)
				}
				if _, err := os.Stat(dst + "/more"); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("what is beside it: %v", err)
				}
				if res := complete(t, r, dst, nil); !slices.Contains(res.LeftOut, rec.Kept[0]) {
					t.Errorf("left out are %q", res.LeftOut)
				}
				if _, err := r.Restore(t.Context(), id, rec.Kept[0], &o); !errors.Is(err, snapshot.ErrOwn) {
					t.Errorf("into it: %v", err)
				}
			})
		}
	}
}

// TestOwnInRelativeOverlay: where the table of mounts does not say what the upper directory
// is, a repository in it is known by what is in it.
func TestOwnInRelativeOverlay(t *testing.T) {
	needRoot(t)
	for _, o := range []RestoreOptions{{Delete: true}, {Into: true, Delete: true}} {
		p := newPlace(t)
		for _, dir := range []string{"lower", "upper/home", "work", "merged"} {
			must(t, os.MkdirAll(p.path(dir), 0o755))
		}
		t.Chdir(p.path())
		if err := unix.Mount("overlay", "merged", "overlay", 0, "lowerdir=lower,upperdir=upper,workdir=work"); err != nil {
			t.Skipf("there is no overlay here: %v", err)
		}
		t.Cleanup(func() { must(t, unix.Unmount(p.path("merged"), unix.MNT_DETACH)) })
		home := p.path("merged/home")
		r, err := Init(t.Context(), home+"/repo", nil, &Options{CacheDir: p.cache, StateDir: home + "/state"})
		must(t, err)
		defer r.Close()
		id := complete(t, r, p.files("src", map[string]string{"f": "1"}), nil).ID.String()
		dst := p.path("upper/home")
		writeFile(t, dst+"/more", []byte("goes"))
		rec := restore(t, r, id, dst, &o)
		if want := []string{dst + "/repo", dst + "/state"}; !slices.Equal(rec.Kept, want) {
			t.Errorf("kept are %q", rec.Kept)
		}
		for _, at := range []string{"/repo/config", "/state/used"} {
			if _, err := os.Stat(dst + at); err != nil {
				t.Error(err)
			}
		}
	}
}

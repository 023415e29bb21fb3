//go:build linux

package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/engine/view"
)

// TestOwnMoved: what is on no record of this machine, because it was moved, is known by
// what is in it, and stays.
func TestOwnMoved(t *testing.T) {
	p := newPlace(t)
	r, err := Init(t.Context(), p.repo, nil, &Options{CacheDir: p.cache, StateDir: p.path("state")})
	must(t, err)
	defer r.Close()
	plain := complete(t, r, p.files("plain", map[string]string{"x": "1"}), nil).ID.String()
	inIt := complete(t, r, p.files("inIt", map[string]string{"deep/moved/x": "1", "x": "1"}), nil).ID.String()
	over := complete(t, r, p.files("over", map[string]string{"deep": "1"}), nil).ID.String()
	modes := []RestoreOptions{{Delete: true}, {Into: true, Delete: true}, {Into: true}}
	for name, c := range map[string]struct {
		make func(t *testing.T, at string) // somewhere else
		sign string
	}{
		"repository": {func(t *testing.T, at string) { movedRepository(t, p, at) }, "config"},
		"state": {func(t *testing.T, at string) {
			other, err := Init(t.Context(), at+"-r", nil, &Options{CacheDir: p.cache, StateDir: at})
			must(t, err)
			must(t, errors.Join(other.Close(), os.RemoveAll(at+"-r")))
		}, "used"},
		"layer": {func(t *testing.T, at string) {
			writeFile(t, at+"/layer.json", fmt.Appendf(nil, `{"version":1,"snapshot":%q}`, plain))
			writeFile(t, at+"/upper/f", []byte("1"))
		}, "upper/f"},
	} {
		for _, o := range modes {
			for what, ref := range map[string]string{"plain": plain, "in it": inIt, "over": over} {
				t.Run(fmt.Sprintf("%s_%s_%v_%v", name, what, o.Into, o.Delete), func(t *testing.T) {
					at := filepath.Join(t.TempDir(), "made")
					c.make(t, at)
					dst := t.TempDir()
					writeFile(t, dst+"/goes", []byte("1"))
					writeFile(t, dst+"/deep/goes", []byte("1"))
					moved := dst + "/deep/moved"
					must(t, os.Rename(at, moved))
					dry := o
					dry.DryRun = true
					dry.Would = func(*view.Change) error { return nil }
					told := restoreOver(t, r, ref, dst, dry)
					rec := restoreOver(t, r, ref, dst, o)
					if _, err := os.Stat(moved + "/" + c.sign); err != nil {
						t.Fatal(err)
					}
					if _, err := os.Stat(moved + "/x"); err == nil {
						t.Error("it was written to")
					}
					if told.Changes != rec.Changes || !slices.Equal(told.Kept, rec.Kept) || len(told.Problems) != len(rec.Problems) {
						t.Errorf("the dry run said %+v, %q, %v; the restore %+v, %q, %v", told.Changes, told.Kept, told.Problems, rec.Changes, rec.Kept, rec.Problems)
					}
					if _, err := os.Stat(dst + "/goes"); (err == nil) == o.Delete {
						t.Errorf("what is beside it: %v", err)
					}
					switch {
					case what == "plain" && o.Delete && !slices.Equal(rec.Kept, []string{moved}):
						t.Errorf("kept are %q", rec.Kept)
					case what != "plain" && len(rec.Problems) == 0:
						t.Error("nobody was told")
					}
					into := []string{moved, moved + "/new", moved + "/packs"}
					if name == "state" {
						into = []string{moved, moved + "/kept", moved + "/used/new"}
						restoreOver(t, r, plain, moved+"/beside", o)
					}
					for _, dir := range into {
						if _, err := r.Restore(t.Context(), plain, dir, &o); !errors.Is(err, snapshot.ErrOwn) {
							t.Errorf("into %s: %v", dir, err)
						}
					}
				})
			}
		}
	}
}

// restoreOver is restore, whatever problems there are.
func restoreOver(t *testing.T, r *Repository, ref, dir string, o RestoreOptions) *Receipt {
	t.Helper()
	rec, err := r.Restore(t.Context(), ref, dir, &o)
	must(t, err)
	return rec
}

// movedRepository makes a repository which the state directory of p does not know.
func movedRepository(t *testing.T, p *place, at string) {
	t.Helper()
	r, err := Init(t.Context(), at, nil, &Options{CacheDir: p.cache})
	must(t, err)
	must(t, r.Close())
}

// TestOwnMovedNot: a directory is not taken for ours because of a name in it.
func TestOwnMovedNot(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	id := complete(t, r, p.files("src", map[string]string{"x": "1"}), nil).ID.String()
	dst := p.files("dst", map[string]string{
		".git/config":       "[core]\n",
		"a/config":          `{"version": 1, "id": "x"}`,
		"b/config":          `{"version": 3}`,
		"c/config/packs/00": "1", "c/manifests/0": "1",
		"d/used/0123": "1", "e/used": "1",
		"f/layer.json": "{}", "f/upper/x": "1",
	})
	rec := restoreOver(t, r, id, dst, RestoreOptions{Delete: true})
	if len(rec.Kept)+len(rec.Problems) > 0 || rec.InPlace != "" {
		t.Errorf("kept are %q, %v; %s", rec.Kept, rec.Problems, rec.InPlace)
	}
}

// TestOwnRestored: a repository that a snapshot holds, and that nobody changed since it was
// restored, gives way as all else of it does.
func TestOwnRestored(t *testing.T) {
	p := newPlace(t)
	r, err := Init(t.Context(), p.repo, nil, &Options{CacheDir: p.cache, StateDir: p.path("state")})
	must(t, err)
	defer r.Close()
	src := p.files("src", map[string]string{"x": "1"})
	movedRepository(t, p, src+"/fixture")
	first := complete(t, r, src, nil).ID.String()
	writeFile(t, src+"/fixture/config", []byte("another"))
	second := complete(t, r, src, nil).ID.String()
	dst := p.path("dst")
	restore(t, r, first, dst, nil)
	if rec := restoreOver(t, r, second, dst, RestoreOptions{}); len(rec.Kept)+len(rec.Problems) > 0 {
		t.Errorf("kept are %q, %v", rec.Kept, rec.Problems)
	}
	sameContents(t, src, dst)
}

// TestUnforkKeepsMoved: a fork that holds a moved repository stays, whatever its mode.
func TestUnforkKeepsMoved(t *testing.T) {
	for _, mode := range []ForkMode{ForkRestore, ForkOverlay, ForkFuse} {
		t.Run(string(mode), func(t *testing.T) {
			h := newHome(t)
			if mode != ForkRestore {
				tryMode(t, h.state, mode)
			}
			f, err := h.r.Fork(t.Context(), h.snapshot, h.path("fork"), &ForkOptions{Mode: mode})
			must(t, err)
			movedRepository(t, h.place, h.path("fork/d/moved"))
			if _, err := f.Remove(t.Context(), nil); !errors.Is(err, snapshot.ErrOwn) {
				t.Errorf("removing a fork that holds a repository: %v", err)
			}
			must(t, os.RemoveAll(h.path("fork/d/moved")))
			_, err = f.Remove(t.Context(), nil)
			must(t, err)
		})
	}
}

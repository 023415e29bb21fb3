//go:build linux

package engine

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// movedFork gives a fork that is not mounted, and whose directory, which was made for it or
// was there before, is at p/q1/NAME and not at p/p1/NAME any more.
func (f *forked) movedFork(r *Repository, name string, made bool) (one *Fork, now string) {
	f.Helper()
	must(f, os.MkdirAll(f.path("p/p1"), 0o755))
	if !made {
		must(f, os.Mkdir(f.path("p/p1/"+name), 0o755))
		must(f, unix.Chmod(f.path("p/p1/"+name), 0o2751))
	}
	one = f.fork(r, "p/p1/"+name, nil)
	writeFile(f, one.Dir+"/new", []byte("new"))
	must(f, one.Unmount(f.Context(), false))
	must(f, os.Rename(f.path("p/p1"), f.path("p/q1")))
	now = f.path("p/q1/" + name)
	if err := os.Mkdir(now+"/x", 0o755); !errors.Is(err, fs.ErrPermission) {
		f.Skipf("root writes everywhere: %v", err)
	}
	moved, err := MovedForks(f.state)
	must(f, err)
	if len(moved) != 1 || moved[0] != (MovedFork{name, one.Dir, now}) {
		f.Errorf("%+v", moved)
	}
	return one, now
}

// asItWas checks a directory beneath a fork that is not the fork's any more, and removes it.
func (f *forked) asItWas(dir string, made bool) {
	f.Helper()
	moved, err := MovedForks(f.state)
	must(f, err)
	if len(moved) > 0 {
		f.Errorf("%+v", moved)
	}
	if made {
		absent(f, dir)
	} else {
		var st unix.Stat_t
		must(f, unix.Stat(dir, &st))
		if st.Mode&0o7777 != 0o2751 {
			f.Errorf("mode %o", st.Mode)
		}
		writeFile(f, dir+"/x", nil)
	}
	must(f, os.RemoveAll(f.path("p")))
}

// TestForkDirMoved: the directory beneath a fork that was moved while the fork was not
// mounted is what it was before, or gone, once it is not the fork's any more.
func TestForkDirMoved(t *testing.T) {
	for name, made := range map[string]bool{"made": true, "mine": false} {
		t.Run(name, func(t *testing.T) {
			f := newForked(t)
			r := f.open()
			one, now := f.movedFork(r, name, made)
			f.remove(one)
			f.asItWas(now, made)

			one, now = f.movedFork(r, name, made)
			again, err := r.ResumeFork(t.Context(), name, nil)
			must(t, err)
			if b, err := os.ReadFile(again.Dir + "/new"); err != nil || string(b) != "new" || again.Dir != one.Dir {
				t.Errorf("%s: %q %v", again.Dir, b, err)
			}
			must(t, one.Unmount(t.Context(), false))
			if err := os.Mkdir(one.Dir+"/x", 0o755); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("the new directory is not guarded: %v", err)
			}
			f.remove(one)
			absent(t, one.Dir)
			f.asItWas(now, made)

			// Another directory by that name is somebody's own.
			one, now = f.movedFork(r, name, made)
			must(t, os.MkdirAll(one.Dir, 0o755))
			f.remove(one)
			if _, err := os.Lstat(one.Dir); err != nil {
				t.Error(err)
			}
			f.asItWas(now, made)
		})
	}
}

// TestForkDirHidden: what is mounted over the directory of a fork that is not mounted stays,
// and the guard beneath goes with the fork.
func TestForkDirHidden(t *testing.T) {
	f := newForked(t)
	r := f.open()
	one := f.fork(r, "one", nil)
	must(t, one.Unmount(t.Context(), false))
	must(t, unix.Mount("other", one.Dir, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { _ = unix.Unmount(one.Dir, unix.MNT_DETACH) })
	writeFile(t, one.Dir+"/x", nil)
	f.remove(one)
	if _, err := os.Stat(one.Dir + "/x"); err != nil {
		t.Error(err)
	}
	must(t, unix.Unmount(one.Dir, 0))
	writeFile(t, one.Dir+"/x", nil)
}

// TestForkDirLost: where nothing tells where the directory was moved to, that is said.
func TestForkDirLost(t *testing.T) {
	f := newForked(t)
	one, now := f.movedFork(f.open(), "one", true)
	bare, err := openBare(now)
	must(t, err)
	defer bare.Close()
	f.rewrite("one", func(c *forkRecord) { c.Bare.Handle = nil })
	var warnings []string
	_, err = one.Remove(t.Context(), &RemoveForkOptions{Warn: func(err error) { warnings = append(warnings, err.Error()) }})
	must(t, err)
	if len(warnings) != 1 || !strings.Contains(warnings[0], one.Dir) || !strings.Contains(warnings[0], "chattr -i DIR") {
		t.Errorf("%q", warnings)
	}
	must(t, (&bareDir{Mode: 0o755}).restore(bare))
}

// TestForkDirMadeAgain: a directory that a resume had made when it was killed is removed
// with its fork, guarded or not yet.
func TestForkDirMadeAgain(t *testing.T) {
	f := newForked(t)
	r := f.open()
	g, err := newForkRegistry(f.state)
	must(t, err)
	for _, name := range []string{"bare", "guarded"} {
		one := f.fork(r, name, nil)
		must(t, one.Unmount(t.Context(), false))
		func() {
			e, err := g.find(name)
			must(t, err)
			defer e.close()
			must(t, e.take(t.Context()))
			must(t, e.dropDir(nil)) // by an unfork that was killed
			absent(t, one.Dir)
			made, err := e.makeDirAgain(nil)
			must(t, err)
			if !made {
				t.Errorf("%s was there", one.Dir)
			}
			if name == "guarded" {
				guard, err := e.unguardToMount(nil)
				must(t, err)
				guard()
			}
		}()
		f.remove(one)
		absent(t, one.Dir)
	}
}

// TestForkDirShared: a fork that was made over the moved directory of another has its guard
// as long as it is there, whichever of them goes first, and leaves what was there before both.
func TestForkDirShared(t *testing.T) {
	for _, c := range []struct {
		name   string
		first  bool // the older fork goes first
		resume bool // and is resumed before, at its own path
	}{{"older_first", true, false}, {"newer_first", false, false}, {"resumed", true, true}} {
		t.Run(c.name, func(t *testing.T) {
			f := newForked(t)
			r := f.open()
			one, now := f.movedFork(r, "one", false)
			two, err := r.Fork(t.Context(), f.id.String(), now, &ForkOptions{Name: "two"})
			must(t, err)
			if c.resume {
				one, err = r.ResumeFork(t.Context(), "one", nil)
				must(t, err)
			}
			if !c.first {
				one, two = two, one
			}
			f.remove(one)
			if c.first {
				must(t, two.Unmount(t.Context(), false))
			}
			if err := os.Mkdir(now+"/x", 0o755); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("the directory is not guarded any more: %v", err)
			}
			f.remove(two)
			f.asItWas(now, false)
		})
	}
}

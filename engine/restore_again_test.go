//go:build linux

package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/engine/snapshot"
	"golang.org/x/sys/unix"
)

// withState opens the place's repository as the command does.
func (p *place) withState() *Repository {
	p.Helper()
	r, err := Open(p.Context(), p.repo, keyed(p, &Options{CacheDir: p.cache, StateDir: p.path("state")}))
	must(p, err)
	p.Cleanup(func() { r.Close() })
	return r
}

// ctimes are the change times of all that is in a directory, and of itself.
func ctimes(t testing.TB, dir string) map[string]unix.Timespec {
	t.Helper()
	all := map[string]unix.Timespec{}
	must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		err = errors.Join(err, unix.Lstat(path, &st))
		all[path] = st.Ctim
		return err
	}))
	return all
}

// odds makes a tree of everything but what is large.
func odds(t testing.TB, p *place, name string) string {
	t.Helper()
	src := p.files(name, map[string]string{"a": "1", "d/b": "22", "d/e/c": "333", "large": string(random(1, 3<<20)), "z": ""})
	must(t, os.Link(src+"/a", src+"/d/second"))
	must(t, os.Link(src+"/a", src+"/third"))
	must(t, os.Symlink("a", src+"/link"))
	must(t, unix.Mkfifo(src+"/d/fifo", 0o640))
	must(t, unix.Setxattr(src+"/d/b", "user.x", []byte("1"), 0))
	must(t, unix.Setxattr(src+"/d", "user.y", []byte("2"), 0))
	must(t, os.Chmod(src+"/z", 0o4755))
	must(t, os.MkdirAll(src+"/empty/empty", 0o700))
	must(t, os.Chmod(src+"/empty", 0o555))
	return src
}

// TestRestoreAgain: what a restore left is replaced by the next one, unless somebody
// changed it.
func TestRestoreAgain(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	p.init().Close()
	r := p.withState()
	src := odds(t, p, "src")
	first, want1 := complete(t, r, src, nil).ID.String(), scan(t, src)
	must(t, os.WriteFile(src+"/d/b", []byte("new contents"), 0o644))
	must(t, os.RemoveAll(src+"/d/e"))
	second, want2 := complete(t, r, src, nil).ID.String(), scan(t, src)

	n := 0
	ways := map[string]func(t *testing.T) string{
		"missing": func(*testing.T) string { n++; return p.path(fmt.Sprint("dst", n)) },
		"empty":   func(*testing.T) string { n++; return p.files(fmt.Sprint("dst", n), nil) },
		"swapped": func(*testing.T) string { n++; return p.files(fmt.Sprint("dst", n), map[string]string{"old": "1"}) },
		"mounted": func(t *testing.T) string {
			n++
			dst := p.path(fmt.Sprint("dst", n))
			mount(t, dst, "size=16m")
			return dst
		},
		"in place": func(*testing.T) string { n++; return p.files(fmt.Sprint("dst", n), map[string]string{"old": "1"}) },
		"lost found": func(t *testing.T) string {
			n++
			dst := p.path(fmt.Sprint("dst", n))
			mount(t, dst, "size=16m")
			must(t, os.Mkdir(dst+"/"+lostFound, 0o700))
			return dst
		},
	}
	for name, prepare := range ways {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			dst := prepare(t)
			contents := func() tree {
				all := scan(t, dst)
				delete(all, lostFound)
				return all
			}
			restore(t, r, first, dst, &RestoreOptions{Delete: true, Into: name == "in place"})
			compare(t, want1, contents())
			before := ctimes(t, dst)
			rec := restore(t, r, first, dst, nil)
			if after := ctimes(t, dst); fmt.Sprint(before) != fmt.Sprint(after) {
				t.Errorf("restoring it again changed something: %v\n%v", before, after)
			}
			if c := rec.Changes; c.Written+c.Adjusted+c.Deleted != 0 || c.Unchanged != int64(len(want1)) {
				t.Errorf("changes: %+v of %d", c, len(want1))
			}
			restore(t, r, second, dst, nil)
			compare(t, want2, contents())
			restore(t, r, first, dst, nil)
			compare(t, want1, contents())
		})
	}
	for what, change := range map[string]func(dst string) error{
		"contents": func(dst string) error { return os.WriteFile(dst+"/d/e/c", []byte("444"), 0o644) },
		"in the old time": func(dst string) error {
			var st unix.Stat_t
			must(t, unix.Stat(dst+"/d/e/c", &st))
			err := os.WriteFile(dst+"/d/e/c", []byte("444"), 0o644)
			return errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, dst+"/d/e/c", []unix.Timespec{st.Atim, st.Mtim}, 0))
		},
		"mode":      func(dst string) error { return os.Chmod(dst+"/d/b", 0o600) },
		"root":      func(dst string) error { return os.Chmod(dst, 0o700) },
		"attribute": func(dst string) error { return unix.Setxattr(dst+"/large", "user.mine", nil, 0) },
		"new file":  func(dst string) error { return os.WriteFile(dst+"/d/e/mine", nil, 0o644) },
		"removed":   func(dst string) error { return os.Remove(dst + "/link") },
		"renamed":   func(dst string) error { return os.Rename(dst+"/d", dst+"/dd") },
		"exchanged": func(dst string) error {
			return unix.Renameat2(unix.AT_FDCWD, dst+"/z", unix.AT_FDCWD, dst+"/large", unix.RENAME_EXCHANGE)
		},
		"another directory": func(dst string) error {
			return errors.Join(os.Rename(dst, dst+".away"), os.CopyFS(dst, os.DirFS(dst+".away/d/e")))
		},
	} {
		t.Run(strings.ReplaceAll(what, " ", "_"), func(t *testing.T) {
			dst := t.TempDir() + "/dst"
			restore(t, r, first, dst, nil)
			must(t, change(dst))
			before := ctimes(t, dst)
			for _, id := range []string{first, second} {
				if _, err := r.Restore(t.Context(), id, dst, nil); !errors.Is(err, snapshot.ErrExists) {
					t.Errorf("what was changed is replaced: %v", err)
				}
			}
			if after := ctimes(t, dst); fmt.Sprint(before) != fmt.Sprint(after) {
				t.Errorf("something was written: %v\n%v", before, after)
			}
			restore(t, r, second, dst, &RestoreOptions{Delete: true})
			compare(t, want2, scan(t, dst))
		})
	}
	t.Run("a part", func(t *testing.T) {
		dst := t.TempDir() + "/dst"
		part := &RestoreOptions{Include: []string{"/d", "/a"}}
		restore(t, r, first, dst, part)
		part1 := scan(t, dst)
		restore(t, r, first, dst, part)
		restore(t, r, second, dst, nil)
		compare(t, want2, scan(t, dst))
		restore(t, r, first, dst, part)
		compare(t, part1, scan(t, dst))
		writeFile(t, dst+"/mine", nil)
		if _, err := r.Restore(t.Context(), first, dst, part); !errors.Is(err, snapshot.ErrExists) {
			t.Error(err)
		}
	})
	t.Run("without a name", func(t *testing.T) {
		must(t, os.RemoveAll(src))
		for _, id := range []string{first, second, first} {
			restore(t, r, id, "", nil)
		}
		compare(t, want1, scan(t, src))
		writeFile(t, src+"/mine", nil)
		for _, o := range []RestoreOptions{{}, {Delete: true}, {Into: true}, {Into: true, Delete: true}} {
			if _, err := r.Restore(t.Context(), second, "", &o); !errors.Is(err, snapshot.ErrExists) {
				t.Errorf("%+v: %v", o, err)
			}
		}
	})
	t.Run("nobody remembers", func(t *testing.T) {
		dst := t.TempDir() + "/dst"
		plain := p.open("cache2")
		restore(t, plain, first, dst, nil)
		if _, err := plain.Restore(t.Context(), first, dst, nil); !errors.Is(err, snapshot.ErrExists) {
			t.Error(err)
		}
	})
}

// TestRestoreOntoFork: a fork that has changed nothing may be written to, mounted or not.
func TestRestoreOntoFork(t *testing.T) {
	f := newForked(t)
	r := f.open()
	writeFile(t, f.src+"/a", []byte("new"))
	newer, want := complete(t, r, f.src, nil).ID.String(), scan(t, f.src)
	contents := func(dir string) {
		t.Helper()
		compare(t, want, scan(t, dir))
	}
	fork := f.fork(r, "fork", nil)
	writeFile(t, fork.Dir+"/mine", nil)
	if _, err := r.Restore(t.Context(), newer, fork.Dir, nil); !errors.Is(err, snapshot.ErrExists) {
		t.Errorf("onto one with changes: %v", err)
	}
	if _, err := os.Stat(fork.Dir + "/mine"); err != nil {
		t.Error(err)
	}
	if rec := restore(t, r, newer, fork.Dir, &RestoreOptions{Delete: true}); rec.InPlace == "" {
		t.Error("it was not changed in place")
	}
	contents(fork.Dir)
	f.remove(fork)

	fork = f.fork(r, "fork", nil)
	restore(t, r, newer, fork.Dir, nil)
	contents(fork.Dir)
	must(t, fork.Unmount(t.Context(), false))
	if _, err := r.Restore(t.Context(), newer, fork.Dir, nil); !errors.Is(err, snapshot.ErrExists) || !strings.Contains(err.Error(), "snapctl fork --resume fork") {
		t.Errorf("in the place of one with changes that is not mounted: %v", err)
	}
	if _, err := r.Restore(t.Context(), newer, fork.Dir, &RestoreOptions{Into: true}); !errors.Is(err, snapshot.ErrExists) {
		t.Errorf("into the place of one with changes that is not mounted: %v", err)
	}
	restore(t, r, newer, fork.Dir, &RestoreOptions{Delete: true})
	contents(fork.Dir)

	fork = f.fork(r, "other", nil)
	must(t, fork.Unmount(t.Context(), false))
	if _, err := r.Restore(t.Context(), newer, fork.Dir, &RestoreOptions{DryRun: true}); err != nil {
		t.Error(err)
	}
	f.forkStates("after a dry run", map[string]ForkState{"other": ForkDetached})
	restore(t, r, newer, fork.Dir, nil) // it had changed nothing
	contents(fork.Dir)
	f.forkStates("replaced", map[string]ForkState{})
}

// TestForkAgain: a fork gives way to the next one unless it has changes; what a restore
// left is hidden.
func TestForkAgain(t *testing.T) {
	f := newForked(t)
	r := f.open()
	writeFile(t, f.src+"/a", []byte("new"))
	older, newer := f.id.String(), complete(t, r, f.src, nil).ID.String()
	again := func(want ForkAction, ref, dir string, replace bool) *Fork {
		t.Helper()
		p, err := r.PlanFork(t.Context(), ref, dir, nil, replace)
		if err != nil || p.Action != want {
			t.Fatalf("planned is %+v, %v; not %s", p, err, want)
		}
		x, err := r.ForkAgain(t.Context(), ref, dir, nil, replace)
		must(t, err)
		text := map[string]string{older: "1", newer: "new"}[ref]
		if b, err := os.ReadFile(dir + "/a"); err != nil || string(b) != text {
			t.Fatalf("%s: a is %q, %v", want, b, err)
		}
		return x
	}
	dir := f.path("again")
	again(ForkMake, older, dir, false)
	held, err := os.Open(dir + "/a") // whoever uses it goes on
	must(t, err)
	x := again(ForkKeep, older, dir, false)
	must(t, held.Close())
	must(t, x.Unmount(t.Context(), false))
	again(ForkResume, older, dir, false)
	again(ForkReplace, newer, dir, false)
	writeFile(t, dir+"/mine", nil)
	for _, ref := range []string{older, newer} {
		if _, err := r.ForkAgain(t.Context(), ref, dir, nil, false); !errors.Is(err, snapshot.ErrExists) {
			t.Errorf("one with changes: %v", err)
		}
	}
	if _, err := os.Stat(dir + "/mine"); err != nil {
		t.Error(err)
	}
	x = again(ForkReplace, newer, dir, true)
	if _, err := os.Stat(dir + "/mine"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	f.remove(x)

	restored := f.path("restored")
	restore(t, r, older, restored, nil)
	x = again(ForkHide, newer, restored, false)
	f.remove(x)
	writeFile(t, restored+"/mine", nil)
	if _, err := r.ForkAgain(t.Context(), newer, restored, nil, false); !errors.Is(err, snapshot.ErrExists) {
		t.Errorf("over what was changed: %v", err)
	}

	cp := f.path("copy")
	_, err = r.Fork(t.Context(), older, cp, &ForkOptions{Mode: ForkRestore})
	must(t, err)
	again(ForkKeep, older, cp, false)
	x = again(ForkReplace, newer, cp, false)
	f.remove(x)
}

//go:build linux

package engine

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/engine/snapshot"
	"golang.org/x/sys/unix"
)

// TestRestoreIntoDelete: nested directories sort differently as entries and as
// runs of entries.
func TestRestoreIntoDelete(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"a/x/deep/f": "1", "a/x/g": "2", "b/h": "3", "b/i/j": "4", "c/k": "5", "z": "6"})
	must(t, os.MkdirAll(src+"/b/empty/empty", 0o755))
	want := scan(t, src)
	id := complete(t, r, src, nil).ID.String()

	dst := p.files("dst", map[string]string{"a/x/old": "o", "b/h/was/a/directory": "o", "c/more/f": "o", "old/old": "o", "z": "7"})
	restore(t, r, id, dst, &RestoreOptions{Into: true, Delete: true})
	compare(t, want, scan(t, dst))
}

// TestRestoreModes: what may be at the target, and what becomes of it.
func TestRestoreModes(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"a": "new", "d/b": "new", "d/e/c": "new"})
	want := scan(t, src)
	id := complete(t, r, src, nil).ID.String()
	old := map[string]string{"a": "old", "d/keep": "keep", "x/y": "keep"}
	union := func(t *testing.T, dst string) tree {
		all := maps.Clone(want)
		now := scan(t, dst)
		for _, path := range []string{"d/keep", "x", "x/y"} {
			all[path] = now[path]
		}
		return all
	}
	for _, c := range []struct {
		name string
		made map[string]string // nil: no directory
		opts RestoreOptions
		want error
		all  bool // the old files are there too
	}{
		{"nothing there", nil, RestoreOptions{}, nil, false},
		{"nothing there, delete", nil, RestoreOptions{Delete: true}, nil, false},
		{"nothing there, into", nil, RestoreOptions{Into: true}, nil, false},
		{"empty", map[string]string{}, RestoreOptions{}, nil, false},
		{"empty, into", map[string]string{}, RestoreOptions{Into: true}, nil, false},
		{"not empty", old, RestoreOptions{}, snapshot.ErrExists, false},
		{"not empty, delete", old, RestoreOptions{Delete: true}, nil, false},
		{"not empty, into", old, RestoreOptions{Into: true}, nil, true},
		{"not empty, into and verify", old, RestoreOptions{Into: true, Verify: true}, nil, true},
		{"not empty, into and delete", old, RestoreOptions{Into: true, Delete: true}, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &place{t, t.TempDir(), p.repo, p.cache}
			dst := p.path("parent/dst")
			if c.made != nil {
				p.files("parent/dst", c.made)
			}
			for round := range 2 { // the second time it is all there
				if round == 1 && (c.want != nil || !c.opts.Into && !c.opts.Delete) {
					return
				}
				before := tree{}
				if c.made != nil {
					before = scan(t, dst)
				}
				rec, err := r.Restore(t.Context(), id, dst, &c.opts)
				if !errors.Is(err, c.want) {
					t.Fatal(err)
				}
				if c.want != nil {
					compare(t, before, scan(t, dst))
					return
				}
				if c.all {
					compare(t, union(t, dst), scan(t, dst))
				} else {
					compare(t, want, scan(t, dst))
				}
				if rec.Files != 3 || rec.Dirs != 3 || rec.Bytes != 9 || rec.Verified != c.opts.Verify || rec.Target != dst {
					t.Errorf("receipt: %+v", rec)
				}
				if left := leftovers(t, p.path("parent")); len(left) > 0 {
					t.Errorf("%s is left", left)
				}
			}
		})
	}
	t.Run("no such options", func(t *testing.T) {
		for _, o := range []RestoreOptions{{Delete: true, Include: []string{"a"}}, {Include: []string{"[a"}}} {
			if _, err := r.Restore(t.Context(), id, p.path("never"), &o); !errors.Is(err, snapshot.ErrInvalid) {
				t.Errorf("%+v: %v", o, err)
			}
		}
		if _, err := os.Lstat(p.path("never")); !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
}

// TestRestoreTargets: the ways to name a target, and targets of other kinds.
func TestRestoreTargets(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"a": "new", "d/b": "new"})
	want := scan(t, src)
	id := complete(t, r, src, nil).ID.String()
	restored := func(t *testing.T, dir, at string) {
		t.Helper()
		rec := restore(t, r, id, dir, &RestoreOptions{Delete: true})
		if rec.Target != at {
			t.Errorf("target %s, want %s", rec.Target, at)
		}
		compare(t, want, scan(t, at))
		if left := leftovers(t, filepath.Dir(at)); len(left) > 0 {
			t.Errorf("%s is left", left)
		}
	}
	t.Run("trailing slash", func(t *testing.T) { restored(t, p.path("slash")+"//", p.path("slash")) })
	t.Run("dots", func(t *testing.T) { restored(t, p.path("src")+"/../x/./../dots", p.path("dots")) })
	t.Run("parents are made", func(t *testing.T) { restored(t, p.path("p/q/r/s"), p.path("p/q/r/s")) })
	t.Run("relative", func(t *testing.T) {
		t.Chdir(p.dir)
		restored(t, "relative/x", p.path("relative/x"))
		restored(t, "relative/x", p.path("relative/x"))
	})
	t.Run("where it was made", func(t *testing.T) {
		writeFile(t, src+"/more", []byte("more"))
		_, err := r.Restore(t.Context(), id, "", &RestoreOptions{Delete: true})
		if !errors.Is(err, snapshot.ErrExists) {
			t.Errorf("the directory that it was made of, which was not named: %v", err)
		}
		if _, err := os.Stat(src + "/more"); err != nil {
			t.Error(err)
		}
		restored(t, src, src)
		must(t, os.RemoveAll(src))
		restored(t, "", src)
		must(t, os.RemoveAll(src))
		must(t, os.Mkdir(src, 0o755))
		restored(t, "", src)
	})
	t.Run("the working directory", func(t *testing.T) {
		dir := p.files("cwd", map[string]string{"old/sub/f": "1"})
		t.Chdir(dir + "/old/sub")
		restored(t, "../..", dir)
		restored(t, dir, dir) // where we are is gone now
	})
	t.Run("a link to a directory", func(t *testing.T) {
		dir := p.files("real", map[string]string{"old": "1"})
		must(t, os.Symlink("real", p.path("link")))
		restored(t, p.path("link"), dir)
		if to, err := os.Readlink(p.path("link")); to != "real" {
			t.Errorf("the link is %q, %v", to, err)
		}
	})
	t.Run("below a link", func(t *testing.T) {
		p.files("real2", map[string]string{"f": "1"})
		must(t, os.Symlink("real2", p.path("link2")))
		restored(t, p.path("link2/new"), p.path("real2/new"))
	})
	t.Run("a link to nowhere", func(t *testing.T) {
		must(t, os.Symlink("nowhere", p.path("dangling")))
		for _, o := range []RestoreOptions{{}, {Into: true}, {Delete: true}} {
			if _, err := r.Restore(t.Context(), id, p.path("dangling"), &o); !errors.Is(err, snapshot.ErrExists) {
				t.Errorf("%+v: %v", o, err)
			}
		}
		if _, err := os.Lstat(p.path("nowhere")); !errors.Is(err, os.ErrNotExist) {
			t.Error("something was made where the link points")
		}
	})
	t.Run("a file", func(t *testing.T) {
		p.files("", map[string]string{"file": "1"})
		for _, o := range []RestoreOptions{{}, {Into: true}, {Delete: true}} {
			if _, err := r.Restore(t.Context(), id, p.path("file"), &o); !errors.Is(err, snapshot.ErrExists) {
				t.Errorf("%+v: %v", o, err)
			}
			if _, err := r.Restore(t.Context(), id, p.path("file/below"), &o); err == nil {
				t.Errorf("below a file, %+v: no error", o)
			}
		}
	})
	t.Run("a mount point", func(t *testing.T) {
		mount(t, p.path("mnt"), "size=4m")
		writeFile(t, p.path("mnt/old"), []byte("old"))
		must(t, os.Mkdir(p.path("mnt/lost+found"), 0o700)) // as ext4 has
		contents := func() tree {
			all := scan(t, p.path("mnt"))
			if _, ok := all[lostFound]; !ok {
				t.Error("lost+found is gone")
			}
			delete(all, lostFound)
			return all
		}
		before := scan(t, p.path("mnt"))
		if _, err := r.Restore(t.Context(), id, p.path("mnt"), nil); !errors.Is(err, snapshot.ErrExists) {
			t.Error(err)
		}
		compare(t, before, scan(t, p.path("mnt")))
		for _, o := range []RestoreOptions{{Delete: true}, {Into: true, Delete: true}} {
			rec := restore(t, r, id, p.path("mnt"), &o)
			if rec.InPlace == "" && !o.Into {
				t.Error("it is not said that it was changed in place")
			}
			compare(t, want, contents())
			writeFile(t, p.path("mnt/old"), []byte("old"))
		}
		must(t, os.Remove(p.path("mnt/old")))
		must(t, os.RemoveAll(p.path("mnt/a")))
		must(t, os.RemoveAll(p.path("mnt/d")))
		restore(t, r, id, p.path("mnt"), nil)
		compare(t, want, contents())
		if left := leftovers(t, p.dir); len(left) > 0 {
			t.Errorf("%s is left", left)
		}
	})
	t.Run("a mount point below", func(t *testing.T) {
		dir := p.files("above", map[string]string{"old": "1"})
		mount(t, dir+"/sub/mnt", "size=4m")
		writeFile(t, dir+"/sub/mnt/precious", []byte("of another file system"))
		for _, o := range []RestoreOptions{{Delete: true}, {Into: true, Delete: true}} {
			if _, err := r.Restore(t.Context(), id, dir, &o); err == nil {
				t.Errorf("%+v: no error", o)
			}
			if b, err := os.ReadFile(dir + "/sub/mnt/precious"); err != nil {
				t.Fatalf("%+v: what another file system holds is gone: %q, %v", o, b, err)
			}
		}
	})
	t.Run("no room for a name beside it", func(t *testing.T) {
		long := strings.Repeat("n", 255)
		restored(t, p.path(long), p.path(long))
		restored(t, p.path(long), p.path(long))
	})
	t.Run("leftovers", func(t *testing.T) {
		// Of a restore that was killed, of one that lives, and what only looks so.
		killed := p.files("work/"+tempPrefix+"t-123", map[string]string{"a/b": "1"})
		lives := p.files("work/"+tempPrefix+"t-456", map[string]string{"a/b": "1"})
		others := p.files("work/"+tempPrefix+"t-1-2", map[string]string{"a/b": "1"})
		named := p.files("work/"+tempPrefix+"t-x", map[string]string{"a/b": "1"})
		d, err := os.Open(lives)
		must(t, err)
		defer d.Close()
		must(t, unix.Flock(int(d.Fd()), unix.LOCK_EX))
		restore(t, r, id, p.path("work/t"), nil)
		for path, want := range map[string]bool{killed: false, lives: true, others: true, named: true} {
			if _, err := os.Stat(path); (err == nil) != want {
				t.Errorf("%s: there %v, want %v", path, err == nil, want)
			}
		}
	})
}

// TestRestoreFollowsNoLink: links in the target lead nowhere.
func TestRestoreFollowsNoLink(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"d/f": "new", "d/e/g": "new", "file": "new", "h/first": "new"})
	must(t, os.Link(src+"/h/first", src+"/h/second"))
	must(t, os.Symlink("file", src+"/symlink"))
	must(t, unix.Mkfifo(src+"/fifo", 0o644))
	want := scan(t, src)
	id := complete(t, r, src, nil).ID.String()
	outside := p.files("outside", map[string]string{"f": "old", "e/g": "old", "target": "old"})
	before := scan(t, outside)
	for _, opts := range []RestoreOptions{{Into: true}, {Into: true, Delete: true}, {Into: true, Verify: true}, {Into: true, Include: []string{"*"}}, {Delete: true}} {
		for _, tricks := range []map[string]string{
			{"d": outside, "file": outside + "/target", "h": outside, "symlink": outside + "/target", "fifo": outside + "/target"},
			{"d/e": outside, "d/f": "../../outside/target", "h/first": outside + "/target", "h/second": outside + "/f"},
			{"d": "../outside", "h": "../outside/e", "file": "/"},
		} {
			dst := p.path("dst")
			must(t, os.RemoveAll(dst))
			for name, to := range tricks {
				must(t, os.MkdirAll(filepath.Dir(dst+"/"+name), 0o755))
				must(t, os.Symlink(to, dst+"/"+name))
			}
			restore(t, r, id, dst, &opts)
			got := scan(t, dst)
			if opts.Include != nil {
				got[""] = want[""] // only on the way
			}
			compare(t, want, got)
			compare(t, before, scan(t, outside))
		}
	}
}

// TestRestoreIntoOther: what an existing tree has besides contents is made what
// the snapshot has.
func TestRestoreIntoOther(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	files := map[string]string{"a": "1", "d/b": "22", "d/e/c": "333", "large": string(random(1, 3<<20))}
	src := p.files("src", files)
	want := scan(t, src)
	id := complete(t, r, src, nil).ID.String()
	dst := p.path("dst")
	defaults := acl([3]uint32{1, 7, noID}, [3]uint32{2, 7, 77}, [3]uint32{4, 7, noID}, [3]uint32{16, 7, noID}, [3]uint32{32, 7, noID})
	changes := map[string]func(){
		"setgid":             func() { must(t, os.Chown(dst+"/d", 5, 6)); must(t, unix.Chmod(dst+"/d", 0o2777)) },
		"setgid above":       func() { must(t, os.Chown(dst, 5, 6)); must(t, unix.Chmod(dst, 0o2777)) },
		"default ACL":        func() { must(t, unix.Setxattr(dst+"/d", "system.posix_acl_default", defaults, 0)) },
		"default ACL above":  func() { must(t, unix.Setxattr(dst, "system.posix_acl_default", defaults, 0)) },
		"ACL of a file":      func() { must(t, unix.Setxattr(dst+"/a", "system.posix_acl_access", defaults, 0)) },
		"attribute":          func() { must(t, unix.Setxattr(dst+"/a", "user.more", []byte("1"), 0)) },
		"attribute of a dir": func() { must(t, unix.Setxattr(dst+"/d", "user.more", []byte("1"), 0)) },
		"attribute above":    func() { must(t, unix.Setxattr(dst, "user.more", []byte("1"), 0)) },
		"mode 0":             func() { must(t, os.Chmod(dst+"/a", 0)); must(t, os.Chmod(dst+"/d", 0)) },
		"owner":              func() { must(t, os.Chown(dst+"/a", 1, 2)); must(t, os.Chown(dst+"/d/e", 1, 2)) },
		"time":               func() { must(t, os.Truncate(dst+"/large", 3<<20)) },
		"hard link outside": func() {
			must(t, os.RemoveAll(p.path("outside")))
			must(t, os.Link(dst+"/large", p.path("outside")))
			must(t, os.WriteFile(dst+"/large", []byte("shared"), 0o644))
		},
		"hard link inside": func() { must(t, os.Remove(dst+"/d/b")); must(t, os.Link(dst+"/a", dst+"/d/b")) },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			for _, missing := range []bool{false, true} {
				must(t, os.RemoveAll(dst))
				restore(t, r, id, dst, nil)
				change()
				if missing { // so that files are made anew
					for f := range files {
						must(t, os.RemoveAll(dst+"/"+f))
					}
				}
				restore(t, r, id, dst, &RestoreOptions{Into: true, Delete: true})
				compare(t, want, scan(t, dst))
			}
		})
	}
	if b, err := os.ReadFile(p.path("outside")); string(b) != "shared" {
		t.Errorf("another name of a file that was replaced holds %q, %v", b, err)
	}
}

// TestRestoreIntoUnprivileged: directories that may not be written to are.
func TestRestoreIntoUnprivileged(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"d/a": "1", "d/e/b": "2", "d/e/c": "3"})
	for _, f := range []string{"d/a", "d/e/b"} {
		must(t, os.Chmod(src+"/"+f, 0o444))
	}
	must(t, os.Chmod(src+"/d/e", 0o555))
	must(t, os.Chmod(src+"/d", 0o500))
	first := complete(t, r, src, nil).ID.String()
	must(t, os.WriteFile(src+"/d/e/b", []byte("changed"), 0))
	must(t, os.Remove(src+"/d/e/c"))
	second := complete(t, r, src, nil).ID.String()
	want := scan(t, src)
	withoutOwners(want)
	must(t, r.Close())
	openTo(t, p, nobody)
	for _, f := range append(filesBelow(t, p.repo), p.repo) {
		must(t, os.Chmod(f, 0o755))
	}
	must(t, filepath.WalkDir(p.repo, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chmod(path, 0o755))
	}))
	j := job{Op: "restore", Repo: p.repo, Cache: p.path("mine/cache"), Dir: p.path("mine/out"), Ref: first}
	for _, j.Restore = range []RestoreOptions{{}, {Into: true, Delete: true}, {Delete: true}, {Into: true, Delete: true, Verify: true}} {
		if o := j.do(t, nobody); o.Err != "" || len(o.Problems) > 0 {
			t.Fatalf("%+v: %+v", j.Restore, o)
		}
		got := scan(t, j.Dir)
		withoutOwners(got)
		if j.Ref == second {
			compare(t, want, got)
		}
		j.Ref = second
	}
	if left := leftovers(t, p.path("mine")); len(left) > 0 {
		t.Errorf("%s is left", left)
	}
}

// TestRestoreIntoLeftovers: a restore that was killed has left files in the
// target under whatever number its process had.
func TestRestoreIntoLeftovers(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"a": "1", "d/b": "2"})
	id := complete(t, r, src, nil).ID.String()
	dst := p.files("dst", map[string]string{"a": "old", "d/b": "old"})
	for rank := range uint64(6) {
		name := tempPrefix + strings.TrimPrefix(tempPrefix+"0", tempPrefix) + string(rune('0'+rank))
		must(t, os.WriteFile(dst+"/"+name, []byte("half"), 0o600))
		must(t, os.WriteFile(dst+"/d/"+name, []byte("half"), 0o600))
	}
	restore(t, r, id, dst, &RestoreOptions{Into: true})
	for path, n := range scan(t, src) {
		if got := scan(t, dst)[path]; path != "" && path != "d" && got != n {
			t.Errorf("%q: %+v", path, got)
		}
	}
}

// TestRestoreInclude: parts of a snapshot.
func TestRestoreInclude(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{
		"a.txt": "1", "b.go": "2", "d/a.txt": "3", "d/e/c.go": "4", "d/e/c.txt": "5", "f/g/h": "6", "large": string(random(1, 3<<20)),
	})
	must(t, os.MkdirAll(src+"/empty/dir", 0o755))
	must(t, os.Link(src+"/a.txt", src+"/d/linked.md"))
	must(t, os.Link(src+"/a.txt", src+"/f/linked.md"))
	must(t, os.Symlink("a.txt", src+"/d/symlink"))
	want := scan(t, src)
	id := complete(t, r, src, nil).ID.String()
	for _, c := range []struct {
		include []string
		want    []string // besides the directories above
	}{
		{[]string{"*.txt"}, []string{"a.txt", "d/a.txt", "d/e/c.txt"}},
		{[]string{"/*.txt"}, []string{"a.txt"}},
		{[]string{"d"}, []string{"d/a.txt", "d/e/c.go", "d/e/c.txt", "d/linked.md", "d/symlink"}},
		{[]string{"d/"}, []string{"d/a.txt", "d/e/c.go", "d/e/c.txt", "d/linked.md", "d/symlink"}},
		{[]string{"d/e"}, []string{"d/e/c.go", "d/e/c.txt"}},
		{[]string{"d", "!*.go"}, []string{"d/a.txt", "d/e/c.txt", "d/linked.md", "d/symlink"}},
		{[]string{"*.md"}, []string{"d/linked.md", "f/linked.md"}},
		{[]string{"h"}, []string{"f/g/h"}},
		{[]string{"empty"}, []string{"empty/dir"}},
		{[]string{"large"}, []string{"large"}},
		{[]string{"nothing"}, nil},
		{[]string{"*"}, []string{"a.txt", "b.go", "d/a.txt", "d/e/c.go", "d/e/c.txt", "d/linked.md", "d/symlink", "f/g/h", "f/linked.md", "large", "empty/dir"}},
	} {
		expected := tree{"": want[""]}
		for _, path := range c.want {
			for at := path; at != "."; at = filepath.Dir(at) {
				expected[at] = want[at]
			}
		}
		for _, opts := range []RestoreOptions{{}, {Verify: true}, {Into: true}} {
			opts.Include = c.include
			dst := p.path("dst")
			must(t, os.RemoveAll(dst))
			if opts.Into {
				must(t, os.Mkdir(dst, 0o755))
			}
			restore(t, r, id, dst, &opts)
			got := scan(t, dst)
			exp := maps.Clone(expected)
			// Names of a file whose first name is not there.
			for path := range exp {
				n, g := exp[path], got[path]
				n.Same, g.Same = "", ""
				if opts.Into && n.Mode&unix.S_IFMT == unix.S_IFDIR {
					n.Mtime = g.Mtime // it may be only on the way
				}
				exp[path], got[path] = n, g
			}
			if diff := differences(exp, got); len(diff) > 0 {
				t.Errorf("%q %+v:\n%s", c.include, opts, strings.Join(diff, "\n"))
			}
		}
	}
	// Names of one file are one file again.
	dst := p.path("dst")
	must(t, os.RemoveAll(dst))
	restore(t, r, id, dst, &RestoreOptions{Include: []string{"*.md"}})
	if got := scan(t, dst); got["f/linked.md"].Same != "d/linked.md" {
		t.Errorf("%+v", got["f/linked.md"])
	}
}

// TestRestoreNoOwner: files belong to the user who restores, and no program gets
// that user's rights by it.
func TestRestoreNoOwner(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"a": "1", "d/setuid": "2", "d/setgid": "3"})
	for _, f := range []string{"a", "d", "d/setuid", "d/setgid"} {
		must(t, os.Chown(src+"/"+f, 1000, 1001))
	}
	must(t, unix.Chmod(src+"/d/setuid", 0o4755))
	must(t, unix.Chmod(src+"/d/setgid", 0o2755))
	id := complete(t, r, src, nil).ID.String()
	rec, err := r.Restore(t.Context(), id, p.path("out"), &RestoreOptions{NoOwner: true})
	must(t, err)
	for path, n := range scan(t, rec.Target) {
		if n.UID != 0 || n.GID != 0 {
			t.Errorf("%q belongs to %d:%d", path, n.UID, n.GID)
		}
		if n.Mode&unix.S_IFMT == unix.S_IFREG && n.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
			t.Errorf("%q has mode %o: another user's program runs as root now", path, n.Mode)
		}
	}
}

// TestRestoreVerify finds what the file system did not keep: here, what a test
// changed before it was read back.
func TestRestoreVerify(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"a": "right", "b": string(random(1, 2<<20))})
	id := complete(t, r, src, nil).ID.String()
	dst := p.path("dst")
	restore(t, r, id, dst, nil)
	// Same size, same time, other contents: only Verify sees it.
	st, err := os.Stat(dst + "/a")
	must(t, err)
	must(t, os.WriteFile(dst+"/a", []byte("wrong"), 0o644))
	must(t, os.Chtimes(dst+"/a", st.ModTime(), st.ModTime()))
	restore(t, r, id, dst, &RestoreOptions{Into: true})
	if b, _ := os.ReadFile(dst + "/a"); string(b) != "wrong" {
		t.Errorf("without Verify files of the same size and time are left alone, this is %q", b)
	}
	restore(t, r, id, dst, &RestoreOptions{Into: true, Verify: true})
	compare(t, scan(t, src), scan(t, dst))
}

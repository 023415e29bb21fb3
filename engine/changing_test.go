//go:build linux

package engine

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
	"golang.org/x/sys/unix"
)

// on calls f once, right before the first operation on the repository's store of
// this kind and prefix.
func on(r *Repository, op remote.Op, prefix string, f func()) {
	var once sync.Once
	r.repo.Store = remotetest.NewFaulty(r.repo.Store, func(o remote.Op, name string) remotetest.Fault {
		if o == op && strings.HasPrefix(name, prefix) {
			once.Do(f)
		}
		return remotetest.Fault{}
	})
}

// A changing tree is one that a test changes while a snapshot is made of it, at
// a moment that is always the same: a create whose cache is empty reads the
// repository's index segments when it looks up the first chunk, of the file
// that is first in order. By then a small tree has been walked, and no file
// behind the first has been looked at again; of a large one the first 2 MiB
// have been read.
type changing struct {
	*place
	repo *Repository
	dir  string
}

const firstFile = "!first"

func newChanging(t *testing.T) *changing {
	t.Helper()
	p := newPlace(t)
	seed := p.files("seed", map[string]string{"seed": "so that there is a segment"})
	complete(t, p.init(), seed, nil)
	dir := p.files("src", map[string]string{firstFile: "first"})
	return &changing{p, p.open("other"), dir}
}

// put writes a file of the tree.
func (c *changing) put(name string, data []byte) { c.Helper(); writeFile(c, c.dir+"/"+name, data) }

// restored makes the tree one that was restored, all of which the next create
// recognises by its fingerprint.
func (c *changing) restored() {
	c.Helper()
	id := complete(c, c.open("third"), c.dir, nil).ID.String()
	must(c, os.RemoveAll(c.dir))
	restore(c, c.repo, id, c.dir, nil)
	c.put(firstFile, []byte("first again"))
}

// create makes a snapshot while f changes the tree.
func (c *changing) create(f func()) *CreateResult {
	c.Helper()
	called := false
	on(c.repo, remote.OpGet, repo.SegmentPrefix, func() { called = true; f() })
	res := create(c, c.repo, c.dir, nil)
	if !called {
		c.Fatal("the test did not get to change the tree")
	}
	return res
}

// restoreOf gives the snapshot's tree, by way of a cache that knows nothing.
func (c *changing) restoreOf(res *CreateResult) tree {
	c.Helper()
	out := c.path("out")
	restore(c, c.open("empty"), res.ID.String(), out, nil)
	return scan(c, out)
}

func (c *changing) isComplete(res *CreateResult) {
	c.Helper()
	if res.Incomplete || len(res.Problems) > 0 {
		c.Fatalf("incomplete %v: %v", res.Incomplete, res.Problems)
	}
}

// TestChangingFile: what a file is when the snapshot is made is what it was
// before the change or after it.
func TestChangingFile(t *testing.T) {
	big := random(1, 5<<20)
	small := random(2, 10_000)
	changes := []struct {
		name   string
		change func(t *testing.T, path string)
	}{
		{"truncated", func(t *testing.T, path string) { must(t, os.Truncate(path, 100)) }},
		{"emptied", func(t *testing.T, path string) { must(t, os.Truncate(path, 0)) }},
		{"longer", func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			must(t, err)
			_, err = f.Write(random(3, 3<<20))
			must(t, errors.Join(err, f.Close()))
		}},
		{"with a hole at its end", func(t *testing.T, path string) { must(t, os.Truncate(path, 20<<20)) }},
		{"rewritten", func(t *testing.T, path string) {
			st, err := os.Stat(path)
			must(t, err)
			must(t, os.WriteFile(path, random(4, int(st.Size())), 0o644))
		}},
		{"rewritten at its beginning", func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteAt([]byte("X"), 1)
			must(t, errors.Join(err, f.Close()))
		}},
		{"changed in mode", func(t *testing.T, path string) { must(t, os.Chmod(path, 0o600)) }},
	}
	for _, c := range changes {
		t.Run(c.name, func(t *testing.T) {
			// The small one changes between walk and read, the large one while it
			// is read.
			for name, data := range map[string][]byte{"small": small, "big": big} {
				ch := newChanging(t)
				ch.put(name, data)
				if name == "big" {
					must(t, os.Remove(ch.dir+"/"+firstFile))
				}
				res := ch.create(func() { c.change(t, ch.dir+"/"+name) })
				ch.isComplete(res)
				compare(t, scan(t, ch.dir), ch.restoreOf(res))
			}
		})
	}
}

// TestReplacedFile: another file under the name of one that is being read.
func TestReplacedFile(t *testing.T) {
	for name, size := range map[string]int{"small": 10_000, "big": 5 << 20} {
		t.Run(name, func(t *testing.T) {
			c := newChanging(t)
			c.put(name, random(1, size))
			before := scan(t, c.dir)
			writeFile(t, c.path("new"), random(3, 8000))
			res := c.create(func() { must(t, os.Rename(c.path("new"), c.dir+"/"+name)) })
			c.isComplete(res)
			after := scan(t, c.dir)
			got := c.restoreOf(res)
			// Of the one that is open already the old contents may be kept.
			if got[name] != before[name] && got[name] != after[name] {
				t.Fatalf("neither before nor after: %+v", got[name])
			}
			got[name], got[""] = after[name], after[""]
			compare(t, after, got)
		})
	}
}

// TestVanishing: what goes while a snapshot is made is not in it, and that is no
// problem of the snapshot.
func TestVanishing(t *testing.T) {
	for _, gone := range []string{"file", "dir", "dir/a", "link", "fifo"} {
		t.Run(gone, func(t *testing.T) {
			c := newChanging(t)
			c.put("file", []byte("1"))
			c.put("dir/a", []byte("2"))
			c.put("dir/sub/b", []byte("3"))
			must(t, os.Symlink("file", c.dir+"/link"))
			must(t, unix.Mkfifo(c.dir+"/fifo", 0o644))
			must(t, os.MkdirAll(c.dir+"/dir/empty", 0o755))
			res := c.create(func() { must(t, os.RemoveAll(c.dir+"/"+gone)) })
			c.isComplete(res)
			want, got := scan(t, c.dir), c.restoreOf(res)
			for path, n := range got {
				// A directory had its time before something went from it. An entry
				// that needed no second look may be there still.
				if n.Mode&unix.S_IFMT == unix.S_IFDIR || n.Mode&unix.S_IFMT == unix.S_IFIFO {
					n.Mtime = want[path].Mtime
					got[path] = n
				}
				if _, ok := want[path]; !ok && n.Mode&unix.S_IFMT == unix.S_IFDIR {
					delete(got, path)
				}
			}
			compare(t, want, got)
		})
	}
}

// TestVanishingParent: a directory goes whose files need not be read.
func TestVanishingParent(t *testing.T) {
	for name, change := range map[string]func(c *changing){
		"renamed":    func(c *changing) { must(c, os.Rename(c.dir+"/dir", c.dir+"/moved")) },
		"moved away": func(c *changing) { must(c, os.Rename(c.dir+"/dir", c.path("moved"))) },
		"replaced": func(c *changing) {
			must(c, os.Rename(c.dir+"/dir", c.path("moved")))
			must(c, os.WriteFile(c.dir+"/dir", nil, 0o644))
		},
		"a link now": func(c *changing) {
			must(c, os.Rename(c.dir+"/dir", c.path("moved")))
			must(c, os.Symlink(c.path("moved"), c.dir+"/dir"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newChanging(t)
			c.put("dir/a", []byte("1"))
			c.put("dir/sub/b", []byte("2"))
			c.put("dir/sub/empty", nil)
			c.put("other/c", []byte("3"))
			must(t, os.Link(c.dir+"/dir/a", c.dir+"/dir/hard"))
			c.restored()
			// Only the directory has changed.
			must(t, os.WriteFile(c.dir+"/dir/new", []byte("4"), 0o644))
			res := c.create(func() { change(c) })
			got := c.restoreOf(res)
			for _, path := range []string{firstFile, "other", "other/c"} {
				if _, ok := got[path]; !ok {
					t.Errorf("%q is missing", path)
				}
			}
		})
	}
}

// TestDirectoryBecomesLink: a link that takes a directory's place does not lead
// the walk out of the tree.
func TestDirectoryBecomesLink(t *testing.T) {
	c := newChanging(t)
	c.put("dir/a", []byte("inside"))
	c.put("dir/sub/a", []byte("inside"))
	outside := c.files("outside", map[string]string{"a": "SECRET", "sub/a": "SECRET"})
	secret := scan(t, outside)["a"].Sum
	res := c.create(func() {
		must(t, os.Rename(c.dir+"/dir", c.path("moved")))
		must(t, os.Symlink(outside, c.dir+"/dir"))
	})
	for path, n := range c.restoreOf(res) {
		if n.Sum == secret {
			t.Errorf("%q holds what lies outside of the tree", path)
		}
	}
}

// TestTypeChange: something that is no file takes a file's place. Either it is
// in the snapshot or the snapshot says that it is not.
func TestTypeChange(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"fifo":      func(path string) error { return unix.Mkfifo(path, 0o644) },
		"symlink":   func(path string) error { return os.Symlink("/etc/passwd", path) },
		"directory": func(path string) error { return os.Mkdir(path, 0o755) },
		"device": func(path string) error {
			if os.Geteuid() != 0 {
				return unix.Mkfifo(path, 0o644)
			}
			return unix.Mknod(path, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) // endless zeros
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newChanging(t)
			c.put("file", []byte("1"))
			c.put("other", []byte("2"))
			res := c.create(func() {
				must(t, os.Remove(c.dir+"/file"))
				must(t, change(c.dir+"/file"))
			})
			got := c.restoreOf(res)
			if n, ok := got["file"]; ok && n.Mode != scan(t, c.dir)["file"].Mode {
				t.Errorf("in the snapshot it is %+v", n)
			} else if !ok && (!res.Incomplete || len(res.Problems) != 1 || !strings.Contains(res.Problems[0].Error(), `"file"`)) {
				t.Errorf("it is left out, and the result says: incomplete %v, %v", res.Incomplete, res.Problems)
			}
			if _, ok := got["other"]; !ok {
				t.Error("another file is missing")
			}
		})
	}
}

// TestFirstLinkVanishes: the name by which a file would be stored goes, its
// other names stay.
func TestFirstLinkVanishes(t *testing.T) {
	c := newChanging(t)
	c.put("a", random(1, 5000))
	must(t, os.Link(c.dir+"/a", c.dir+"/b"))
	must(t, os.MkdirAll(c.dir+"/z", 0o755))
	must(t, os.Link(c.dir+"/a", c.dir+"/z/c"))
	res := c.create(func() { must(t, os.Remove(c.dir+"/a")) })
	c.isComplete(res)
	got, want := c.restoreOf(res), scan(t, c.dir)
	for _, path := range []string{"b", "z/c"} {
		if got[path] != want[path] {
			t.Errorf("%q: %+v, want %+v", path, got[path], want[path])
		}
	}
}

// TestNeverTheSame: files whose size is never what they say, and one that reads
// differently every time. What was read last is kept, and said to be doubtful.
func TestNeverTheSame(t *testing.T) {
	const dir = "/proc/sys/kernel/random"
	names, err := os.ReadDir(dir)
	if err != nil || len(names) == 0 {
		t.Skip("no such files here")
	}
	p := newPlace(t)
	r := p.init()
	res := create(t, r, dir, nil)
	if !res.Incomplete || len(res.Problems) != len(names) {
		t.Errorf("incomplete %v, %d problems of %d files: %v", res.Incomplete, len(res.Problems), len(names), res.Problems)
	}
	out := p.path("out")
	if _, err := r.Restore(t.Context(), "latest", out, nil); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(dir + "/boot_id")
	must(t, err)
	if got, err := os.ReadFile(out + "/boot_id"); string(got) != string(want) || err != nil {
		t.Errorf("boot_id is %q, want %q (%v)", got, want, err)
	}
}

// TestRepositoryInside: the repository and the cache lie in the directory.
func TestRepositoryInside(t *testing.T) {
	p := newPlace(t)
	src := p.files("src", map[string]string{"a": "1", "b": string(random(1, 20<<20))})
	p.repo, p.cache = src+"/repo", src+"/cache"
	r := p.init()
	for range 3 {
		create(t, r, src, nil)
	}
	restore(t, r, "latest", p.path("out"), nil)
}

// TestCreateOfNothing: directories that are none.
func TestCreateOfNothing(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	p.files("", map[string]string{"file": "1"})
	for _, c := range []struct {
		dir  string
		want error
	}{
		{p.path("missing"), os.ErrNotExist},
		{p.path("file"), snapshot.ErrInvalid},
		{p.path("file/below"), snapshot.ErrInvalid},
	} {
		if _, err := r.Create(t.Context(), c.dir, nil); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.dir, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Create(ctx, p.dir, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before it began: %v", err)
	}
	if all, err := r.List(t.Context(), nil); len(all) != 0 || err != nil {
		t.Errorf("snapshots: %v, %v", all, err)
	}
}

// TestCreateReplaced: a directory that another one replaces while its files are deleted, as
// restore --delete does, makes no snapshot of what was left; one that is only moved does.
func TestCreateReplaced(t *testing.T) {
	for _, c := range []struct {
		name         string
		delete, swap bool
		fails        bool
	}{
		{"replaced", true, true, true},
		{"moved", false, true, false},
		{"files removed", true, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			ch := newChanging(t)
			ch.put("a", []byte("a"))
			ch.put("b", []byte("b"))
			var res *CreateResult
			var err error
			on(ch.repo, remote.OpGet, repo.SegmentPrefix, func() {
				if c.delete {
					must(t, errors.Join(os.Remove(ch.dir+"/a"), os.Remove(ch.dir+"/b")))
				}
				if c.swap {
					must(t, os.Rename(ch.dir, ch.dir+".old"))
					ch.put("new", []byte("new"))
				}
			})
			res, err = ch.repo.Create(t.Context(), ch.dir, nil)
			if (err != nil) != c.fails || c.fails && !strings.Contains(err.Error(), "replaced") {
				t.Fatalf("%+v, %v", res, err)
			}
			all, lerr := ch.repo.List(t.Context(), nil)
			must(t, lerr)
			if want := 2; c.fails && len(all) != want-1 || !c.fails && len(all) != want {
				t.Errorf("%d snapshots", len(all))
			}
		})
	}
}

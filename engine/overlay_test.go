//go:build linux

package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
	"golang.org/x/sys/unix"
)

func setxattr(t testing.TB, path, name, value string) {
	t.Helper()
	must(t, unix.Lsetxattr(path, name, []byte(value), 0))
}

// upperAlone makes a directory pass for the upper directory of a fork, and for the
// fork: what a create makes of it then needs no overlay.
func upperAlone(r *Repository, lower manifest.ID, format upperFormat) {
	r.forkOf = func(path string) (*overlayInfo, bool) {
		return &overlayInfo{Lower: lower, Upper: path, Format: format}, true
	}
}

// TestOverlayDamaged: an upper directory that says what cannot be makes no snapshot.
func TestOverlayDamaged(t *testing.T) {
	needRoot(t)
	for name, c := range map[string]struct {
		format upperFormat
		make   func(dir string)
		path   string
	}{
		"redirect to nowhere":  {upperTrusted, func(dir string) { setxattr(t, dir+"/d", "trusted.overlay.redirect", "/nowhere") }, `"d"`},
		"redirect to a file":   {upperTrusted, func(dir string) { setxattr(t, dir+"/d", "trusted.overlay.redirect", "file") }, `"d"`},
		"redirect up":          {upperTrusted, func(dir string) { setxattr(t, dir+"/d", "trusted.overlay.redirect", "..") }, `"d"`},
		"redirect of two":      {upperTrusted, func(dir string) { setxattr(t, dir+"/d", "trusted.overlay.redirect", "d/e") }, `"d"`},
		"redirect to the root": {upperTrusted, func(dir string) { setxattr(t, dir+"/d", "trusted.overlay.redirect", "/") }, `"d"`},
		"relative redirect below nothing": {upperTrusted, func(dir string) {
			setxattr(t, dir+"/d", "trusted.overlay.opaque", "y")
			must(t, os.Mkdir(dir+"/d/sub", 0o755))
			setxattr(t, dir+"/d/sub", "trusted.overlay.redirect", "e")
		}, `"d/sub"`},
		"redirect in a user namespace": {upperUser, func(dir string) { setxattr(t, dir+"/d", "user.overlay.redirect", "/nowhere") }, `"d"`},
		"no contents, no file": {upperTrusted, func(dir string) {
			must(t, os.Truncate(dir+"/new", 5))
			setxattr(t, dir+"/new", "trusted.overlay.metacopy", "")
		}, `"new"`},
		"no contents, redirect to nowhere": {upperTrusted, func(dir string) {
			must(t, os.Truncate(dir+"/new", 5))
			setxattr(t, dir+"/new", "trusted.overlay.metacopy", "")
			setxattr(t, dir+"/new", "trusted.overlay.redirect", "/d/nothing")
		}, `"new"`},
		"no contents, redirect to a directory": {upperTrusted, func(dir string) {
			must(t, os.Truncate(dir+"/new", 5))
			setxattr(t, dir+"/new", "trusted.overlay.metacopy", "")
			setxattr(t, dir+"/new", "trusted.overlay.redirect", "/d")
		}, `"new"`},
		"no contents, another size": {upperTrusted, func(dir string) {
			must(t, os.Truncate(dir+"/file", 500_000))
			setxattr(t, dir+"/file", "trusted.overlay.metacopy", "")
		}, `"file"`},
		"no contents in a user namespace": {upperUser, func(dir string) {
			must(t, os.Truncate(dir+"/file", 4))
			setxattr(t, dir+"/file", "user.overlay.metacopy", "")
		}, `"file"`},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			r := p.init()
			base := complete(t, r, p.files("src", map[string]string{"file": "text", "d/e/f": "1"}), nil)
			upper := p.files("upper", map[string]string{"file": "", "new": ""})
			must(t, os.Mkdir(upper+"/d", 0o755))
			upperAlone(r, base.ID, c.format)
			c.make(upper)
			_, err := r.Create(t.Context(), upper, nil)
			if !errors.Is(err, errBadUpper) || !strings.Contains(fmt.Sprint(err), c.path) {
				t.Errorf("error %v, want one about %s", err, c.path)
			}
			if names := filesBelow(t, p.repo+"/manifests"); len(names) != 1 {
				t.Errorf("%d snapshots", len(names))
			}
		})
	}
}

// TestOverlayByHand: what upper directories may say that nobody's renames and
// removals make, mounted by the kernel.
func TestOverlayByHand(t *testing.T) {
	for _, format := range []upperFormat{upperTrusted, upperUser} {
		own := format.prefix()
		for name, change := range map[string]func(up string){
			"whiteouts that are files": func(up string) {
				writeFile(t, up+"/d/f", nil)
				setxattr(t, up+"/d/f", own+"whiteout", "y")
				setxattr(t, up+"/d", own+"opaque", "x")
				writeFile(t, up+"/d/empty", nil)
				writeFile(t, up+"/file", nil)
				setxattr(t, up+"/file", own+"whiteout", "y")
				writeFile(t, up+"/x/y", nil)
				setxattr(t, up+"/x/y", own+"whiteout", "y") // the directory x/y/ is hidden
				setxattr(t, up+"/x", own+"opaque", "x")
				writeFile(t, up+"/linked", []byte("not empty"))
				setxattr(t, up+"/linked", own+"whiteout", "y")
			},
			"opaque directories": func(up string) {
				writeFile(t, up+"/d/new", []byte("1"))
				setxattr(t, up+"/d", own+"opaque", "y")
				must(t, os.MkdirAll(up+"/x/y", 0o755))
				setxattr(t, up+"/x/y", own+"opaque", "y")
			},
			"an opaque root":             func(up string) { setxattr(t, up, own+"opaque", "y") },
			"directory instead of file":  func(up string) { writeFile(t, up+"/file/in/it", []byte("1")) },
			"file instead of directory":  func(up string) { writeFile(t, up+"/x", []byte("1")) },
			"device instead of all else": func(up string) { must(t, unix.Mknod(up+"/x", unix.S_IFCHR, 0)) },
			"what others call whiteouts": func(up string) {
				writeFile(t, up+"/.wh.file", []byte("1"))
				writeFile(t, up+"/d/.wh..wh..opq", nil)
				setxattr(t, up+"/d", "user.fuseoverlayfs.opaque", "y")
			},
			"all redirected": func(up string) {
				if format == upperUser {
					return
				}
				must(t, os.MkdirAll(up+"/0/deep/sub", 0o755))
				setxattr(t, up+"/0/deep", own+"redirect", "/x/y")
				setxattr(t, up+"/0/deep/sub", own+"redirect", "/d")
				must(t, os.MkdirAll(up+"/d", 0o755))
				setxattr(t, up+"/d", own+"redirect", "x")
				must(t, unix.Mknod(up+"/d/y", unix.S_IFCHR, 0))
				must(t, unix.Mknod(up+"/x", unix.S_IFCHR, 0))
				must(t, os.Truncate(mk(t, up+"/0/deep/sub/again"), 4))
				must(t, unix.Mknod(up+"/0/deep/sub/f", unix.S_IFCHR, 0)) // one file cannot show twice
				setxattr(t, up+"/0/deep/sub/again", own+"metacopy", "")
				setxattr(t, up+"/0/deep/sub/again", own+"redirect", "f")
			},
		} {
			t.Run(format.String()+" "+name, func(t *testing.T) {
				p := newPlace(t)
				src := p.files("src", map[string]string{"file": "text", "d/f": "text", "d/empty": "", "d/g/h": "2", "x/y/z": "3", "x/linked": "4"})
				must(t, os.Link(src+"/x/linked", src+"/linked"))
				f := newOverlaid(p, format, src)
				f.unmount()
				change(f.upper())
				f.mount()
				f.check(name)
			})
		}
	}
}

func mk(t testing.TB, path string) string {
	t.Helper()
	writeFile(t, path, nil)
	return path
}

// TestOverlayWhole: a fork of everything that a Linux tree holds, and changes to all
// of it.
func TestOverlayWhole(t *testing.T) {
	p := newPlace(t)
	src := p.path("src")
	plant(t, src)
	// Overlays show these neither as they are nor at all.
	must(t, os.Remove(src+"/char-zero-zero"))
	f := newOverlaid(p, upperTrusted, src)
	f.check("untouched")
	for i, path := range pathsBelow(t, f.dir, anyType) {
		if len(path) > 3000 {
			continue
		}
		switch i % 3 {
		case 0:
			must(t, os.Lchown(path, 5, 6))
		case 1:
			at := []unix.Timespec{{Sec: 5}, {Sec: 7}}
			must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, at, unix.AT_SYMLINK_NOFOLLOW))
		}
	}
	for _, name := range []string{"sizes", "names", "order", "links-b", "deep-4200"} {
		must(t, os.Rename(f.dir+"/"+name, f.dir+"/moved-"+name))
	}
	res := f.check("all touched")
	restore(t, f.full, res.ID.String(), p.path("out"), nil)
	compare(t, restorable(scan(t, f.dir)), restorable(scan(t, p.path("out"))))
}

// TestOverlayPlain: what is not to be had from the upper directory alone is read as
// any directory.
func TestOverlayPlain(t *testing.T) {
	p := newPlace(t)
	f := newOverlaid(p, upperTrusted, p.files("src", map[string]string{"file": "text", "d/f": "1", "d/g": "1"}))
	writeFile(t, f.dir+"/new", []byte("new"))
	other := complete(t, f.fast, p.path("src"), nil)
	want := scan(t, f.dir)
	for name, c := range map[string]struct {
		opts *CreateOptions
		fast bool
	}{
		"nothing else":         {nil, true},
		"the same parent":      {&CreateOptions{Parent: f.base.String()}, true},
		"one file system":      {&CreateOptions{OneFileSystem: true}, true},
		"another parent":       {&CreateOptions{Parent: other.ID.String()}, false},
		"excludes":             {&CreateOptions{Excludes: []string{"nothing"}}, false},
		"patterns in the tree": {&CreateOptions{Gitignore: true}, false},
	} {
		r := p.open("cache-" + name)
		res := complete(t, r, f.dir, c.opts)
		if fast := readMemo(r.repo.Cache, &overlayInfo{Lower: f.base, Upper: f.upper()}) != nil; fast != c.fast {
			t.Errorf("%s: the upper directory alone was read: %v", name, fast)
		}
		p.check(res.ID, want)
	}
	fast := func(what string, want bool) {
		t.Helper()
		c, err := f.fast.newCreator(f.dir, &CreateOptions{}, nil)
		must(t, err)
		defer c.close()
		if c.findFork(); (c.fork != nil) != want {
			t.Errorf("%s: it is a fork: %v", what, !want)
		}
	}
	fast("as it is", true)
	t.Run("mount below", func(t *testing.T) {
		mount(t, f.dir+"/d", "size=1m")
		fast("mount below", false)
	})
	must(t, os.Mkdir(f.dir+"/cache", 0o755))
	elsewhere, err := Open(t.Context(), p.repo, keyed(t, &Options{CacheDir: f.dir + "/cache"}))
	must(t, err)
	defer elsewhere.Close()
	p.check(complete(t, elsewhere, f.dir, nil).ID, withoutBelow(scan(t, f.dir), "cache/"+elsewhere.ID().String()))
	must(t, os.RemoveAll(f.dir+"/cache"))
	// Without the snapshot's manifest its packs may go at any time.
	_, err = retain.Remove(t.Context(), f.fast.repo, f.base.String())
	must(t, err)
	res := complete(t, f.fast, f.dir, nil)
	if res.Parent != nil {
		t.Error("the parent is gone")
	}
	p.check(res.ID, scan(t, f.dir))
}

// withoutBelow leaves out a directory.
func withoutBelow(all tree, dir string) tree {
	maps.DeleteFunc(all, func(path string, _ node) bool { return manifest.Within(path, dir) })
	return all
}

// TestOverlayOptions takes apart what the table of mounts has.
func TestOverlayOptions(t *testing.T) {
	got := overlayOptions(`rw,lowerdir=/a\040b\134\054c,upperdir=/x=y,index=on,userxattr,odd\04,odder\999`)
	want := map[string][]string{"rw": {""}, "lowerdir": {`/a b\,c`}, "upperdir": {"/x=y"}, "index": {"on"}, "userxattr": {""}, `odd\04`: {""}, `odder\999`: {""}}
	if !maps.EqualFunc(want, got, slices.Equal) {
		t.Errorf("%q", got)
	}
	for _, dir := range []string{"/nowhere", "/proc", "/", t.TempDir()} {
		if o, err := findOverlay(dir); o != nil && dir != "/" || err != nil {
			t.Errorf("%s: %+v, %v", dir, o, err)
		}
	}
}

// TestOverlayParents: a snapshot's parent is the one before of the fork, and the
// first one's is the snapshot that was forked. What is unchanged in the upper
// directory is not read again.
func TestOverlayParents(t *testing.T) {
	p := newPlace(t)
	f := newOverlaid(p, upperTrusted, p.files("src", map[string]string{"file": "text", "d/f": "1"}))
	writeFile(t, f.dir+"/new", []byte("new"))
	must(t, os.Chmod(f.dir+"/file", 0o600))
	settleTimes(t, f.upper())
	parent := f.base
	for i := range 3 {
		res := complete(t, f.fast, f.dir, nil)
		if res.Parent == nil || *res.Parent != parent {
			t.Errorf("snapshot %d: parent %v, want %v", i, res.Parent, parent)
		}
		parent = res.ID
		if i > 0 && res.NewBytes != 0 {
			t.Errorf("snapshot %d: %d new bytes", i, res.NewBytes)
		}
	}
	// A file that cannot be read at all shows that it is not.
	fast, err := f.fast.newCreator(f.dir, &CreateOptions{}, nil)
	must(t, err)
	defer fast.close()
	fast.out.Guard.Start(t.Context())
	defer fast.out.Guard.Stop()
	fast.findFork()
	if _, err := fast.findLower(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"new", "file"} {
		var st unix.Stat_t
		must(t, unix.Lstat(f.upper()+"/"+name, &st))
		d := fsys.DirentOf(name, &st)
		it := item{entry: entryOf("", &d), stat: d}
		if !fast.fork.memo.reuse(t.Context(), &it) || len(it.entry.Extents) != 1 {
			t.Errorf("%q is read again", name)
		}
	}
	_, err = retain.Remove(t.Context(), f.fast.repo, parent.String())
	must(t, err)
	if res := complete(t, f.fast, f.dir, nil); res.Parent == nil || *res.Parent != f.base {
		t.Errorf("parent %v, when the one before is gone; want %v", res.Parent, f.base)
	}
}

// settleTimes waits until what is there is old enough to be known by its times.
func settleTimes(t testing.TB, dir string) {
	t.Helper()
	var newest int64
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		newest = max(newest, st.Ctim.Sec)
		return err
	}))
	for now() <= newest+racyWindow {
		unix.Nanosleep(&unix.Timespec{Nsec: 20_000_000}, nil)
	}
}

func now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_REALTIME, &ts)
	return ts.Sec
}

// TestOverlayCost pins what a snapshot of a fork asks of the object store, and that
// it does not depend on the size of the tree.
func TestOverlayCost(t *testing.T) {
	plainOnly(t)
	needRoot(t)
	for _, files := range []int{1_000, unlessShort(12_000, 4_000)} {
		p := newPlace(t)
		store := remotetest.NewMemory()
		src := p.files("src", map[string]string{})
		for i := range files {
			writeFile(t, fmt.Sprintf("%s/%03d/file-%d", src, i%200, i), []byte(fmt.Sprint("file ", i)))
		}
		first, err := Init(t.Context(), "", initOf(t), keyed(t, &Options{CacheDir: p.cache, Store: store}))
		must(t, err)
		base := complete(t, first, src, nil)
		defer first.Close()
		mountAt(t, first, base.ID, p.path("lower"), nil)
		f := &overlaid{place: p, format: upperTrusted, base: base.ID, lower: p.path("lower"), home: p.path("home"), dir: p.path("fork")}
		for _, dir := range []string{f.dir, f.upper(), f.home + "/work"} {
			must(t, os.MkdirAll(dir, 0o755))
		}
		f.mount()
		t.Cleanup(f.unmount)
		var last manifest.ID
		check := func(what string, gets, puts, bytes int64) {
			t.Helper()
			r, err := Open(t.Context(), "", keyed(t, &Options{CacheDir: p.cache, Store: store}))
			must(t, err)
			defer r.Close()
			res := complete(t, r, f.dir, nil)
			n := r.Requests().Ops
			if n[remote.OpGet].Calls != gets || n[remote.OpPut].Calls != puts || n[remote.OpList].Calls != 2 || n[remote.OpReadAt].Calls != 0 {
				t.Errorf("%d files, %s: %v; want %d gets, %d puts, 2 lists", files, what, n, gets, puts)
			}
			if n[remote.OpPut].Sent > bytes {
				t.Errorf("%d files, %s: %d bytes put", files, what, n[remote.OpPut].Sent)
			}
			last = res.ID
		}
		// The config and the manifest; data, tree, segment, manifest.
		writeFile(t, f.dir+"/017/file-217", []byte("another text"))
		check("a file has changed", 2, 4, 100<<10)
		// And the manifest of the snapshot before. Now the root is as it was then.
		writeFile(t, f.dir+"/017/file-217", []byte("and another"))
		check("a file has changed again", 3, 4, 60<<10)
		check("nothing has changed", 3, 1, 30<<10)
		must(t, os.Remove(f.dir+"/100/file-300"))
		check("a file is gone", 3, 3, 80<<10)
		must(t, os.Chmod(f.dir+"/100/file-500", 0o600))
		check("a file has another mode", 3, 3, 60<<10)
		restore(t, first, last.String(), p.path("out"), nil)
		compare(t, restorable(scan(t, f.dir)), restorable(scan(t, p.path("out"))))
	}
}

// TestOverlayChanging: a fork is in use while it is read. What goes away meanwhile is
// not in the snapshot, neither as the snapshot below had it.
func TestOverlayChanging(t *testing.T) {
	p := newPlace(t)
	content := map[string]string{firstFile: "first"}
	for i := range 20 {
		content[fmt.Sprintf("d%d/f", i)] = "lower"
		content[fmt.Sprintf("d%d/other", i)] = "lower"
		content[fmt.Sprintf("f%d", i)] = "lower"
	}
	f := newOverlaid(p, upperTrusted, p.files("src", content))
	for i := range 20 {
		writeFile(t, fmt.Sprintf("%s/d%d/f", f.dir, i), random(uint64(i), 300_000))
		writeFile(t, fmt.Sprintf("%s/f%d", f.dir, i), random(uint64(100+i), 100_000))
		writeFile(t, fmt.Sprintf("%s/new%d/f", f.dir, i), random(uint64(200+i), 1000))
	}
	writeFile(t, f.dir+"/"+firstFile, []byte("first again"))
	r := p.open("another")
	on(r, remote.OpList, "index/", func() {
		for i := range 20 {
			switch i % 4 {
			case 0:
				_ = os.Remove(fmt.Sprintf("%s/f%d", f.dir, i))
			case 1:
				_ = os.RemoveAll(fmt.Sprintf("%s/d%d", f.dir, i))
				_ = os.RemoveAll(fmt.Sprintf("%s/new%d", f.dir, i))
			case 2:
				_ = os.Rename(fmt.Sprintf("%s/d%d", f.dir, i), fmt.Sprintf("%s/moved%d", f.dir, i))
			case 3:
				_ = os.Remove(fmt.Sprintf("%s/d%d/f", f.dir, i))
			}
		}
	})
	res := create(t, r, f.dir, nil)
	if res.Incomplete {
		t.Errorf("problems: %v", res.Problems)
	}
	restore(t, f.full, res.ID.String(), p.path("out"), nil)
	for path, n := range scan(t, p.path("out")) {
		if n.Mode&unix.S_IFMT != unix.S_IFREG || !strings.HasPrefix(path, "f") {
			continue
		}
		if n.Size == int64(len("lower")) {
			t.Errorf("%q is as the snapshot below had it", path)
		}
	}
	f.check("at rest")
}

// TestOverlayGoneDirs: directories of the upper directory that go away before they are
// read are not in the snapshot, nor is what the snapshot below has in them.
func TestOverlayGoneDirs(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	base := complete(t, r, p.files("src", map[string]string{"a/x/1": "1", "a/2": "2", "b/3": "3", "c/4": "4", "z": "5"}), nil)
	m, err := r.repo.Manifest(t.Context(), base.ID)
	must(t, err)
	c, err := r.newCreator(p.files("upper", nil), &CreateOptions{}, nil)
	must(t, err)
	defer c.close()
	upperAlone(r, base.ID, upperTrusted)
	if c.findFork(); c.fork == nil {
		t.Skip("trusted attributes cannot be seen")
	}
	c.out.Guard.Start(t.Context())
	defer c.out.Guard.Stop()
	_, err = c.findLower(t.Context())
	must(t, err)
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		a := &assembler{creator: c}
		must(t, a.patchTree(t.Context(), nopSink{}))
		left := map[string]bool{}
		tree, err := m.Tree(r.repo)
		must(t, err)
		cur, err := tree.Seek(t.Context(), manifest.Key{})
		must(t, err)
		var gone []string
		for {
			var e manifest.Entry
			more, err := cur.Next(t.Context(), &e)
			must(t, err)
			if !more {
				break
			}
			below := slices.ContainsFunc(gone, func(d string) bool { return manifest.Within(e.Dir, d) })
			switch {
			case e.Type == manifest.Dir && e.Name != "" && !below && rnd.IntN(2) == 0:
				gone = append(gone, e.Path())
				must(t, a.fork.remove(t.Context(), &item{op: opRemove, drop: true, entry: e}))
			case !below:
				left[e.Path()] = true
				if e.Name == "" || rnd.IntN(2) == 0 {
					must(t, a.fork.Add(t.Context(), &e))
				}
			}
		}
		root, err := a.fork.Finish(t.Context())
		must(t, err)
		if root.Entries != uint64(len(left)) {
			t.Errorf("without %q: %d entries, want %d", gone, root.Entries, len(left))
		}
	}
}

// nopSink takes pages and forgets them.
type nopSink struct{}

func (nopSink) Add(_ context.Context, page []byte) (chunk.ID, error) {
	return (&chunk.Hasher{}).Sum(page), nil
}
func (nopSink) Flush(context.Context) error { return nil }
func (nopSink) Page(id chunk.ID) manifest.PageRef {
	return manifest.PageRef{ID: id, Pack: chunk.PackID{1}, Frame: chunk.Frame{Stored: 1, Raw: 1}}
}

// noPages fails to give any page, and counts.
type noPages struct{ asked atomic.Int32 }

func (p *noPages) Page(context.Context, manifest.PageRef) ([]byte, error) {
	p.asked.Add(1)
	return nil, snapshot.ErrIntegrity
}

// TestOverlayMemoDamaged: when the newest snapshot of a fork turns out damaged nothing more
// is taken from it, by who reuses entries and by who reuses pages beside that. It is told
// once.
func TestOverlayMemoDamaged(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	content := map[string]string{"a": "1"} // and enough for more pages than the one in the manifest
	for i := range 3000 {
		content[fmt.Sprint("f", i)] = ""
	}
	src := p.files("src", content)
	m, err := r.repo.Manifest(t.Context(), complete(t, r, src, nil).ID)
	must(t, err)
	pages := &noPages{}
	tree, err := m.Tree(pages)
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Lstat(src+"/a", &st))
	d := fsys.DirentOf("a", &st)
	it := item{entry: entryOf("", &d), stat: d}
	var told atomic.Int32
	f := &overlaySource{memo: &overlayMemo{
		tree: tree, prints: map[uint64]uint64{keyHash(it.entry.Key()): statPrint(&d)}, failed: func(error) { told.Add(1) },
	}}
	var both sync.WaitGroup
	for range 100 {
		both.Go(func() { f.pages(t.Context(), map[chunk.ID]manifest.PageRef{}) })
		both.Go(func() {
			it := it
			if f.memo.reuse(t.Context(), &it) {
				t.Error("an entry was taken from it")
			}
		})
	}
	both.Wait()
	if !f.damaged() || told.Load() != 1 {
		t.Errorf("damaged: %v, told %d times", f.damaged(), told.Load())
	}
	asked := pages.asked.Load()
	f.pages(t.Context(), map[chunk.ID]manifest.PageRef{})
	if f.memo.reuse(t.Context(), &it) || pages.asked.Load() != asked {
		t.Error("it is read on")
	}
}

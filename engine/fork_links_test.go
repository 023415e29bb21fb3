//go:build linux

package engine

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"golang.org/x/sys/unix"
)

// linkGroups are the names below a directory of each file that has several there.
func linkGroups(t testing.TB, dir string) (groups []string) {
	t.Helper()
	for _, names := range byInode(t, dir) {
		if len(names) > 1 {
			slices.Sort(names)
			groups = append(groups, strings.Join(names, " "))
		}
	}
	slices.Sort(groups)
	return groups
}

// hasTexts checks which files are below a directory, and what is in them.
func hasTexts(t testing.TB, what, dir string, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	for path, n := range scan(t, dir) {
		if n.Mode&unix.S_IFMT == unix.S_IFREG {
			b, err := os.ReadFile(dir + "/" + path)
			must(t, err)
			got[path] = string(b)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if got[path] != want[path] {
			t.Errorf("%s: %s holds %q, not %q", what, path, got[path], want[path])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%s: %d files, not %d", what, len(got), len(want))
	}
}

// TestForkHardLinks: in every mode, what is done to one name of a file of the snapshot is
// done to that one, whichever a program came across first, and after a resume too. The next
// snapshot has the others as names of one file, and that one as a file of its own.
func TestForkHardLinks(t *testing.T) {
	eachMode(t, func(t *testing.T, f *forked, mode ForkMode) {
		src := f.files("linked", map[string]string{})
		texts := map[string]string{}
		for _, act := range []string{"keep", "write", "later", "chmod", "unlink", "rename"} {
			for _, name := range []string{"a/" + act, "b/" + act + "1", "c/" + act + "2"} {
				texts[name] = act
				if name[0] == 'a' {
					writeFile(t, src+"/"+name, []byte(act))
				} else {
					must(t, os.MkdirAll(src+"/"+name[:1], 0o755))
					must(t, os.Link(src+"/a/"+act, src+"/"+name))
				}
			}
		}
		must(t, unix.Mkfifo(src+"/a/fifo", 0o600))
		must(t, os.Link(src+"/a/fifo", src+"/b/fifo"))
		must(t, os.Symlink("target", src+"/a/symlink"))
		must(t, os.Link(src+"/a/symlink", src+"/b/symlink"))
		r := f.open()
		f.id = complete(t, r, src, nil).ID
		one := f.fork(r, "one", &ForkOptions{Mode: mode})
		scan(t, one.Dir) // so that all names are known, which fuse-overlayfs goes by
		same := func(what string) {
			t.Helper()
			hasTexts(t, what, one.Dir, texts)
			if t.Failed() {
				t.FailNow()
			}
		}
		set := func(name, text string) {
			t.Helper()
			must(t, os.WriteFile(one.Dir+"/"+name, []byte(text), 0o644))
			texts[name] = text
		}
		same("untouched")
		set("a/write", "CHANGED")
		must(t, os.Chmod(one.Dir+"/b/chmod1", 0o600))
		must(t, os.Remove(one.Dir+"/a/unlink"))
		delete(texts, "a/unlink")
		must(t, os.Rename(one.Dir+"/a/rename", one.Dir+"/a/renamed"))
		texts["a/renamed"] = texts["a/rename"]
		delete(texts, "a/rename")
		same("changed")
		check := func(what string, want []string) {
			t.Helper()
			slices.Sort(want)
			for how, opts := range map[string]*CreateOptions{"": nil, ", all of it": {Excludes: []string{"none"}}} {
				what := what + how
				same(what)
				made := complete(t, r, one.Dir, opts)
				out := f.path("out of " + what)
				restore(t, r, made.ID.String(), out, nil)
				hasTexts(t, "snapshot of what is "+what, out, texts)
				for name, mode := range map[string]os.FileMode{"a/chmod": 0o644, "b/chmod1": 0o600, "c/chmod2": 0o644} {
					info, err := os.Lstat(out + "/" + name)
					must(t, err)
					if info.Mode() != mode {
						t.Errorf("snapshot of what is %s: %s has mode %v, not %v", what, name, info.Mode(), mode)
					}
				}
				if got := linkGroups(t, out); !slices.Equal(got, want) {
					t.Errorf("snapshot of what is %s: links %q, not %q", what, got, want)
				}
			}
		}
		links := []string{
			"/a/keep /b/keep1 /c/keep2", "/b/write1 /c/write2", "/a/chmod /c/chmod2", "/b/unlink1 /c/unlink2",
			"/b/rename1 /c/rename2", "/a/fifo /b/fifo", "/a/symlink /b/symlink",
		}
		check("changed", append(links, "/a/later /b/later1 /c/later2"))
		must(t, one.Unmount(t.Context(), false))
		one, err := r.ResumeFork(t.Context(), "one", nil)
		must(t, err)
		same("resumed")
		set("c/later2", "LATER")
		set("b/write1", "TOO")
		set("a/write", "ONCE MORE")
		// What has been changed can get further names, which are names of that.
		must(t, os.Link(one.Dir+"/a/write", one.Dir+"/c/link"))
		texts["c/link"] = texts["a/write"]
		links[1] = "/a/write /c/link"
		check("resumed", append(links, "/a/later /b/later1"))
		f.remove(one)
	})
}

// TestForkFuseWhole: where all of a fork by fuse-overlayfs is read, and its snapshot is gone,
// names of one file are separate files, and create says so.
func TestForkFuseWhole(t *testing.T) {
	f := newForked(t)
	tryMode(t, f.state, ForkFuse)
	src := f.files("linked", map[string]string{"a": "text"})
	must(t, os.Link(src+"/a", src+"/b"))
	r := f.open()
	f.id = complete(t, r, src, nil).ID
	one := f.fork(r, "one", &ForkOptions{Mode: ForkFuse})
	const separate = "separate files in this one"
	w := &warnings{}
	complete(t, r, one.Dir, &CreateOptions{Excludes: []string{"none"}, Progress: w})
	if w.about(separate) {
		t.Errorf("the snapshot is there: %q", w.all)
	}
	_, err := retain.Remove(t.Context(), r.repo, f.id.String())
	must(t, err)
	made := complete(t, r, one.Dir, &CreateOptions{Progress: w})
	if !w.about(separate) {
		t.Errorf("said %q", w.all)
	}
	f.remove(one)
	restore(t, r, made.ID.String(), f.path("out"), nil)
	hasTexts(t, "snapshot", f.path("out"), map[string]string{"a": "text", "b": "text"})
}

// TestForkFuseBelow: what is mounted below a fork by fuse-overlayfs, a directory of the fork
// itself included, is not what the snapshot has by those names.
func TestForkFuseBelow(t *testing.T) {
	f := newForked(t)
	tryMode(t, f.state, ForkFuse)
	src := f.files("linked", map[string]string{"a/one": "text", "b/one": "other b/one", "b/two": "other b/two", "file": "other file"})
	must(t, os.Mkdir(src+"/c", 0o755))
	for _, name := range []string{"a/two", "c/one", "c/two", "d"} {
		must(t, os.Link(src+"/a/one", src+"/"+name))
	}
	r := f.open()
	f.id = complete(t, r, src, nil).ID
	one := f.fork(r, "one", &ForkOptions{Mode: ForkFuse})
	texts := map[string]string{"d": "other file", "file": "other file"}
	for _, name := range []string{"b/one", "b/two", "c/one", "c/two"} {
		texts[name] = "other b" + name[1:]
	}
	tmpfs := one.Dir + "/a"
	must(t, unix.Mount("other", tmpfs, "tmpfs", 0, ""))
	t.Cleanup(func() { unix.Unmount(tmpfs, unix.MNT_DETACH) })
	for _, name := range []string{"a/one", "a/two"} {
		texts[name] = "other " + name
		writeFile(t, one.Dir+"/"+name, []byte(texts[name]))
	}
	for from, to := range map[string]string{"b": "c", "file": "d"} {
		at := one.Dir + "/" + to
		must(t, unix.Mount(one.Dir+"/"+from, at, "", unix.MS_BIND, ""))
		t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	}
	made := complete(t, r, one.Dir, nil)
	restore(t, r, made.ID.String(), f.path("out"), nil)
	hasTexts(t, "snapshot", f.path("out"), texts)
	for _, at := range []string{"a", "c", "d"} {
		must(t, unix.Unmount(one.Dir+"/"+at, 0))
	}
	f.remove(one)
}

// TestForkJoinedChanges: a file of a fork that changes while it is read is no longer the one
// that other names were joined with.
func TestForkJoinedChanges(t *testing.T) {
	path := t.TempDir() + "/file"
	writeFile(t, path, []byte("before"))
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()
	_, err = f.WriteString("changed since")
	must(t, err)
	for _, joined := range []bool{false, true} {
		it := item{stat: fsys.DirentOf("file", &st), joined: joined}
		same, err := (&reader{}).restat(int(f.Fd()), &it)
		if same || err != nil || it.renewed != joined {
			t.Errorf("joined %v: same %v, renewed %v, %v", joined, same, it.renewed, err)
		}
	}
}

//go:build linux

package engine

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"golang.org/x/sys/unix"
)

// foreignMarks makes a tree of another overlay's layers: all that some overlay would
// believe of its lower directory, each beside something that it would then not show.
func foreignMarks(t testing.TB, dir string) {
	t.Helper()
	for _, own := range []string{"trusted.overlay.", "user.overlay."} {
		set := func(path, name, value string) { setxattr(t, path, own+name, value) }
		d := dir + "/" + strings.TrimSuffix(own, ".")
		for _, name := range []string{"opaque", "redirected", "relative", "whiteouts", "impure"} {
			writeFile(t, d+"/"+name+"/file", []byte(name))
			writeFile(t, d+"/"+name+"/sub/file", []byte(name))
		}
		set(d+"/opaque", "opaque", "y")
		set(d+"/redirected", "redirect", "/nowhere")
		set(d+"/relative", "redirect", "opaque")
		set(d+"/whiteouts", "opaque", "x")
		writeFile(t, d+"/whiteouts/gone", nil)
		set(d+"/whiteouts/gone", "whiteout", "y")
		set(d+"/impure", "impure", "y")
		set(d+"/impure", "origin", "nonsense")
		set(d+"/impure", "overlay.escaped", "y")
		set(d+"/impure", "overlay.overlay.twice", "y")
		writeFile(t, d+"/no-contents", []byte("but it has some"))
		set(d+"/no-contents", "metacopy", "")
		writeFile(t, d+"/contents-elsewhere", []byte("not at all"))
		set(d+"/contents-elsewhere", "metacopy", "")
		set(d+"/contents-elsewhere", "redirect", "/nowhere")
		writeFile(t, d+"/upper", []byte("1"))
		set(d+"/upper", "upper", "nonsense")
		set(d+"/upper", "nlink", "U+7")
		set(d+"/upper", "protattr", "i")
	}
	writeFile(t, dir+"/wh/.wh.file", nil)
	writeFile(t, dir+"/wh/file", []byte("there"))
	writeFile(t, dir+"/wh/opaque/.wh..wh..opq", nil)
	writeFile(t, dir+"/wh/opaque/file", []byte("there"))
	writeFile(t, dir+"/fuse/file", []byte("there"))
	setxattr(t, dir+"/fuse", "user.fuseoverlayfs.opaque", "y")
	setxattr(t, dir+"/fuse/file", "user.containers.override_stat", "7:7:0100")
	setxattr(t, dir+"/fuse/file", "user.fuseoverlayfs.override_stat", "7:7:0100")
	setxattr(t, dir, "user.containers.override_stat", "7:7:0700")
	setxattr(t, dir, "user.overlay.opaque", "y")
	setxattr(t, dir, "trusted.overlay.opaque", "y")
	writeFile(t, dir+"/device/file", []byte("there"))
	must(t, unix.Mknod(dir+"/device/zero", unix.S_IFCHR|0o600, 0))
}

// showsIn is what of a tree a fork shows.
func showsIn(mode ForkMode, all tree) tree {
	shown := tree{}
	for path, n := range all {
		if strings.HasSuffix(path, "device/zero") || mode == ForkFuse && strings.HasPrefix(filepath.Base(path), ".wh.") {
			continue
		}
		if mode == ForkFuse {
			n.Xattrs, n.Data = "", ""
		}
		shown[path] = n
	}
	return shown
}

// touchAll changes the mode of everything that shows, so that all of it is copied up,
// and moves, removes and makes directories that have marks.
func touchAll(t testing.TB, dir string) {
	t.Helper()
	for _, path := range pathsBelow(t, dir, func(m fs.FileMode) bool { return m.IsRegular() || m.IsDir() }) {
		if strings.HasPrefix(filepath.Base(path), ".wh.") {
			continue
		}
		info, err := os.Lstat(path)
		must(t, err)
		must(t, os.Chmod(path, info.Mode()^0o010))
	}
	for _, d := range []string{"trusted.overlay", "user.overlay"} {
		// As mv does it where a directory cannot be renamed.
		if err := os.Rename(dir+"/"+d+"/redirected", dir+"/moved-"+d); err != nil && !errors.Is(err, unix.EXDEV) {
			t.Error(err)
		} else if err != nil {
			run(t, dir, "mv", d+"/redirected", "moved-"+d)
		}
		must(t, os.RemoveAll(dir+"/"+d+"/opaque"))
		must(t, os.RemoveAll(dir+"/"+d+"/relative/sub"))
		must(t, os.Mkdir(dir+"/"+d+"/opaque", 0o700))
		must(t, os.Remove(dir+"/"+d+"/whiteouts/gone"))
	}
}

// run runs another program in a directory.
func run(t testing.TB, dir, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", program, err, out)
	}
}

// TestForkForeignMarks: a snapshot of another overlay's layers is as any other to a fork.
// Nothing is missing in it, nothing answers an error, what is removed stays away, and a
// snapshot of the fork has all that the directory would have.
func TestForkForeignMarks(t *testing.T) {
	eachMode(t, func(t *testing.T, f *forked, mode ForkMode) {
		src := f.files("layers", nil)
		foreignMarks(t, src)
		r := f.open()
		f.id = complete(t, r, src, nil).ID
		one := f.fork(r, "one", &ForkOptions{Mode: mode})
		compare(t, showsIn(mode, scan(t, src)), showsIn(mode, scan(t, one.Dir)))
		// A mount shows the snapshot as it is, beside the fork and by the same process.
		m, err := r.Mount(t.Context(), f.id.String(), f.files("mnt", nil), nil)
		must(t, err)
		compare(t, scan(t, src), scan(t, m.Dir))
		must(t, m.Unmount(false))

		touchAll(t, one.Dir)
		touchAll(t, src)
		same := func(what string) {
			t.Helper()
			want, got := withoutTimes(showsIn(mode, scan(t, src))), withoutTimes(showsIn(mode, scan(t, one.Dir)))
			compare(t, want, got)
			if t.Failed() {
				t.Fatal(what)
			}
		}
		same("changed")
		must(t, one.Unmount(t.Context(), false))
		one, err = r.ResumeFork(t.Context(), "one", nil)
		must(t, err)
		same("resumed")

		made := complete(t, r, one.Dir, nil)
		if made.Parent == nil || *made.Parent != f.id {
			t.Error("all of the fork was read")
		}
		restore(t, r, made.ID.String(), f.path("out"), nil)
		want, got := withoutTimes(scan(t, src)), withoutTimes(scan(t, f.path("out")))
		if mode == ForkFuse { // which does not copy the attributes of what is changed
			want, got = withoutXattrs(want), withoutXattrs(got)
		}
		compare(t, want, got)
		f.remove(one)
	})
}

func withoutTimes(all tree) tree {
	for path, n := range all {
		n.Mtime, n.Data = unix.Timespec{}, ""
		all[path] = n
	}
	return all
}

func withoutXattrs(all tree) tree {
	for path, n := range all {
		n.Xattrs = ""
		all[path] = n
	}
	return all
}

// TestForkOwnMarks: what somebody sets in a fork is never taken for what the overlay says
// of itself, neither by a snapshot nor by the next mount.
func TestForkOwnMarks(t *testing.T) {
	eachMode(t, func(t *testing.T, f *forked, mode ForkMode) {
		src := f.files("more", map[string]string{"d/file": "1", "d/sub/file": "2", "e/file": "3"})
		r := f.open()
		f.id = complete(t, r, src, nil).ID
		one := f.fork(r, "one", &ForkOptions{Mode: mode})
		set := 0
		for _, name := range []string{
			"user.overlay.opaque", "user.overlay.redirect", "user.fuseoverlayfs.opaque", "user.containers.override_stat",
			"trusted.overlay.opaque", "trusted.overlay.redirect",
		} {
			for _, path := range []string{"", "/d", "/d/sub"} {
				err := unix.Lsetxattr(one.Dir+path, name, []byte("y"), 0)
				if err == nil {
					set++
				} else if !fsys.IsAny(err, unix.EPERM, unix.ENOTSUP, unix.EIO) {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		for _, path := range []string{"/d/file", "/d/.wh.file", "/d/.wh..wh..opq"} {
			_ = os.WriteFile(one.Dir+path, []byte("1"), 0o644) // or it cannot be made
		}
		if set == 0 {
			t.Error("nothing could be set")
		}
		_ = unix.Mknod(one.Dir+"/e/file", unix.S_IFCHR, 0)
		there := func(what, dir string) {
			t.Helper()
			for path, text := range map[string]string{"/d/file": "1", "/d/sub/file": "2", "/e/file": "3"} {
				if b, err := os.ReadFile(dir + path); err != nil || string(b) != text {
					t.Errorf("%s: %s: %q %v", what, path, b, err)
				}
			}
		}
		there("set", one.Dir)
		made := complete(t, r, one.Dir, nil)
		restore(t, r, made.ID.String(), f.path("out"), nil)
		there("snapshot", f.path("out"))
		must(t, one.Unmount(t.Context(), false))
		one, err := r.ResumeFork(t.Context(), "one", nil)
		must(t, err)
		there("resumed", one.Dir)
		made = complete(t, r, one.Dir, nil)
		restore(t, r, made.ID.String(), f.path("again"), nil)
		there("snapshot of what was resumed", f.path("again"))
		f.remove(one)
	})
}

// TestForkLeftOut: of a tree that contains the state directory, the layers of forks and what
// is mounted for them are in no snapshot.
func TestForkLeftOut(t *testing.T) {
	f := newForked(t)
	r := f.open()
	kept := f.fork(r, "kept", nil)
	writeFile(t, kept.Dir+"/new", []byte("new"))
	_, err := kept.Remove(t.Context(), &RemoveForkOptions{Keep: true})
	must(t, err)
	one := f.fork(r, "one", nil)
	must(t, os.Chmod(one.Dir+"/a", 0o600))
	writeFile(t, f.state+"/somebody", []byte("else's"))
	made := complete(t, r, f.state, nil)
	if got := entriesOf(t, r, made.ID); len(got) != 2 || !strings.HasPrefix(got[1], `"somebody"`) {
		t.Errorf("%q", got)
	}
	for _, name := range []string{"forks", "kept", "lower"} {
		if !slices.Contains(made.LeftOut, f.state+"/"+name) {
			t.Errorf("nothing is said of %s: %q", name, made.LeftOut)
		}
	}
	f.remove(one)
	must(t, os.RemoveAll(f.state+"/kept"))
}

// posingMarks makes what fuse-overlayfs takes for a mark of its own, and is none, in the
// ways that there are in a fork. It gives the names by directory.
func posingMarks(t testing.TB, dir string) map[string]string {
	t.Helper()
	const name = ".wh.file"
	all := map[string]string{}
	for kind, make := range map[string]func(d, path string) error{
		"mkdir": func(_, path string) error { return os.Mkdir(path, 0o755) },
		"rename": func(d, path string) error {
			writeFile(t, d+"/new", []byte("new"))
			return os.Rename(d+"/new", path)
		},
		"rename-empty": func(d, path string) error {
			writeFile(t, d+"/new", nil)
			return os.Rename(d+"/new", path)
		},
		"rename-directory": func(d, path string) error {
			writeFile(t, d+"/new/inside", []byte("new"))
			return os.Rename(d+"/new", path)
		},
		"link": func(d, path string) error {
			writeFile(t, d+"/new", nil)
			return errors.Join(os.Chmod(d+"/new", 0o700), os.Link(d+"/new", path))
		},
		"symlink": func(_, path string) error { return os.Symlink("file", path) },
		"mkfifo":  func(_, path string) error { return unix.Mkfifo(path, 0o700) },
		"mknod":   func(_, path string) error { return unix.Mknod(path, unix.S_IFREG|0o644, 0) },
	} {
		for _, name := range []string{name, fuseOpaque} {
			d := kind + strings.ReplaceAll(name, ".", "-")
			if err := make(dir+"/"+d, dir+"/"+d+"/"+name); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
			all[d] = name
		}
	}
	return all
}

// TestForkPosing: fuse-overlayfs takes whatever has one of its names for a mark of its own.
// What users give such a name hides nothing from a snapshot of the fork, which has both and
// says so, before the fork is mounted again and after. What it makes itself is believed.
func TestForkPosing(t *testing.T) {
	f := newForked(t)
	tryMode(t, f.state, ForkFuse)
	src := f.files("more", map[string]string{"removed/file": "1", "removed/also": "2"})
	for _, name := range []string{".wh.file", fuseOpaque} {
		for _, kind := range []string{"mkdir", "rename", "rename-empty", "rename-directory", "link", "symlink", "mkfifo", "mknod"} {
			writeFile(t, src+"/"+kind+strings.ReplaceAll(name, ".", "-")+"/file", []byte("there"))
		}
	}
	r := f.open()
	f.id = complete(t, r, src, nil).ID
	one := f.fork(r, "one", &ForkOptions{Mode: ForkFuse})
	posing := posingMarks(t, one.Dir)
	posingMarks(t, src)
	for dir := range posing {
		_ = unix.Lsetxattr(one.Dir+"/"+dir, "user.overlay.opaque", []byte("y"), 0) // or it cannot be set
	}
	must(t, os.Remove(one.Dir+"/removed/file"))
	must(t, os.Remove(src+"/removed/file"))
	check := func(what string) {
		t.Helper()
		w := &warnings{}
		made := complete(t, r, one.Dir, &CreateOptions{Progress: w})
		if made.Parent == nil {
			t.Errorf("%s: all of the fork was read", what)
		}
		restore(t, r, made.ID.String(), f.path(what), nil)
		compare(t, withoutXattrs(withoutTimes(scan(t, src))), withoutXattrs(withoutTimes(scan(t, f.path(what)))))
		for dir, name := range posing {
			if !w.about(dir+"/"+name) || !w.about("is in this snapshot") {
				t.Errorf("%s: nothing is said of %s/%s: %q", what, dir, name, w.all)
			}
		}
		if len(w.all) != len(posing) {
			t.Errorf("%s: %d warnings, %d marks: %q", what, len(w.all), len(posing), w.all)
		}
	}
	check("made")
	must(t, one.Unmount(t.Context(), false))
	// As where it may not make devices.
	must(t, os.WriteFile(one.Upper+"/removed/.wh.also", nil, 0o700))
	must(t, os.Remove(src+"/removed/also"))
	// As when it was killed before it removed a mark in whose place something is.
	must(t, os.WriteFile(one.Upper+"/removed/.wh.both", nil, 0o700))
	writeFile(t, one.Upper+"/removed/both", []byte("both"))
	writeFile(t, src+"/removed/both", []byte("both"))
	posing["removed"] = ".wh.both"
	one, err := r.ResumeFork(t.Context(), "one", nil)
	must(t, err)
	check("resumed")
	for dir := range posing {
		if _, err := unix.Lgetxattr(one.Upper+"/"+dir, "user.overlay.opaque", nil); !errors.Is(err, fsys.ErrNoXattr) {
			t.Errorf("%s still has the attribute that makes it opaque: %v", dir, err)
		}
	}

	w := &warnings{}
	create(t, r, one.Dir, &CreateOptions{Excludes: []string{"none"}, Progress: w})
	for dir, name := range posing {
		if !w.about(dir+"/"+name) || !w.about("may be missing in this snapshot") {
			t.Errorf("all is read: nothing is said of %s/%s: %q", dir, name, w.all)
		}
	}
	// What the warnings say is what helps.
	must(t, one.Unmount(t.Context(), false))
	for dir, name := range posing {
		must(t, os.Rename(one.Upper+"/"+dir+"/"+name, one.Upper+"/"+dir+"/renamed"))
	}
	one, err = r.ResumeFork(t.Context(), "one", nil)
	must(t, err)
	for dir, name := range posing {
		file := "/file"
		if name == ".wh.both" {
			file = "/both"
		}
		if _, err := os.ReadFile(one.Dir + "/" + dir + file); err != nil {
			t.Error(err)
		}
	}
	f.remove(one)
}

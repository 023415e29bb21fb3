//go:build linux

package engine

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/engine/view"
	"golang.org/x/sys/unix"
)

// dirChanges gives what VerifyDir finds, as changes does for Diff.
func dirChanges(t testing.TB, r *Repository, ref, dir string, opts *VerifyDirOptions) (all []string) {
	t.Helper()
	rep, err := r.VerifyDir(t.Context(), ref, dir, opts, func(c *view.Change) error {
		all = append(all, changeText(c))
		return nil
	})
	must(t, err)
	if len(rep.Problems) > 0 {
		t.Errorf("problems: %v", rep.Problems)
	}
	return all
}

func changeText(c *view.Change) string {
	s := fmt.Sprintf("%s %q %s", c.Kind, c.Path, strings.Join(c.What.Words(), ","))
	for _, i := range []*view.FileInfo{c.Old, c.New} {
		if i == nil {
			s += " none"
			continue
		}
		a := i.Sys().(*view.FileAttr)
		s += fmt.Sprintf(" [%v %d %s %d:%d %s %q %q %d]", i.Mode(), i.Size(), i.ModTime().UTC(), a.UID, a.GID, a.Target, a.First, a.Path, len(a.Xattrs))
	}
	return s
}

// TestVerifyDir: a directory is what was restored to it, to the last bit of
// everything that Linux trees hold, and every change of it is found: as Diff finds
// what differs to a snapshot of it.
func TestVerifyDir(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.path("src")
	must(t, os.Mkdir(src, 0o755))
	plant(t, src)
	id := create(t, r, src, nil).ID.String()
	if got := dirChanges(t, r, id, src, nil); len(got) > 0 {
		t.Fatalf("of itself: %s", got)
	}
	dst := p.path("dst")
	restore(t, r, id, dst, nil)
	if got := dirChanges(t, r, id, dst, nil); len(got) > 0 {
		t.Fatalf("of what was restored: %s", got)
	}

	dir := p.files("dir", map[string]string{
		"same": "1", "content": "old", "mode": "2", "both": "3", "gone": "4", "type": "5", "linked/a": "6", "linked/b": "7",
		"sub/deep/file": "8", "olddir/x": "9", "olddir/sub/y": "10", "touched": "11", "large": string(random(1, 3<<20)),
	})
	must(t, os.Link(dir+"/linked/a", dir+"/linked/c"))
	must(t, os.Symlink("one", dir+"/symlink"))
	must(t, unix.Setxattr(dir+"/mode", "user.a", []byte("1"), 0))
	first := complete(t, r, dir, nil).ID.String()
	writeFile(t, dir+"/content", []byte("new"))
	must(t, os.Chmod(dir+"/mode", 0o4711))
	must(t, unix.Setxattr(dir+"/both", "user.a", []byte("2"), 0))
	writeFile(t, dir+"/both", []byte("33"))
	must(t, os.Remove(dir+"/gone"))
	must(t, os.Remove(dir+"/type"))
	must(t, os.Mkdir(dir+"/type", 0o755))
	writeFile(t, dir+"/type/inside", []byte("x"))
	must(t, os.Remove(dir+"/linked/b"))
	must(t, os.Link(dir+"/linked/a", dir+"/linked/b"))
	must(t, os.RemoveAll(dir+"/olddir"))
	must(t, os.Remove(dir+"/symlink"))
	must(t, os.Symlink("two", dir+"/symlink"))
	must(t, unix.Lutimes(dir+"/touched", []unix.Timeval{{Sec: 5}, {Sec: 7}}))
	writeFile(t, dir+"/sub/new/file", []byte("y"))
	f, err := os.OpenFile(dir+"/large", os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte{1, 2, 3}, 2<<20)
	must(t, err)
	must(t, f.Close())
	second := complete(t, p.open("other"), dir, nil).ID.String()
	for _, o := range []VerifyDirOptions{{}, {NoTimes: true}} {
		var want []string
		must(t, view.Diff(t.Context(), r.repo, first, second, "", &view.DiffOptions{Times: !o.NoTimes}, func(c *view.Change) error {
			want = append(want, changeText(c))
			return nil
		}))
		got := dirChanges(t, r, first, dir, &o)
		if len(want) < 15 || !slices.Equal(got, want) {
			t.Errorf("%+v:\n%s\n\nwant:\n%s", o, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	if got := dirChanges(t, r, second, dir, nil); len(got) > 0 {
		t.Errorf("of the second: %s", got)
	}
}

// TestVerifyDirHoles: a hole is the same as zeros, wherever it is, and nothing else is.
func TestVerifyDirHoles(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.path("src")
	must(t, os.Mkdir(src, 0o755))
	data := random(3, 100_000)
	sparse := func(path string, zeros bool) {
		f, err := os.Create(path)
		must(t, err)
		defer f.Close()
		must(t, f.Truncate(3<<20))
		if zeros {
			_, err = f.WriteAt(make([]byte, 3<<20), 0)
			must(t, err)
		}
		_, err = f.WriteAt(data, 1<<20)
		must(t, err)
	}
	sparse(src+"/f", false)
	id := complete(t, r, src, nil).ID.String()
	dst := p.path("dst")
	restore(t, r, id, dst, nil)
	var st unix.Stat_t
	must(t, unix.Stat(dst+"/f", &st))
	times := []unix.Timespec{st.Atim, st.Mtim}
	sparse(dst+"/f", true)
	must(t, unix.UtimesNano(dst+"/f", times))
	if got := dirChanges(t, r, id, dst, &VerifyDirOptions{NoTimes: true}); len(got) > 0 {
		t.Errorf("zeros instead of holes: %s", got)
	}
	for _, at := range []int64{0, 1<<20 - 1, 1<<20 + 100_000, 3<<20 - 1} {
		f, err := os.OpenFile(dst+"/f", os.O_RDWR, 0)
		must(t, err)
		_, err = f.WriteAt([]byte{1}, at)
		must(t, err)
		must(t, unix.UtimesNano(dst+"/f", times))
		if got := dirChanges(t, r, id, dst, &VerifyDirOptions{NoTimes: true}); len(got) != 1 || !strings.Contains(got[0], "content") {
			t.Errorf("a byte at %d: %s", at, got)
		}
		// Of the size and time of the snapshot's it is still not the same.
		restore(t, r, id, dst, &RestoreOptions{Into: true, Verify: true})
		if got := dirChanges(t, r, id, dst, nil); len(got) != 0 {
			t.Errorf("a byte at %d, after a restore that verifies: %s", at, got)
		}
		must(t, f.Close())
	}
}

// TestVerifyDirReads: where the directory has zeros and the snapshot a hole, the
// directory is read in large pieces, whatever small file was compared before.
func TestVerifyDirReads(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	const size = 8 << 20
	src := p.path("src")
	must(t, os.Mkdir(src, 0o755))
	small := func(i int) string { return fmt.Sprintf("%s/%d", src, i) }
	for i := range 64 { // so that each of those who compare has had one
		writeFile(t, small(i), []byte{1})
	}
	large := src + "/large"
	writeFile(t, large, nil)
	must(t, os.Truncate(large, size))
	id := complete(t, r, src, nil).ID.String()
	writeFile(t, large, make([]byte, size))
	for _, restores := range []bool{false, true} {
		before := readCalls(t)
		if restores {
			restore(t, r, id, src, &RestoreOptions{Into: true, Verify: true})
		} else if got := dirChanges(t, r, id, src, &VerifyDirOptions{NoTimes: true}); len(got) > 0 {
			t.Errorf("it differs: %s", got)
		}
		if n := readCalls(t) - before; n > 10_000 { // it takes some 200
			t.Errorf("restores %v: %d reads for %d bytes", restores, n, size)
		}
	}
}

// readCalls is how often this process has read.
func readCalls(t *testing.T) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Skipf("the kernel does not count reads: %v", err)
	}
	_, text, _ := strings.Cut(string(b), "\nsyscr: ")
	if _, err := fmt.Sscanf(text, "%d", &n); err != nil {
		t.Fatalf("%q: %v", b, err)
	}
	return n
}

// TestVerifyDirUnreadable: what cannot be looked at is told, and neither the same nor
// gone.
func TestVerifyDirUnreadable(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"a/f": "1", "b/f": "2", "c": "3"})
	must(t, os.Chmod(src+"/a", 0))
	must(t, os.Chmod(src+"/c", 0))
	id := complete(t, r, src, nil).ID.String()
	must(t, os.Remove(src+"/b/f"))
	openTo(t, p, nobody)
	must(t, exec.Command("chown", "-R", "65534:65534", p.repo).Run())
	o := job{Op: "verify", Repo: p.repo, Cache: p.path("nobody"), Dir: src, Ref: id}.do(t, nobody)
	if len(o.Problems) != 2 || o.Err != "" {
		t.Errorf("%+v", o)
	}
	if len(o.Changes) != 2 || !strings.HasPrefix(o.Changes[0], `modified "b" times`) || !strings.HasPrefix(o.Changes[1], `removed "b/f"`) {
		t.Errorf("%q", o.Changes)
	}
}

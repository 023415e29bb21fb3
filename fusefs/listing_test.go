//go:build linux

package fusefs

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inodes lists a directory with its inode numbers, as getdents(2) has them.
func inodes(t testing.TB, dir string) map[string]uint64 {
	t.Helper()
	all := map[string]uint64{}
	for _, d := range dirents(t, dir) {
		all[d.name] = d.ino
	}
	return all
}

type dirent struct {
	name string
	ino  uint64
	off  int64
	kind byte
}

func dirents(t testing.TB, dir string) (all []dirent) {
	t.Helper()
	f, err := os.Open(dir)
	check(t, err)
	defer f.Close()
	for {
		d := someDirents(t, int(f.Fd()), 4096)
		if len(d) == 0 {
			return all
		}
		all = append(all, d...)
	}
}

func someDirents(t testing.TB, fd, size int) (all []dirent) {
	t.Helper()
	buf := make([]byte, size)
	n, err := unix.Getdents(fd, buf)
	check(t, err)
	for b := buf[:n]; len(b) > 0; {
		le := func(at, n int) (v uint64) {
			for i := range n {
				v |= uint64(b[at+i]) << (8 * i)
			}
			return v
		}
		size := le(16, 2)
		name, _, _ := strings.Cut(string(b[19:size]), "\x00")
		all = append(all, dirent{name, le(0, 8), int64(le(8, 8)), b[18]})
		b = b[size:]
	}
	return all
}

// TestLargeDirectory: ten thousand entries, listed in full, and from every place
// that telldir could name.
func TestLargeDirectory(t *testing.T) {
	w := newWorld()
	w.dir("before")
	w.dir("big")
	w.dir("big/00000")
	w.dir("empty")
	want := []string{".", "..", "00000"}
	for i := 1; i < 10_000; i++ {
		name := fmt.Sprintf("%05d", i)
		want = append(want, name)
		w.file("big/"+name, 0)
	}
	w.file("big/00000/deeper", 0)
	w.file("zz", 0)
	dir := w.mount(t)
	for range 2 { // as served, and as the kernel keeps it
		all := dirents(t, dir+"/big")
		if len(all) != len(want) {
			t.Fatalf("%d names", len(all))
		}
		for i, d := range all {
			if d.name != want[i] {
				t.Fatalf("%d: %q, not %q", i, d.name, want[i])
			}
		}
	}
	if all := dirents(t, dir+"/empty"); len(all) != 2 {
		t.Errorf("an empty directory: %v", all)
	}
	all := dirents(t, dir+"/big")
	f, err := os.Open(dir + "/big")
	check(t, err)
	defer f.Close()
	for range 200 {
		i := rand.IntN(len(all))
		if _, err := f.Seek(all[i].off, 0); err != nil {
			t.Fatal(err)
		}
		some := someDirents(t, int(f.Fd()), 1024)
		if i+1 == len(all) {
			if len(some) != 0 {
				t.Fatalf("behind the last: %v", some)
			}
			continue
		}
		for k, d := range some {
			if d != all[i+1+k] {
				t.Fatalf("from %d: %v, not %v", i, d, all[i+1+k])
			}
		}
	}
	// Entries have the inodes that stat tells.
	for range 100 {
		d := all[2+rand.IntN(len(all)-2)]
		var st unix.Stat_t
		check(t, unix.Lstat(dir+"/big/"+d.name, &st))
		if st.Ino != d.ino || st.Mode&unix.S_IFMT>>12 != uint32(d.kind) {
			t.Errorf("%v: %+v", d, st)
		}
	}
}

// TestNegative: what is not there is not there, now and when asked again.
func TestNegative(t *testing.T) {
	w := newWorld()
	w.dir("dir")
	w.file("file", 0)
	dir := w.mount(t)
	for range 3 {
		for _, path := range []string{"none", "dir/none", "none/none", "a", "zzz", "\x01"} {
			if _, err := os.Lstat(dir + "/" + path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%q: %v", path, err)
			}
		}
		if _, err := os.Lstat(dir + "/file/x"); !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("below a file: %v", err)
		}
	}
}

//go:build linux

package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWaysToRead: every way that the kernel has of reading a file gives the same
// bytes.
func TestWaysToRead(t *testing.T) {
	world := newWorld()
	w := &waysToRead{T: t, want: mixedFile(world, "file")}
	world.file("empty", 0)
	w.dir = world.mount(t)
	w.reads()
	w.preads()
	w.maps()
	w.copies()
	w.seeks()
}

// waysToRead is a mount with a file that is read in all ways.
type waysToRead struct {
	*testing.T
	dir  string
	want []byte
}

// open opens the file, of which nothing is in the page cache then.
func (w *waysToRead) open(flags int) *os.File {
	w.Helper()
	f, err := os.OpenFile(w.dir+"/file", os.O_RDONLY|flags, 0)
	check(w, err)
	w.Cleanup(func() { f.Close() })
	check(w, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	return f
}

func (w *waysToRead) same(how string, got []byte, err error) {
	w.Helper()
	if err != nil || !bytes.Equal(got, w.want) {
		w.Errorf("%s: %d bytes of %d, %v", how, len(got), len(w.want), err)
	}
}

func (w *waysToRead) reads() {
	data, err := io.ReadAll(w.open(0))
	w.same("read", data, err)
	for _, size := range []int{4096, 65536, 1 << 20, 3 << 20} {
		f := w.open(unix.O_DIRECT)
		var all []byte
		buf := make([]byte, size)
		for {
			n, err := f.Read(buf)
			all = append(all, buf[:n]...)
			if err != nil {
				w.same(fmt.Sprint("O_DIRECT by ", size), all, nil)
				break
			}
		}
	}
}

// preads reads parts, at random.
func (w *waysToRead) preads() {
	direct := w.open(unix.O_DIRECT)
	for range 300 {
		off, n := rand.IntN(len(w.want)+1), rand.IntN(200_000)
		buf := make([]byte, n)
		for how, f := range map[string]*os.File{"pread": w.open(0), "pread, O_DIRECT": direct} {
			k, err := unix.Pread(int(f.Fd()), buf, int64(off))
			if rest := w.want[off:min(off+n, len(w.want))]; err != nil || k != len(rest) || !bytes.Equal(buf[:k], rest) {
				w.Fatalf("%s of %d at %d: %d bytes, %v", how, n, off, k, err)
			}
		}
		if n%16 == 0 {
			var parts [][]byte
			for at := 0; at < n; at += 1 + n/5 {
				parts = append(parts, buf[at:min(n, at+1+n/5)])
			}
			k, err := unix.Preadv(int(w.open(0).Fd()), parts, int64(off))
			if rest := w.want[off:min(off+n, len(w.want))]; err != nil || k != len(rest) || !bytes.Equal(buf[:k], rest) {
				w.Fatalf("preadv of %d at %d: %d bytes, %v", n, off, k, err)
			}
		}
	}
}

func (w *waysToRead) maps() {
	for how, flags := range map[string]int{"mmap, private": unix.MAP_PRIVATE, "mmap, shared": unix.MAP_SHARED, "mmap, populated": unix.MAP_SHARED | unix.MAP_POPULATE} {
		m, err := unix.Mmap(int(w.open(0).Fd()), 0, len(w.want), unix.PROT_READ, flags)
		check(w, err)
		// The server is this very process: a page fault outside of a system call
		// would keep the collector, and so the server, from going on.
		check(w, unix.Madvise(m, unix.MADV_POPULATE_READ))
		w.same(how, m, nil)
		check(w, unix.Munmap(m))
	}
}

// out is a new file to copy to.
func (w *waysToRead) out() *os.File {
	f, err := os.CreateTemp(w.TempDir(), "")
	check(w, err)
	w.Cleanup(func() { f.Close() })
	return f
}

func (w *waysToRead) copied(how string, f *os.File, err error) {
	w.Helper()
	data, err2 := os.ReadFile(f.Name())
	w.same(how, data, errors.Join(err, err2))
}

// copies has the kernel copy the file.
func (w *waysToRead) copies() {
	f, to := w.open(0), w.out()
	for {
		n, err := unix.Sendfile(int(to.Fd()), int(f.Fd()), nil, 123_457)
		if n <= 0 || err != nil {
			w.copied("sendfile", to, err)
			break
		}
	}
	f, to = w.open(0), w.out()
	for {
		n, err := unix.CopyFileRange(int(f.Fd()), nil, int(to.Fd()), nil, 200_003, 0)
		if errors.Is(err, unix.EXDEV) { // the kernel's wish, not ours
			break
		}
		if n <= 0 || err != nil {
			w.copied("copy_file_range", to, err)
			break
		}
	}
	f, to = w.open(0), w.out()
	r, p, err := os.Pipe()
	check(w, err)
	for {
		n, err := unix.Splice(int(f.Fd()), nil, int(p.Fd()), nil, 50_001, 0)
		if n <= 0 || err != nil {
			w.copied("splice", to, err)
			break
		}
		_, err = io.CopyN(to, r, n)
		check(w, err)
	}
	r.Close()
	p.Close()
}

// seeks seeks at the borders.
func (w *waysToRead) seeks() {
	f := w.open(0)
	size := int64(len(w.want))
	for _, c := range []struct {
		off    int64
		whence int
		want   int64
		err    error
	}{
		{0, unix.SEEK_DATA, 0, nil}, {0, unix.SEEK_HOLE, 1, nil}, {size - 1, unix.SEEK_HOLE, size - 1, nil},
		{size - 1, unix.SEEK_DATA, 0, unix.ENXIO}, {size, unix.SEEK_DATA, 0, unix.ENXIO}, {size, unix.SEEK_HOLE, 0, unix.ENXIO},
		{size + 1, unix.SEEK_HOLE, 0, unix.ENXIO}, {-1, unix.SEEK_DATA, 0, unix.ENXIO}, {0, unix.SEEK_END, size, nil}, {-1, unix.SEEK_SET, 0, unix.EINVAL},
	} {
		got, err := unix.Seek(int(f.Fd()), c.off, c.whence)
		if !errors.Is(err, c.err) || err == nil && got != c.want {
			w.Errorf("seek to %d, %d: %d, %v", c.off, c.whence, got, err)
		}
	}
	empty, err := os.Open(w.dir + "/empty")
	check(w, err)
	defer empty.Close()
	if _, err := unix.Seek(int(empty.Fd()), 0, unix.SEEK_HOLE); !errors.Is(err, unix.ENXIO) {
		w.Errorf("seek in an empty file: %v", err)
	}
}

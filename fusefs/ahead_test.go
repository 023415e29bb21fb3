//go:build linux

package fusefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// smallFiles adds a directory of n files, "00", "01" and so on, with a directory
// in between.
func smallFiles(w *world, n int) {
	w.dir("d")
	for i := range n {
		w.file(fmt.Sprintf("d/%02d", i), 0, piece{data: fmt.Sprint("this is ", i)})
	}
	w.dir("d/02-between")
}

// list looks at all files of a directory, so that the kernel knows them.
func list(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, err := e.Info(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSmallFilesAhead: who reads small files in order finds the next ones in the page
// cache. The kernel may take any of it away when memory is short: not every time.
func TestSmallFilesAhead(t *testing.T) {
	for try := 1; ; try++ {
		err := smallFilesAhead(t)
		if err == nil {
			return
		}
		if try == 5 {
			t.Fatal(err)
		}
		t.Log(err)
	}
}

func smallFilesAhead(t *testing.T) error {
	w := newWorld()
	smallFiles(w, 60)
	s := w.serve(t)
	dir := filepath.Join(s.dir, "d")
	list(t, dir)
	read := func(from, to int) error {
		for i := from; i < to; i++ {
			data, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("%02d", i)))
			if err != nil {
				return err
			}
			if string(data) != fmt.Sprint("this is ", i) {
				t.Errorf("file %d: %q", i, data)
			}
		}
		return nil
	}
	check(t, read(0, 2))
	s.fs.ahead.wait()
	// What follows is in the page cache, but for the file that tells of a reader
	// who keeps going.
	gone := errors.New("gone")
	w.fail(func(context.Context) error { return gone })
	behind := 2 + firstPush
	if err := read(2, behind); err != nil {
		return err
	}
	if err := read(behind, behind+1); !errors.Is(err, unix.EIO) {
		t.Errorf("file %d: %v, want EIO", behind, err)
	}
	w.heal()
	// The failed one was read in order, too: twice as many follow.
	check(t, read(behind, behind+2))
	s.fs.ahead.wait()
	w.fail(func(context.Context) error { return gone })
	return read(behind+2, behind+2+firstPush)
}

// Who reads here and there gets what he asks for, and no more is brought.
func TestNothingAhead(t *testing.T) {
	w := newWorld()
	smallFiles(w, 60)
	s := w.serve(t)
	dir := filepath.Join(s.dir, "d")
	list(t, dir)
	for _, i := range []int{0, 20, 10, 30, 50} {
		if _, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("%02d", i))); err != nil {
			t.Fatal(err)
		}
	}
	s.fs.ahead.wait()
	if n := w.asked.Load(); n != 5 {
		t.Errorf("%d chunks were asked for, want 5", n)
	}
}

// Files that were put into the page cache have the right bytes and sizes.
func TestAheadContents(t *testing.T) {
	w := newWorld()
	w.dir("d")
	random := rand.NewChaCha8([32]byte{1})
	want := map[string][]byte{}
	for i, size := range []int{1, 1, 1, 1, 4095, 4096, 4097, 0, 8191, 8192, 8193, 65536, smallFile - 1, smallFile, smallFile + 1, 300000, 1, 5, 4096} {
		name := fmt.Sprintf("d/%02d", i)
		data := make([]byte, size)
		random.Read(data)
		want[name] = data
		if size == 0 {
			w.file(name, 0)
		} else {
			w.file(name, 0, piece{data: string(data)})
		}
	}
	s := w.serve(t)
	list(t, filepath.Join(s.dir, "d"))
	for pass := range 2 {
		for i := range len(want) {
			name := fmt.Sprintf("d/%02d", i)
			data, err := os.ReadFile(filepath.Join(s.dir, name))
			if err != nil || !bytes.Equal(data, want[name]) {
				t.Errorf("pass %d: %s: %d bytes, %v; want %d", pass, name, len(data), err, len(want[name]))
			}
			s.fs.ahead.wait()
		}
	}
	for name, data := range want {
		if st, err := os.Stat(filepath.Join(s.dir, name)); err != nil || st.Size() != int64(len(data)) {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
}

func TestLargeFileAhead(t *testing.T) {
	w := newWorld()
	const pieces = 12
	var all []piece
	for i := range pieces {
		data := bytes.Repeat([]byte{byte(i)}, 1<<20)
		all = append(all, piece{data: string(data)})
	}
	w.file("large", 0, all...)
	s := w.serve(t)
	const rank = 1
	a := s.fs.ahead
	read := func(off, end uint64) int64 {
		before := w.asked.Load()
		e := w.entries[rank]
		a.read(rank, &e, off, end)
		a.wait()
		return w.asked.Load() - before
	}
	if n := read(0, 128<<10); n != 0 {
		t.Errorf("%d chunks were brought at the first read", n)
	}
	if n := read(128<<10, 256<<10); n != 5 {
		t.Errorf("%d chunks were brought by a read in order, want those of 4 MiB", n)
	}
	if n := read(256<<10, 384<<10); n != 0 {
		t.Errorf("%d chunks were brought again", n)
	}
	if n := read(1<<20, 2<<20); n != 2 {
		t.Errorf("%d chunks were brought, want 2", n)
	}
	if n := read(8<<20, 9<<20); n != 0 {
		t.Errorf("%d chunks were brought for a reader that jumps", n)
	}
	if n := read(9<<20, 10<<20); n != 2 {
		t.Errorf("%d chunks were brought at the end, want the last 2", n)
	}
}

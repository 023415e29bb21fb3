//go:build linux

package fusefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// turmoil adds directories of files of all kinds, and gives what they hold.
func turmoil(w *world, dirs, files int) map[string][]byte {
	random := rand.New(rand.NewPCG(1, 2))
	want := map[string][]byte{}
	for d := range dirs {
		dir := fmt.Sprintf("d%02d", d)
		w.dir(dir)
		for i := range files {
			name := fmt.Sprintf("%s/%04d", dir, i)
			text := func(n int) string {
				b := make([]byte, n)
				for k := range b {
					b[k] = byte('a' + random.IntN(26))
				}
				return string(b)
			}
			var pieces []piece
			end := uint64(0)
			switch random.IntN(12) {
			case 0: // empty
			case 1:
				end = 5000 // a hole alone
			case 2:
				pieces, end = []piece{{0, text(100)}}, 10
			case 3:
				pieces = []piece{{4096, text(3)}}
			case 4:
				pieces = []piece{{0, text(4096)}, {0, text(1)}, {9999, text(7000)}}
			case 5:
				pieces = []piece{{0, text(smallFile - 1 + random.IntN(3))}}
			case 6:
				w.dir(name + "-dir")
				fallthrough
			default:
				pieces = []piece{{0, text(1 + random.IntN(9000))}}
			}
			w.file(name, end, pieces...)
			want[name] = content(pieces, end)
			switch {
			case i > 0 && i%17 == 0:
				first := fmt.Sprintf("d%02d/%04d", d, i-1)
				w.add(name+"-link", manifest.Entry{Type: manifest.Link, First: manifest.KeyOf(first)})
				want[name+"-link"] = want[first]
			case i%19 == 0:
				w.add(name+"-symlink", manifest.Entry{Type: manifest.Symlink, Mode: 0o777, Target: "0000", Links: 1})
			}
		}
	}
	return want
}

// TestAheadTurmoil: files of all kinds are read in order, backwards and at random,
// by many at once, while the page cache is dropped and the source fails: no wrong
// byte, no wrong size, and when the source is back everything can be read.
func TestAheadTurmoil(t *testing.T) {
	w := newWorld()
	want := turmoil(w, 6, 250)
	names := make([]string, 0, len(want))
	for name := range want {
		names = append(names, name)
	}
	slices.Sort(names)
	s := w.serve(t)
	// The kernel asks once more what it only read ahead, so that a reader sees trouble
	// that lasts, and no single fault.
	var asked atomic.Int64
	w.fail(func(ctx context.Context) error {
		if asked.Add(1)%400 < 40 || rand.IntN(50) == 0 {
			return errors.New("bad luck")
		}
		return nil
	})
	var failed, stored atomic.Int64
	// Nobody has read anything yet. The lock orders this before what readers start.
	a := s.fs.ahead
	a.mu.Lock()
	store := a.store
	a.store = func(inode uint64, off int64, data []byte) fuse.Status {
		stored.Add(1)
		return store(inode, off, data)
	}
	a.mu.Unlock()
	read := func(name string, drop bool) {
		f, err := os.Open(s.dir + "/" + name)
		if err == nil {
			defer f.Close()
			var data []byte
			if data, err = os.ReadFile(s.dir + "/" + name); err == nil && !bytes.Equal(data, want[name]) {
				t.Errorf("%s: %d bytes that are not its %d", name, len(data), len(want[name]))
			}
			if st, err := f.Stat(); err != nil || st.Size() != int64(len(want[name])) {
				t.Errorf("%s: %v, %v", name, st, err)
			}
			if drop {
				_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
			}
		}
		if err != nil {
			failed.Add(1)
			if !errors.Is(err, unix.EIO) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	rounds := 4
	if testing.Short() {
		rounds = 1
	}
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 3))
			// And on until a reader has seen trouble, and something was brought.
			for round := 0; round < rounds || round < 1000 && (failed.Load() == 0 || stored.Load() == 0); round++ {
				dir := fmt.Sprintf("d%02d/", r.IntN(6))
				mine := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !strings.HasPrefix(n, dir) })
				if i%2 == 0 {
					_, _ = os.ReadDir(s.dir + "/" + dir) // so that the kernel knows the files
				}
				switch i % 4 {
				case 2:
					slices.Reverse(mine)
				case 3:
					r.Shuffle(len(mine), func(a, b int) { mine[a], mine[b] = mine[b], mine[a] })
				}
				for _, name := range mine {
					read(name, r.IntN(3) == 0)
				}
			}
		})
	}
	wg.Wait()
	a.wait()
	if failed.Load() == 0 || stored.Load() == 0 {
		t.Errorf("%d reads failed, %d files were put into the page cache", failed.Load(), stored.Load())
	}
	w.heal()
	for _, name := range names {
		if data, err := os.ReadFile(s.dir + "/" + name); err != nil || !bytes.Equal(data, want[name]) {
			t.Errorf("in the end: %s: %d bytes, %v", name, len(data), err)
		}
	}
}

// TestManySmallFiles: a directory of very many files is read through with few
// requests, and nothing is brought twice.
func TestManySmallFiles(t *testing.T) {
	n := 100_000
	if testing.Short() {
		n = 10_000
	}
	w := newWorld()
	w.dir("d")
	text := func(i int) string { return fmt.Sprintf("this is file %d", i) }
	for i := range n {
		w.file(fmt.Sprintf("d/%06d", i), 0, piece{0, text(i)})
	}
	s := w.serve(t)
	list(t, s.dir+"/d")
	for i := range n {
		data, err := os.ReadFile(fmt.Sprintf("%s/d/%06d", s.dir, i))
		if err != nil || string(data) != text(i) {
			t.Fatalf("file %d: %q, %v", i, data, err)
		}
	}
	s.fs.ahead.wait()
	if asked := w.asked.Load(); asked > int64(n+n/5) {
		t.Errorf("%d chunks were asked for, to read %d files", asked, n)
	}
}

// TestUnmountAhead: a mount that ends while files are put into the page cache, or
// while the source keeps them waiting, ends at once, and asks nothing any more.
func TestUnmountAhead(t *testing.T) {
	w := newWorld()
	smallFiles(w, 99)
	rounds := 40
	if testing.Short() {
		rounds = 10
	}
	for round := range rounds {
		s := w.serve(t)
		list(t, s.dir+"/d")
		// From here on the source has those wait that read ahead, or nobody.
		var inside atomic.Int64
		waits := round%2 == 0
		asked := make(chan struct{}, 1000)
		w.fail(func(ctx context.Context) error {
			inside.Add(1)
			defer inside.Add(-1)
			if waits && ctx == s.fs.ahead.ctx {
				asked <- struct{}{}
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		for i := range 2 {
			if _, err := os.ReadFile(fmt.Sprintf("%s/d/%02d", s.dir, i)); err != nil {
				t.Fatal(err)
			}
		}
		if waits {
			<-asked // by a push: nobody else reads
		}
		start := time.Now()
		check(t, s.Unmount(round%4 > 1))
		s.Wait()
		if took := time.Since(start); took > tooLong {
			t.Errorf("it took %v to end", took)
		}
		if n := inside.Load(); n != 0 {
			t.Errorf("%d are still asking the source", n)
		}
		w.heal()
	}
}

// TestUnmountReaders: detached while readers are at it, they go on, and the mount
// ends with the last of them.
func TestUnmountReaders(t *testing.T) {
	w := newWorld()
	smallFiles(w, 99)
	s := w.serve(t)
	list(t, s.dir+"/d")
	var wg sync.WaitGroup
	started := make(chan struct{}, 8)
	detached := make(chan struct{})
	for i := range cap(started) {
		wg.Go(func() {
			fd, err := unix.Open(s.dir+"/d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Close(fd)
			for round, over := 0, false; !over; round++ {
				select {
				case <-detached:
					over = true // once more
				default:
				}
				for k := range 99 {
					f, err := unix.Openat(fd, fmt.Sprintf("%02d", k), unix.O_RDONLY|unix.O_CLOEXEC, 0)
					if err != nil {
						t.Error(err)
						return
					}
					buf := make([]byte, 100)
					n, err := unix.Read(f, buf)
					if want := fmt.Sprint("this is ", k); err != nil || string(buf[:n]) != want {
						t.Errorf("reader %d: %q, %v", i, buf[:max(n, 0)], err)
					}
					_ = unix.Fadvise(f, 0, 0, unix.FADV_DONTNEED)
					unix.Close(f)
				}
				if round == 0 {
					started <- struct{}{}
				}
			}
		})
	}
	for range cap(started) {
		<-started
	}
	if err := s.Unmount(false); !errors.Is(err, ErrBusy) {
		t.Errorf("with readers: %v", err)
	}
	check(t, s.Unmount(true))
	close(detached)
	wg.Wait()
	ended := make(chan struct{})
	go func() { s.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(tooLong):
		t.Error("it does not end with its last reader")
	}
}

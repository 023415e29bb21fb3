//go:build linux

package engine

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
	"golang.org/x/sys/unix"
)

// readPast reads a range of a file past what the kernel keeps of it, and gives what
// there is.
func readPast(path string, off int64, buf []byte) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	n, err := unix.Pread(fd, buf, off)
	return max(n, 0), err
}

// randomReads has many readers read ranges of files and check every byte, until
// stop. What fails is asked for again that many times.
func randomReads(t testing.TB, stop <-chan struct{}, readers, again int, dir string, content map[string][]byte) (reads, failed int64) {
	names := make([]string, 0, len(content))
	for name := range content {
		names = append(names, name)
	}
	slices.Sort(names)
	var wg sync.WaitGroup
	var n, bad atomic.Int64
	for i := range readers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 99))
			buf := make([]byte, 300_000)
			for !closed(stop) && !t.Failed() {
				name := names[r.IntN(len(names))]
				want := content[name]
				off, size := r.IntN(len(want)+1), 1+r.IntN(len(buf))
				switch r.IntN(10) {
				case 0:
					if _, err := os.ReadDir(filepath.Dir(dir + "/" + name)); err != nil && !errors.Is(err, unix.EIO) {
						t.Errorf("listing: %v", err)
					}
				case 1, 2, 3:
					size = 1 + r.IntN(5000)
				}
				for try := 0; ; try++ {
					got, err := readPast(dir+"/"+name, int64(off), buf[:size])
					n.Add(1)
					if !bytes.HasPrefix(want[off:], buf[:got]) || err == nil && got < min(size, len(want)-off) {
						t.Errorf("%s: %d bytes at %d of %d are not what they were", name, got, off, len(want))
					}
					if err == nil {
						break
					}
					bad.Add(1)
					if !errors.Is(err, unix.EIO) || try == again {
						t.Errorf("%s: %v", name, err)
						break
					}
				}
			}
		})
	}
	wg.Wait()
	return n.Load(), bad.Load()
}

// TestMountStress: two hundred readers of random files, with room for a few
// frames in memory and for a part of the snapshot on the disk, while the store is
// slow, fails, and gives wrong bytes, and hydration runs. It takes a minute with -long,
// and a moment with -short.
func TestMountStress(t *testing.T) {
	w := newWobbly(t)
	files := map[string][]byte{}
	for i := range 240 {
		n := 1 + i*i%9_000
		if i%4 == 0 {
			n = 100_000 + i*3_000
		}
		files[fmt.Sprintf("d%d/%03d", i%7, i)] = random(uint64(i), n)
	}
	// In many packs, since what is being read is not evicted.
	var parts [20]map[string][]byte
	for i := range parts {
		parts[i] = map[string][]byte{}
	}
	n := 0
	for name, data := range files {
		parts[n%len(parts)][name] = data
		n++
	}
	id := w.snapshotOf(parts[:]...)
	before := runtime.NumGoroutine()
	var asked, corrupted atomic.Int64
	w.fail(func(op remote.Op, name string) remotetest.Fault {
		if op != remote.OpReadAt {
			return remotetest.Fault{}
		}
		switch n := asked.Add(1); {
		case n%11 == 0:
			return remotetest.Fault{Err: &remote.TransientError{Err: errors.New("a moment")}}
		case n%17 == 0:
			corrupted.Add(1)
			return remotetest.Fault{Corrupt: true}
		case n%3 == 0:
			return remotetest.Fault{Delay: time.Duration(n%5) * time.Millisecond}
		}
		return remotetest.Fault{}
	})
	opts := w.options()
	opts.CacheSize = 8 << 20
	opts.Store = remote.Retry(opts.Store, &remote.RetryOptions{Initial: time.Millisecond, Max: 5 * time.Millisecond, Total: time.Minute})
	r := w.openWith(opts)
	m := mountAt(t, r, id, w.path("mnt"), &MountOptions{Memory: 4 << 20})
	length := 5 * time.Second
	if *long {
		length = time.Minute
	} else if testing.Short() {
		length = time.Second
	}
	// And on until there was trouble of each kind.
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		for begun := time.Now(); time.Since(begun) < tooLong && !t.Failed(); time.Sleep(10 * time.Millisecond) {
			if time.Since(begun) >= length && corrupted.Load() > 0 && r.repo.DiskCache().Stats().Evicted >= 5 {
				return
			}
		}
	}()
	reads, failed := randomReads(t, stop, 200, 20, m.Dir, files)
	s, cache := m.Stats(), r.repo.DiskCache().Stats()
	t.Logf("%d reads, %d of which failed; %d requests, %d with wrong bytes; %+v, %+v", reads, failed, asked.Load(), corrupted.Load(), s, cache)
	if corrupted.Load() == 0 || cache.Evicted < 5 {
		t.Error("that was no test")
	}
	w.heal()
	for name, want := range files {
		sameFile(t, m.Dir+"/"+name, want)
	}
	must(t, m.Unmount(false))
	must(t, r.Close())
	eventually(t, "the end of all goroutines", func() bool { return runtime.NumGoroutine() <= before+2 })
}

// snapshotOf makes the repository and a snapshot of files; of parts of them each has
// packs of its own.
func (w *wobbly) snapshotOf(parts ...map[string][]byte) (id manifest.ID) {
	w.Helper()
	r, err := Init(w.Context(), "", initOf(w), keyed(w, w.options()))
	must(w, err)
	defer r.Close()
	for _, files := range parts {
		for name, data := range files {
			writeFile(w, w.path("src", name), data)
		}
		id = complete(w, r, w.path("src"), nil).ID
	}
	return id
}

// TestMountS3Troubles: through a real S3 server that breaks connections, in the
// middle of an answer too, is slow and refuses, readers see none of it.
func TestMountS3Troubles(t *testing.T) {
	b := newBucket(t)
	files := map[string][]byte{}
	for i := range 60 {
		files[fmt.Sprintf("d%d/%02d", i%3, i)] = random(uint64(i), 1+i*i*200)
	}
	for name, data := range files {
		writeFile(t, b.path("src", name), data)
	}
	id := complete(t, b.init(), b.path("src"), nil).ID
	var retries atomic.Int64
	r := b.open("other", &retries)
	m := mountAt(t, r, id, b.path("mnt"), &MountOptions{Memory: 2 << 20})
	var asked atomic.Int64
	b.Hook(func(r *http.Request) remotetest.Trouble {
		if r.Method != http.MethodGet {
			return remotetest.Trouble{}
		}
		switch asked.Add(1) % 7 {
		case 0:
			return remotetest.Trouble{Truncate: 100_000}
		case 2:
			return remotetest.Trouble{Status: http.StatusServiceUnavailable}
		case 4:
			return remotetest.Trouble{Reset: true}
		case 5:
			return remotetest.Trouble{Delay: 10 * time.Millisecond}
		}
		return remotetest.Trouble{}
	})
	defer b.Hook(nil)
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		// All of it is fetched several times.
		for range 4 {
			for name, want := range files {
				buf := make([]byte, len(want))
				if n, err := readPast(m.Dir+"/"+name, 0, buf); err != nil || !bytes.Equal(buf[:n], want[:n]) {
					t.Errorf("%s: %d bytes, %v", name, n, err)
				}
			}
			if err := os.RemoveAll(r.CacheDir() + "/packs"); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
				t.Error(err)
			}
		}
	}()
	randomReads(t, stop, 30, 0, m.Dir, files)
	if s := m.Stats(); s.Errors != 0 || retries.Load() == 0 {
		t.Errorf("%d retries, %+v", retries.Load(), s)
	}
}

// TestMountShutdown: a server ends, and its repository is closed, while readers are
// at it: they get errors or what the snapshot holds, and none of them waits.
func TestMountShutdown(t *testing.T) {
	w := newWobbly(t)
	id, content := w.snapshot()
	before := runtime.NumGoroutine()
	for round := range times(6, 60) {
		r := w.open()
		dir := w.path("mnt")
		must(t, os.MkdirAll(dir, 0o755))
		needFUSE(t)
		m, err := r.Mount(t.Context(), id.String(), dir, &MountOptions{Memory: 1 << 20})
		must(t, err)
		if round%2 == 0 { // some are waiting for the store
			w.fail(func(op remote.Op, _ string) remotetest.Fault {
				if op == remote.OpReadAt {
					return remotetest.Fault{Delay: time.Hour}
				}
				return remotetest.Fault{}
			})
		}
		var reading atomic.Int64
		var wg sync.WaitGroup
		for i := range 20 {
			fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0) // so that the mount is in use
			must(t, err)
			wg.Go(func() {
				defer unix.Close(fd)
				buf := make([]byte, 1<<20)
				for k := i; ; k++ {
					name := fmt.Sprintf("dir/%d", k%8)
					reading.Add(1)
					f, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
					if err == nil {
						_ = unix.Fadvise(f, 0, 0, unix.FADV_DONTNEED)
						var n int
						n, err = unix.Pread(f, buf, int64(k%7)*100_000)
						if err == nil && !bytes.HasPrefix(content[name][k%7*100_000:], buf[:n]) {
							t.Errorf("%s: wrong bytes", name)
						}
						unix.Close(f)
					}
					if err != nil {
						if !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.EINTR) {
							t.Errorf("%s: %v", name, err)
						}
						return
					}
				}
			})
		}
		eventually(t, "readers", func() bool { return reading.Load() >= 20 })
		inUse, err := m.Shutdown()
		if len(inUse) != 1 || err != nil {
			t.Errorf("in use: %v, %v", inUse, err)
		}
		must(t, r.Close())
		ended := make(chan struct{})
		go func() { wg.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(tooLong):
			t.Fatal("a reader waits for a server that has ended")
		}
		w.heal()
	}
	eventually(t, "the end of all goroutines", func() bool { return runtime.NumGoroutine() <= before+2 })
}

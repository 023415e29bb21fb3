//go:build linux

package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/fusefs"
	"golang.org/x/sys/unix"
)

// killedFork gives a fork whose server has been killed.
func (f *forked) killedFork(t *testing.T, mode ForkMode, before func(dir string)) *Fork {
	t.Helper()
	return f.killedForkIn(t, mode, "", before)
}

// killedForkIn is killedFork with ForkOptions.Upper.
func (f *forked) killedForkIn(t *testing.T, mode ForkMode, upper string, before func(dir string)) *Fork {
	t.Helper()
	j := f.job("one")
	must(t, os.Remove(f.path("one")))
	j.Op, j.Keep, j.Mode, j.Upper = "fork", true, mode, upper
	server := startKept(t, j, nil)
	before(j.Dir)
	server.kill(t)
	f.forkStates("killed", map[string]ForkState{"one": ForkDead})
	one, err := FindFork(f.state, "one")
	must(t, err)
	return one
}

// TestForkFuseDeadListed: when the server of forks by fuse-overlayfs is killed whose
// directories somebody has listed, they are dead, and each comes back.
func TestForkFuseDeadListed(t *testing.T) {
	f := newForked(t)
	tryMode(t, f.state, ForkFuse)
	j := f.job("one")
	must(t, os.Remove(f.path("one")))
	j.Op, j.Keep, j.Mode = "fork", true, ForkFuse
	server := startKept(t, j, nil)
	r := f.open()
	f.fork(r, "two", &ForkOptions{Mode: ForkFuse})
	for _, name := range []string{"one", "two"} {
		_, err := os.ReadDir(f.path(name))
		must(t, err)
	}
	server.kill(t)
	want := map[string]ForkState{"one": ForkDead, "two": ForkDead}
	f.forkStates("killed", want)
	for _, name := range []string{"one", "two"} {
		x, err := r.ResumeFork(t.Context(), name, nil)
		must(t, err)
		defer f.remove(x)
		want[name] = ForkMounted
		f.forkStates(name+" resumed", want)
		sameContents(t, f.src, x.Dir)
	}
}

// A busyWriter makes files in a directory as fast as it can, and goes on when it may not.
type busyWriter struct {
	dir    string
	stop   chan struct{}
	ended  sync.WaitGroup
	mu     sync.Mutex
	made   []string
	failed map[unix.Errno]int
}

func startWriter(dir string) *busyWriter {
	w := &busyWriter{dir: dir, stop: make(chan struct{}), failed: map[unix.Errno]int{}}
	w.ended.Go(func() {
		for i := 0; !closed(w.stop); i++ {
			name := fmt.Sprint("w", i)
			err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644)
			var no unix.Errno
			w.mu.Lock()
			if errors.As(err, &no) {
				w.failed[no]++
			} else {
				w.made = append(w.made, name)
			}
			w.mu.Unlock()
			runtime.Gosched()
		}
	})
	return w
}

func (w *busyWriter) counts() (made, failed int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.failed {
		failed += n
	}
	return len(w.made), failed
}

func (w *busyWriter) end() {
	close(w.stop)
	w.ended.Wait()
}

// TestForkKilledWriter: while a fork is dead, and until it is there again, a program
// that writes to it gets errors; what it was told to be written is in the fork.
func TestForkKilledWriter(t *testing.T) {
	for _, mode := range []ForkMode{ForkOverlay, ForkUserOverlay} {
		t.Run(string(mode), func(t *testing.T) {
			f := newForked(t)
			var w *busyWriter
			one := f.killedFork(t, mode, func(dir string) {
				w = startWriter(dir)
				eventually(t, "a file", func() bool { made, _ := w.counts(); return made > 10 })
			})
			t.Cleanup(func() {
				if !closed(w.stop) {
					w.end()
				}
			})
			eventually(t, "an error", func() bool { _, failed := w.counts(); return failed > 10 })
			r := f.open()
			var err error
			eventually(t, "the fork", func() bool { // the writer may have a file open for too long
				one, err = r.ResumeFork(t.Context(), "one", nil)
				return !errors.Is(err, fusefs.ErrBusy)
			})
			must(t, err)
			made, _ := w.counts()
			eventually(t, "more files", func() bool { now, _ := w.counts(); return now > made+10 })
			w.end()
			for no := range w.failed {
				if !slices.Contains([]unix.Errno{unix.ENOTCONN, unix.ECONNABORTED, unix.EIO, unix.EROFS}, no) {
					t.Errorf("the writer was told: %v", no)
				}
			}
			for _, name := range w.made {
				if b, err := os.ReadFile(filepath.Join(one.Dir, name)); err != nil || string(b) != name {
					t.Errorf("%q %v", b, err)
				}
			}
			if n := f.mountsOf(one); n != 1 {
				t.Errorf("it is mounted %d times", n)
			}
			must(t, one.Unmount(t.Context(), false))
			if names, err := os.ReadDir(one.Dir); len(names) > 0 || err != nil {
				t.Errorf("beneath it is %v %v", names, err)
			}
			f.remove(one)
		})
	}
}

// TestForkKilledOpen: a dead fork is not mounted beside a program that can still write
// to what it has open of it, and is when that is closed.
func TestForkKilledOpen(t *testing.T) {
	f := newForked(t)
	var held *os.File
	f.killedFork(t, ForkOverlay, func(dir string) {
		var err error
		held, err = os.Create(dir + "/log")
		must(t, err)
	})
	defer held.Close()
	r := f.open()
	if _, err := r.ResumeFork(t.Context(), "one", nil); !errors.Is(err, fusefs.ErrBusy) {
		t.Error(err)
	}
	f.forkStates("held", map[string]ForkState{"one": ForkDead})
	_, err := held.WriteString("written")
	must(t, errors.Join(err, held.Close()))
	one, err := r.ResumeFork(t.Context(), "one", nil)
	must(t, err)
	if b, err := os.ReadFile(one.Dir + "/log"); err != nil || string(b) != "written" {
		t.Errorf("%q %v", b, err)
	}
	f.remove(one)
}

// TestForkHeldAgain: a fork that was brought back after its server died is known to be in
// use as before.
func TestForkHeldAgain(t *testing.T) {
	f := newForked(t)
	f.killedFork(t, ForkOverlay, func(string) {})
	r := f.open()
	one, err := r.ResumeFork(t.Context(), "one", nil)
	must(t, err)
	held, err := os.Create(one.Dir + "/log")
	must(t, err)
	defer held.Close()
	must(t, unix.Unmount(one.Dir, unix.MNT_DETACH))
	if err := resumeBriefly(t, r, "one"); !errors.Is(err, fusefs.ErrBusy) {
		t.Errorf("a second time: %v", err)
	}
	if err := removeBriefly(t, one); !errors.Is(err, fusefs.ErrBusy) {
		t.Errorf("removed: %v", err)
	}
	held.Close()
	eventually(t, "the end of the mount", func() bool {
		_, err = r.ResumeFork(t.Context(), "one", nil)
		return !errors.Is(err, fusefs.ErrBusy)
	})
	must(t, err)
	f.remove(one)
}

// overlayFor gives the overlay that would be mounted for a fork, mounted nowhere, and its
// entry, locked.
func (f *forked) overlayFor(x *Fork) (*forkEntry, int) {
	f.Helper()
	g, err := newForkRegistry(f.state)
	must(f, err)
	e, err := g.find(x.Name)
	must(f, err)
	f.Cleanup(e.close)
	must(f, e.take(f.Context()))
	work := filepath.Join(e.layer(), workName+"-test")
	must(f, os.Mkdir(work, 0o700))
	o := &overlayMount{source: e.source(), lower: g.lower(e.rec.lower()), upper: e.upper(), work: work}
	fd, err := o.open()
	must(f, err)
	f.Cleanup(func() { unix.Close(fd) })
	return e, fd
}

// TestForkResumeKilled: who was killed while they resumed a fork, before the dead mount
// was taken away, has left one that is used.
func TestForkResumeKilled(t *testing.T) {
	f := newForked(t)
	one := f.killedFork(t, ForkOverlay, func(string) {})
	r := f.open()
	two := f.fork(r, "two", nil) // which mounts the snapshot again
	e, fd := f.overlayFor(one)
	err := unix.MoveMount(fd, "", unix.AT_FDCWD, one.Dir, unix.MOVE_MOUNT_F_EMPTY_PATH|moveMountBeneath)
	if errors.Is(err, unix.EINVAL) {
		t.Skip("nothing can be mounted beneath: it takes Linux 6.5")
	}
	must(t, err)
	unix.Close(fd)
	e.close()
	f.forkStates("killed", map[string]ForkState{"one": ForkDead, "two": ForkMounted})
	_, err = r.ResumeFork(t.Context(), "one", nil)
	must(t, err)
	if n := f.mountsOf(one); n != 1 {
		t.Errorf("it is mounted %d times", n)
	}
	if b, err := os.ReadFile(one.Dir + "/dir/b"); err != nil || string(b) != "2" {
		t.Errorf("%q %v", b, err)
	}
	f.remove(one)
	f.remove(two)
}

// TestForkCovered: where a mount cannot be put beneath a dead one it is put over it, and
// both go together.
func TestForkCovered(t *testing.T) {
	f := newForked(t)
	one := f.killedFork(t, ForkOverlay, func(string) {})
	r := f.open()
	two := f.fork(r, "two", nil)
	e, fd := f.overlayFor(one)
	must(t, coverMount(fd, one.Dir))
	unix.Close(fd)
	e.close()
	f.forkStates("covered", map[string]ForkState{"one": ForkMounted, "two": ForkMounted})
	if n := f.mountsOf(one); n != 2 {
		t.Errorf("it is mounted %d times", n)
	}
	must(t, one.Unmount(t.Context(), false))
	if n := f.mountsOf(one); n != 0 {
		t.Errorf("it is mounted %d times", n)
	}
	f.remove(one)
	f.remove(two)
}

// TestForkUnwritten: a fork whose entry cannot be written is not mounted.
func TestForkUnwritten(t *testing.T) {
	forModes(t, func(t *testing.T, f *forked, mode ForkMode) {
		r := f.open()
		one := f.fork(r, "one", &ForkOptions{Mode: mode})
		must(t, one.Unmount(t.Context(), false))
		inTheWay := filepath.Join(filepath.Dir(one.Upper), forkFileName+".new")
		must(t, os.Mkdir(inTheWay, 0o700))
		if _, err := r.ResumeFork(t.Context(), "one", nil); err == nil {
			t.Error("it was resumed")
		}
		if n := f.mountsOf(one); n != 0 {
			t.Errorf("it is mounted %d times", n)
		}
		if points := f.mounts(); len(points) > 0 {
			t.Errorf("the snapshot is mounted: %+v", points)
		}
		must(t, os.Remove(inTheWay))
		_, err := r.ResumeFork(t.Context(), "one", nil)
		must(t, err)
		f.remove(one)
	})
}

// TestForkGuard: nobody writes into the directory beneath a fork, while there is one;
// afterwards it is what it was. One that held something is left alone.
func TestForkGuard(t *testing.T) {
	f := newForked(t)
	r := f.open()
	must(t, os.Mkdir(f.path("mine"), 0o755))
	must(t, unix.Chmod(f.path("mine"), 0o2751))
	f.files("full", map[string]string{"x": "x"})
	made, mine := f.fork(r, "made", nil), f.fork(r, "mine", nil)
	full := f.fork(r, "full", &ForkOptions{Force: true})
	for _, x := range []*Fork{made, mine, full} {
		must(t, x.Unmount(t.Context(), false))
	}
	bare, err := openBare(mine.Dir)
	must(t, err)
	defer bare.Close()
	if _, err := inodeFlags(bare, func(flags uint32) uint32 { return flags }); err != nil {
		t.Skipf("root writes everywhere: %v", err)
	}
	for _, x := range []*Fork{made, mine} {
		if err := os.WriteFile(x.Dir+"/lost", nil, 0o644); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("beneath %s: %v", x.Name, err)
		}
	}
	writeFile(t, full.Dir+"/y", nil)
	for _, x := range []*Fork{made, mine} {
		_, err := r.ResumeFork(t.Context(), x.Name, nil)
		must(t, err)
		writeFile(t, x.Dir+"/new", nil)
	}
	_, err = r.ResumeFork(t.Context(), "full", &ForkOptions{Force: true})
	must(t, err)
	for _, x := range []*Fork{made, mine, full} {
		f.remove(x)
	}
	if _, err := os.Lstat(made.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	var st unix.Stat_t
	must(t, unix.Stat(mine.Dir, &st))
	if st.Mode&0o7777 != 0o2751 {
		t.Errorf("mode %o", st.Mode)
	}
	writeFile(t, mine.Dir+"/x", nil)
	// What could not be forked is as it was too.
	must(t, os.Mkdir(f.path("none"), 0o700))
	if _, err := r.Fork(t.Context(), f.id.String(), f.path("none"), &ForkOptions{Mode: ForkFuse, Upper: f.path("a,b")}); err == nil {
		t.Error("a path that fuse-overlayfs does not take")
	}
	must(t, os.Remove(f.path("none")))
}

// TestForkHoldsOurs: a fork in which a repository or what another fork changed lies is not
// removed, mounted or not.
func TestForkHoldsOurs(t *testing.T) {
	f := newForked(t)
	r := f.open()
	one := f.fork(r, "one", nil)
	must(t, os.Mkdir(one.Dir+"/deep", 0o755))
	inner, err := Init(t.Context(), one.Dir+"/deep/repo", nil, &Options{CacheDir: f.path("inner-cache"), StateDir: f.state})
	must(t, err)
	must(t, inner.Close())
	for _, mounted := range []bool{true, false} {
		if !mounted {
			must(t, one.Unmount(t.Context(), false))
		}
		if _, err := one.Remove(t.Context(), nil); !errors.Is(err, snapshot.ErrOwn) {
			t.Errorf("mounted %t: %v", mounted, err)
		}
	}
	one, err = r.ResumeFork(t.Context(), "one", nil)
	must(t, err)
	if _, err := os.Stat(one.Dir + "/deep/repo/config"); err != nil {
		t.Error(err)
	}
	must(t, os.RemoveAll(one.Dir+"/deep"))
	upper := one.Dir + "/upper"
	two := f.fork(r, "two", &ForkOptions{Upper: upper, Mode: ForkFuse})
	must(t, two.Unmount(t.Context(), false))
	if _, err := one.Remove(t.Context(), nil); !errors.Is(err, snapshot.ErrOwn) {
		t.Errorf("another fork's changes: %v", err)
	}
	f.remove(two)
	f.remove(one)
}

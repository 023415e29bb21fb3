//go:build linux

package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/fusefs"
	"golang.org/x/sys/unix"
)

// fork forks and says how that went.
func (j *job) fork(r *Repository, o *outcome) error {
	f, err := r.Fork(context.Background(), j.Ref, j.Dir, &ForkOptions{Mode: j.Mode, Ephemeral: j.Ephemeral, Upper: j.Upper})
	if err != nil {
		return err
	}
	o.Handle = f.Snapshot.Handle()
	if j.Touch != nil {
		return j.touch(r, f, o)
	}
	if j.Keep {
		// It stays, for whoever kills this process.
		if err := json.NewEncoder(os.Stdout).Encode(os.Getpid()); err != nil {
			return err
		}
		_, _ = os.Stdin.Read(make([]byte, 1))
		return f.Unmount(context.Background(), true)
	}
	if err := os.WriteFile(j.Dir+"/new", []byte("new"), 0o644); err != nil {
		return err
	}
	if err := os.RemoveAll(j.Dir + "/dir"); err != nil {
		return err
	}
	if err := os.Mkdir(j.Dir+"/dir", 0o755); err != nil {
		return err
	}
	names, err := os.ReadDir(j.Dir + "/dir")
	if err != nil || len(names) > 0 {
		return fmt.Errorf("a directory that was made again holds %v %w", names, err)
	}
	o.Problems = append(o.Problems, string(f.Mode))
	if err := f.Unmount(context.Background(), false); err != nil {
		return err
	}
	if f, err = r.ResumeFork(context.Background(), f.Name, nil); err != nil {
		return err
	}
	if b, err := os.ReadFile(j.Dir + "/new"); err != nil || string(b) != "new" {
		return fmt.Errorf("resumed: %q %w", b, err)
	}
	_, err = f.Remove(context.Background(), nil)
	return err
}

// A forked place is a shared one that no fork may be left in.
type forked struct{ *shared }

func newForked(t *testing.T) *forked {
	f := &forked{newShared(t)}
	t.Cleanup(func() {
		all, err := Forks(context.Background(), f.state)
		if err != nil {
			t.Error(err)
		}
		for _, x := range all {
			t.Errorf("left: %+v", x)
			_, _ = RemoveFork(context.Background(), f.state, x.Name, &RemoveForkOptions{Force: true})
		}
		for _, dir := range []string{"/forks", "/lower"} {
			names, _ := os.ReadDir(f.state + dir)
			for _, n := range names {
				if n.Name() != forksLock {
					t.Errorf("left: %s%s/%s", f.state, dir, n.Name())
				}
			}
		}
	})
	return f
}

func (f *forked) fork(r *Repository, dir string, opts *ForkOptions) *Fork {
	f.Helper()
	x, err := r.Fork(f.Context(), f.id.String(), f.path(dir), opts)
	must(f, err)
	return x
}

func (f *forked) remove(x *Fork) {
	f.Helper()
	_, err := x.Remove(f.Context(), nil)
	must(f, err)
}

// forkStates says what Forks is to list.
func (f *forked) forkStates(what string, want map[string]ForkState) map[string]*ForkStatus {
	f.Helper()
	var all []*ForkStatus
	eventually(f, what, func() bool { // that all answer, which may take a moment
		var err error
		all, err = Forks(f.Context(), f.state)
		must(f, err)
		return !slices.ContainsFunc(all, func(x *ForkStatus) bool { return x.State == ForkSilent && want[x.Name] != ForkSilent })
	})
	got := map[string]ForkState{}
	by := map[string]*ForkStatus{}
	for _, x := range all {
		got[x.Name], by[x.Name] = x.State, x
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		f.Errorf("%s: %v, not %v", what, got, want)
	}
	return by
}

// changeFork changes a directory in every way that an overlay has its own idea of.
func changeFork(t testing.TB, dir string) {
	t.Helper()
	a, err := os.OpenFile(dir+"/a", os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = a.WriteString(" and more")
	must(t, errors.Join(err, a.Close()))
	must(t, os.Rename(dir+"/dir", dir+"/moved"))
	must(t, os.Mkdir(dir+"/dir", 0o700))
	writeFile(t, dir+"/dir/c", []byte("c"))
	must(t, os.Chmod(dir+"/large", 0o600))
	must(t, os.RemoveAll(dir+"/gone"))
	must(t, os.Symlink("a", dir+"/link"))
	must(t, os.Link(dir+"/moved/b", dir+"/same"))
}

// sameContents compares names, modes and contents: times differ.
func sameContents(t testing.TB, want, got string) {
	t.Helper()
	plain := func(dir string) tree {
		all := scan(t, dir)
		for path, n := range all {
			n.Mtime, n.Xattrs, n.Data = unix.Timespec{}, "", ""
			all[path] = n
		}
		return all
	}
	compare(t, plain(want), plain(got))
}

// TestFork: a fork is the snapshot, and then what is made of it; the others and the
// snapshot stay as they are, and unmounting loses nothing.
func TestFork(t *testing.T) {
	f := newForked(t)
	src := f.files("more", map[string]string{"a": "1", "dir/b": "2", "gone/x/y": "3", "large": string(random(2, 3<<20))})
	must(t, os.Chmod(src, 0o751))
	r := f.open()
	f.id = complete(t, r, src, nil).ID
	one, two := f.fork(r, "one", nil), f.fork(r, "two", &ForkOptions{Name: "second"})
	if one.Name != "one" || one.Mode != ForkOverlay || one.Snapshot.ID != f.id || one.Dir != f.path("one") || one.Repository != f.repo {
		t.Errorf("%+v", one)
	}
	compare(t, scan(t, src), scan(t, one.Dir))
	asked := r.Requests().Ops
	three := f.fork(r, "three", nil)
	if n := r.Requests().Ops.Sub(asked).Total().Calls; n != 0 {
		t.Errorf("%d requests for another fork", n)
	}
	f.remove(three)
	changeFork(t, one.Dir)
	changeFork(t, src)
	sameContents(t, src, one.Dir)
	if b, err := os.ReadFile(two.Dir + "/a"); err != nil || string(b) != "1" {
		t.Errorf("another fork: %q %v", b, err)
	}
	if info, err := os.Stat(filepath.Join(one.Upper, "large")); err != nil || info.Sys().(*syscall.Stat_t).Blocks != 0 {
		t.Errorf("a file whose mode was changed was copied: %v %v", info, err)
	}
	by := f.forkStates("two", map[string]ForkState{"one": ForkMounted, "second": ForkMounted})
	if n := by["one"].Changed; n < 4096 || n > 1<<20 {
		t.Errorf("%d bytes changed", n)
	}
	if x := r.forkAt(one.Dir); x == nil || x.Snapshot != f.id || x.Upper != one.Upper || x.Mode != ForkOverlay {
		t.Errorf("%+v", x)
	}
	if x := r.forkAt(f.path("repo")); x != nil {
		t.Errorf("%+v", x)
	}
	// All over one file system, which is listed for what it is.
	var mounts map[string]*MountStatus
	eventually(t, "an answer", func() bool {
		mounts = f.mounts()
		return !slices.ContainsFunc(slices.Collect(maps.Values(mounts)), func(x *MountStatus) bool { return x.State == MountSilent })
	})
	lower := mounts["state/lower/"+f.id.String()]
	if len(mounts) != 1 || lower == nil || !lower.Lower || lower.State != MountServing {
		t.Errorf("%+v", mounts)
	}
	must(t, one.Unmount(t.Context(), false))
	must(t, one.Unmount(t.Context(), false))
	f.forkStates("one unmounted", map[string]ForkState{"one": ForkDetached, "second": ForkMounted})
	if names, _ := os.ReadDir(one.Dir); len(names) > 0 {
		t.Errorf("unmounted, it holds %v", names)
	}
	must(t, Unmount(t.Context(), f.state, two.Dir, nil))
	if points := f.mounts(); len(points) > 0 {
		t.Errorf("both are unmounted, and the snapshot is not: %+v", points)
	}
	again, err := r.ResumeFork(t.Context(), one.Dir, nil)
	must(t, err)
	sameContents(t, src, again.Dir)
	if again.Name != one.Name || !again.Created.Equal(one.Created) || again.Upper != one.Upper {
		t.Errorf("%+v", again)
	}
	// A snapshot of a fork, and a fork of that.
	res := complete(t, r, again.Dir, nil)
	next, err := r.Fork(t.Context(), res.ID.String(), f.path("next"), nil)
	must(t, err)
	sameContents(t, src, next.Dir)
	f.remove(next)
	f.remove(again)
	f.remove(two)
	for _, dir := range []string{"one", "two", "next"} {
		if _, err := os.Lstat(f.path(dir)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if _, err := RemoveFork(t.Context(), f.state, "one", nil); !errors.Is(err, snapshot.ErrNoFork) {
		t.Error(err)
	}
	if _, err := r.ResumeFork(t.Context(), "one", nil); !errors.Is(err, snapshot.ErrNoFork) {
		t.Error(err)
	}
}

// TestForkMany: a hundred at once, by two repositories, over one file system.
func TestForkMany(t *testing.T) {
	f := newForked(t)
	repos := []*Repository{f.open(), f.open()}
	forks := make([]*Fork, 100)
	var all sync.WaitGroup
	for i := range forks {
		all.Go(func() {
			var err error
			if forks[i], err = repos[i%2].Fork(t.Context(), f.id.String(), f.path(fmt.Sprint("f", i)), nil); err != nil {
				t.Error(err)
				return
			}
			if err := os.WriteFile(forks[i].Dir+"/a", fmt.Append(nil, i), 0o644); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}
	if points := f.mounts(); len(points) != 1 {
		t.Errorf("the snapshot is mounted %d times", len(points))
	}
	for i, x := range forks {
		if b, err := os.ReadFile(x.Dir + "/a"); err != nil || string(b) != fmt.Sprint(i) {
			t.Errorf("%d: %q %v", i, b, err)
		}
		if b, err := os.ReadFile(x.Dir + "/dir/b"); err != nil || string(b) != "2" {
			t.Errorf("%d: %q %v", i, b, err)
		}
	}
	want := map[string]ForkState{}
	for _, x := range forks {
		want[x.Name] = ForkMounted
	}
	f.forkStates("all", want)
	for i, x := range forks {
		all.Go(func() {
			if i%3 == 0 {
				if err := x.Unmount(t.Context(), false); err != nil {
					t.Error(err)
				}
			}
			if _, err := x.Remove(t.Context(), nil); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// TestForkProcesses: forks by many processes at once, of which none serves for long:
// another does.
func TestForkProcesses(t *testing.T) {
	f := newForked(t)
	server := startServer(t, f.job("mnt"), nil)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			j := f.job(fmt.Sprint("f", i))
			j.Op = "fork"
			if o := j.do(t, nil); o.Err != "" || o.id(t) != f.id || o.Problems[0] != string(ForkOverlay) {
				t.Errorf("%+v", o)
			}
		})
	}
	all.Wait()
	f.states("after", map[string]MountState{"mnt": MountServing})
	must(t, Unmount(t.Context(), f.state, f.path("mnt"), nil))
	waitEnd(t, "the server", server.ended)
}

// TestForkRefused: what cannot be forked, and that nothing is left of it.
func TestForkRefused(t *testing.T) {
	f := newForked(t)
	r := f.open()
	one := f.fork(r, "one", &ForkOptions{Name: "first"})
	f.files("full", map[string]string{"x": ""})
	for _, c := range []struct {
		what string
		ref  string
		dir  string
		opts ForkOptions
		want error
	}{
		{"a name twice", "", "new", ForkOptions{Name: "first"}, snapshot.ErrExists},
		{"a directory twice", "", "one", ForkOptions{Force: true}, snapshot.ErrExists},
		{"a directory that holds something", "", "full", ForkOptions{}, snapshot.ErrExists},
		{"a name that is none", "", "new", ForkOptions{Name: "../x"}, snapshot.ErrInvalid},
		{"a name like a key", "", "new", ForkOptions{Name: "a@b"}, snapshot.ErrInvalid},
		{"a mode that is none", "", "new", ForkOptions{Mode: "magic"}, snapshot.ErrInvalid},
		{"two places for changes", "", "new", ForkOptions{Ephemeral: true, Upper: f.path("u")}, snapshot.ErrInvalid},
		{"a copy over something", "", "new", ForkOptions{Mode: ForkRestore, Force: true}, snapshot.ErrInvalid},
		{"changes inside of the fork", "", "new", ForkOptions{Upper: f.path("new", "u")}, snapshot.ErrInvalid},
		{"changes in a folder that holds something", "", "new", ForkOptions{Upper: f.path("full")}, snapshot.ErrExists},
		{"no parent", "", "none/new", ForkOptions{}, fs.ErrNotExist},
		{"no snapshot", "nosuch", "new", ForkOptions{}, snapshot.ErrNotFound},
	} {
		ref := c.ref
		if ref == "" {
			ref = f.id.String()
		}
		if _, err := r.Fork(t.Context(), ref, f.path(c.dir), &c.opts); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if _, err := f.place.open("cache").Fork(t.Context(), f.id.String(), f.path("new"), nil); !errors.Is(err, snapshot.ErrInvalid) {
		t.Errorf("no state folder: %v", err)
	}
	if _, err := os.Lstat(f.path("new")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	f.forkStates("refused", map[string]ForkState{"first": ForkMounted})
	// A name that is taken is no matter if nobody insists on it.
	must(t, os.Mkdir(f.path("sub"), 0o755))
	other, another := f.fork(r, "first", nil), f.fork(r, "sub/first", nil)
	if other.Name == "first" || another.Name == other.Name || !strings.HasPrefix(other.Name, "first-") {
		t.Errorf("%s, %s", other.Name, another.Name)
	}
	f.remove(one)
	f.remove(other)
	f.remove(another)
	must(t, os.Remove(f.path("sub")))
	// Over a directory that holds something: it is there again afterwards.
	over := f.fork(r, "full", &ForkOptions{Force: true})
	f.check("full")
	f.remove(over)
	if _, err := os.Stat(f.path("full/x")); err != nil {
		t.Error(err)
	}
}

// TestForkKilled: the server is killed while files of a fork are open. The fork is
// dead; it comes back with its changes, however many resume it.
func TestForkKilled(t *testing.T) {
	f := newForked(t)
	j := f.job("one")
	must(t, os.Remove(f.path("one")))
	j.Op, j.Keep = "fork", true
	server := startKept(t, j, nil)
	r := f.open()
	two := f.fork(r, "two", nil)
	writeFile(t, f.path("one/new"), []byte("new"))
	held, err := os.Open(f.path("one/large"))
	must(t, err)
	defer held.Close()
	if mounts := f.mounts(); len(mounts) != 1 || mounts["state/lower/"+f.id.String()].Pid != server.Process.Pid {
		t.Errorf("%+v", mounts)
	}
	server.kill(t)
	f.forkStates("killed", map[string]ForkState{"one": ForkDead, "two": ForkDead})
	if _, err := held.ReadAt(make([]byte, 1<<16), 1<<20); err == nil {
		t.Error("what was open is read still")
	}
	if b, err := os.ReadFile(f.path("one/new")); err != nil || string(b) != "new" {
		t.Errorf("what was changed: %q %v", b, err)
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			if _, err := r.ResumeFork(t.Context(), []string{"one", f.path("two")}[i%2], nil); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	f.forkStates("resumed", map[string]ForkState{"one": ForkMounted, "two": ForkMounted})
	for _, dir := range []string{"one", "two"} {
		if n := len(atMount(t, f.path(dir))); n != 1 {
			t.Errorf("%s is mounted %d times", dir, n)
		}
	}
	if b, err := os.ReadFile(f.path("one/new")); err != nil || string(b) != "new" {
		t.Errorf("resumed: %q %v", b, err)
	}
	must(t, os.Remove(f.path("one/new")))
	sameContents(t, f.src, f.path("one"))
	held.Close()
	one, err := FindFork(f.state, "one")
	must(t, err)
	f.remove(one)
	f.remove(two)
}

// startKept starts a process that forks and serves, until it is killed.
func startKept(t *testing.T, j job, prepare func(*exec.Cmd)) *server {
	t.Helper()
	s := &server{Cmd: j.command(t, nil), ended: make(chan struct{})}
	if prepare != nil {
		prepare(s.Cmd)
	}
	stdin, err := s.StdinPipe()
	must(t, err)
	out, err := s.StdoutPipe()
	must(t, err)
	must(t, s.Start())
	err = json.NewDecoder(out).Decode(&s.pid)
	go func() { _ = s.Wait(); close(s.ended) }()
	t.Cleanup(func() {
		stdin.Close()
		_ = s.Process.Kill()
		<-s.ended
	})
	must(t, err)
	return s
}

func atMount(t testing.TB, dir string) []*mountinfo.Info {
	t.Helper()
	all, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != dir, false })
	must(t, err)
	return all
}

// rewrite changes the record of a fork, as a restart of the machine would.
func (f *forked) rewrite(name string, edit func(c *forkRecord)) {
	f.Helper()
	g, err := newForkRegistry(f.state)
	must(f, err)
	e, err := g.find(name)
	must(f, err)
	defer e.close()
	must(f, e.take(f.Context()))
	edit(e.rec)
	must(f, e.write())
}

// loseDir removes the directory beneath a fork, which is guarded.
func loseDir(dir string) error {
	f, err := openBare(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := inodeFlags(f, func(flags uint32) uint32 { return flags &^ immutableFlag }); err != nil && !fsys.IsAny(err, unix.ENOTTY, unix.ENOTSUP) {
		return err
	}
	return os.Remove(dir)
}

// TestForkRestart: after a restart of the machine nothing is mounted, and all comes
// back but what was in memory.
func TestForkRestart(t *testing.T) {
	f := newForked(t)
	r := f.open()
	one, two, memory := f.fork(r, "one", nil), f.fork(r, "two", nil), f.fork(r, "memory", &ForkOptions{Ephemeral: true})
	writeFile(t, one.Dir+"/new", []byte("new"))
	writeFile(t, memory.Dir+"/new", []byte("new"))
	must(t, memory.Unmount(t.Context(), false))
	_, err := r.ResumeFork(t.Context(), "memory", nil)
	must(t, err)
	if b, err := os.ReadFile(memory.Dir + "/new"); err != nil || string(b) != "new" {
		t.Errorf("in memory: %q %v", b, err)
	}
	if _, err := RemoveFork(t.Context(), f.state, "memory", &RemoveForkOptions{Keep: true}); !errors.Is(err, snapshot.ErrInvalid) {
		t.Error(err)
	}
	must(t, two.Unmount(t.Context(), false))
	for _, x := range []*Fork{one, memory} {
		must(t, unix.Unmount(x.Dir, 0)) // by somebody else
	}
	f.forkStates("unmounted", map[string]ForkState{"one": ForkDetached, "two": ForkDetached, "memory": ForkDetached})
	must(t, unix.Unmount(filepath.Dir(memory.Upper), 0))
	must(t, Unmount(t.Context(), f.state, f.state+"/lower/"+f.id.String(), nil))
	must(t, loseDir(one.Dir)) // it was on a tmpfs
	for _, name := range []string{"one", "memory"} {
		f.rewrite(name, func(c *forkRecord) { c.Mounted.Boot = "before" })
	}
	f.forkStates("restarted", map[string]ForkState{"one": ForkLost, "two": ForkDetached, "memory": ForkLost})
	_, err = r.ResumeFork(t.Context(), "one", nil)
	must(t, err)
	if b, err := os.ReadFile(one.Dir + "/new"); err != nil || string(b) != "new" {
		t.Errorf("%q %v", b, err)
	}
	if _, err := r.ResumeFork(t.Context(), "memory", nil); !errors.Is(err, snapshot.ErrForkLost) {
		t.Error(err)
	}
	// Of a container that is gone.
	f.rewrite("two", func(c *forkRecord) { c.Mounted = &forkPlace{Boot: bootID(), Namespace: "mnt:[1]"} })
	f.forkStates("another container", map[string]ForkState{"one": ForkMounted, "two": ForkLost, "memory": ForkLost})
	f.remove(two)
	// To unmount what was lost forgets that it was to come back.
	must(t, one.Unmount(t.Context(), false))
	f.rewrite("one", func(c *forkRecord) { c.Mounted = &forkPlace{Boot: "before"} })
	must(t, Unmount(t.Context(), f.state, one.Dir, nil))
	f.forkStates("forgotten", map[string]ForkState{"one": ForkDetached, "memory": ForkLost})
	if err := Unmount(t.Context(), f.state, one.Dir, nil); !errors.Is(err, fusefs.ErrNotMounted) {
		t.Error(err)
	}
	// Without what it changed there is nothing to bring back.
	must(t, os.RemoveAll(one.Upper))
	if _, err := r.ResumeFork(t.Context(), "one", nil); !errors.Is(err, snapshot.ErrForkLost) {
		t.Error(err)
	}
	f.remove(one)
	f.remove(memory)
}

// TestForkSnapshotRemoved: a fork whose snapshot is removed works on while it is
// mounted, and cannot be resumed.
func TestForkSnapshotRemoved(t *testing.T) {
	f := newForked(t)
	r := f.open()
	one := f.fork(r, "one", nil)
	writeFile(t, one.Dir+"/new", []byte("new"))
	_, err := retain.Remove(t.Context(), r.repo, f.id.String())
	must(t, err)
	if b, err := os.ReadFile(one.Dir + "/dir/b"); err != nil || string(b) != "2" {
		t.Errorf("%q %v", b, err)
	}
	must(t, one.Unmount(t.Context(), false))
	_, err = r.ResumeFork(t.Context(), "one", nil)
	if !errors.Is(err, snapshot.ErrNotFound) || !strings.Contains(err.Error(), one.Upper) {
		t.Error(err)
	}
	kept, err := one.Remove(t.Context(), &RemoveForkOptions{Keep: true})
	must(t, err)
	if b, err := os.ReadFile(kept + "/upper/new"); err != nil || string(b) != "new" {
		t.Errorf("%q %v", b, err)
	}
}

// TestForkUpper: a folder of the caller's, on another file system, which is used again
// for a fork of the same snapshot, and no other.
func TestForkUpper(t *testing.T) {
	f := newForked(t)
	r := f.open()
	disk, err := os.MkdirTemp("/var/tmp", "snapctl-engine-test-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(disk) })
	layer := disk + "/with, comma:colon\\backslash"
	one, err := r.Fork(t.Context(), f.id.String(), f.path("one"), &ForkOptions{Upper: layer})
	must(t, err)
	writeFile(t, one.Dir+"/new", []byte("new"))
	if one.Upper != layer+"/upper" {
		t.Error(one.Upper)
	}
	if _, err := os.Stat(one.Upper + "/new"); err != nil {
		t.Error(err)
	}
	if _, err := r.Fork(t.Context(), f.id.String(), f.path("two"), &ForkOptions{Upper: layer}); !errors.Is(err, snapshot.ErrExists) {
		t.Error(err)
	}
	must(t, one.Unmount(t.Context(), false))
	if _, err := r.Fork(t.Context(), f.id.String(), f.path("two"), &ForkOptions{Upper: layer}); !errors.Is(err, snapshot.ErrExists) {
		t.Errorf("of a fork that is detached: %v", err)
	}
	_, err = r.ResumeFork(t.Context(), "one", nil)
	must(t, err)
	kept, err := one.Remove(t.Context(), &RemoveForkOptions{Keep: true})
	must(t, err)
	if kept != layer {
		t.Error(kept)
	}
	other := complete(t, r, f.files("other", map[string]string{"z": "z"}), nil)
	if _, err := r.Fork(t.Context(), other.ID.String(), f.path("two"), &ForkOptions{Upper: layer}); !errors.Is(err, snapshot.ErrExists) {
		t.Errorf("of another snapshot: %v", err)
	}
	if _, err := r.Fork(t.Context(), f.id.String(), f.path("two"), &ForkOptions{Upper: layer, Mode: ForkUserOverlay}); !errors.Is(err, snapshot.ErrExists) {
		t.Errorf("of another mode: %v", err)
	}
	two, err := r.Fork(t.Context(), f.id.String(), f.path("two"), &ForkOptions{Upper: layer})
	must(t, err)
	if b, err := os.ReadFile(two.Dir + "/new"); err != nil || string(b) != "new" {
		t.Errorf("%q %v", b, err)
	}
	// What is somebody else's stays.
	writeFile(t, layer+"/mine", nil)
	f.remove(two)
	if names, err := os.ReadDir(layer); err != nil || len(names) != 1 || names[0].Name() != "mine" {
		t.Errorf("%v %v", names, err)
	}
	must(t, os.Remove(layer+"/mine"))
	three, err := r.Fork(t.Context(), f.id.String(), f.path("three"), &ForkOptions{Upper: layer})
	must(t, err)
	must(t, three.Unmount(t.Context(), false))
	must(t, os.Remove(layer+"/layer.json"))
	if _, err := r.ResumeFork(t.Context(), "three", nil); !errors.Is(err, snapshot.ErrForkLost) {
		t.Error(err)
	}
	f.remove(three)
	if _, err := os.Stat(layer + "/upper"); err != nil {
		t.Errorf("what nothing says to be the fork's was removed: %v", err)
	}
	// Kept of the state folder.
	four := f.fork(r, "four", nil)
	writeFile(t, four.Dir+"/new", []byte("four"))
	kept, err = four.Remove(t.Context(), &RemoveForkOptions{Keep: true})
	must(t, err)
	five := f.fork(r, "five", &ForkOptions{Upper: kept})
	if b, err := os.ReadFile(five.Dir + "/new"); err != nil || string(b) != "four" {
		t.Errorf("%q %v", b, err)
	}
	f.remove(five)
}

// TestForkBusy: a fork in use is neither unmounted nor removed, unless by force.
func TestForkBusy(t *testing.T) {
	f := newForked(t)
	r := f.open()
	one := f.fork(r, "one", nil)
	held, err := os.Open(one.Dir + "/large")
	must(t, err)
	defer held.Close()
	if err := one.Unmount(t.Context(), false); !errors.Is(err, fusefs.ErrBusy) {
		t.Error(err)
	}
	if _, err := one.Remove(t.Context(), nil); !errors.Is(err, fusefs.ErrBusy) {
		t.Error(err)
	}
	f.forkStates("busy", map[string]ForkState{"one": ForkMounted})
	began := time.Now()
	_, err = one.Remove(t.Context(), &RemoveForkOptions{Force: true})
	must(t, err)
	if d := time.Since(began); d > tooLong {
		t.Errorf("it took %v", d)
	}
	// Who has it open reads on: the server is there as long.
	if _, err := held.ReadAt(make([]byte, 100), 2<<20); err != nil {
		t.Error(err)
	}
	held.Close()
	eventually(t, "the end of the mount below", func() bool { return len(f.mounts()) == 0 })
}

// TestForkHostile: whatever stands in the registry, nothing is done because of it
// outside of it, and what is no fork is in nobody's way.
func TestForkHostile(t *testing.T) {
	f := newForked(t)
	r := f.open()
	one := f.fork(r, "one", nil)
	forks := f.state + "/forks"
	good, err := os.ReadFile(filepath.Join(filepath.Dir(one.Upper), forkFileName))
	must(t, err)
	victim := f.files("victim", map[string]string{"x": "x", "upper/y": "y"})
	edit := func(from, to string) string {
		s := strings.Replace(string(good), from, to, 1)
		if s == string(good) {
			t.Fatalf("no %q in %s", from, good)
		}
		return s
	}
	records := map[string]string{
		"empty":   "",
		"garbage": "\x00\xff",
		"null":    "null",
		"array":   "[]",
		"fields":  edit(`"mode"`, `"extra": 1, "mode"`),
		"newer":   edit(`"version": 2`, `"version": 99`),
		"other":   string(good), // of another entry
		"path":    edit(one.Dir, victim+"/../victim"),
		"root":    edit(one.Dir, "/"),
		"mode":    edit(`"overlay"`, `"magic"`),
		"long":    strings.Repeat(" ", maxRecord+1),
	}
	for name, text := range records {
		writeFile(t, filepath.Join(forks, forkKey(name, victim), forkFileName), []byte(text))
	}
	must(t, os.MkdirAll(filepath.Join(forks, forkKey("fifo", victim)), 0o700))
	must(t, unix.Mkfifo(filepath.Join(forks, forkKey("fifo", victim), forkFileName), 0o600))
	must(t, os.MkdirAll(filepath.Join(forks, forkKey("linked", victim)), 0o700))
	must(t, os.Symlink(victim+"/x", filepath.Join(forks, forkKey("linked", victim), forkFileName)))
	must(t, os.Symlink(victim, filepath.Join(forks, forkKey("folder", victim))))
	writeFile(t, forks+"/file", nil)
	listed, err := Forks(t.Context(), f.state)
	if len(listed) != 1 || listed[0].Name != "one" || err == nil {
		t.Errorf("%v %v", listed, err)
	}
	for name := range records {
		if _, err := RemoveFork(t.Context(), f.state, name, &RemoveForkOptions{Force: true}); err == nil {
			t.Errorf("%s was removed", name)
		}
		if _, err := r.ResumeFork(t.Context(), name, nil); err == nil {
			t.Errorf("%s was resumed", name)
		}
	}
	// A layer that the record claims, and that does not say so itself.
	claims := strings.Replace(edit(`"mode"`, `"layer": "`+victim+`", "mode"`), one.Dir, f.path("claimed"), 1)
	claims = strings.Replace(claims, `"name": "one"`, `"name": "claimed"`, 1)
	writeFile(t, filepath.Join(forks, forkKey("claimed", f.path("claimed")), forkFileName), []byte(claims))
	writeFile(t, filepath.Join(forks, forkKey("claimed", f.path("claimed")), lockName), nil)
	if _, err := r.ResumeFork(t.Context(), "claimed", nil); !errors.Is(err, snapshot.ErrForkLost) {
		t.Error(err)
	}
	_, err = RemoveFork(t.Context(), f.state, "claimed", nil)
	must(t, err)
	two := f.fork(r, "two", nil)
	f.remove(two)
	f.remove(one)
	if b, err := os.ReadFile(victim + "/upper/y"); err != nil || string(b) != "y" {
		t.Errorf("%q %v", b, err)
	}
	must(t, os.RemoveAll(forks))
}

// TestForkModes: each mode that can be had here, insisted on.
func TestForkModes(t *testing.T) {
	for _, mode := range []ForkMode{ForkUserOverlay, ForkFuse} {
		t.Run(string(mode), func(t *testing.T) {
			f := newForked(t)
			tryMode(t, f.state, mode)
			j := f.job("one")
			j.Op, j.Mode = "fork", mode
			if o := j.do(t, nil); o.Err != "" || o.Problems[0] != string(mode) {
				t.Errorf("%+v", o)
			}
			j = f.job("two")
			j.Op, j.Mode, j.Ephemeral = "fork", mode, true
			if o := j.do(t, nil); o.Err != "" || o.Problems[0] != string(mode) {
				t.Errorf("ephemeral: %+v", o)
			}
			r := f.open()
			three := f.fork(r, "three", &ForkOptions{Mode: mode, Ephemeral: true})
			layer := filepath.Dir(three.Upper)
			var st unix.Statfs_t
			if err := unix.Statfs(layer, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
				t.Errorf("%s: %x %v", layer, st.Type, err)
			}
			f.remove(three)
			if _, err := os.Lstat(layer); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("left: %s %v", layer, err)
			}
		})
	}
}

// TestForkFuseCreate: of a fork by fuse-overlayfs the upper directory alone is read
// too: the registry tells where it is. If something is mounted in it all is read.
func TestForkFuseCreate(t *testing.T) {
	f := newForked(t)
	tryMode(t, f.state, ForkFuse)
	r := f.open()
	one := f.fork(r, "one", &ForkOptions{Mode: ForkFuse})
	writeFile(t, one.Dir+"/new", []byte("new"))
	if o, ok := r.overlayOf(one.Dir); !ok || o.Format != upperFuse || o.Lower != one.Snapshot.ID || o.Upper != one.Upper {
		t.Fatalf("%+v, %v", o, ok)
	}
	made := complete(t, r, one.Dir, nil)
	// The kernel has times of its own of what was written through fuse-overlayfs.
	must(t, one.Unmount(t.Context(), false))
	one, err := r.ResumeFork(t.Context(), one.Dir, nil)
	must(t, err)
	full := f.open()
	full.forkOf = func(string) (*overlayInfo, bool) { return nil, false }
	want := complete(t, full, one.Dir, nil)
	if made.Parent == nil || *made.Parent != one.Snapshot.ID || made.Files != want.Files || made.NewBytes != 3 {
		t.Errorf("%+v, want %+v", made.Snapshot, want.Snapshot)
	}
	equalEntries(t, entriesOf(t, r, want.ID), entriesOf(t, r, made.ID))

	must(t, os.Mkdir(one.Dir+"/below", 0o755))
	must(t, unix.Mount("below", one.Dir+"/below", "tmpfs", 0, "size=1m"))
	_, ok := r.overlayOf(one.Dir)
	must(t, unix.Unmount(one.Dir+"/below", 0))
	if ok {
		t.Error("with something mounted in it, its upper directory is not all")
	}
	f.remove(one)
}

// killFuseOverlay kills the fuse-overlayfs that has mounted a fork where that was made.
func (f *forked) killFuseOverlay(x *Fork) {
	f.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(f, err)
	for _, p := range procs {
		var pid int
		b, _ := os.ReadFile(p)
		if _, err := fmt.Sscanf(p, "/proc/%d/cmdline", &pid); err == nil && strings.HasSuffix(string(b), "\x00"+x.Dir+"\x00") {
			must(f, unix.Kill(pid, unix.SIGKILL))
		}
	}
	eventually(f, "the death of the fork", func() bool {
		all, err := Forks(f.Context(), f.state)
		must(f, err)
		return all[0].State == ForkDead
	})
}

// TestForkFuseDead: a fork whose fuse-overlayfs was killed is dead, and comes back.
func TestForkFuseDead(t *testing.T) {
	f := newForked(t)
	tryMode(t, f.state, ForkFuse)
	r := f.open()
	one := f.fork(r, "one", &ForkOptions{Mode: ForkFuse})
	writeFile(t, one.Dir+"/new", []byte("new"))
	f.killFuseOverlay(one)
	_, err := r.ResumeFork(t.Context(), "one", nil)
	must(t, err)
	if b, err := os.ReadFile(one.Dir + "/new"); err != nil || string(b) != "new" {
		t.Errorf("%q %v", b, err)
	}
	f.remove(one)
}

// TestForkCopy: where there is nothing better a fork is a copy, which is removed only
// while it is what was made.
func TestForkCopy(t *testing.T) {
	f := newForked(t)
	r := f.open()
	one, two, three := f.fork(r, "one", &ForkOptions{Mode: ForkRestore}), f.fork(r, "two", &ForkOptions{Mode: ForkRestore}), f.fork(r, "three", &ForkOptions{Mode: ForkRestore})
	f.check("one")
	f.forkStates("copies", map[string]ForkState{"one": ForkMounted, "two": ForkMounted, "three": ForkMounted})
	if err := one.Unmount(t.Context(), false); err != nil {
		t.Error(err)
	}
	if _, err := r.ResumeFork(t.Context(), "one", nil); err != nil {
		t.Error(err)
	}
	f.check("one")
	must(t, os.RemoveAll(two.Dir))
	f.files("two", map[string]string{"mine": ""})
	f.forkStates("another directory", map[string]ForkState{"one": ForkMounted, "two": ForkLost, "three": ForkMounted})
	f.remove(one)
	f.remove(two)
	kept, err := three.Remove(t.Context(), &RemoveForkOptions{Keep: true})
	must(t, err)
	if _, err := os.Stat(one.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := os.Stat(f.path("two/mine")); err != nil {
		t.Error(err)
	}
	f.check("three")
	if kept != three.Dir {
		t.Error(kept)
	}
}

// inNamespace does the job as root of a user namespace.
func (j *job) inNamespace(t *testing.T, dir string) (o outcome) {
	t.Helper()
	user := []string{"unshare", "--user", "--map-root-user", "--mount"}
	if out, err := exec.Command(user[0], append(user[1:], "true")...).CombinedOutput(); err != nil {
		t.Skipf("no user namespaces: %v %s", err, out)
	}
	cmd := j.command(t, nil)
	apart(t, cmd, dir, "private")
	i := slices.Index(cmd.Args, dir) + 1 // behind which the command is
	cmd.Args = slices.Insert(cmd.Args, i, user...)
	out, err := cmd.Output()
	must(t, err)
	must(t, json.Unmarshal(out, &o))
	return o
}

// TestForkNamespace: root of a user namespace forks by means of user.* attributes.
func TestForkNamespace(t *testing.T) {
	f := newForked(t)
	j := f.job("one")
	j.Op = "fork"
	o := j.inNamespace(t, f.dir)
	if o.Err != "" || len(o.Problems) != 1 || o.Problems[0] != string(ForkUserOverlay) {
		t.Errorf("%+v", o)
	}
}

//go:build linux

package engine

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/fusefs"
	"golang.org/x/sys/unix"
)

// A container is a process in a mount namespace of its own, which has all that was
// mounted below a directory when it began.
type container struct {
	*exec.Cmd
	end func()
}

func startContainer(t *testing.T, dir, propagation string) *container {
	t.Helper()
	c := &container{Cmd: exec.Command("/bin/sh", "-c", "echo ready; read -r end")}
	c.Dir = "/"
	apart(t, c.Cmd, dir, propagation)
	stdin, err := c.StdinPipe()
	must(t, err)
	out, err := c.StdoutPipe()
	must(t, err)
	must(t, c.Start())
	ended := false
	c.end = func() {
		if !ended {
			ended = true
			stdin.Close()
			_ = c.Wait()
		}
	}
	t.Cleanup(c.end)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" || err != nil {
		t.Fatalf("%q %v", line, err)
	}
	return c
}

// apart has a command run in a mount namespace of its own, in which nothing is that others
// have mounted who test something else meanwhile: to them it would be in use there.
func apart(t *testing.T, cmd *exec.Cmd, dir, propagation string) {
	t.Helper()
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip(err)
	}
	script := `grep -v " $0/" /proc/self/mountinfo | grep -E " - (overlay|fuse[.a-z-]*) " | cut -d " " -f 5 |
		while read -r dir; do umount -l "$dir"; done 2>/dev/null; exec "$@"`
	program := cmd.Path
	if program == "/proc/self/exe" {
		program, err = os.Executable()
		must(t, err)
	}
	args := []string{unshare, "--mount", "--propagation", propagation, "sh", "-c", script, dir, program}
	cmd.Path, cmd.Args = unshare, append(args, cmd.Args[1:]...)
}

// forModes tests what overlays and fuse-overlayfs have to have in common.
func forModes(t *testing.T, test func(t *testing.T, f *forked, mode ForkMode)) {
	for _, mode := range []ForkMode{ForkOverlay, ForkFuse} {
		t.Run(string(mode), func(t *testing.T) {
			f := newForked(t)
			tryMode(t, f.state, mode)
			test(t, f, mode)
		})
	}
}

// briefly runs what fails with fusefs.ErrBusy only after it has waited for others, and ends
// the wait. On a slow machine it may not come to the wait in that time: then it gets longer.
func briefly(t *testing.T, do func(context.Context) error) error {
	t.Helper()
	for patience := 50 * time.Millisecond; ; patience *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err := do(ctx)
		cancel()
		if errors.Is(err, fusefs.ErrBusy) || !errors.Is(err, context.DeadlineExceeded) || patience > tooLong {
			return err
		}
	}
}

// resumeBriefly is ResumeFork, and removeBriefly Remove, of what somebody uses: see briefly.
func resumeBriefly(t *testing.T, r *Repository, name string) error {
	return briefly(t, func(ctx context.Context) error {
		_, err := r.ResumeFork(ctx, name, nil)
		return err
	})
}

func removeBriefly(t *testing.T, x *Fork) error {
	return briefly(t, func(ctx context.Context) error {
		_, err := x.Remove(ctx, nil)
		return err
	})
}

// mountsOf is how often a fork is mounted in this namespace.
func (f *forked) mountsOf(x *Fork) int {
	f.Helper()
	g, err := newForkRegistry(f.state)
	must(f, err)
	e, err := g.find(x.Name)
	must(f, err)
	defer e.close()
	all, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return !e.isAt(m), false })
	must(f, err)
	return len(all)
}

// TestForkMoved: a fork is known where it is when a directory above it is renamed, and
// not mounted a second time.
func TestForkMoved(t *testing.T) {
	forModes(t, func(t *testing.T, f *forked, mode ForkMode) {
		if mode == ForkFuse && mountNumber("/") == 0 {
			t.Skip("the kernel does not number mounts: it takes Linux 6.8")
		}
		r := f.open()
		must(t, os.Mkdir(f.path("before"), 0o755))
		one := f.fork(r, "before/one", &ForkOptions{Mode: mode})
		writeFile(t, one.Dir+"/new", []byte("new"))
		must(t, os.Rename(f.path("before"), f.path("after")))
		moved := f.path("after/one")
		if x := f.forkStates("moved", map[string]ForkState{"one": ForkMounted})["one"]; x.Dir != moved {
			t.Errorf("it is listed at %s", x.Dir)
		}
		if x := r.forkAt(moved); x == nil || x.Upper != one.Upper {
			t.Errorf("%+v", x)
		}
		for _, name := range []string{"one", moved} {
			again, err := r.ResumeFork(t.Context(), name, nil)
			must(t, err)
			if n := f.mountsOf(one); n != 1 || again.Dir != moved {
				t.Errorf("it is mounted %d times, and at %s", n, again.Dir)
			}
		}
		must(t, os.Mkdir(f.path("before"), 0o755))
		if x, err := r.forkFor(one.Dir); x != nil || err != nil {
			t.Errorf("where it was a restore would find it: %+v %v", x, err)
		}
		if mode == ForkFuse {
			f.killFuseOverlay(one)
			_, err := r.ResumeFork(t.Context(), moved, nil)
			must(t, err)
			if b, err := os.ReadFile(moved + "/new"); err != nil || string(b) != "new" {
				t.Errorf("%q %v", b, err)
			}
		}
		must(t, Unmount(t.Context(), f.state, moved, nil))
		if points := f.mounts(); len(points) > 0 {
			t.Errorf("unmounted, and the snapshot is not: %+v", points)
		}
		f.forkStates("unmounted", map[string]ForkState{"one": ForkDetached})
		// It comes back to where it was made.
		again, err := r.ResumeFork(t.Context(), "one", nil)
		must(t, err)
		if b, err := os.ReadFile(one.Dir + "/new"); err != nil || string(b) != "new" || again.Dir != one.Dir {
			t.Errorf("%s: %q %v", again.Dir, b, err)
		}
		must(t, os.RemoveAll(f.path("after")))
		must(t, os.Rename(f.path("before"), f.path("after")))
		_, err = RemoveFork(t.Context(), f.state, moved, nil)
		must(t, err)
		if _, err := os.Lstat(moved); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the directory that it was made with: %v", err)
		}
	})
}

// TestForkElsewhere: a fork that a container has too is neither mounted a second time
// nor removed, and to unmount it here waits for nobody.
func TestForkElsewhere(t *testing.T) {
	forModes(t, func(t *testing.T, f *forked, mode ForkMode) {
		r := f.open()
		one := f.fork(r, "one", &ForkOptions{Mode: mode})
		writeFile(t, one.Dir+"/new", []byte("new"))
		c := startContainer(t, f.dir, "private")
		inside := filepath.Join("/proc", strconv.Itoa(c.Process.Pid), "root", one.Dir)
		if mode != ForkFuse { // of which nothing tells whose another namespace's is
			if err := removeBriefly(t, one); !errors.Is(err, fusefs.ErrBusy) || !strings.Contains(err.Error(), "process "+strconv.Itoa(c.Process.Pid)) {
				t.Error(err)
			}
			f.forkStates("not removed", map[string]ForkState{"one": ForkMounted})
		}
		must(t, one.Unmount(t.Context(), false))
		f.forkStates("unmounted here", map[string]ForkState{"one": ForkElsewhere})
		if err := resumeBriefly(t, r, "one"); !errors.Is(err, fusefs.ErrBusy) {
			t.Errorf("a second time: %v", err)
		}
		if err := removeBriefly(t, one); !errors.Is(err, fusefs.ErrBusy) {
			t.Errorf("removed beneath a container: %v", err)
		}
		// There it works on, and its server lives.
		if b, err := os.ReadFile(inside + "/dir/b"); err != nil || string(b) != "2" {
			t.Errorf("in the container: %q %v", b, err)
		}
		writeFile(t, inside+"/late", []byte("late"))
		c.end()
		eventually(t, "the end of the fork in the container", func() bool {
			all, err := Forks(t.Context(), f.state)
			must(t, err)
			return all[0].State == ForkDetached
		})
		one, err := r.ResumeFork(t.Context(), "one", nil)
		must(t, err)
		for _, name := range []string{"new", "late"} {
			if b, err := os.ReadFile(one.Dir + "/" + name); err != nil || string(b) != name {
				t.Errorf("%q %v", b, err)
			}
		}
		f.remove(one)
		eventually(t, "the end of the servers", func() bool { return len(f.mounts()) == 0 })
	})
}

// TestForkPropagated: a mount namespace whose mounts go with ours, as that of a service
// does, is in nobody's way.
func TestForkPropagated(t *testing.T) {
	f := newForked(t)
	must(t, os.Mkdir(f.path("shared"), 0o755))
	must(t, unix.Mount(f.path("shared"), f.path("shared"), "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(f.path("shared"), unix.MNT_DETACH) })
	must(t, unix.Mount("", f.path("shared"), "", unix.MS_SHARED, ""))
	r := f.open()
	one := f.fork(r, "shared/one", nil)
	c := startContainer(t, f.dir, "slave")
	g, err := newForkRegistry(f.state)
	must(t, err)
	e, err := g.find("one")
	must(t, err)
	defer e.close()
	foreign, err := foreignMounts(isFork)
	must(t, err)
	if m := e.elsewhere(foreign); m == nil {
		t.Fatal("the other namespace does not have it")
	}
	f.remove(one)
	c.end()
	must(t, unix.Unmount(f.path("shared"), 0))
	eventually(t, "the end of the mount below", func() bool { return len(f.mounts()) == 0 })
}

// TestUnmountElsewhere: to unmount a snapshot that a container has too does not wait
// for it either.
func TestUnmountElsewhere(t *testing.T) {
	s := newShared(t)
	server := startServer(t, s.job("mnt"), nil)
	c := startContainer(t, s.dir, "private")
	must(t, Unmount(t.Context(), s.state, s.path("mnt"), nil))
	if b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(c.Process.Pid), "root", s.path("mnt/a"))); err != nil || string(b) != "1" {
		t.Errorf("%q %v", b, err)
	}
	c.end()
	waitEnd(t, "the server", server.ended)
}

// TestForkHeld: while a program has files open of a mount that is no more, no other
// fork may have the upper directory, by whatever way.
func TestForkHeld(t *testing.T) {
	forModes(t, func(t *testing.T, f *forked, mode ForkMode) {
		r := f.open()
		one := f.fork(r, "one", &ForkOptions{Mode: mode})
		writeFile(t, one.Dir+"/new", []byte("new"))
		held, err := os.Open(one.Dir + "/new")
		must(t, err)
		defer held.Close()
		must(t, one.Unmount(t.Context(), true))
		if err := resumeBriefly(t, r, "one"); !errors.Is(err, fusefs.ErrBusy) {
			t.Errorf("a second time: %v", err)
		}
		if err := removeBriefly(t, one); !errors.Is(err, fusefs.ErrBusy) {
			t.Errorf("removed: %v", err)
		}
		kept, err := one.Remove(t.Context(), &RemoveForkOptions{Keep: true, Force: true})
		must(t, err)
		if mode != ForkFuse { // which it would take as long to wait for
			err := briefly(t, func(ctx context.Context) error {
				_, err := r.Fork(ctx, f.id.String(), f.path("two"), &ForkOptions{Upper: kept})
				return err
			})
			if !errors.Is(err, fusefs.ErrBusy) {
				t.Errorf("another fork has it: %v", err)
			}
		}
		held.Close()
		eventually(t, "the end of the mount", func() bool { return len(f.mounts()) == 0 })
		two := f.fork(r, "two", &ForkOptions{Upper: kept})
		if b, err := os.ReadFile(two.Dir + "/new"); err != nil || string(b) != "new" {
			t.Errorf("%q %v", b, err)
		}
		f.remove(two)
	})
}

// TestForkBound: of a fork that is bound elsewhere either is unmounted alone, and it is
// not removed beneath the other.
func TestForkBound(t *testing.T) {
	f := newForked(t)
	r := f.open()
	one := f.fork(r, "one", nil)
	must(t, os.Mkdir(f.path("bound"), 0o755))
	must(t, unix.Mount(one.Dir+"/dir", f.path("bound"), "", unix.MS_BIND, ""))
	if _, err := one.Remove(t.Context(), nil); !errors.Is(err, fusefs.ErrBusy) || !strings.Contains(err.Error(), f.path("bound")) {
		t.Error(err)
	}
	f.forkStates("bound", map[string]ForkState{"one": ForkMounted})
	must(t, unix.Unmount(f.path("bound"), 0))
	must(t, unix.Mount(one.Dir, f.path("bound"), "", unix.MS_BIND, ""))
	must(t, Unmount(t.Context(), f.state, f.path("bound"), nil))
	f.forkStates("bound whole", map[string]ForkState{"one": ForkMounted})
	must(t, unix.Mount(one.Dir, f.path("bound"), "", unix.MS_BIND, ""))
	must(t, one.Unmount(t.Context(), false))
	if x := f.forkStates("the other", map[string]ForkState{"one": ForkMounted})["one"]; x.Dir != f.path("bound") {
		t.Error(x.Dir)
	}
	if _, err := r.ResumeFork(t.Context(), "one", nil); err != nil || f.mountsOf(one) != 1 {
		t.Errorf("%v, and it is mounted %d times", err, f.mountsOf(one))
	}
	if b, err := os.ReadFile(f.path("bound/dir/b")); err != nil || string(b) != "2" {
		t.Errorf("%q %v", b, err)
	}
	f.remove(one)
	for dir, there := range map[string]bool{one.Dir: false, f.path("bound"): true} {
		if _, err := os.Lstat(dir); (err == nil) != there {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

// TestForkRemoveWhole: what cannot be removed is left as it is, and mounted.
func TestForkRemoveWhole(t *testing.T) {
	f := newForked(t)
	r := f.open()
	one := f.fork(r, "one", nil)
	writeFile(t, one.Dir+"/new", []byte("new"))
	writeFile(t, f.state+"/kept", nil) // which is to be a folder
	if _, err := one.Remove(t.Context(), &RemoveForkOptions{Keep: true}); err == nil {
		t.Error("it was kept nowhere")
	}
	must(t, os.Remove(f.state+"/kept"))
	held, err := os.Open(one.Dir)
	must(t, err)
	if _, err := one.Remove(t.Context(), &RemoveForkOptions{Keep: true}); !errors.Is(err, fusefs.ErrBusy) {
		t.Error(err)
	}
	held.Close()
	if names, err := os.ReadDir(f.state + "/kept"); len(names) > 0 || err != nil {
		t.Errorf("left: %v %v", names, err)
	}
	two := f.fork(r, "two", &ForkOptions{Upper: f.path("layer")})
	record, err := os.ReadFile(f.path("layer/layer.json"))
	must(t, err)
	writeFile(t, f.path("layer/layer.json"), []byte("?"))
	for _, keep := range []bool{false, true} {
		if _, err := two.Remove(t.Context(), &RemoveForkOptions{Keep: keep}); err == nil {
			t.Error("it was removed")
		}
	}
	f.forkStates("not removed", map[string]ForkState{"one": ForkMounted, "two": ForkMounted})
	if b, err := os.ReadFile(one.Dir + "/new"); err != nil || string(b) != "new" {
		t.Errorf("%q %v", b, err)
	}
	writeFile(t, f.path("layer/layer.json"), record)
	f.remove(one)
	f.remove(two)
}

// TestMountTable: what is topmost at a path is told by what lies on what.
func TestMountTable(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	must(t, unix.Mount("first", dir, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	must(t, os.Mkdir(dir+"/at", 0o755))
	at := dir + "/at"
	top := func(want string) {
		t.Helper()
		table, err := readMountTable()
		must(t, err)
		if m := table.at(at); m == nil && want != "" || m != nil && m.Source != want {
			t.Errorf("%+v is mounted, not %s", m, want)
		}
	}
	top("")
	var fds []int
	for _, name := range []string{"upper", "lower"} { // in which order they stand in the table
		c, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
		must(t, err)
		must(t, unix.FsconfigSetString(c, "source", name))
		must(t, unix.FsconfigCreate(c))
		fd, err := unix.Fsmount(c, unix.FSMOUNT_CLOEXEC, 0)
		must(t, err)
		unix.Close(c)
		fds = append(fds, fd)
	}
	must(t, unix.MoveMount(fds[0], "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH))
	top("upper")
	err := unix.MoveMount(fds[1], "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH|moveMountBeneath)
	for _, fd := range fds {
		unix.Close(fd)
	}
	if errors.Is(err, unix.EINVAL) {
		t.Skip("nothing can be mounted beneath: it takes Linux 6.5")
	}
	must(t, err)
	top("upper")
	must(t, unix.Unmount(at, 0))
	top("lower")
	must(t, unix.Unmount(at, 0))
	top("")
}

// TestForkWhileServerEnds: who forks a snapshot does not wait for a server of it to end.
func TestForkWhileServerEnds(t *testing.T) {
	f := newForked(t)
	j := f.job("one")
	must(t, os.Remove(f.path("one")))
	j.Op, j.Keep = "fork", true
	server := startKept(t, j, nil)
	must(t, server.Process.Signal(unix.SIGSTOP))
	removed := make(chan error, 1)
	go func() {
		_, err := RemoveFork(t.Context(), f.state, "one", nil)
		removed <- err
	}()
	eventually(t, "the snapshot is unmounted", func() bool {
		points, err := mountinfo.GetMounts(mountinfo.PrefixFilter(f.state + "/lower"))
		must(t, err)
		return len(points) == 0
	})
	two := f.fork(f.open(), "two", nil)
	select {
	case err := <-removed:
		t.Fatalf("the server had not ended: %v", err)
	default:
	}
	server.kill(t)
	must(t, <-removed)
	if b, err := os.ReadFile(two.Dir + "/dir/b"); err != nil || string(b) != "2" {
		t.Errorf("%q %v", b, err)
	}
	f.remove(two)
}

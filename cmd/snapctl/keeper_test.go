//go:build linux

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/keeper"
	"github.com/snapctl/snapctl/engine"
	"github.com/snapctl/snapctl/fusefs"
)

// keepTest is a mount in the background, made by the program itself.
type keepTest struct {
	*testing.T
	dir   string // of everything; the program is started there
	env   []string
	files map[string][32]byte
	pids  map[int]bool // of all servers and keepers that were seen
}

func newKeepTest(t *testing.T) *keepTest {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount without fusermount3")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no FUSE here")
	}
	if !hasResend() {
		t.Skip(fusefs.ErrNoTakeOver)
	}
	dir, err := os.MkdirTemp("/dev/shm", "snapctl-keeper-")
	if err != nil {
		t.Fatal(err)
	}
	k := &keepTest{T: t, dir: dir, files: map[string][32]byte{}, pids: map[int]bool{}}
	k.env = append(os.Environ(), "HOME="+dir, "SNAPCTL_REPO=repo", "SNAPCTL_STATE_DIR=state", "SNAPCTL_CACHE_DIR=cache")
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(dir, "cache/logs/*"))
			for _, name := range logs {
				b, _ := os.ReadFile(name)
				t.Logf("%s", b)
			}
		}
		noMounts(t, dir)
		for pid := range k.pids {
			if !k.gone(pid) {
				t.Errorf("process %d is left", pid)
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	noise := rand.NewChaCha8([32]byte{1})
	for i := range 40 {
		name := fmt.Sprintf("d%d/%d", i%4, i)
		data := make([]byte, 1000+i*i*400)
		noise.Read(data)
		k.files[name] = sha256.Sum256(data)
		k.must(os.MkdirAll(filepath.Dir(k.at("tree/"+name)), 0o755))
		k.must(os.WriteFile(k.at("tree/"+name), data, 0o644))
	}
	k.must(os.Mkdir(k.at("mnt"), 0o755))
	k.run("init")
	k.run("create", "--name", "app", "tree")
	return k
}

// hasResend reports whether the kernel is Linux 6.9 or newer.
func hasResend() bool {
	var u unix.Utsname
	var major, minor int
	if unix.Uname(&u) != nil {
		return false
	}
	n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return n == 2 && (major > 6 || major == 6 && minor >= 9)
}

func (k *keepTest) must(err error) {
	k.Helper()
	if err != nil {
		k.Fatal(err)
	}
}

func (k *keepTest) at(name string) string { return filepath.Join(k.dir, name) }

// command is the program: this one, by that name.
func (k *keepTest) command(args ...string) *exec.Cmd {
	self, err := os.Executable()
	k.must(err)
	return &exec.Cmd{Path: self, Args: append([]string{"snapctl"}, args...), Dir: k.dir, Env: k.env}
}

func (k *keepTest) run(args ...string) {
	k.Helper()
	if out, err := k.command(args...).CombinedOutput(); err != nil {
		k.Fatalf("snapctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// mount mounts, and gives who serves.
func (k *keepTest) mount() *engine.MountStatus {
	k.Helper()
	k.run("mount", "--prefetch", "none", "app", "mnt")
	return k.until("it serves, and is kept", isKept)
}

func isKept(m *engine.MountStatus) bool { return m.State == engine.MountServing && m.Keeper != 0 }

// status is what the program says of the mount; nil if there is none.
func (k *keepTest) status() *engine.MountStatus {
	k.Helper()
	out, err := k.command("mounts", "--json").Output()
	k.must(err)
	var all []*engine.MountStatus
	k.must(json.Unmarshal(out, &all))
	for _, m := range all {
		if m.Dir == k.at("mnt") {
			for _, pid := range []int{m.Pid, m.Keeper} {
				if pid != 0 {
					k.pids[pid] = true
				}
			}
			return m
		}
	}
	return nil
}

func (k *keepTest) until(what string, ok func(m *engine.MountStatus) bool) *engine.MountStatus {
	k.Helper()
	var m *engine.MountStatus
	if !await(func() bool { m = k.status(); return m != nil && ok(m) }) {
		k.Fatalf("it does not come to that: %s", what)
	}
	return m
}

// successor waits until another process than that serves.
func (k *keepTest) successor(of *engine.MountStatus) *engine.MountStatus {
	k.Helper()
	return k.until("another serves", func(m *engine.MountStatus) bool {
		return m.State == engine.MountServing && m.Pid != of.Pid && m.Restarts == of.Restarts+1 && m.Keeper == of.Keeper
	})
}

func (k *keepTest) kill(pid int, s syscall.Signal) {
	k.Helper()
	if pid <= 1 {
		k.Fatalf("process %d", pid)
	}
	k.must(syscall.Kill(pid, s))
}

// stop stops a process, and returns when it stands still: until then it may take other
// signals first.
func stop(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return err
	}
	var b []byte
	var err error
	stopped := await(func() bool {
		b, err = os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || bytes.HasPrefix(b[bytes.LastIndexByte(b, ')')+1:], []byte(" T"))
	})
	if !stopped {
		err = fmt.Errorf("process %d does not stop", pid)
	}
	return err
}

// exists waits until there is a file.
func (k *keepTest) exists(name string) {
	k.Helper()
	if !await(func() bool { _, err := os.Stat(k.at(name)); return err == nil }) {
		k.Fatalf("there is no %s", name)
	}
}

// ended reports whether a process has ended, though nobody may have waited for it.
func ended(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || bytes.HasPrefix(b[bytes.LastIndexByte(b, ')')+1:], []byte(" Z"))
}

// gone waits a while for the end of a process, and reports whether it came.
func (k *keepTest) gone(pid int) bool {
	return await(func() bool { return ended(pid) })
}

// read reads a file of the mount, from the server and not from memory.
func (k *keepTest) read(path string) error {
	f, err := os.Open(filepath.Join(k.dir, path))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	_, name, _ := strings.Cut(path, "/")
	if [32]byte(h.Sum(nil)) != k.files[name] {
		return errors.New(path + " is wrong")
	}
	return nil
}

func (k *keepTest) readAll(dir string) error {
	for name := range k.files {
		if err := k.read(dir + "/" + name); err != nil {
			return err
		}
	}
	return nil
}

// TestKeeperReaders: servers die one after the other below readers, who notice
// nothing, also of a snapshot that was removed. Then umount ends all of it.
func TestKeeperReaders(t *testing.T) {
	k := newKeepTest(t)
	m := k.mount()
	inside, err := os.Open(k.at("mnt/d1"))
	k.must(err)
	defer inside.Close()
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := k.readAll("mnt"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	k.run("rm", "app")
	for range 3 {
		k.kill(m.Pid, syscall.SIGKILL)
		m = k.successor(m)
		if t.Failed() {
			break
		}
	}
	close(stop)
	readers.Wait()
	k.must(k.readAll("mnt"))
	if names, err := inside.Readdirnames(0); len(names) != 10 || err != nil {
		t.Errorf("%d names, %v", len(names), err)
	}
	inside.Close()
	// The program takes further mount points, as before.
	k.must(os.Mkdir(k.at("other"), 0o755))
	k.run("mount", m.Snapshot.ID.String(), "other")
	k.must(k.readAll("other"))
	k.run("umount", "mnt", "other")
	for _, pid := range []int{m.Pid, m.Keeper} {
		if !ended(pid) {
			t.Errorf("umount did not wait for process %d", pid)
		}
	}
	for _, dir := range []string{"state/mounts", "repo/leases"} {
		filepath.WalkDir(k.at(dir), func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				t.Errorf("left: %s", path)
			}
			return nil
		})
	}
}

// TestKeeperMoment: what is asked at the very moment in which a server is killed
// is not lost either. Its threads may take requests until they have seen that they
// are to end.
func TestKeeperMoment(t *testing.T) {
	k := newKeepTest(t)
	for range 4 {
		m := k.mount()
		for i := range 3 {
			k.kill(m.Pid, syscall.SIGKILL)
			var st unix.Stat_t
			if err := unix.Stat(k.at(fmt.Sprintf("mnt/d%d", i)), &st); err != nil { // the first who asks for it
				t.Error(err)
			}
			m = k.successor(m)
		}
		k.run("umount", "mnt")
	}
}

// TestKeeperTaken: a request that the dead server had taken is answered by the next.
func TestKeeperTaken(t *testing.T) {
	k := newKeepTest(t)
	k.env = append(k.env, "SNAPCTL_REPO="+k.at("repo"), "SNAPCTL_TEST_STALL=packs/", "SNAPCTL_TEST_STALLED="+k.at("stalled"), "SNAPCTL_TEST_UNSTALLED="+k.at("unstalled"))
	m := k.mount()
	done := make(chan error, 1)
	go func() { done <- k.readAll("mnt") }()
	k.exists("stalled")
	// Once more by a server that stalls as well, and dies too.
	k.must(os.Remove(k.at("stalled")))
	k.kill(m.Pid, syscall.SIGKILL)
	k.exists("stalled")
	m = k.successor(m)
	k.must(os.WriteFile(k.at("unstalled"), nil, 0o644))
	k.kill(m.Pid, syscall.SIGKILL)
	k.must(<-done)
	k.successor(m)
	k.run("umount", "mnt")
}

// TestKeeperGivesUp: servers that die again and again are replaced no more, and
// readers get errors.
func TestKeeperGivesUp(t *testing.T) {
	k := newKeepTest(t)
	m := k.mount()
	for range keeper.MaxDeaths - 1 {
		k.kill(m.Pid, syscall.SIGKILL)
		m = k.successor(m)
	}
	k.kill(m.Pid, syscall.SIGKILL)
	if !k.gone(m.Keeper) {
		t.Error("the keeper is there")
	}
	k.until("it is dead", func(m *engine.MountStatus) bool { return m.State == engine.MountDead })
	if err := k.read("mnt/d0/4"); !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("a reader got %v", err)
	}
	logs, err := filepath.Glob(k.at("cache/logs/*"))
	if err != nil || len(logs) != 1 {
		t.Fatal(logs, err)
	}
	b, err := os.ReadFile(logs[0])
	k.must(err)
	if !bytes.Contains(b, []byte("giving up: the mount is dead")) {
		t.Errorf("the log says %s", b)
	}
	k.run("umount", "mnt")
}

// TestKeeperUnmount: it is unmounted while there is no server.
func TestKeeperUnmount(t *testing.T) {
	k := newKeepTest(t)
	m := k.mount()
	k.kill(m.Keeper, syscall.SIGSTOP)
	k.kill(m.Pid, syscall.SIGKILL)
	if !k.gone(m.Pid) {
		t.Fatal("the server is there")
	}
	umount := k.command("umount", "mnt")
	k.must(umount.Start())
	unmounted := await(func() bool {
		source, err := fusefs.Mounted(k.at("mnt"))
		k.must(err)
		return source == ""
	})
	if !unmounted {
		t.Fatal("it is mounted")
	}
	k.kill(m.Keeper, syscall.SIGCONT)
	k.must(umount.Wait())
	if left, _ := os.ReadDir(k.at("state/mounts")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestKeeperDies: a keeper that is killed is replaced by the server, and the mount outlives
// the next death of the server as it would have before: of one that has taken over too.
func TestKeeperDies(t *testing.T) {
	k := newKeepTest(t)
	m := k.mount()
	for range 3 {
		m = k.killKeeper(m)
		k.must(k.readAll("mnt"))
		k.kill(m.Pid, syscall.SIGKILL)
		m = k.successor(m)
	}
	k.must(k.readAll("mnt"))
	k.run("umount", "mnt")
}

// killKeeper kills the keeper, and waits for the next.
func (k *keepTest) killKeeper(m *engine.MountStatus) *engine.MountStatus {
	k.Helper()
	k.kill(m.Keeper, syscall.SIGKILL)
	next := k.until("another keeps it", func(x *engine.MountStatus) bool { return x.Keeper != 0 && x.Keeper != m.Keeper })
	if next.State != engine.MountServing || next.Pid != m.Pid || next.Restarts != m.Restarts || next.Unkept {
		k.Errorf("%+v", next)
	}
	return next
}

// TestKeeperLeak: a server has nothing of keepers that have died.
func TestKeeperLeak(t *testing.T) {
	k := newKeepTest(t)
	m := k.mount()
	processes := func() (n int) { // that the server has a handle of
		dir := fmt.Sprintf("/proc/%d/fd", m.Pid)
		fds, err := os.ReadDir(dir)
		k.must(err)
		for _, fd := range fds {
			if link, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && link == "anon_inode:[pidfd]" {
				n++
			}
		}
		return n
	}
	before := processes()
	for range 3 {
		m = k.killKeeper(m)
	}
	if n := processes(); before == 0 || n != before {
		t.Errorf("%d handles, and before it were %d", n, before)
	}
	k.run("umount", "mnt")
}

// TestUnkept: mounts says that nobody would start another server.
func TestUnkept(t *testing.T) {
	k := newKeepTest(t)
	said := func() bool {
		out, err := k.command("mounts").Output()
		k.must(err)
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); len(f) > 6 && f[0] == k.at("mnt") {
				return f[6] == "none"
			}
		}
		return false
	}
	k.mount()
	if said() {
		t.Error("it says so of one that is kept")
	}
	// Each keeper that dies is replaced later than the one before.
	k.until("it is said", func(m *engine.MountStatus) bool {
		if m.Keeper > 1 {
			_ = syscall.Kill(m.Keeper, syscall.SIGKILL) // if the server has not seen its end yet it is gone
		}
		return m.Unkept && m.State == engine.MountServing && said()
	})
	k.must(k.readAll("mnt"))
	k.run("umount", "mnt")

	foreground := k.command("mount", "--foreground", "app", "mnt")
	k.must(foreground.Start())
	m := k.until("it serves", func(m *engine.MountStatus) bool { return m.State == engine.MountServing })
	if !m.Unkept || m.Keeper != 0 || m.Pid != foreground.Process.Pid || !said() {
		t.Errorf("%+v", m)
	}
	k.run("umount", "mnt")
	k.must(foreground.Wait())
}

// TestKeeperSignals: a signal to stop, to either, ends both, and unmounts.
func TestKeeperSignals(t *testing.T) {
	k := newKeepTest(t)
	for _, restarted := range []bool{false, true} {
		for _, toKeeper := range []bool{false, true} {
			m := k.mount()
			if restarted {
				k.kill(m.Pid, syscall.SIGKILL)
				m = k.successor(m)
			}
			if toKeeper {
				k.kill(m.Keeper, syscall.SIGTERM)
			} else {
				k.kill(m.Pid, syscall.SIGTERM)
			}
			if !k.gone(m.Pid) || !k.gone(m.Keeper) {
				t.Error("they are there")
			}
			if source, err := fusefs.Mounted(k.at("mnt")); source != "" || err != nil {
				t.Errorf("mounted: %q, %v", source, err)
			}
		}
	}
}

// TestKeeperTold: a keeper that was told to stop starts no other server, even if the
// one that it passed that on to dies of something else.
func TestKeeperTold(t *testing.T) {
	k := newKeepTest(t)
	m := k.mount()
	k.must(stop(m.Pid))
	k.kill(m.Keeper, syscall.SIGTERM)
	passedOn := func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.Pid))
		k.must(err)
		_, pending, _ := strings.Cut(string(b), "\nShdPnd:\t")
		pending, _, _ = strings.Cut(pending, "\n")
		bits, err := strconv.ParseUint(pending, 16, 64)
		k.must(err)
		return bits&(1<<(syscall.SIGTERM-1)) != 0
	}
	if !await(passedOn) {
		t.Fatal("the server is not told")
	}
	k.kill(m.Pid, syscall.SIGKILL)
	if !k.gone(m.Pid) || !k.gone(m.Keeper) {
		t.Error("they are there")
	}
	k.until("it is dead", func(m *engine.MountStatus) bool { return m.State == engine.MountDead })
	k.run("umount", "mnt")
}

// TestKeeperOverlay: what is mounted over the snapshot, and written to, survives.
func TestKeeperOverlay(t *testing.T) {
	k := newKeepTest(t)
	m := k.mount()
	for _, name := range []string{"up", "upper", "upper/u", "upper/w"} {
		k.must(os.Mkdir(k.at(name), 0o755))
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,metacopy=on,redirect_dir=on,index=off,nfs_export=off", k.at("mnt"), k.at("upper/u"), k.at("upper/w"))
	if err := unix.Mount("overlay", k.at("up"), "overlay", 0, options); err != nil {
		t.Skipf("overlay: %v", err)
	}
	defer unix.Unmount(k.at("up"), unix.MNT_DETACH)
	k.must(k.read("up/d0/4"))
	f, err := os.OpenFile(k.at("up/d1/5"), os.O_RDWR|os.O_APPEND, 0) // copied up
	k.must(err)
	defer f.Close()
	k.must(os.WriteFile(k.at("up/d2/new"), []byte("new"), 0o644))
	open, err := os.Open(k.at("up/d3/39"))
	k.must(err)
	defer open.Close()
	for range 2 {
		k.kill(m.Pid, syscall.SIGKILL)
		k.must(os.Rename(k.at("up/d2/new"), k.at("up/d3/new")))
		k.must(os.Chmod(k.at("up/d3/7"), 0o600))
		k.must(os.Rename(k.at("up/d3/new"), k.at("up/d2/new")))
		_, err := f.WriteString("more")
		k.must(err)
		for name := range k.files {
			if name != "d1/5" {
				k.must(k.read("up/" + name))
			}
		}
		h := sha256.New()
		_, err = io.Copy(h, io.NewSectionReader(open, 0, 1<<40))
		if k.must(err); [32]byte(h.Sum(nil)) != k.files["d3/39"] {
			t.Error("an open file is wrong")
		}
		m = k.successor(m)
	}
	open.Close()
	f.Close()
	k.must(unix.Unmount(k.at("up"), 0))
	k.run("umount", "mnt")
}

// TestKeeperFork: below a fork whoever takes over shows the snapshot as the dead server did:
// no mark of another overlay's that is in it. At other mount points it shows all.
func TestKeeperFork(t *testing.T) {
	k := newKeepTest(t)
	const mark = "trusted.overlay.metacopy" // which makes a file of a lower layer unreadable
	for name := range k.files {
		k.must(unix.Setxattr(k.at("tree/"+name), mark, nil, 0))
	}
	k.run("create", "--name", "app", "tree")
	m := k.mount()
	k.run("fork", "app", "fork")
	k.kill(m.Pid, syscall.SIGKILL)
	k.successor(m)
	k.must(k.readAll("fork")) // of which nothing has been looked up before
	if n, err := unix.Getxattr(k.at("mnt/d0/4"), mark, nil); n != 0 || err != nil {
		t.Errorf("the mount does not show the attribute: %d %v", n, err)
	}
	k.run("unfork", "fork")
	k.run("umount", "mnt")
}

// killAll PID kills the server of a mount and its keeper. The server is stopped before, as
// it would have another keeper.
func killAll(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: killall PID")
	}
	pid, err := strconv.Atoi(args[0])
	ts.Check(err)
	if hasResend() {
		keeper := 0
		kept := await(func() bool {
			ts.Check(ts.Exec("snapctl", "mounts", "--json"))
			var all []*engine.MountStatus
			ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &all))
			if i := slices.IndexFunc(all, func(m *engine.MountStatus) bool { return m.Pid == pid }); i >= 0 {
				keeper = all[i].Keeper
			}
			return keeper != 0
		})
		if !kept {
			ts.Fatalf("process %d has no keeper", pid)
		}
		ts.Check(stop(pid))
		ts.Check(syscall.Kill(keeper, syscall.SIGKILL))
		if !await(func() bool { return ended(keeper) }) { // it might be who lets go of the mount
			ts.Fatalf("process %d does not end", keeper)
		}
	}
	ts.Check(syscall.Kill(pid, syscall.SIGKILL))
}

//go:build linux

package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/disk"
	"github.com/snapctl/snapctl/remote/remotetest"
	"golang.org/x/sys/unix"
)

// mount mounts, says so, and serves until nothing is mounted or its standard input
// ends.
func (j *job) mount(r *Repository) error {
	m, err := r.Mount(context.Background(), j.Ref, j.Dir, &MountOptions{Share: true})
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(m.Pid()); err != nil {
		return err
	}
	if m.Pid() != os.Getpid() {
		return nil
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_, _ = m.Shutdown()
	}()
	<-m.ServerEnded()
	return nil
}

// A server is another process that mounts.
type server struct {
	*exec.Cmd
	pid   int // of the process that serves, which may be another
	stdin io.Closer
	ended chan struct{}
}

// startServer starts a process that mounts, and waits until it serves. It ends
// with the test at the latest.
func startServer(t testing.TB, j job, user *syscall.Credential) *server {
	t.Helper()
	needFUSE(t)
	j.Op = "mount"
	s := &server{Cmd: j.command(t, user), ended: make(chan struct{})}
	stdin, err := s.StdinPipe()
	must(t, err)
	s.stdin = stdin
	out, err := s.StdoutPipe()
	must(t, err)
	must(t, s.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil {
		err = json.Unmarshal([]byte(line), &s.pid)
	}
	go func() { _ = s.Wait(); close(s.ended) }()
	t.Cleanup(func() {
		_ = s.Process.Signal(unix.SIGCONT)
		stdin.Close()
		select {
		case <-s.ended:
		case <-time.After(tooLong):
			t.Error("a server does not end")
			_ = s.Process.Kill()
		}
	})
	if err != nil {
		t.Fatalf("a server said %q: %v", line, err)
	}
	return s
}

func (s *server) kill(t testing.TB) {
	t.Helper()
	must(t, s.Process.Kill())
	<-s.ended
}

func needFUSE(t testing.TB) {
	t.Helper()
	needRoot(t)
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
}

// A shared place has a snapshot in a folder, and a state folder.
type shared struct {
	*place
	id    manifest.ID
	src   string
	state string
}

func newShared(t *testing.T) *shared {
	needFUSE(t)
	p := newPlace(t)
	s := &shared{place: p, state: p.path("state")}
	r := p.init()
	s.src = p.files("src", map[string]string{"a": "1", "dir/b": "2", "large": string(random(1, 3<<20))})
	s.id = complete(t, r, s.src, nil).ID
	t.Cleanup(func() {
		points, err := mountinfo.GetMounts(mountinfo.PrefixFilter(p.dir))
		if len(points) > 0 || err != nil {
			t.Errorf("left mounted: %v %v", points, err)
		}
		for _, m := range slices.Backward(points) {
			_ = unix.Unmount(m.Mountpoint, unix.MNT_DETACH)
		}
		entries, _ := os.ReadDir(s.state + "/mounts")
		if len(entries) > 0 {
			t.Errorf("left in the registry: %v", entries)
		}
	})
	return s
}

// open opens the repository as another process would.
func (s *shared) open() *Repository {
	s.Helper()
	r, err := Open(s.Context(), s.repo, keyed(s, &Options{CacheDir: s.cache, StateDir: s.state}))
	must(s, err)
	s.Cleanup(func() { r.Close() })
	return r
}

func (s *shared) job(dir string) job {
	// Not MkdirAll, which looks at what may be dead.
	if err := os.Mkdir(s.path(dir), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		s.Fatal(err)
	}
	return job{Repo: s.repo, Cache: s.cache, State: s.state, Ref: s.id.String(), Dir: s.path(dir)}
}

// mounts gives what Mounts lists of the place.
func (s *shared) mounts() map[string]*MountStatus {
	s.Helper()
	all, err := Mounts(s.Context(), s.state)
	must(s, err)
	m := map[string]*MountStatus{}
	for _, x := range all {
		if dir, ours := strings.CutPrefix(x.Dir, s.dir+"/"); ours {
			if m[dir] != nil {
				s.Errorf("%s is listed twice", dir)
			}
			m[dir] = x
		}
	}
	return m
}

// states says what Mounts is to list. On a slow machine a server may be taken for one
// that does not answer.
func (s *shared) states(what string, want map[string]MountState) map[string]*MountStatus {
	s.Helper()
	var all map[string]*MountStatus
	eventually(s, what, func() bool {
		all = s.mounts()
		for dir, x := range all {
			if x.State == MountSilent && want[dir] != MountSilent {
				return false
			}
		}
		return true
	})
	got := map[string]MountState{}
	for dir, x := range all {
		got[dir] = x.State
		if x.Registered && (x.Snapshot.ID != s.id || x.Snapshot.Dir != s.src || x.Repository != s.repo || x.Since == nil || x.Pid == 0) {
			s.Errorf("%s: %+v", what, x)
		}
		answers := x.State == MountServing || x.State == MountDetached || x.State == MountCovered
		if (x.Stats != nil) != (x.Registered && answers) {
			s.Errorf("%s: %s: stats %+v", what, dir, x.Stats)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		s.Errorf("%s: %v, not %v", what, got, want)
	}
	return all
}

func (s *shared) check(dir string) {
	s.Helper()
	compare(s, scan(s, s.src), scan(s, s.path(dir)))
}

func infoOf(t testing.TB, dir string) *mountinfo.Info {
	t.Helper()
	all, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	must(t, err)
	if len(all) == 0 {
		t.Fatalf("nothing is mounted at %s", dir)
	}
	return all[0]
}

// sameStats compares what mounts did but for their requests: a lease is written in the
// background.
func sameStats(a *MountStats, b MountStats) bool {
	b.Requests = a.Requests
	return *a == b
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func waitEnd(t testing.TB, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(tooLong):
		t.Errorf("%s: it does not end", what)
	}
}

// TestShared: two mounts of one snapshot by one repository are one file system, and
// each can be unmounted without the other.
func TestShared(t *testing.T) {
	s := newShared(t)
	r := s.open()
	before := r.Requests().Ops
	first := mountAt(t, r, s.id, s.path("first"), nil)
	asked := r.Requests().Ops
	second := mountAt(t, r, s.id, s.path("second"), nil)
	if n := r.Requests().Ops.Sub(asked).Total().Calls; n > r.Requests().Ops.Sub(before)[remote.OpReplace].Calls {
		t.Errorf("%d requests", n)
	}
	a, b := infoOf(t, first.Dir), infoOf(t, second.Dir)
	if a.Minor != b.Minor || a.Options != b.Options || a.VFSOptions != b.VFSOptions || !strings.HasPrefix(b.Options, "ro,nosuid,nodev") {
		t.Errorf("%+v\n%+v", a, b)
	}
	s.check("first")
	decoded := second.Stats().Decoded
	s.check("second")
	if n := second.Stats().Decoded; n != decoded || n == 0 {
		t.Errorf("%d frames were decoded, and then %d", decoded, n)
	}
	list := s.states("both", map[string]MountState{"first": MountServing, "second": MountServing})
	if !sameStats(list["first"].Stats, first.Stats()) || list["second"].Pid != os.Getpid() {
		t.Errorf("%+v, not %+v", list["first"].Stats, first.Stats())
	}
	must(t, first.Unmount(false))
	if !closed(first.Ended()) || closed(first.ServerEnded()) || closed(second.Ended()) {
		t.Error("unmounting the first")
	}
	s.states("one", map[string]MountState{"second": MountServing})
	s.check("second")
	// By somebody else, where it may be that a moment passes.
	third := mountAt(t, r, s.id, s.path("third"), nil)
	must(t, unix.Unmount(second.Dir, 0))
	waitEnd(t, "second", second.Ended())
	s.check("third")
	must(t, second.Unmount(false))
	must(t, third.Unmount(false))
	if !closed(third.ServerEnded()) || !closed(first.ServerEnded()) {
		t.Error("the server has not ended")
	}
	s.states("none", map[string]MountState{})
	// And again, which is another server.
	mountAt(t, r, s.id, s.path("first"), nil)
	s.check("first")
}

// TestSharedFail: whoever wants to know is told of what failed, at whichever
// mount point.
func TestSharedFail(t *testing.T) {
	w := newWobbly(t)
	id, _ := w.snapshot()
	r := w.open()
	var told [2]sync.Map
	var dirs []string
	for i := range told {
		m := mountAt(t, r, id, w.path(fmt.Sprint("mnt", i)), &MountOptions{Fail: func(_, path string, _ error) { told[i].Store(path, true) }})
		dirs = append(dirs, m.Dir)
	}
	w.fail(func(remote.Op, string) remotetest.Fault { return remotetest.Fault{Err: errors.New("away")} })
	if _, err := os.ReadFile(dirs[1] + "/dir/5"); !errors.Is(err, unix.EIO) {
		t.Error(err)
	}
	for i := range told {
		if _, ok := told[i].Load("dir/5"); !ok {
			t.Errorf("%d was not told", i)
		}
	}
}

// TestSharedProcesses: a process that mounts what another one serves has that one
// serve it; the last who unmounts ends it.
func TestSharedProcesses(t *testing.T) {
	s := newShared(t)
	a := startServer(t, s.job("a"), nil)
	b := startServer(t, s.job("b"), nil)
	if a.pid != a.Process.Pid || b.pid != a.pid {
		t.Errorf("processes %d and %d, served by %d and %d", a.Process.Pid, b.Process.Pid, a.pid, b.pid)
	}
	<-b.ended
	r := s.open()
	asked := r.Requests().Ops
	m := mountAt(t, r, s.id, s.path("c"), nil)
	if n := r.Requests().Ops.Sub(asked).Total().Calls; n != 0 || m.Pid() != a.pid {
		t.Errorf("%d requests, process %d", n, m.Pid())
	}
	if infoOf(t, s.path("a")).Minor != infoOf(t, m.Dir).Minor {
		t.Error("another file system")
	}
	s.check("c")
	list := s.states("three", map[string]MountState{"a": MountServing, "b": MountServing, "c": MountServing})
	if list["b"].Stats == nil || !sameStats(list["b"].Stats, m.Stats()) || m.Stats().Decoded == 0 {
		t.Errorf("%+v and %+v", list["b"].Stats, m.Stats())
	}
	must(t, Unmount(t.Context(), s.state, s.path("a"), nil))
	s.states("two", map[string]MountState{"b": MountServing, "c": MountServing})
	s.check("b")
	must(t, unix.Unmount(s.path("c"), 0))
	waitEnd(t, "c", m.Ended())
	m = mountAt(t, r, s.id, s.path("c"), nil)
	must(t, Unmount(t.Context(), s.state, s.path("b"), nil))
	s.check("c")
	must(t, m.Unmount(false)) // it was the last
	if unix.Kill(a.pid, 0) == nil {
		waitEnd(t, "the server", a.ended) // a zombie, for another moment
	}
	s.states("none", map[string]MountState{})
	if err := Unmount(t.Context(), s.state, s.path("c"), nil); !errors.Is(err, fusefs.ErrNotMounted) {
		t.Error(err)
	}
}

// TestSharedNot: a process that has not said that others may is not asked.
func TestSharedNot(t *testing.T) {
	s := newShared(t)
	m := mountAt(t, s.open(), s.id, s.path("a"), nil)
	n := mountAt(t, s.open(), s.id, s.path("b"), &MountOptions{Share: true})
	o := mountAt(t, s.open(), s.id, s.path("c"), nil)
	if infoOf(t, m.Dir).Minor == infoOf(t, n.Dir).Minor || infoOf(t, n.Dir).Minor != infoOf(t, o.Dir).Minor {
		t.Error("who shares")
	}
	must(t, n.Unmount(false))
	s.check("c")
}

// TestSharedNumber: when a file system has ended the kernel gives its number to the next.
// A server that has not heard of the end yet does not take that for its own.
func TestSharedNumber(t *testing.T) {
	s := newShared(t)
	for range 100 {
		m := mountAt(t, s.open(), s.id, s.path("a"), nil)
		number := infoOf(t, m.Dir).Minor
		m.changes.Lock() // so that it hears of nothing
		must(t, fusefs.Unmount(m.Dir, false))
		n := mountAt(t, s.open(), s.id, s.path("b"), nil)
		same := infoOf(t, n.Dir).Minor == number
		points := m.points()
		m.changes.Unlock()
		m.Wait()
		must(t, n.Unmount(false))
		if len(points) > 0 {
			t.Fatalf("the other's mount is taken for its own: %v", points)
		}
		if same {
			return
		}
	}
	t.Skip("the kernel never used a number again")
}

// TestSharedRace: many who mount one snapshot at once all get it, from one server.
func TestSharedRace(t *testing.T) {
	s := newShared(t)
	repos := []*Repository{s.open(), s.open(), s.open()}
	for round := range times(4, 40) {
		mounts := make([]*Mount, 9)
		var wg sync.WaitGroup
		for i := range mounts {
			dir := s.path(fmt.Sprint("mnt-", i))
			must(t, os.MkdirAll(dir, 0o755))
			wg.Go(func() {
				var err error
				mounts[i], err = repos[i%3].Mount(t.Context(), s.id.String(), dir, &MountOptions{Share: true})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		devices := map[int]bool{}
		for _, m := range mounts {
			devices[infoOf(t, m.Dir).Minor] = true
		}
		if len(devices) != 1 {
			t.Errorf("round %d: %d file systems", round, len(devices))
		}
		// And unmount them at once, while others mount again.
		for i, m := range mounts {
			wg.Go(func() {
				if err := m.Unmount(false); err != nil {
					t.Error(err)
				}
				if i%2 == 0 {
					return
				}
				n, err := repos[(i+1)%3].Mount(t.Context(), s.id.String(), m.Dir, &MountOptions{Share: true})
				if err == nil {
					_, err = os.ReadFile(n.Dir + "/a")
					err = errors.Join(err, n.Unmount(false))
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		s.states("after", map[string]MountState{})
	}
}

// TestMounts: what the list says of all that can become of a mount.
func TestMounts(t *testing.T) {
	s := newShared(t)
	s.states("nothing", map[string]MountState{})
	a := startServer(t, s.job("a"), nil)
	// Bind mounts and unmounts that nobody told us of.
	must(t, os.MkdirAll(s.path("bind"), 0o755))
	must(t, os.MkdirAll(s.path("part"), 0o755))
	must(t, unix.Mount(s.path("a"), s.path("bind"), "", unix.MS_BIND, ""))
	must(t, unix.Mount(s.path("a/dir"), s.path("part"), "", unix.MS_BIND, ""))
	s.states("bound", map[string]MountState{"a": MountServing, "bind": MountServing, "part": MountServing})
	must(t, unix.Unmount(s.path("a"), 0))
	s.states("bound alone", map[string]MountState{"bind": MountServing, "part": MountServing})
	startServer(t, s.job("b"), nil) // from the bind mount
	if infoOf(t, s.path("b")).Minor != infoOf(t, s.path("bind")).Minor {
		t.Error("another server")
	}
	must(t, Unmount(t.Context(), s.state, s.path("bind"), nil))
	must(t, Unmount(t.Context(), s.state, s.path("part"), nil))
	s.states("b", map[string]MountState{"b": MountServing})

	// It does not answer.
	must(t, a.Process.Signal(unix.SIGSTOP))
	eventually(t, "the server stands still", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.pid))
		must(t, err)
		return strings.Contains(string(b), ") T ")
	})
	s.states("stopped", map[string]MountState{"b": MountSilent})
	c := startServer(t, s.job("c"), nil) // which does not wait for ever
	if c.pid != c.Process.Pid {
		t.Error("served by one that is stopped")
	}
	must(t, a.Process.Signal(unix.SIGCONT))
	s.states("goes on", map[string]MountState{"b": MountServing, "c": MountServing})
	must(t, Unmount(t.Context(), s.state, s.path("c"), nil))
	if closed(a.ended) {
		t.Error("the other server has ended")
	}

	// It is in use, and detached.
	f, err := os.Open(s.path("b/a"))
	must(t, err)
	if err := Unmount(t.Context(), s.state, s.path("b"), nil); !errors.Is(err, fusefs.ErrBusy) {
		t.Error(err)
	}
	must(t, Unmount(t.Context(), s.state, s.path("b"), &UnmountOptions{Detach: true}))
	s.states("detached", map[string]MountState{"b": MountDetached})
	if got, err := io.ReadAll(f); string(got) != "1" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	f.Close()
	waitEnd(t, "a server that is not used any more", a.ended)
	s.states("not used any more", map[string]MountState{})

	// It is killed.
	d := startServer(t, s.job("d"), nil)
	startServer(t, s.job("e"), nil)
	d.kill(t)
	list := s.states("killed", map[string]MountState{"d": MountDead, "e": MountDead})
	if list["d"].Pid != d.pid {
		t.Error("another process")
	}
	must(t, Unmount(t.Context(), s.state, s.path("d"), nil))
	s.states("one is cleared away", map[string]MountState{"e": MountDead})
	must(t, Unmount(t.Context(), s.state, s.path("e"), nil))
	s.states("both are", map[string]MountState{})
	d = startServer(t, s.job("d"), nil)
	d.kill(t)
	must(t, unix.Unmount(s.path("d"), 0)) // by somebody else
	s.states("unmounted when it was dead", map[string]MountState{})
	d = startServer(t, s.job("d"), nil)
	d.kill(t)
	d = startServer(t, s.job("d"), nil) // at once, at the same place
	s.states("mounted again", map[string]MountState{"d": MountServing})
	s.check("d")

	// The machine is started again.
	d.kill(t)
	must(t, unix.Unmount(s.path("d"), 0))
	records, err := filepath.Glob(s.state + "/mounts/*/mount.json")
	must(t, err)
	if len(records) != 1 {
		t.Fatalf("%d records", len(records))
	}
	b, err := os.ReadFile(records[0])
	must(t, err)
	rec, err := decodeRecord(b)
	must(t, err)
	rec.Boot = "another"
	b, err = rec.encode()
	must(t, err)
	must(t, os.WriteFile(records[0], b, 0o600))
	s.states("lost", map[string]MountState{"d": MountLost})
	s.states("still lost", map[string]MountState{"d": MountLost})
	startServer(t, s.job("d"), nil)
	s.states("mounted instead", map[string]MountState{"d": MountServing})
	must(t, Unmount(t.Context(), s.state, s.path("d"), nil))
	s.states("and not lost any more", map[string]MountState{})
	must(t, os.MkdirAll(filepath.Dir(records[0]), 0o700))
	must(t, os.WriteFile(filepath.Dir(records[0])+"/lock", nil, 0o600))
	must(t, os.WriteFile(records[0], b, 0o600))
	s.states("lost again", map[string]MountState{"d": MountLost})
	must(t, Unmount(t.Context(), s.state, s.path("d"), nil))
	s.states("forgotten", map[string]MountState{})

	// In no registry.
	mountAt(t, s.place.open("cache"), s.id, s.path("f"), nil)
	if x := s.states("not registered", map[string]MountState{"f": MountUnknown})["f"]; x.Registered || x.Snapshot.ID != s.id {
		t.Errorf("%+v", x)
	}
}

// TestKilledServer: with the server killed, readers get errors, nobody waits, and
// the snapshot can be mounted again.
func TestKilledServer(t *testing.T) {
	s := newShared(t)
	for range times(3, 30) {
		a := startServer(t, s.job("a"), nil)
		started := make(chan struct{}, 8)
		failed := make(chan error, 8)
		for i := range cap(failed) {
			go func() {
				buf := make([]byte, 100_000)
				for n := 0; ; n++ {
					fd, err := unix.Open(s.path("a/large"), unix.O_RDONLY, 0)
					if err == nil {
						// So that the kernel has to ask.
						_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
						_, err = unix.Pread(fd, buf, int64((i*31+n)*4096%(3<<20)))
						unix.Close(fd)
					}
					if n == 0 {
						started <- struct{}{}
					}
					if err != nil {
						failed <- err
						return
					}
				}
			}()
		}
		for range cap(started) {
			<-started
		}
		a.kill(t)
		for range cap(failed) {
			select {
			case err := <-failed:
				if !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ECONNABORTED) {
					t.Error(err)
				}
			case <-time.After(tooLong):
				t.Fatal("a reader waits for a server that is gone")
			}
		}
		b := startServer(t, s.job("a"), nil)
		s.check("a")
		must(t, Unmount(t.Context(), s.state, s.path("a"), nil))
		waitEnd(t, "the server", b.ended)
	}
	// No program that the server started keeps the connection.
	m := mountAt(t, s.open(), s.id, s.path("a"), nil)
	out, err := exec.Command("ls", "-l", "/proc/self/fd").CombinedOutput()
	if err != nil || strings.Contains(string(out), "/dev/fuse") {
		t.Errorf("%s %v", out, err)
	}
	must(t, m.Unmount(false))
}

// TestSharedPlainUser: an ordinary user, who cannot bind, has the process that
// serves mount once more.
func TestSharedPlainUser(t *testing.T) {
	s := newShared(t)
	if _, err := exec.LookPath("fusermount3"); err != nil {
		t.Skip("no fusermount3")
	}
	if info, err := os.Stat("/dev/fuse"); err == nil && info.Mode().Perm()&0o6 != 0o6 {
		t.Skip("/dev/fuse is for root alone")
	}
	nobody := &syscall.Credential{Uid: 65534, Gid: 65534}
	own := func(path string) { must(t, os.Chown(path, 65534, 65534)) }
	must(t, os.Chmod(s.dir, 0o755))
	for d := s.dir; d != os.TempDir(); d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o755))
	}
	must(t, filepath.WalkDir(s.repo, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, 65534, 65534))
	}))
	must(t, os.Mkdir(s.state, 0o700))
	own(s.state)
	j, k := s.job("a"), s.job("b")
	own(j.Dir)
	own(k.Dir)
	j.Cache, k.Cache = s.path("cache-of-nobody"), s.path("cache-of-nobody")
	must(t, os.Mkdir(j.Cache, 0o700))
	own(j.Cache)
	a := startServer(t, j, nobody)
	b := startServer(t, k, nobody)
	if a.pid != b.pid {
		t.Error("two servers")
	}
	if infoOf(t, s.path("a")).Minor == infoOf(t, s.path("b")).Minor {
		t.Error("a bind mount")
	}
	// Root has servers of its own, and does not believe others' entries.
	m := mountAt(t, s.open(), s.id, s.path("c"), nil)
	if m.Pid() != os.Getpid() {
		t.Error("root's is served by another user")
	}
	must(t, m.Unmount(false))
	must(t, Unmount(t.Context(), s.state, s.path("a"), nil))
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", b.pid))
	if err != nil || strings.Contains(string(list), s.path("a")+" ") || !strings.Contains(string(list), s.path("b")+" ") {
		t.Errorf("%v", err)
	}
	must(t, Unmount(t.Context(), s.state, s.path("b"), nil))
	waitEnd(t, "the server", a.ended)
}

// TestRecord: a path survives whatever bytes it has, and what is not a record is
// refused.
func TestRecord(t *testing.T) {
	rec := &record{
		Version: recordVersion, Snapshot: snapshot.Snapshot{ID: manifest.NewID(0)}, Since: time.Unix(1, 2).UTC(),
		Points: []recordPoint{{Dir: "/\xff\x00\n", Device: fusefs.Device{Minor: 45}}, {Dir: "/base64:", Device: fusefs.Device{Major: 1}}},
	}
	b, err := rec.encode()
	must(t, err)
	got, err := decodeRecord(b)
	if err != nil || !slices.Equal(got.Points, rec.Points) {
		t.Errorf("%+v %v", got, err)
	}
	for old, new := range map[string]string{
		`"version": 1`: `"version": 2`, `"pid"`: `"pids"`, `"0:45"`: `"45"`, rec.Snapshot.ID.String(): "none",
	} {
		if _, err := decodeRecord([]byte(strings.Replace(string(b), old, new, 1))); err == nil || errors.Is(err, errNewer) != (old == `"version": 1`) {
			t.Errorf("%s: %v", new, err)
		}
	}
	if _, err := decodeRecord([]byte(`{"version": 1}`)); err == nil {
		t.Error("no error")
	}
}

// BenchmarkSharedMount is how long a further mount of a snapshot takes.
func BenchmarkSharedMount(b *testing.B) {
	needRoot(b)
	p := newPlace(b)
	r := p.init()
	id := complete(b, r, p.files("src", map[string]string{"a": "1"}), nil).ID
	b.Run("of=first", func(b *testing.B) {
		r, err := Open(b.Context(), p.repo, &Options{CacheDir: p.cache, StateDir: p.path("state")})
		must(b, err)
		defer r.Close()
		must(b, os.MkdirAll(p.path("first"), 0o755))
		for b.Loop() {
			m, err := r.Mount(b.Context(), id.String(), p.path("first"), nil)
			must(b, err)
			b.StopTimer()
			must(b, m.Unmount(false))
			b.StartTimer()
		}
	})
	for _, where := range []string{"of=same-repository", "of=another-process"} {
		b.Run(where, func(b *testing.B) {
			open := func() *Repository {
				r, err := Open(b.Context(), p.repo, &Options{CacheDir: p.cache, StateDir: p.path("state")})
				must(b, err)
				b.Cleanup(func() { r.Close() })
				return r
			}
			first := open()
			second := first
			if where == "of=another-process" {
				second = open()
			}
			must(b, os.MkdirAll(p.path("first"), 0o755))
			must(b, os.MkdirAll(p.path("second"), 0o755))
			m, err := first.Mount(b.Context(), id.String(), p.path("first"), &MountOptions{Share: true})
			must(b, err)
			for b.Loop() {
				n, err := second.Mount(b.Context(), id.String(), p.path("second"), nil)
				must(b, err)
				b.StopTimer()
				must(b, n.Unmount(false))
				b.StartTimer()
			}
			must(b, m.Unmount(false))
		})
	}
}

// TestReapProbed: garbage is removed although somebody just looks whether its server
// lives, which takes the lock for a moment.
func TestReapProbed(t *testing.T) {
	g, err := newRegistry(t.TempDir())
	must(t, err)
	// Where who looks is not let run for longer than a moment it is left to the next.
	eventually(t, "it is removed", func() bool {
		rec := &record{Version: recordVersion, Snapshot: snapshot.Snapshot{ID: manifest.NewID(0)}, Boot: bootID(), Namespace: mountNamespace()}
		e, err := g.make(rec, func(*entry) error { return nil })
		must(t, err)
		must(t, e.lock.Close()) // the server is gone
		e.lock = nil
		probe, err := os.Open(e.path(lockName))
		must(t, err)
		must(t, disk.LockShared(int(probe.Fd())))
		ended := make(chan struct{})
		time.AfterFunc(5*time.Millisecond, func() { probe.Close(); close(ended) })
		e.reap()
		<-ended
		e.close()
		_, err = os.Lstat(filepath.Join(g.dir, e.key))
		return errors.Is(err, os.ErrNotExist)
	})
}

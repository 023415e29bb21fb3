//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/remote/remotetest"
)

// A memoryGroup is a control group of its own, whose processes may have so much memory.
type memoryGroup struct {
	dir string
	v2  bool
}

// newMemoryGroup makes a memoryGroup, or skips the test.
func newMemoryGroup(t *testing.T, limit int) *memoryGroup {
	t.Helper()
	parent, v2, err := memoryController()
	if err != nil {
		t.Skip(err)
	}
	g := &memoryGroup{filepath.Join(parent, fmt.Sprintf("snapctl-test-%d", os.Getpid())), v2}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		t.Skipf("no control group can be made here: %v", err)
	}
	t.Cleanup(func() {
		// Its last process may have ended a moment ago.
		await(func() bool { err = os.Remove(g.dir); return !errors.Is(err, unix.EBUSY) })
		if err != nil {
			t.Error(err)
		}
	})
	name, swap := "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
	if v2 {
		name, swap = "memory.max", "memory.swap.max"
	}
	if err := os.WriteFile(filepath.Join(g.dir, name), fmt.Append(nil, limit), 0); err != nil {
		t.Skipf("no limit can be set here: %v", err)
	}
	value := limit
	if v2 {
		value = 0
	}
	_ = os.WriteFile(filepath.Join(g.dir, swap), fmt.Append(nil, value), 0) // where there is swap
	return g
}

// memoryController finds a control group in which groups with a limit of memory can be
// made: that of this process, or the nearest above it.
func memoryController() (dir string, v2 bool, err error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", false, err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return "", false, err
	}
	for _, m := range mounts {
		v1 := m.FSType == "cgroup"
		if v1 && !slices.Contains(strings.Split(m.VFSOptions, ","), "memory") {
			continue
		}
		for line := range strings.Lines(string(b)) {
			_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
			controllers, path, _ := strings.Cut(rest, ":")
			if v1 && !slices.Contains(strings.Split(controllers, ","), "memory") || !v1 && controllers != "" {
				continue
			}
			rel, err := filepath.Rel(m.Root, path)
			if err != nil {
				continue
			}
			for dir := filepath.Join(m.Mountpoint, rel); strings.HasPrefix(dir, m.Mountpoint); dir = filepath.Dir(dir) {
				inherited, _ := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
				if _, err := os.Stat(dir); err == nil && (v1 || slices.Contains(strings.Fields(string(inherited)), "memory")) {
					return dir, !v1, nil
				}
			}
		}
	}
	return "", false, errors.New("no control group here has the memory controller")
}

// run runs a command in the group.
func (g *memoryGroup) run(cmd *exec.Cmd) *exec.Cmd {
	c := exec.Command("/bin/sh", append([]string{"-c", `echo $$ >"$0" && exec "$@"`, filepath.Join(g.dir, "cgroup.procs")}, cmd.Args...)...)
	c.Dir, c.Env = cmd.Dir, cmd.Env
	return c
}

// kills is how many processes were killed for want of memory.
func (g *memoryGroup) kills(t *testing.T) (n int) {
	t.Helper()
	name := "memory.oom_control"
	if g.v2 {
		name = "memory.events"
	}
	b, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut("\n"+string(b), "\noom_kill ")
	if _, err := fmt.Sscan(rest, &n); !ok || err != nil {
		t.Skipf("the kernel does not count: %q", b)
	}
	return n
}

// TestMemoryLimit: in a control group that may have 64 MiB a server lives, with its
// keeper and its readers in there too, and all of a big package is read: of a local
// repository, and of a bucket of which all is fetched ahead.
func TestMemoryLimit(t *testing.T) {
	if raced {
		t.Skip("the race detector takes several times the memory")
	}
	for _, bucket := range []bool{false, true} {
		t.Run(fmt.Sprintf("bucket=%v", bucket), func(t *testing.T) { testMemoryLimit(t, bucket) })
	}
}

func testMemoryLimit(t *testing.T, bucket bool) {
	tar, err := exec.LookPath("tar")
	if err != nil {
		t.Skip(err)
	}
	k := newKeepTest(t)
	g := newMemoryGroup(t, 64<<20)
	// Not on a tmpfs, whose files count as memory.
	cache, err := os.MkdirTemp("/var/tmp", "snapctl-cgroup-")
	k.must(err)
	t.Cleanup(func() { os.RemoveAll(cache) })
	var fs unix.Statfs_t
	k.must(unix.Statfs(cache, &fs))
	if fs.Type == unix.TMPFS_MAGIC {
		t.Skip("/var/tmp is a tmpfs")
	}
	k.env = append(k.env, "SNAPCTL_CACHE_DIR="+cache, "GOGC=", "GOMEMLIMIT=")
	if bucket {
		s := remotetest.StartVersityGW(t)
		k.env = append(k.env, "SNAPCTL_REPO="+s.URL("app"), "AWS_ACCESS_KEY_ID="+s.Credentials.AccessKeyID, "AWS_SECRET_ACCESS_KEY="+s.Credentials.SecretAccessKey)
		k.run("init")
	}
	size := k.bigPackage()
	k.run("create", "--name", "big", "big")
	k.must(os.RemoveAll(k.at("big")))

	mount := g.run(k.command("mount", "--prefetch", "all", "big", "mnt"))
	if out, err := mount.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m := k.until("it is kept", isKept)
	if p, err := os.ReadFile(filepath.Join(g.dir, "cgroup.procs")); err != nil || !slices.Contains(strings.Fields(string(p)), fmt.Sprint(m.Pid)) {
		t.Fatalf("the server is not in the group: %q %v", p, err)
	}
	var readers sync.WaitGroup
	for _, dir := range []string{".", "large", "large", "."} { // some at once
		readers.Go(func() {
			cmd := g.run(exec.Command(tar, "-C", k.at("mnt"), "-cf", "-", dir))
			var said bytes.Buffer
			cmd.Stderr = &said
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Error(err)
				return
			}
			n, _ := io.Copy(io.Discard, out)
			if err := cmd.Wait(); err != nil || dir == "." && n < size {
				t.Errorf("tar of %s: %d bytes, %v: %s", dir, n, err, &said)
			}
		})
	}
	readers.Wait()
	after := k.status()
	if n := g.kills(t); n > 0 || after == nil || after.Pid != m.Pid || after.Keeper != m.Keeper || after.Restarts != 0 {
		t.Errorf("%d processes were killed: %+v", n, after)
	}
	k.run("umount", "mnt")
}

// bigPackage makes a tree as that of a large package, and gives its bytes.
func (k *keepTest) bigPackage() (size int64) {
	noise := rand.NewChaCha8([32]byte{2})
	data := make([]byte, 8<<20)
	add := func(name string, n int) {
		noise.Read(data[:n])
		k.must(os.MkdirAll(filepath.Dir(k.at(name)), 0o755))
		k.must(os.WriteFile(k.at(name), data[:n], 0o644))
		size += int64(n)
	}
	for i := range 6 {
		add(fmt.Sprintf("big/large/%d", i), len(data))
	}
	for i := range 2000 {
		add(fmt.Sprintf("big/d%d/%d", i/100, i), 1000+i*i%50_000)
	}
	return size
}

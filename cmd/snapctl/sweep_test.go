//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/snapctl/snapctl/engine"
)

// sweepTest runs commands about forks, each in a process of its own, and kills some.
type sweepTest struct {
	*keepTest // the program, and where it is started
	rand      *rand.Rand
	made      int            // forks, for names
	killed    map[string]int // by command
	shared    []string
}

func newSweepTest(t *testing.T) *sweepTest {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount without fusermount3")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no FUSE here")
	}
	dir, err := os.MkdirTemp("/dev/shm", "snapctl-sweep-")
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	k := &sweepTest{keepTest: &keepTest{T: t, dir: dir}, rand: rand.New(rand.NewPCG(seed, 0)), killed: map[string]int{}, shared: sharedForks(t)}
	k.env = append(os.Environ(), "HOME="+dir, "SNAPCTL_REPO="+dir+"/repo", "SNAPCTL_STATE_DIR="+dir+"/state", "SNAPCTL_CACHE_DIR="+dir+"/cache")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
		for _, pid := range k.processes() {
			t.Errorf("process %d is left: %s", pid, cmdline(pid))
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		noMounts(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for i := range 20 {
		k.must(os.MkdirAll(k.at(fmt.Sprintf("tree/d%d", i%3)), 0o755))
		k.must(os.WriteFile(k.at(fmt.Sprintf("tree/d%d/%d", i%3, i)), fmt.Append(nil, i), 0o644))
	}
	k.must(os.Mkdir(k.at("f"), 0o755))
	k.run("init")
	k.run("create", "--name", "app", "tree")
	return k
}

// print gives what a command prints, which must end well.
func (k *sweepTest) print(v any, args ...string) {
	k.Helper()
	out, err := k.command(append(args, "--json")...).Output()
	if err == nil {
		err = json.Unmarshal(out, v)
	}
	if err != nil {
		k.Fatalf("snapctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// kill starts a command and kills it at a moment in the time that it takes, or a little
// later. It reports whether that was before its end.
func (k *sweepTest) kill(args ...string) bool {
	k.Helper()
	cmd := k.command(args...)
	k.must(cmd.Start())
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	// A command without a server takes some 20 ms, and doctor 200.
	after := time.Duration(k.rand.Int64N(int64(50 * time.Millisecond)))
	if args[0] == "doctor" {
		after *= 4
	}
	select {
	case <-done:
	case <-time.After(after):
		_ = cmd.Process.Kill()
		<-done
	}
	if cmd.ProcessState.Exited() {
		return false
	}
	k.killed[args[0]]++
	return true
}

// forks is what the program lists.
func (k *sweepTest) forks() (all []*engine.ForkStatus) {
	k.Helper()
	k.print(&all, "forks")
	return all
}

// next gives a command that may be killed.
func (k *sweepTest) next() []string {
	forks := k.forks()
	fork := func() []string {
		k.made++
		args := []string{"fork", "--name", fmt.Sprint("n", k.made)}
		switch k.rand.IntN(5) {
		case 0:
			args = append(args, "--upper", k.at(fmt.Sprint("u", k.made)))
		case 1:
			args = append(args, "--ephemeral")
		case 2:
			if _, err := exec.LookPath("fuse-overlayfs"); err == nil {
				args = append(args, "--mode", "fuse-overlayfs")
			}
		case 3:
			if _, err := exec.LookPath("fuse-overlayfs"); err == nil {
				args = append(args, "--mode", "fuse-overlayfs", "--ephemeral")
			}
		}
		return append(args, "app", k.at(fmt.Sprint("f/", k.made)))
	}
	for len(forks) < 2 {
		k.run(fork()...)
		forks = k.forks()
	}
	f := forks[k.rand.IntN(len(forks))]
	switch n := k.rand.IntN(12); {
	case n < 4:
		return fork()
	case n < 7:
		return []string{"unfork", f.Name}
	case n == 7 && !f.Ephemeral:
		return []string{"unfork", "--keep", f.Name}
	case n == 8:
		return []string{"umount", f.Dir}
	case n == 9:
		return []string{"fork", "--resume", f.Name}
	case n == 10:
		return []string{"resume", "--all"}
	}
	return []string{"doctor"}
}

// sweeping gives a command that sweeps, whatever else it does.
func (k *sweepTest) sweeping() []string {
	k.made++
	switch k.rand.IntN(5) {
	case 0:
		return []string{"fork", "app", k.at(fmt.Sprint("f/", k.made))}
	case 1:
		if forks := k.forks(); len(forks) > 0 {
			return []string{"unfork", forks[0].Name}
		}
	case 2:
		if forks := k.forks(); len(forks) > 0 && forks[0].State == engine.ForkMounted {
			return []string{"umount", forks[0].Dir}
		}
	case 3:
		return []string{"resume"}
	}
	return []string{"doctor"}
}

// halfMade are names in the state directory that only a process at work may have.
func (k *sweepTest) halfMade() (all []string) {
	for _, pattern := range []string{"try-*", ".try*", "forks/.new-*", "forks/.gone-*", "forks/.making-*", "mounts/.new-*"} {
		names, err := filepath.Glob(k.at("state/" + pattern))
		k.must(err)
		all = append(all, names...)
	}
	return all
}

// processes are those that our commands have started, and that have not ended.
func (k *sweepTest) processes() (all []int) {
	procs, err := filepath.Glob("/proc/[0-9]*/environ")
	k.must(err)
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil || !bytes.Contains(b, []byte("SNAPCTL_STATE_DIR="+k.dir+"/state\x00")) {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(p, "/")[2]); err == nil && !ended(pid) {
			all = append(all, pid)
		}
	}
	return all
}

func cmdline(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.ReplaceAll(string(b), "\x00", " ")
}

// sharedForks are directories that forks of ordinary users, and by fuse-overlayfs, have
// in memory, whoever they belong to.
func sharedForks(t *testing.T) []string {
	names, err := filepath.Glob("/dev/shm/snapctl-fork-*")
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// eventually waits until nothing is left, and says what is.
func (k *sweepTest) eventually(what string, left func() []string) {
	k.Helper()
	var all []string
	if !await(func() bool { all = left(); return len(all) == 0 }) {
		k.Errorf("%s: %q", what, all)
	}
}

// starting are servers whose starter was killed before they served: they end.
func (k *sweepTest) starting() (all []string) {
	var mounts []*engine.MountStatus
	k.print(&mounts, "mounts")
	for _, pid := range k.processes() {
		serves := slices.ContainsFunc(mounts, func(m *engine.MountStatus) bool { return m.Pid == pid || m.Keeper == pid })
		if !serves && !strings.Contains(cmdline(pid), "fuse-overlayfs") {
			all = append(all, cmdline(pid))
		}
	}
	return all
}

// nothing checks that of all forks nothing is left.
func (k *sweepTest) nothing() {
	k.Helper()
	k.eventually("processes", func() (all []string) {
		for _, pid := range k.processes() {
			all = append(all, cmdline(pid))
		}
		return all
	})
	points, err := mountinfo.GetMounts(mountinfo.PrefixFilter(k.dir))
	k.must(err)
	for _, m := range points {
		k.Errorf("%s is mounted", m.Mountpoint)
	}
	for _, pattern := range []string{"state/*", "state/.*", "state/*/*", "state/*/.*", "f/*", "u*", "repo/leases/*/*", "cache/.doctor", ".snapctl*"} {
		names, err := filepath.Glob(k.at(pattern))
		k.must(err)
		for _, name := range names {
			rest, _ := filepath.Rel(k.dir, name)
			// What repositories were used and what was restored is remembered for good.
			dir, record := filepath.Split(rest)
			remembered := (dir == "state/used/" || dir == "state/restored/") && !strings.HasPrefix(record, ".")
			if !remembered && !slices.Contains([]string{"state/forks", "state/lower", "state/mounts", "state/kept", "state/used", "state/restored", "state/forks/.lock"}, rest) {
				k.Errorf("%s is left", rest)
			}
		}
	}
	k.eventually("in memory", func() []string {
		return slices.DeleteFunc(sharedForks(k.T), func(name string) bool { return slices.Contains(k.shared, name) })
	})
}

// TestSweep: commands about forks are killed at any moment. The next one, whichever it
// is, clears away what they were at, and in the end nothing is left of all of them.
func TestSweep(t *testing.T) {
	k := newSweepTest(t)
	kills := 15
	if *long {
		kills = 200
	}
	for done := 0; done < kills; {
		args := k.next()
		if k.kill(args...) {
			done++
		}
		k.eventually("servers that were being started", k.starting)
		next := k.sweeping()
		k.run(next...)
		if left := k.halfMade(); len(left) > 0 {
			t.Fatalf("%d: %q was killed, and %q leaves %q", done, args, next, left)
		}
	}
	for _, f := range k.forks() {
		k.run("unfork", f.Name)
	}
	kept, err := filepath.Glob(k.at("state/kept/*"))
	k.must(err)
	for _, dir := range kept { // by who asked for it
		k.run("fork", "--name", "last", "--upper", dir, "app", k.at("f/last"))
		k.run("unfork", "last")
	}
	for i := range k.made + 1 {
		if dir := k.at(fmt.Sprint("u", i)); exists(dir + "/layer.json") { // kept too
			k.run("fork", "--name", "last", "--upper", dir, "app", k.at("f/last"))
			k.run("unfork", "last")
			k.must(os.Remove(dir))
		}
	}
	k.run("doctor")
	k.nothing()
	t.Logf("killed: %v", k.killed)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

//go:build linux

package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/fusefs"
	"golang.org/x/sys/unix"
)

// unfinish makes a fork one that was being made when its process was killed, before it was
// mounted.
func (f *forked) unfinish(x *Fork) {
	f.Helper()
	must(f, unix.Unmount(x.Dir, 0))
	writeFile(f, filepath.Join(f.state, local.Forks, makingPrefix+forkKey(x.Name, x.Dir)), nil)
}

// sweep sweeps, and says what was left.
func (f *forked) sweep() string {
	f.Helper()
	swept, err := Sweep(f.Context(), f.state)
	must(f, err)
	return strings.Join(swept, "\n")
}

// absent checks that paths are not there.
func absent(t testing.TB, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
}

// TestSweepUnfinished: of a fork that was never mounted all goes, also what is outside
// of the state directory, and the mount below.
func TestSweepUnfinished(t *testing.T) {
	f := newForked(t)
	r := f.open()
	if s := f.sweep(); s != "" {
		t.Errorf("nothing was there, and swept %s", s)
	}
	for name, opts := range map[string]*ForkOptions{
		"plain": {}, "upper": {Upper: f.path("layer")}, "memory": {Ephemeral: true}, "memory, fuse": {Ephemeral: true, Mode: ForkFuse},
	} {
		if opts.Mode == ForkFuse {
			if err := TryFork(t.Context(), f.state, ForkFuse); err != nil {
				continue
			}
		}
		one := f.fork(r, "one", opts)
		f.unfinish(one)
		if s := f.sweep(); !strings.Contains(s, "fork one") || !strings.Contains(s, "the mount of snapshot") {
			t.Errorf("%s: swept %s", name, s)
		}
		absent(t, one.Dir, f.path("layer"), filepath.Dir(one.Upper))
		f.forkStates(name, map[string]ForkState{})
	}
	// A directory that was there stays, and so does what is in one that was made.
	must(t, os.Mkdir(f.path("mine"), 0o755))
	mine := f.fork(r, "mine", &ForkOptions{Upper: f.path("layer")})
	writeFile(t, f.path("layer/work"), []byte("x"))
	f.unfinish(mine)
	f.sweep()
	if b, err := os.ReadFile(f.path("layer/work")); err != nil || string(b) != "x" {
		t.Errorf("%q %v", b, err)
	}
	must(t, os.Remove(mine.Dir))
}

// TestSweepNothing: what may be of use to somebody stays.
func TestSweepNothing(t *testing.T) {
	f := newForked(t)
	r := f.open()
	forks := map[string]*Fork{}
	for _, name := range []string{"changed", "elsewhere", "boot", "mounted", "locked", "unmounted"} {
		forks[name] = f.fork(r, name, nil)
	}
	writeFile(t, forks["changed"].Dir+"/new", []byte("new"))
	for _, name := range []string{"changed", "elsewhere", "boot", "locked"} {
		f.unfinish(forks[name])
	}
	writeFile(t, filepath.Join(f.state, local.Forks, makingPrefix+forkKey("mounted", forks["mounted"].Dir)), nil)
	must(t, unix.Unmount(forks["unmounted"].Dir, 0)) // by somebody, and it was a fork
	f.rewrite("elsewhere", func(c *forkRecord) { c.Mounted = &forkPlace{Boot: bootID(), Namespace: "mnt:[1]"} })
	f.rewrite("boot", func(c *forkRecord) { c.Mounted = &forkPlace{Boot: "before", Namespace: "mnt:[1]"} })
	g, err := newForkRegistry(f.state)
	must(t, err)
	locked, err := g.find("locked")
	must(t, err)
	must(t, locked.take(t.Context()))
	if s := f.sweep(); s != "" {
		t.Errorf("swept %s", s)
	}
	f.forkStates("swept", map[string]ForkState{
		"changed": ForkDetached, "elsewhere": ForkLost, "boot": ForkLost, "mounted": ForkMounted, "locked": ForkDetached, "unmounted": ForkDetached,
	})
	left, err := filepath.Glob(filepath.Join(f.state, local.Forks, makingPrefix+"*"))
	must(t, err)
	if len(left) != 2 { // of what it cannot say anything about
		t.Error(left)
	}
	locked.close()
	// Who resumes it, or unmounts it, says that it is a fork.
	_, err = r.ResumeFork(t.Context(), "locked", nil)
	must(t, err)
	must(t, forks["locked"].Unmount(t.Context(), false))
	if b, err := os.ReadFile(forks["changed"].Upper + "/new"); err != nil || string(b) != "new" {
		t.Errorf("%q %v", b, err)
	}
	for _, x := range forks {
		_, err := x.Remove(t.Context(), &RemoveForkOptions{Force: true})
		must(t, err)
	}
}

// TestSweepKept: a fork over what another one left gives it back.
func TestSweepKept(t *testing.T) {
	f := newForked(t)
	r := f.open()
	for _, layer := range []string{"", f.path("layer")} {
		one := f.fork(r, "one", &ForkOptions{Upper: layer})
		writeFile(t, one.Dir+"/new", []byte("new"))
		kept, err := one.Remove(t.Context(), &RemoveForkOptions{Keep: true})
		must(t, err)
		f.unfinish(f.fork(r, "two", &ForkOptions{Upper: kept}))
		if s := f.sweep(); !strings.Contains(s, "fork two") {
			t.Errorf("swept %s", s)
		}
		three := f.fork(r, "three", &ForkOptions{Upper: kept})
		if b, err := os.ReadFile(three.Dir + "/new"); err != nil || string(b) != "new" {
			t.Errorf("%q %v", b, err)
		}
		f.remove(three)
	}
	if names, err := os.ReadDir(filepath.Join(f.state, local.Kept)); err != nil || len(names) > 0 {
		t.Errorf("kept: %v %v", names, err)
	}
	must(t, os.Remove(f.path("layer")))
}

// TestKeptKilled: what an unfork --keep that was killed left of the entry goes with the fork
// that had the directory last.
func TestKeptKilled(t *testing.T) {
	f := newForked(t)
	r := f.open()
	kept, err := f.fork(r, "one", nil).Remove(t.Context(), &RemoveForkOptions{Keep: true})
	must(t, err)
	writeFile(t, filepath.Join(kept, forkFileName), []byte("{}"))
	writeFile(t, filepath.Join(kept, lockName), nil)
	f.remove(f.fork(r, "two", &ForkOptions{Upper: kept}))
	absent(t, kept)
}

// TestSweepRemoved: a fork whose removal was begun is removed, with what it has elsewhere,
// but for what is another's by now.
func TestSweepRemoved(t *testing.T) {
	f := newForked(t)
	r := f.open()
	g, err := newForkRegistry(f.state)
	must(t, err)
	for _, other := range []bool{false, true} {
		layer := f.path(fmt.Sprint("layer-", other))
		one := f.fork(r, "one", &ForkOptions{Upper: layer})
		memory := f.fork(r, "memory", &ForkOptions{Ephemeral: true})
		for _, x := range []*Fork{one, memory} {
			e, err := g.find(x.Name)
			must(t, err)
			must(t, e.take(t.Context()))
			table, err := readMountTable()
			must(t, err)
			_, err = e.unmountPoint(e.pointIn(table), false)
			must(t, err)
			e.dropDir(nil)
			must(t, e.away(t.Context(), goneForkPrefix))
			e.close()
		}
		if other {
			l, err := readLayer(layer)
			must(t, err)
			l.Fork = "aaaaaaaaaaaaaaaa"
			must(t, l.write(layer, "b"))
		}
		f.sweep()
		if !other {
			absent(t, layer)
		} else if _, err := os.Stat(layer + "/upper"); err != nil {
			t.Error(err)
		}
		absent(t, one.Dir, memory.Dir)
	}
	copied := f.fork(r, "copied", &ForkOptions{Mode: ForkRestore})
	e, err := g.find("copied")
	must(t, err)
	must(t, e.take(t.Context()))
	must(t, e.away(t.Context(), goneForkPrefix))
	e.close()
	f.sweep()
	absent(t, copied.Dir)
}

// TestSweepTries: what a doctor that was killed has mounted is unmounted, but nothing of
// one that lives.
func TestSweepTries(t *testing.T) {
	f := newForked(t)
	must(t, os.MkdirAll(f.state, 0o700))
	lives, err := newTry(f.state)
	must(t, err)
	killed, err := newTry(f.state)
	must(t, err)
	old := f.state + "/" + oldTryPrefix + "123"
	for _, dir := range []string{killed.path + "/at", old} {
		must(t, os.Mkdir(dir, 0o700))
		dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
		must(t, err)
		must(t, unix.Mount("snapctl-test", dir, fusefs.FSType, 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", dev)))
		must(t, unix.Close(dev)) // it is dead
	}
	must(t, unix.Close(killed.fd))
	if s := f.sweep(); strings.Count(s, "a try in") != 2 {
		t.Errorf("swept %s", s)
	}
	absent(t, killed.path, old)
	if _, err := os.Stat(lives.path); err != nil {
		t.Error(err)
	}
	must(t, lives.remove())
	if err := TryMount(f.state); err != nil {
		t.Error(err)
	}
	if points, err := mountinfo.GetMounts(mountinfo.PrefixFilter(f.state)); len(points) > 0 || err != nil {
		t.Errorf("%v %v", points, err)
	}
}

// TestSweepLower: the mount below forks goes when the last of them was unmounted by
// somebody else, and the registry forgets what was mounted there before a restart.
func TestSweepLower(t *testing.T) {
	f := newForked(t)
	r := f.open()
	one, two := f.fork(r, "one", nil), f.fork(r, "two", nil)
	must(t, unix.Unmount(one.Dir, 0))
	if s := f.sweep(); s != "" {
		t.Errorf("swept %s, while a fork lies over it", s)
	}
	must(t, unix.Unmount(two.Dir, 0))
	if s := f.sweep(); !strings.Contains(s, f.id.String()) {
		t.Errorf("swept %s", s)
	}
	if m := f.mounts(); len(m) > 0 {
		t.Errorf("%+v", m)
	}
	f.remove(one)
	f.remove(two)
	for _, name := range []string{resumeLock, local.Mounts + "/" + f.id.String() + ".lock", local.Lowers + "/" + f.id.String() + ".lock"} {
		writeFile(t, filepath.Join(f.state, name), nil)
	}
	held, err := tryLockFile(filepath.Join(f.state, local.Mounts, "held.lock"), unix.LOCK_SH)
	must(t, err)
	f.sweep()
	absent(t, filepath.Join(f.state, resumeLock), filepath.Join(f.state, local.Mounts, f.id.String()+".lock"))
	must(t, os.Remove(held.Name())) // which is there still
	held.Close()
}

// TestSweepElsewhere: what forks lie over in another mount namespace stays mounted there.
func TestSweepElsewhere(t *testing.T) {
	f := newForked(t)
	j := f.job("one")
	must(t, os.Remove(f.path("one")))
	j.Op, j.Keep = "fork", true
	server := startKept(t, j, func(cmd *exec.Cmd) { apart(t, cmd, f.dir, "private") })
	lower := f.state + "/lower/" + f.id.String()
	there := func() bool {
		all, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", server.Process.Pid))
		must(t, err)
		return strings.Contains(string(all), " "+lower+" ")
	}
	if !there() || len(atMount(t, lower)) > 0 {
		t.Fatal("it is not mounted in another namespace alone")
	}
	if s := f.sweep(); s != "" || !there() {
		t.Errorf("swept %s, and it is mounted still: %v", s, there())
	}
	server.kill(t)
	_, err := RemoveFork(t.Context(), f.state, "one", &RemoveForkOptions{Force: true})
	must(t, err)
}

// TestEntriesSwept: an entry that is being made is not swept, and one that nobody makes
// any more is, at once.
func TestEntriesSwept(t *testing.T) {
	g := &registry{t.TempDir()}
	lives, err := g.newEntry()
	must(t, err)
	killed, err := g.newEntry()
	must(t, err)
	killed.close()
	if all, err := g.scan("", nil); len(all) > 0 || err != nil {
		t.Error(all, err)
	}
	absent(t, filepath.Join(g.dir, killed.key))
	if _, err := os.Stat(filepath.Join(g.dir, lives.key)); err != nil {
		t.Error(err)
	}
	lives.close()
}

// TestSweepFinished: a fork that is finished between the look for signs of unfinished ones
// and the look at it stays, also when the table of mounts was read before.
func TestSweepFinished(t *testing.T) {
	f := newForked(t)
	r := f.open()
	g, err := newForkRegistry(f.state)
	must(t, err)
	for _, finished := range []bool{true, false} {
		s := &sweeper{g: g}
		_, err = s.mounts()
		must(t, err)
		one := f.fork(r, "one", nil)
		key := forkKey(one.Name, one.Dir)
		if !finished { // as while it is being made
			writeFile(t, g.making(key), nil)
		}
		s.unfinished(t.Context(), key)
		if len(s.swept) > 0 || len(s.errs) > 0 {
			t.Errorf("finished %v: swept %q, errors %v", finished, s.swept, s.errs)
		}
		f.check("one")
		f.remove(one)
	}
}

// TestForkNamesLocked: who waits until others have named their forks stops when they are told
// to, and leaves nothing; a fork that was to be removed can be.
func TestForkNamesLocked(t *testing.T) {
	f := newForked(t)
	r := f.open()
	one := f.fork(r, "one", nil)
	lock, err := tryLockFile(filepath.Join(f.state, local.Forks, forksLock), unix.LOCK_EX)
	must(t, err)
	if lock == nil {
		t.Fatal("somebody else has the lock")
	}
	// With more time each, until it is the lock that they wait for.
	waits := func(do func(context.Context) error) {
		for patience := 20 * time.Millisecond; ; patience *= 2 {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			err := do(ctx)
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			if strings.Contains(err.Error(), forksLock) {
				return
			}
		}
	}
	waits(func(ctx context.Context) error {
		_, err := r.Fork(ctx, f.id.String(), f.path("two"), nil)
		return err
	})
	waits(func(ctx context.Context) error {
		_, err := one.Remove(ctx, nil)
		return err
	})
	absent(t, f.path("two"))
	must(t, lock.Close())
	f.remove(one)
	if s := f.sweep(); s != "" {
		t.Errorf("left: %s", s)
	}
}

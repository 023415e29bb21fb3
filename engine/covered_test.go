//go:build linux

package engine

import (
	"errors"
	"os"
	"testing"

	"github.com/snapctl/snapctl/fusefs"
	"golang.org/x/sys/unix"
)

// cover mounts a tmpfs at a directory, with a directory and a file in it, and gives what takes
// it away again.
func cover(t *testing.T, dir, below string) (uncover func()) {
	t.Helper()
	must(t, unix.Mount("other", dir, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	must(t, os.MkdirAll(below, 0o755))
	writeFile(t, below+"/other", nil)
	return func() {
		t.Helper()
		if _, err := os.Lstat(below + "/other"); err != nil {
			t.Errorf("what was mounted over it: %v", err)
		}
		must(t, unix.Unmount(dir, 0))
	}
}

// TestForkUnderMount: a fork over which something else is mounted, or over a directory above
// it, is in use, and what lies over it is neither taken for the fork nor unmounted.
func TestForkUnderMount(t *testing.T) {
	forModes(t, func(t *testing.T, f *forked, mode ForkMode) {
		r := f.open()
		must(t, os.Mkdir(f.path("above"), 0o755))
		one := f.fork(r, "above/one", &ForkOptions{Mode: mode})
		writeFile(t, one.Dir+"/new", []byte("new"))
		for _, dir := range []string{one.Dir, f.path("above")} {
			if mode == ForkFuse && mountNumber("/") == 0 && dir == one.Dir {
				continue
			}
			uncover := cover(t, dir, one.Dir)
			f.forkStates(dir, map[string]ForkState{"one": ForkCovered})
			if s := f.sweep(); s != "" {
				t.Errorf("swept %s", s)
			}
			_, removed := one.Remove(t.Context(), nil)
			_, forced := one.Remove(t.Context(), &RemoveForkOptions{Force: true, Keep: true})
			_, resumed := r.ResumeFork(t.Context(), "one", nil)
			for _, err := range []error{removed, forced, resumed, one.Unmount(t.Context(), false), one.Unmount(t.Context(), true)} {
				if !errors.Is(err, fusefs.ErrBusy) {
					t.Errorf("%s: %v", dir, err)
				}
			}
			if n, points := f.mountsOf(one), f.mounts(); n != 1 || len(points) != 1 {
				t.Errorf("it is mounted %d times, over %+v", n, points)
			}
			if x := r.forkAt(one.Dir); x != nil {
				t.Errorf("what is over it is taken for the fork: %+v", x)
			}
			if o, _ := r.overlayOf(one.Dir); o != nil {
				t.Errorf("what is over it is taken for the fork: %+v", o)
			}
			if x, err := r.forkFor(one.Dir); x != nil || err != nil {
				t.Errorf("a restore to what is over it would find %+v %v", x, err)
			}
			uncover()
			f.forkStates("uncovered", map[string]ForkState{"one": ForkMounted})
			if b, err := os.ReadFile(one.Dir + "/new"); err != nil || string(b) != "new" {
				t.Errorf("%q %v", b, err)
			}
		}
		f.remove(one)
		must(t, os.Remove(f.path("above")))
	})
}

// TestMountUnderMount: so is the mount of a snapshot.
func TestMountUnderMount(t *testing.T) {
	s := newShared(t)
	must(t, os.Mkdir(s.path("above"), 0o755))
	server := startServer(t, s.job("above/mnt"), nil)
	mnt := s.path("above/mnt")
	for _, dir := range []string{mnt, s.path("above")} {
		uncover := cover(t, dir, mnt)
		s.states(dir, map[string]MountState{"above/mnt": MountCovered})
		for _, detach := range []bool{false, true} {
			if err := Unmount(t.Context(), s.state, mnt, &UnmountOptions{Detach: detach}); !errors.Is(err, fusefs.ErrBusy) {
				t.Error(err)
			}
		}
		r := s.open()
		must(t, os.MkdirAll(s.path("second"), 0o755))
		m, err := r.Mount(t.Context(), s.id.String(), s.path("second"), &MountOptions{Share: true})
		must(t, err)
		s.check("second")
		must(t, m.Unmount(false))
		uncover()
		s.states("uncovered", map[string]MountState{"above/mnt": MountServing})
		s.check("above/mnt")
	}
	must(t, Unmount(t.Context(), s.state, mnt, nil))
	waitEnd(t, "the server", server.ended)
}

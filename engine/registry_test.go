//go:build linux

package engine

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// breakFile lets every read of a file fail with EIO, until it is mended.
func breakFile(t *testing.T, path string) (mend func()) {
	t.Helper()
	// Memory where nothing is mapped, which the kernel shows as a regular file.
	must(t, unix.Mount("/proc/self/mem", path, "", unix.MS_BIND, ""))
	mended := false
	mend = func() {
		if !mended {
			mended = true
			must(t, unix.Unmount(path, 0))
		}
	}
	t.Cleanup(mend)
	return mend
}

// TestRegistryUnreadable: an entry that cannot be read is no garbage, and said to be
// there; others are listed all the same.
func TestRegistryUnreadable(t *testing.T) {
	s := newShared(t)
	startServer(t, s.job("dead"), nil).kill(t)
	s.states("killed", map[string]MountState{"dead": MountDead})
	records, err := filepath.Glob(s.state + "/mounts/*/" + recordName)
	if len(records) != 1 || err != nil {
		t.Fatal(records, err)
	}
	mend := breakFile(t, records[0])
	for range 2 {
		all, err := Mounts(t.Context(), s.state)
		if !errors.Is(err, unix.EIO) || len(all) == 0 {
			t.Errorf("%d mounts, %v", len(all), err)
		}
	}
	mend()
	s.states("mended", map[string]MountState{"dead": MountDead})
	must(t, Unmount(t.Context(), s.state, s.path("dead"), nil))

	must(t, os.Rename(s.state+"/mounts", s.state+"/elsewhere"))
	writeFile(t, s.state+"/mounts", nil)
	if _, err := Mounts(t.Context(), s.state); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a registry that cannot be read: %v", err)
	}
	must(t, os.Remove(s.state+"/mounts"))
}

// TestForksUnreadable: likewise of forks.
func TestForksUnreadable(t *testing.T) {
	f := newForked(t)
	r := f.open()
	one, two := f.fork(r, "one", nil), f.fork(r, "two", nil)
	mend := breakFile(t, filepath.Join(filepath.Dir(one.Upper), forkFileName))
	all, err := Forks(t.Context(), f.state)
	if !errors.Is(err, unix.EIO) || len(all) != 1 {
		t.Errorf("%d forks, %v", len(all), err)
	}
	if _, err := one.Remove(t.Context(), nil); !errors.Is(err, unix.EIO) {
		t.Errorf("removed: %v", err)
	}
	// What it lies over stays.
	if _, err := two.Remove(t.Context(), nil); !errors.Is(err, unix.EIO) {
		t.Errorf("the snapshot was unmounted: %v", err)
	}
	if len(f.mounts()) != 1 {
		t.Errorf("%+v", f.mounts())
	}
	mend()
	must(t, os.Rename(f.state+"/forks", f.state+"/elsewhere"))
	writeFile(t, f.state+"/forks", nil)
	if all, err := Forks(t.Context(), f.state); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("%v %v", all, err)
	}
	if err := Unmount(t.Context(), f.state, one.Dir, nil); !errors.Is(err, unix.ENOTDIR) {
		t.Error(err)
	}
	must(t, os.Remove(f.state+"/forks"))
	must(t, os.Rename(f.state+"/elsewhere", f.state+"/forks"))
	f.remove(one)
}

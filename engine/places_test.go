//go:build linux

package engine

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// TestPlaceOfCovered: the topmost of the mounts at a path is not always the last of the table:
// a mount can be put beneath another one.
func TestPlaceOfCovered(t *testing.T) {
	root := &mountinfo.Info{ID: 1, Parent: 1, Minor: 1, Root: "/", Mountpoint: "/"}
	top := &mountinfo.Info{ID: 2, Parent: 3, Minor: 2, Root: "/", Mountpoint: "/m"}
	beneath := &mountinfo.Info{ID: 3, Parent: 1, Minor: 3, Root: "/", Mountpoint: "/m"}
	hidden := &mountinfo.Info{ID: 4, Parent: 3, Minor: 4, Root: "/", Mountpoint: "/m/d"}
	for _, table := range [][]*mountinfo.Info{{root, top, beneath, hidden}, {root, beneath, hidden, top}} {
		for path, minor := range map[string]int{"/m": 2, "/m/d/f": 2, "/n": 1} {
			if p, ok := placeOf(uncovered(table), path); !ok || p.minor != minor {
				t.Errorf("%s is on %d, %v", path, p.minor, ok)
			}
		}
	}
}

// TestLockFileNames: who does not get a lock is told who has it.
func TestLockFileNames(t *testing.T) {
	path := t.TempDir() + "/lock"
	f, err := lockFile(t.Context(), path, unix.LOCK_EX)
	must(t, err)
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = lockFile(ctx, path, unix.LOCK_EX)
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), ", which is held by process ") {
		t.Error(err)
	}
}

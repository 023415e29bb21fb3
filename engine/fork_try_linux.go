package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/fusefs"
	"golang.org/x/sys/unix"
)

// A tryDir is a directory in the state directory in which something is tried for real.
// It is locked: what is in one that nobody has locked was left by a process that was
// killed, and sweep removes it.
type tryDir struct {
	path string
	fd   int
}

const (
	tryPrefix = "try-" // digits follow
	// oldTryPrefix is what tries of mounts were called once: mount points.
	oldTryPrefix = ".try-fuse-"
)

func newTry(stateDir string) (*tryDir, error) {
	if err := makeState(stateDir); err != nil {
		return nil, err
	}
	dir, err := fsys.Resolve(stateDir) // as the kernel's table has it
	if err != nil {
		return nil, err
	}
	fd, name, err := fsys.MakeLocked(dir, tryPrefix)
	if err != nil {
		return nil, err
	}
	return &tryDir{filepath.Join(dir, name), fd}, nil
}

// end removes the directory. What is the matter with that is told unless the try itself
// has failed, for the same reason most likely.
func (t *tryDir) end(err *error) {
	if rerr := t.remove(); *err == nil {
		*err = rerr
	}
}

// remove unmounts what is mounted in the directory, and removes it.
func (t *tryDir) remove() error {
	defer unix.Close(t.fd)
	table, err := readMountTable()
	if err != nil {
		return err
	}
	if err := unmountBelow(table, t.path); err != nil {
		return err
	}
	return fsys.RemoveTree(t.path)
}

// unmountBelow detaches what is mounted below a path.
func unmountBelow(table *mountTable, path string) error {
	var below []string
	for at := range table.paths {
		if strings.HasPrefix(at, path+"/") {
			below = append(below, at)
		}
	}
	slices.Sort(below)
	for _, at := range slices.Backward(below) {
		if err := fusefs.UnmountAt(at, true); err != nil {
			return err
		}
	}
	return nil
}

// TryMount tries whether this process can mount snapshots, and unmount them, in a state
// directory, and says why not. It leaves nothing.
func TryMount(stateDir string) (err error) {
	g, err := newForkRegistry(stateDir)
	if err != nil {
		return err
	}
	s := &sweeper{g: g}
	s.tries()
	if err := errors.Join(s.errs...); err != nil {
		return err // one is enough
	}
	t, err := newTry(stateDir)
	if err != nil {
		return err
	}
	defer t.end(&err)
	at := filepath.Join(t.path, "at")
	if err := os.Mkdir(at, 0o700); err != nil {
		return err
	}
	return fusefs.Usable(at)
}

// TryFork tries whether a mode of forks works for this process, with what is changed
// in a state folder, and says why not. It needs no snapshot, and leaves nothing.
func TryFork(ctx context.Context, stateDir string, mode ForkMode) (err error) {
	if mode == ForkFuse {
		// It leaves a process if it cannot be unmounted.
		if err := TryMount(stateDir); err != nil {
			return err
		}
	}
	t, err := newTry(stateDir)
	if err != nil {
		return err
	}
	defer t.end(&err)
	if mode == ForkRestore {
		return nil
	}
	dir := t.path
	o := &overlayMount{
		source: "snapctl-test", lower: dir + "/lower", upper: dir + "/upper", work: dir + "/work", user: mode == ForkUserOverlay,
	}
	for _, d := range []string{o.lower + "/moved", o.upper, o.work, dir + "/at"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if mode == ForkFuse {
		return tryFuseOverlay(ctx, o, dir+"/at")
	}
	if err := o.writable(); err != nil {
		return err
	}
	// Nowhere does it have a mount point: it is gone with the descriptor.
	fd, err := o.open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Mkdirat(fd, "made", 0o755); err != nil {
		return fmt.Errorf("making a directory in an overlay: %w", err)
	}
	if mode == ForkOverlay {
		if err := unix.Renameat(fd, "moved", fd, "elsewhere"); err != nil {
			return fmt.Errorf("moving a directory in an overlay: %w", err)
		}
	}
	return nil
}

func tryFuseOverlay(ctx context.Context, o *overlayMount, at string) error {
	e := &forkEntry{rec: &forkRecord{Mode: ForkFuse, Dir: rawPath(at), Mounted: placeHere()}}
	if err := e.mountFuse(ctx, o); err != nil {
		return err
	}
	return os.Mkdir(filepath.Join(at, "made"), 0o755)
}

// FindFork gives the fork that is named by its name or its directory. It fails with
// ErrNoFork.
func FindFork(stateDir, nameOrDir string) (*Fork, error) {
	g, err := newForkRegistry(stateDir)
	if err != nil {
		return nil, err
	}
	e, err := g.find(nameOrDir)
	if err != nil {
		return nil, err
	}
	defer e.close()
	return e.fork(), nil
}

const resumeLock = "resume.lock"

// LockResume waits until nobody else of this state folder brings mounts back, so that
// none is mounted twice. Forks need no such care.
func LockResume(ctx context.Context, stateDir string) (unlock func(), err error) {
	if err := makeState(stateDir); err != nil {
		return nil, err
	}
	f, err := lockFile(ctx, filepath.Join(stateDir, resumeLock), unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	return func() { os.Remove(f.Name()); f.Close() }, nil
}

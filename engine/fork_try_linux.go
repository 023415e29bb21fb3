package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/snapctl/snapctl/fusefs"
	"golang.org/x/sys/unix"
)

// TryFork tries whether a mode of forks works for this process, with what is changed
// in a state folder, and says why not. It needs no snapshot, and leaves nothing.
func TryFork(ctx context.Context, stateDir string, mode ForkMode) error {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(stateDir, "try-")
	if err != nil {
		return err
	}
	defer removeTree(dir)
	if mode == ForkRestore {
		return nil
	}
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
	var err error
	if e.rec.Dir, err = resolved(at); err != nil {
		return err
	}
	if err := e.mountFuse(ctx, o); err != nil {
		return err
	}
	err = os.Mkdir(filepath.Join(at, "made"), 0o755)
	return errors.Join(err, fusefs.UnmountAt(string(e.rec.Dir), true))
}

func resolved(dir string) (rawPath, error) {
	path, err := fusefs.Resolve(dir)
	return rawPath(path), err
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

// LockResume waits until nobody else of this state folder brings mounts back, so that
// none is mounted twice. Forks need no such care.
func LockResume(ctx context.Context, stateDir string) (unlock func(), err error) {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return nil, err
	}
	f, err := lockFile(ctx, filepath.Join(stateDir, "resume.lock"), unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	return func() { os.Remove(f.Name()); f.Close() }, nil
}

package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/fusefs"
	"golang.org/x/sys/unix"
)

// How the entry of a fork ends. First it gets a name that is no fork's, then what
// belongs to it is removed. Whoever is killed in between leaves the rest to sweep. The
// caller of all these has the lock.

// making is the file that is there until a fork is mounted for the first time.
func (g *forkRegistry) making(key string) string { return filepath.Join(g.dir, makingPrefix+key) }

// finished says that the fork is one. What cannot be removed sweep removes.
func (e *forkEntry) finished() { os.Remove(e.g.making(e.key)) }

// lockNames waits until nobody else gives a fork its name, or takes it, for a minute at most.
func (g *forkRegistry) lockNames(ctx context.Context) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, serverPatience)
	defer cancel()
	return lockFile(ctx, filepath.Join(g.dir, forksLock), unix.LOCK_EX)
}

// away takes the fork's name and directory from the entry.
func (e *forkEntry) away(ctx context.Context, prefix string) error {
	e.claim() // or somebody removes it by its new name already, which is as well
	naming, err := e.g.lockNames(ctx)
	if err != nil {
		return err
	}
	defer naming.Close()
	key := prefix + e.rec.ID
	if err := os.Rename(e.folder(), filepath.Join(e.g.dir, key)); err != nil {
		return err
	}
	e.finished()
	e.key = key
	return nil
}

// discard removes an entry, and nothing outside of it.
func (e *forkEntry) discard(ctx context.Context) error {
	if strings.HasPrefix(e.key, newPrefix) { // it has no fork's name yet
		return fsys.RemoveTree(e.folder())
	}
	if err := e.away(ctx, newPrefix); err != nil {
		return err
	}
	return fsys.RemoveTree(e.folder())
}

// end removes an entry, and what the fork changed.
func (e *forkEntry) end(ctx context.Context) error {
	if err := e.away(ctx, goneForkPrefix); err != nil {
		return err
	}
	return e.finish()
}

// finish does what is left to do of end.
func (e *forkEntry) finish() error {
	if err := e.dropMemory(); err != nil {
		return err
	}
	if err := e.dropLayer(); err != nil {
		return err
	}
	if e.rec.Mode == ForkRestore && e.copyThere() {
		if err := checkMounts(string(e.rec.Dir)); err != nil {
			return err
		}
		if err := fsys.RemoveTree(string(e.rec.Dir)); err != nil {
			return err
		}
	}
	return fsys.RemoveTree(e.folder())
}

// dropMemory forgets what an ephemeral fork changed.
func (e *forkEntry) dropMemory() error {
	dir := filepath.Join(e.folder(), memoryName)
	if mounted, err := mountinfo.Mounted(dir); err != nil || !mounted {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	}
	return fusefs.UnmountAt(dir, true)
}

// readyToEnd reports what keep or end would fail at, before anything is done.
func (e *forkEntry) readyToEnd(keep bool) error {
	if e.rec.Layer == "" {
		if !keep {
			return nil
		}
		return os.MkdirAll(filepath.Join(e.g.state, local.Kept), 0o700)
	}
	ours, err := e.layerOurs()
	if err != nil || !ours {
		return err // what is not ours is left alone
	}
	if err := unix.Access(string(e.rec.Layer), unix.W_OK|unix.X_OK); err != nil {
		return &os.PathError{Op: "access", Path: string(e.rec.Layer), Err: err}
	}
	return nil
}

// layerOurs reports whether layer.json says that the directory of upper is this
// fork's. It is outside of our own: what is there may be somebody else's by now.
func (e *forkEntry) layerOurs() (bool, error) {
	there, err := readLayer(string(e.rec.Layer))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s: %s: %w", e.rec.Layer, layerFileName, err)
	}
	return there.Fork == e.rec.ID, nil
}

// dropLayer removes what is the fork's of a directory outside of the state directory.
func (e *forkEntry) dropLayer() error {
	dir := string(e.rec.Layer)
	if dir == "" {
		return nil
	}
	if err := os.Remove(layerTemp(dir, e.rec.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ours, err := e.layerOurs()
	if err != nil {
		return err
	}
	if ours {
		err = removeLayer(dir, e.rec.Works)
	}
	if err == nil && e.rec.MadeLayer {
		if e.g.keeps(dir) {
			forgetEntry(dir)
		}
		os.Remove(dir) // unless somebody put something there
	}
	return err
}

// keepLayer leaves the directory of upper to another fork.
func (e *forkEntry) keepLayer(dir string) error {
	l := &layerRecord{
		Version: forkVersion, Repository: e.rec.Repository, Snapshot: e.rec.Snapshot.ID, Mode: e.rec.Mode,
		Works: e.rec.Works, // which may be in use still, if it was detached
	}
	return l.write(dir, e.rec.ID)
}

// giveBack undoes mark: layer.json says what it said before.
func (e *forkEntry) giveBack(dir string) error {
	if e.rec.Took == nil { // of an earlier version
		return e.keepLayer(dir)
	}
	for _, name := range e.rec.Works {
		if slices.Contains(e.rec.Took.Works, name) {
			continue
		}
		if err := fsys.RemoveTree(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return e.rec.Took.write(dir, e.rec.ID)
}

// dropDir makes the directory of a fork that is unmounted what it was, or removes it if it
// was made for it, and nobody put anything there. One that is another fork's as well stays.
// It warns if it cannot find it.
func (e *forkEntry) dropDir(warn func(error)) error {
	if e.rec.Mode == ForkRestore || e.rec.Bare == nil { // it is a copy, or was never guarded
		return e.dropUnknownDir()
	}
	if e.sharesBare() {
		return nil
	}
	found := false
	for _, dir := range []string{e.where(), string(e.rec.Dir)} {
		is, err := e.unguard(dir)
		if err != nil {
			return err
		}
		if is && e.rec.MadeDir {
			os.Remove(dir)
		}
		found = found || is
	}
	if found {
		return nil
	}
	return e.dropMoved(warn)
}

// dropUnknownDir is dropDir where nothing tells the directory from others but its path, and
// its guard: an earlier version did not write down what it had made.
func (e *forkEntry) dropUnknownDir() error {
	if !e.rec.MadeDir {
		return nil
	}
	for _, dir := range []string{e.where(), string(e.rec.Dir)} {
		is := false
		if e.rec.Mode != ForkRestore {
			var err error
			if is, err = e.unguard(dir); err != nil {
				return err
			}
		}
		if is || dir == string(e.rec.Dir) {
			os.Remove(dir)
		}
	}
	return nil
}

// undo removes what was made of a fork that came to nothing.
func (e *forkEntry) undo(ctx context.Context) error {
	if err := e.dropDir(nil); err != nil {
		return err
	}
	if e.rec.Mode == ForkRestore {
		sweepBeside(string(e.rec.Dir))
	}
	if e.rec.TookLayer {
		ours, err := e.layerOurs()
		if err == nil && ours {
			err = e.giveBack(string(e.rec.Layer))
		}
		if err != nil {
			return err
		}
	}
	return e.end(ctx)
}

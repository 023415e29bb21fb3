package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"golang.org/x/sys/unix"
)

// The directory beneath a fork keeps its guard when a directory above it is renamed. While
// the fork is mounted its mount tells where that is; else the file system does.

// A dirHandle is what a file system knows a directory by, whatever its path: see
// name_to_handle_at(2).
type dirHandle struct {
	Type  int32  `json:"type"`
	Bytes []byte `json:"bytes"`
}

// handleOf gives nil where the file system has none, as most overlays.
func handleOf(f *os.File) *dirHandle {
	h, _, err := unix.NameToHandleAt(int(f.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return nil
	}
	return &dirHandle{h.Type(), h.Bytes()}
}

// openBelow opens the directory, if it is on the file system that another is on. The caller
// looks whether it is the one: another file system may have one of that handle.
func (h *dirHandle) openBelow(dir string) (*os.File, error) {
	at, err := fsys.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	defer unix.Close(at)
	fd, err := unix.OpenByHandleAt(at, unix.NewFileHandle(h.Type, h.Bytes), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("open_by_handle_at", err)
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// movedBare opens the directory beneath the fork, which is not at its path, where it is by
// now. It gives nil if it is no more. It looks on the file systems of the directories above
// its path: whoever renamed one of them has not left that.
func (e *forkEntry) movedBare() (*os.File, error) {
	was := e.rec.Bare
	if was == nil {
		return nil, nil
	}
	if was.Handle == nil {
		return nil, errors.New("its file system does not tell where it is")
	}
	for dir := filepath.Dir(string(e.rec.Dir)); ; dir = filepath.Dir(dir) {
		f, err := was.Handle.openBelow(dir)
		if errors.Is(err, unix.EPERM) {
			return nil, err // only root may
		}
		if err == nil {
			now := &bareDir{}
			if err = now.stat(f); err == nil && now.forkCopy == was.forkCopy {
				return f, nil
			}
			f.Close()
		}
		if dir == "/" {
			return nil, nil
		}
	}
}

// dropMoved makes the directory beneath the fork what it was, wherever it was moved to, and
// removes it if it was made for the fork. It warns if it cannot find that. The caller knows
// that it is no other fork's as well.
func (e *forkEntry) dropMoved(warn func(error)) error {
	f, err := e.movedBare()
	if err != nil {
		if warn != nil {
			warn(fmt.Errorf("the directory %s is not there any more: %w; if it was moved nobody can write to it: chattr -i DIR and chmod %o DIR undo that", e.rec.Dir, err, e.rec.Bare.Mode))
		}
		return nil
	}
	if f == nil {
		return nil
	}
	defer f.Close()
	if err := e.rec.Bare.restore(f); err != nil {
		return err
	}
	if !e.rec.MadeDir {
		return nil
	}
	if there, err := openBare(f.Name()); err == nil {
		defer there.Close()
		now := &bareDir{}
		if err := now.stat(there); err == nil && now.forkCopy == e.rec.Bare.forkCopy {
			os.Remove(f.Name()) // unless somebody put something there
		}
	}
	return nil
}

// A MovedFork is a fork that is not mounted, and whose directory somebody moved. It stays
// guarded, and is what it was when the fork is resumed or removed.
type MovedFork struct {
	Name string
	Dir  string // of the fork
	Now  string // where that directory is
}

// MovedForks gives the forks of a state folder of which that is known.
func MovedForks(stateDir string) (moved []MovedFork, err error) {
	g, err := newForkRegistry(stateDir)
	if err != nil {
		return nil, err
	}
	table, err := readMountTable()
	if err != nil {
		return nil, err
	}
	entries, err := g.all()
	for _, e := range entries {
		if now := e.movedTo(table); now != "" {
			moved = append(moved, MovedFork{e.rec.Name, string(e.rec.Dir), now})
		}
		e.close()
	}
	return moved, err
}

// movedTo is where the directory of a fork was moved to that is not mounted; "" if it was
// not, or if that is not known.
func (e *forkEntry) movedTo(t *mountTable) string {
	if e.rec.Bare == nil || e.rec.Mode == ForkRestore || e.mountedIn(t) {
		return ""
	}
	f, err := e.bare(string(e.rec.Dir), false)
	if f == nil && (err == nil || errors.Is(err, fs.ErrPermission)) {
		f, err = e.movedBare()
	}
	if f == nil || err != nil {
		return ""
	}
	defer f.Close()
	if f.Name() == string(e.rec.Dir) {
		return ""
	}
	return f.Name()
}

package engine

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// Where the target is written in place, something may be in the way of an entry: a
// directory that is not empty, a mount, or permissions. Not all of it can be known before.
// So it is a problem of that entry: it stays as it is, the rest is restored, and nothing
// that depends on it is done.

// errNotEmpty says it of the one obstacle that the caller's options could remove.
var errNotEmpty = errors.New("a directory that is not empty is in its place: empty it, or delete what the snapshot does not hold (--delete)")

// inTheWay reports whether an error is about what is in one place of the target, and not
// about the target as a whole or the repository.
func (x *restorer) inTheWay(err error) bool {
	return !x.fresh && !fsys.IsAny(err, snapshot.ErrIntegrity, fsys.ErrSameName) &&
		fsys.IsAny(err, unix.EACCES, unix.EPERM, unix.ENOTEMPTY, unix.EEXIST, unix.EBUSY, unix.EXDEV, unix.EROFS, unix.ETXTBSY)
}

// leave notes an entry that cannot take its place. What is no obstacle it gives back.
func (x *restorer) leave(e *manifest.Entry, err error) error {
	if !x.inTheWay(err) {
		return err
	}
	if !x.skip(e) {
		return nil
	}
	if errors.Is(err, unix.ENOTEMPTY) {
		err = errNotEmpty
	}
	x.problem(fmt.Errorf("restoring %s %q: %w", e.Type, e.Path(), err))
	return nil
}

// skip notes that an entry is not made. It reports whether that was not known.
func (x *restorer) skip(e *manifest.Entry) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	key := cloneKey(e.Key())
	if x.plan.skipped[key] {
		return false
	}
	x.plan.skipped[key] = true
	if e.Type == manifest.Dir {
		x.plan.absent[key.Path()] = true
	} else {
		x.left.files++
		x.left.bytes += int64(e.Size)
	}
	return true
}

// below reports whether an entry lies in a directory that was not made, and skips it.
func (x *restorer) below(e *manifest.Entry) bool {
	if !x.plan.absent[e.Dir] {
		return false
	}
	x.skip(&manifest.Entry{Dir: e.Dir, Name: e.Name, Type: e.Type}) // its bytes are not in the plan
	return true
}

// openUp lets this user write into a directory of theirs that is in the target already,
// until it is finished. path is below the target's root.
func (t *target) openUp(parent int, name, path string, st *unix.Stat_t) error {
	if st.Mode&0o700 == 0o700 || os.Geteuid() == 0 || fsys.Foreign(st) {
		return nil
	}
	// It is no link: that was looked at.
	mode := uint32(st.Mode) & manifest.PermMask
	if err := unix.Fchmodat(parent, name, mode|0o700, 0); err != nil {
		return err
	}
	if t.opened == nil {
		t.opened = map[string]uint32{}
	}
	t.opened[strings.Clone(path)] = mode
	return nil
}

// finished is called when a directory has its own metadata.
func (t *target) finished(path string) { delete(t.opened, path) }

// closeAgain gives the directories that were opened, and not finished, the modes that they
// had. They are in the directory that was there.
func (t *target) closeAgain() {
	paths := make([]string, 0, len(t.opened))
	for path := range t.opened {
		paths = append(paths, path)
	}
	slices.SortFunc(paths, func(a, b string) int { return manifest.ComparePaths(b, a) })
	for _, path := range paths {
		if fd, err := fsys.OpenBelow(t.old, path, unix.O_RDONLY|unix.O_DIRECTORY); err == nil {
			_ = unix.Fchmod(fd, t.opened[path])
			unix.Close(fd)
		}
	}
	t.opened = nil
}

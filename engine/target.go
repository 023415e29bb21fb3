package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote/disk"
	"golang.org/x/sys/unix"
)

// target is the directory that a restore writes to.
type target struct {
	path string // absolute, without symbolic links
	how  targetMode
	why  string // it is targetInto although nobody asked for that; else ""
	old  int    // file descriptor of the directory that was at path, locked; -1 for none
	root int    // file descriptor of the directory that is written to

	fresh      bool // root is a new directory, which nobody knows of until commit
	mountPoint bool // something is mounted at path
	whole      bool // in the end it holds nothing but what was restored

	was      unix.Stat_t // of the directory that is changed, before that
	replaced int64       // entries of the directory that another one takes the place of

	temp string // the path of root, if commit puts it, or what is in it, in its place
	late error  // what went wrong when the new tree was in place already

	// Where root is path itself: a directory in it for files that are not whole yet.
	working  sync.Mutex
	work     int // -1 as long as there are none
	workName string
	folding  *fsys.Folding     // what was put there, if the file system folds names
	opened   map[string]uint32 // directories that let us write for a while, and their modes
}

// A targetMode is how a target comes to hold what is restored.
type targetMode uint8

const (
	// targetNew: nothing is there. A new directory beside it is renamed.
	targetNew targetMode = iota
	// targetFill: an empty directory is there, and stays. What is made in a directory
	// in it is moved up when it is whole.
	targetFill
	// targetSwap: a new directory beside it takes the place of one that is there.
	targetSwap
	// targetInto: what is there is changed.
	targetInto
)

// errTargetCame: something is at the target that was not there when the restore began.
var errTargetCame = fmt.Errorf("%w: something was put there meanwhile; run the same command again", snapshot.ErrExists)

// open opens or makes the directory that is written to, as how says.
func (t *target) open() error {
	t.fresh = t.how != targetInto
	switch t.how {
	case targetInto:
		t.root = t.old
		return t.openInto()
	case targetFill:
		if err := unix.Fstat(t.old, &t.was); err != nil {
			return err
		}
		if err := t.openUp(t.old, ".", "", &t.was); err != nil {
			return err
		}
		return t.makeRoot(t.path, tempPrefix)
	}
	parent, prefix := beside(t.path)
	if err := os.MkdirAll(parent, 0o777); err != nil {
		return err
	}
	sweep(parent, prefix)
	return t.makeRoot(parent, prefix)
}

// openInto prepares for changing the directory that is there.
func (t *target) openInto() error {
	if err := unix.Fstat(t.root, &t.was); err != nil {
		return err
	}
	if err := t.openUp(t.root, ".", "", &t.was); err != nil {
		return err
	}
	return t.findFolding()
}

// makeRoot makes the directory that is written to.
func (t *target) makeRoot(parent, prefix string) error {
	fd, name, err := fsys.MakeLocked(parent, prefix)
	if err != nil {
		return err
	}
	t.root, t.temp = fd, filepath.Join(parent, name)
	return fsys.DropDefaultACL(fd)
}

// beginWork makes the directory for unfinished files, when there is the first: a target
// in which nothing has to be changed is left alone.
func (t *target) beginWork() (err error) {
	t.working.Lock()
	defer t.working.Unlock()
	if t.work >= 0 {
		return nil
	}
	work, name, err := fsys.MakeLocked(t.path, tempPrefix)
	if err != nil {
		return err
	}
	t.work, t.workName = work, name
	return fsys.DropDefaultACL(t.work)
}

// checkMounts refuses to delete a tree in which something is mounted: what is
// there belongs to somebody else.
func checkMounts(path string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(path))
	if err != nil {
		return fmt.Errorf("reading the mounts: %w", err)
	}
	for _, m := range mounts {
		if m.Mountpoint != path {
			return fmt.Errorf("%w: %s is mounted in it, and would be deleted; unmount it first", snapshot.ErrExists, m.Mountpoint)
		}
	}
	return nil
}

// beside is where directories are made that are to take a path, and how their names
// begin: with enough of its name to tell whose they are.
func beside(path string) (parent, prefix string) {
	parent, base := filepath.Split(path)
	return parent, tempPrefix + base[:min(len(base), 128)] + "-"
}

// sweepBeside removes what restores to a path that were killed have left beside it.
func sweepBeside(path string) { sweep(beside(path)) }

// commit puts what was made in the target's place, in one step; in an empty directory,
// as fast as it can.
func (t *target) commit() error {
	var err error
	switch t.how {
	case targetInto:
		return nil
	case targetFill:
		return t.promote()
	case targetSwap:
		return t.swap()
	}
	err = fsys.RenameNew(t.temp, t.path)
	if fsys.IsAny(err, unix.EEXIST, unix.ENOTEMPTY) {
		return errTargetCame
	}
	if err != nil {
		return &os.LinkError{Op: "putting in place", Old: t.temp, New: t.path, Err: err}
	}
	t.temp = ""
	return nil
}

// swap exchanges the new tree and the old one, which close removes.
func (t *target) swap() error {
	if err := checkMounts(t.path); err != nil {
		return err // it came while we worked
	}
	// The old tree is about to go: the new one must outlive a power cut.
	if err := fsys.SyncFileSystem(t.root); err != nil {
		return fmt.Errorf("syncing: %w", err)
	}
	if !fsys.LeadsTo(t.path, t.old) {
		return errTargetCame // what is there by now nobody has looked at
	}
	err := fsys.Exchange(t.temp, t.path)
	if fsys.IsAny(err, unix.EINVAL, unix.ENOSYS, unix.ENOTSUP) {
		err = t.swapInSteps()
	}
	if err != nil {
		return &os.LinkError{Op: "putting in place", Old: t.temp, New: t.path, Err: err}
	}
	t.late = disk.SyncDir(filepath.Dir(t.path))
	return nil
}

// promote moves what was made in a directory in the target up into it. If that fails it is
// moved back, and the target is as empty as it was.
func (t *target) promote() error {
	names, err := fsys.NamesIn(t.root)
	if err != nil {
		return err
	}
	there, err := fsys.NamesIn(t.old)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(there, func(name string) bool { return name != filepath.Base(t.temp) && !t.stays(name) }) {
		return errTargetCame
	}
	for i, name := range names {
		if err := moveUp(t.root, t.old, name); err != nil {
			for _, back := range names[:i] {
				err = errors.Join(err, moveUp(t.old, t.root, back))
			}
			return fmt.Errorf("putting %q in place: %w", name, err)
		}
	}
	// Before the directory is given its time.
	if err := unix.Unlinkat(t.old, filepath.Base(t.temp), unix.AT_REMOVEDIR); err != nil {
		return &os.PathError{Op: "remove", Path: t.temp, Err: err}
	}
	t.temp = ""
	return nil
}

// moveUp moves an entry from one open directory to another. Of a directory that may not
// be written to the kernel refuses that to ordinary users.
func moveUp(from, to int, name string) error {
	err := fsys.RenameNewAt(from, name, to, name)
	if !errors.Is(err, unix.EACCES) {
		return err
	}
	var st unix.Stat_t
	if fsys.StatAt(from, name, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	mode := uint32(st.Mode) & manifest.PermMask
	if cerr := unix.Fchmodat(from, name, mode|0o700, 0); cerr != nil {
		return err
	}
	err = fsys.RenameNewAt(from, name, to, name)
	at := to
	if err != nil {
		at = from
	}
	return errors.Join(err, unix.Fchmodat(at, name, mode, 0))
}

// lostFound is what ext4 has at the root of each file system, for what a check of it finds.
const lostFound = "lost+found"

// swapInSteps is for file systems that cannot exchange: there is a moment
// without a tree, and after a crash in it the old one lies beside the target.
func (t *target) swapInSteps() error {
	old := t.temp + ".old"
	if err := unix.Rename(t.path, old); err != nil {
		return err
	}
	if err := unix.Rename(t.temp, t.path); err != nil {
		return errors.Join(err, unix.Rename(old, t.path))
	}
	t.temp = old
	return nil
}

// removeOld removes the tree that commit replaced.
func (t *target) removeOld() error {
	if t.how != targetSwap {
		return nil
	}
	old := t.temp
	t.temp = ""
	return fsys.RemoveTree(old)
}

// endWork removes the directory for unfinished files, if there is one.
func (t *target) endWork() {
	if t.work >= 0 {
		_ = fsys.RemoveTree(filepath.Join(t.path, t.workName))
		unix.Close(t.work)
		t.work = -1
	}
}

// close removes the new tree if it was not put in place, and gives directories that were
// opened up their modes. It lets the next restore of the target go on.
func (t *target) close() {
	t.endWork()
	if t.temp != "" {
		fsys.RemoveTree(t.temp)
		t.temp = ""
	}
	t.closeAgain()
	if t.root >= 0 {
		unix.Close(t.root)
	}
	if t.old >= 0 && t.old != t.root {
		unix.Close(t.old)
	}
	t.root, t.old = -1, -1
}

package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// target is the directory that a restore writes to.
type target struct {
	path  string // absolute, without symbolic links
	root  int    // file descriptor of the directory that is written to
	fresh bool   // root is a new directory beside path, which commit puts in its place
	temp  string // the path of that directory
	swap  bool   // there is a tree at path that commit removes
	late  error  // what went wrong when the new tree was in place already

	// Where root is path itself: a directory in it for files that are not whole yet.
	work     int
	workName string
	folding  *folding          // what was put there, if the file system folds names
	opened   map[string]uint32 // directories that let us write for a while, and their modes
}

// tempPrefix begins the name of a directory that a restore is making. While the
// restore lives it holds a lock on it.
const tempPrefix = ".snapctl-restore-"

// openTarget decides how dir is written to, and opens or makes the directory.
func openTarget(dir string, opts *RestoreOptions) (*target, error) {
	path, err := resolveTarget(dir)
	if err != nil {
		return nil, err
	}
	t := &target{path: path, root: -1, work: -1}
	empty := true
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		st = nil
	case err != nil:
		return nil, err
	case !st.IsDir():
		return nil, fmt.Errorf("%w: it is not a directory", ErrExists)
	default:
		if empty, err = isEmptyDir(path); err != nil {
			return nil, err
		}
		if !empty && !opts.Into && !opts.Delete {
			return nil, fmt.Errorf("%w: the directory is not empty", ErrExists)
		}
	}
	if !empty && opts.Delete {
		if err := checkMounts(path); err != nil {
			return nil, err
		}
	}
	if st != nil && (opts.Into || empty && fixed(path)) {
		err = t.openInto()
	} else {
		t.swap = !empty
		err = t.openBeside()
	}
	if err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

// fixed reports whether a directory cannot be replaced by another: something is
// mounted on it, or its parent is not ours to write to.
func fixed(path string) bool {
	if mounted, err := mountinfo.Mounted(path); err != nil || mounted {
		return true
	}
	return unix.Faccessat(unix.AT_FDCWD, filepath.Dir(path), unix.W_OK|unix.X_OK, unix.AT_EACCESS) != nil
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
			return fmt.Errorf("%w: %s is mounted in it, and would be deleted; unmount it first", ErrExists, m.Mountpoint)
		}
	}
	return nil
}

// openInto opens the directory that is there.
func (t *target) openInto() (err error) {
	if t.root, err = openDirectory(t.path); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(t.root, &st); err != nil {
		return err
	}
	if err := t.openUp(t.root, ".", "", &st); err != nil {
		return err
	}
	sweep(t.path, tempPrefix)
	if t.work, t.workName, err = makeLocked(t.path, tempPrefix); err != nil {
		return err
	}
	if t.folding, err = newFolding(t.work); err != nil {
		return err
	}
	return dropDefaultACL(t.work)
}

// beside is where directories are made that are to take a path, and how their names
// begin: with enough of its name to tell whose they are.
func beside(path string) (parent, prefix string) {
	parent, base := filepath.Split(path)
	return parent, tempPrefix + base[:min(len(base), 128)] + "-"
}

// openBeside makes a directory beside the target.
func (t *target) openBeside() error {
	parent, prefix := beside(t.path)
	if err := os.MkdirAll(parent, 0o777); err != nil {
		return err
	}
	sweep(parent, prefix)
	fd, name, err := makeLocked(parent, prefix)
	if err != nil {
		return err
	}
	t.root, t.fresh, t.temp = fd, true, filepath.Join(parent, name)
	return dropDefaultACL(fd)
}

func openDirectory(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// makeLocked makes a directory in parent that is ours as long as its descriptor
// is open.
func makeLocked(parent, prefix string) (fd int, name string, err error) {
	for {
		path, err := os.MkdirTemp(parent, prefix+"*")
		if err != nil {
			return -1, "", err
		}
		fd, err := openDirectory(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // somebody swept it before it was locked
		}
		if err == nil {
			err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
			var ours, there unix.Stat_t
			if err == nil {
				err = unix.Fstat(fd, &ours)
			}
			if err == nil && unix.Lstat(path, &there) == nil && ours.Ino == there.Ino {
				return fd, filepath.Base(path), nil
			}
			unix.Close(fd)
			if err == nil || errors.Is(err, unix.EWOULDBLOCK) {
				continue // likewise
			}
		}
		os.Remove(path)
		return -1, "", fmt.Errorf("locking %s: %w", path, err)
	}
}

// sweepBeside removes what restores to a path that were killed have left beside it.
func sweepBeside(path string) { sweep(beside(path)) }

// sweep removes what restores that were killed have left in parent: it is theirs
// by its name and owner, and nobody holds its lock.
func sweep(parent, prefix string) {
	root, err := os.OpenRoot(parent)
	if err != nil {
		return
	}
	defer root.Close()
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), prefix)
		if !ours || !e.IsDir() || rest == "" || strings.Trim(rest, "0123456789") != "" {
			continue
		}
		fd, err := openDirectory(filepath.Join(parent, e.Name()))
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Uid == uint32(os.Geteuid()) && unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
			removeIn(root, e.Name())
		}
		unix.Close(fd)
	}
}

// resolveTarget makes the path absolute and follows the links in it: what is
// swapped is the directory, not a link to it.
func resolveTarget(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if p, err := filepath.EvalSymlinks(abs); err == nil {
		return p, nil
	}
	// It does not exist: then as much of it as does.
	parent, name := filepath.Split(abs)
	if parent = filepath.Clean(parent); parent == abs {
		return abs, nil
	}
	if _, err := os.Lstat(abs); err == nil {
		return "", fmt.Errorf("%w: it is a symbolic link to nowhere", ErrExists)
	}
	p, err := resolveTarget(parent)
	return filepath.Join(p, name), err
}

func isEmptyDir(path string) (bool, error) {
	fd, err := openDirectory(path)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	return len(names) == 0, err
}

// removeTree removes a directory that is ours, and all below it.
func removeTree(path string) error {
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer root.Close()
	return removeIn(root, filepath.Base(path))
}

// removeIn removes an entry of root and all below it, whatever the modes of its
// directories, and without ever leaving root by a link.
func removeIn(root *os.Root, name string) error {
	st, err := root.Lstat(name)
	if err != nil || !st.IsDir() {
		return root.RemoveAll(name) // a link must not be followed
	}
	removeBelow(root, name, 2)
	if err := root.RemoveAll(name); err == nil || os.Geteuid() == 0 {
		return err
	}
	fs.WalkDir(root.FS(), name, func(p string, d fs.DirEntry, _ error) error {
		if d != nil && d.IsDir() {
			root.Chmod(p, 0o700)
		}
		return nil
	})
	return root.RemoveAll(name)
}

// removeBelow removes most of a large tree in parallel: what lies a few levels
// below name. What it fails to remove is left to the caller.
func removeBelow(root *os.Root, name string, levels int) {
	dir, err := root.OpenRoot(name)
	if err != nil {
		return
	}
	defer dir.Close()
	entries, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return
	}
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, e := range entries {
		switch {
		case !e.IsDir():
		case levels > 1:
			removeBelow(dir, e.Name(), levels-1)
		default:
			g.Go(func() error { return dir.RemoveAll(e.Name()) })
		}
	}
	g.Wait()
}

// commit puts the new directory in the target's place, in one step.
func (t *target) commit() error {
	if !t.fresh {
		return nil
	}
	if t.swap {
		if err := checkMounts(t.path); err != nil {
			return err // it came while we worked
		}
		// The old tree is about to go: the new one must outlive a power cut.
		if err := syncFileSystem(t.root); err != nil {
			return fmt.Errorf("syncing: %w", err)
		}
		err := exchange(t.temp, t.path)
		if errIsAny(err, unix.EINVAL, unix.ENOSYS, unix.ENOTSUP) {
			err = t.swapInSteps()
		}
		if err != nil {
			return &os.LinkError{Op: "putting in place", Old: t.temp, New: t.path, Err: err}
		}
		t.late = syncDir(filepath.Dir(t.path))
		return nil // removeOld removes the old tree
	}
	// Replaces an empty directory, and fails if it is not empty any more.
	if err := unix.Rename(t.temp, t.path); err != nil {
		if errors.Is(err, unix.ENOTEMPTY) {
			err = fmt.Errorf("%w: something was written to it meanwhile", ErrExists)
		}
		return &os.LinkError{Op: "putting in place", Old: t.temp, New: t.path, Err: err}
	}
	t.temp = ""
	return nil
}

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
	if !t.swap {
		return nil
	}
	old := t.temp
	t.temp = ""
	return removeTree(old)
}

// endWork removes the directory for unfinished files, if there is one.
func (t *target) endWork() {
	if t.work >= 0 {
		_ = removeTree(filepath.Join(t.path, t.workName))
		unix.Close(t.work)
		t.work = -1
	}
}

// close removes the new tree if it was not put in place, and gives directories that were
// opened up their modes.
func (t *target) close() {
	t.endWork()
	if t.root >= 0 {
		t.closeAgain()
	}
	if t.temp != "" {
		removeTree(t.temp)
		t.temp = ""
	}
	if t.root >= 0 {
		unix.Close(t.root)
		t.root = -1
	}
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

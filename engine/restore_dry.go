package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// A dryRun is a restore that goes the way of any other, but changes nothing: where that
// would make, replace or remove something, this finds out whether it could, and remembers
// that it did. So what it counts and what it names are what the restore does.
type dryRun struct {
	// made are directories that would be new: nothing is in them yet. The error is that
	// of every file that is to be put into one.
	made    map[string]error
	put     map[manifest.Key]bool // files with several names that would be new
	removed map[string]bool       // what would be deleted, with all below it
	touched map[string]bool       // directories in which something would change
	gone    map[fsys.Inode]uint64 // how many names a file would not have any more
}

// openDry prepares for a dry run instead of open.
func (t *target) openDry() (*dryRun, error) {
	d := &dryRun{made: map[string]error{}, put: map[manifest.Key]bool{}, removed: map[string]bool{}, touched: map[string]bool{}, gone: map[fsys.Inode]uint64{}}
	if t.fresh = t.how != targetInto; !t.fresh {
		t.root = t.old
		return d, unix.Fstat(t.root, &t.was)
	}
	d.made[""] = nil
	at := t.path
	if t.how != targetFill {
		for at = filepath.Dir(at); ; at = filepath.Dir(at) {
			if _, err := os.Lstat(at); !errors.Is(err, os.ErrNotExist) {
				break
			}
		}
	}
	err := mayWrite(unix.AT_FDCWD, at)
	if t.how != targetFill { // the directory that it is in is not opened up
		err = unix.Faccessat(unix.AT_FDCWD, at, unix.W_OK|unix.X_OK, unix.AT_EACCESS)
	}
	if err != nil {
		return nil, &os.PathError{Op: "writing to", Path: at, Err: err}
	}
	return d, nil
}

// fileAttributes are of a file what stat does not say.
type fileAttributes struct {
	mount     uint64 // it is in
	mounted   bool   // it is the root of a mount
	immutable bool
}

// mayWrite fails where entries of a directory could not be changed, not even by its owner.
func mayWrite(parent int, name string) error {
	err := unix.Faccessat(parent, name, unix.W_OK|unix.X_OK, unix.AT_EACCESS)
	var st unix.Stat_t
	if errors.Is(err, unix.EACCES) && fsys.StatAt(parent, name, &st) == nil && !fsys.Foreign(&st) {
		return nil // see openUp
	}
	return err
}

// mayReplace fails where an entry of an open directory could not be replaced or removed.
func mayReplace(parent int, name string, st *unix.Stat_t) error {
	if err := mayWrite(parent, "."); err != nil {
		return err
	}
	var dir unix.Stat_t
	if err := fsys.StatAt(parent, ".", &dir); err != nil {
		return err
	}
	if dir.Mode&unix.S_ISVTX != 0 && fsys.Foreign(&dir) && fsys.Foreign(st) {
		return unix.EPERM
	}
	a, err := attributesOf(parent, name)
	switch {
	case err != nil:
		return err
	case a.immutable:
		return unix.EPERM
	case a.mounted:
		return unix.EBUSY
	}
	return nil
}

// dryRemove fails where an entry of a tree could not be removed with all that is below it.
// It notes what would be removed all the same, and calls gone, if that is not nil, for each
// file that would be. However deep that is, only dir is open.
func (d *dryRun) dryRemove(ctx context.Context, dir *openDir, path string, gone func(*unix.Stat_t)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	key := keyAt(path)
	parent, err := dir.get(key.Dir)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := fsys.StatAt(parent, key.Name, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		err := mayReplace(parent, key.Name, &st)
		if err == nil && gone != nil {
			gone(&st)
		}
		return err
	}
	names, err := namesOf(parent, key.Name)
	if errors.Is(err, unix.EACCES) && !fsys.Foreign(&st) {
		return mayReplace(parent, key.Name, &st) // it is opened up
	}
	if err != nil {
		return err
	}
	var removed []string
	for _, sub := range names {
		at := manifest.Join(path, sub)
		switch serr := d.dryRemove(ctx, dir, at, gone); {
		case serr == nil:
			removed = append(removed, at)
		case errors.Is(serr, unix.ENOENT):
		case errors.As(serr, new(*os.PathError)): // it names what is below
			err = serr
		default:
			err = &os.PathError{Op: "removing", Path: at, Err: serr}
		}
	}
	if err == nil {
		if parent, err = dir.get(key.Dir); err == nil {
			err = mayReplace(parent, key.Name, &st)
		}
	}
	if err != nil {
		for _, at := range removed {
			d.remove(at)
		}
	}
	return err
}

// namesOf lists a directory in an open one.
func namesOf(parent int, name string) ([]string, error) {
	fd, err := fsys.OpenBelow(parent, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return fsys.ReadNames(fd)
}

// dryRemoveAt is removeAt.
func (x *restorer) dryRemoveAt(ctx context.Context, path string, gone func(*unix.Stat_t)) error {
	dir := &openDir{root: x.root}
	defer dir.close()
	err := x.dry.dryRemove(ctx, dir, path, gone)
	if err == nil {
		x.dry.remove(path)
	}
	return err
}

// dryRemoveOld is removeOld. What cannot be removed is no part of the target any more.
func (x *restorer) dryRemoveOld(ctx context.Context) error {
	if x.how != targetSwap {
		return nil
	}
	names, err := fsys.NamesIn(x.old)
	if err != nil {
		return err
	}
	dir := &openDir{root: x.old}
	defer dir.close()
	for _, name := range names {
		err := x.dry.dryRemove(ctx, dir, name, nil)
		if err != nil && ctx.Err() == nil && !errors.As(err, new(*os.PathError)) {
			err = &os.PathError{Op: "removing", Path: name, Err: err}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// unmade reports whether a directory would be new.
func (x *restorer) unmade(dir string) bool {
	if x.dry == nil {
		return false
	}
	_, unmade := x.dry.made[dir]
	return unmade
}

// dryMake is make, in a directory that would be new.
func (x *restorer) dryMake(rank uint64, e *manifest.Entry) error {
	into := x.dry.made[e.Dir]
	switch {
	case e.Type == manifest.Dir:
		x.dry.made[e.Path()] = into
		x.plan.dirs = append(x.plan.dirs, rank)
		return nil
	case e.Type == manifest.File:
		x.plan.bytes += int64(e.Size)
	case isDevice(e) && os.Geteuid() != 0:
		return x.noDevice(e)
	}
	if into != nil {
		return into
	}
	x.dry.noteFile(e)
	return nil
}

// noteGone notes that a file has a name less by now.
func (d *dryRun) noteGone(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		d.gone[fsys.Inode{Dev: uint64(st.Dev), Ino: st.Ino}]++
	}
}

func (d *dryRun) noteFile(e *manifest.Entry) {
	if e.Links > 1 {
		d.put[cloneKey(e.Key())] = true
	}
}

// dryDir is makeDirAt.
func (x *restorer) dryDir(parent int, e *manifest.Entry) error {
	var st unix.Stat_t
	err := fsys.StatAt(parent, e.Name, &st)
	switch {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		x.meetDir(e, &st, fsys.XattrsAt(parent, e.Name))
		return nil
	case err == nil:
		err = mayReplace(parent, e.Name, &st)
	case errors.Is(err, unix.ENOENT):
		err, st = mayWrite(parent, "."), unix.Stat_t{}
	}
	if err != nil {
		return err
	}
	x.dry.noteGone(&st)
	x.dry.touched[e.Dir] = true
	x.dry.made[e.Path()] = x.sameMount(parent)
	return nil
}

// dryPut stands for making a file, which is no directory, apart and moving it to its place;
// later says that this is not done before all directories have been gone through.
func (x *restorer) dryPut(ctx context.Context, parent int, e *manifest.Entry, later bool) error {
	if err := mayWrite(x.root, "."); err != nil { // see beginWork
		return err
	}
	x.dry.touched[""] = true
	if err := x.sameMount(parent); err != nil {
		return err
	}
	var st unix.Stat_t
	err := fsys.StatAt(parent, e.Name, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		err, st = mayWrite(parent, "."), unix.Stat_t{}
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		err = x.dryPutOverDir(ctx, parent, e, &st, later)
	case err == nil:
		err = mayReplace(parent, e.Name, &st)
	}
	if err != nil {
		return err
	}
	x.dry.touched[e.Dir] = true
	x.dry.noteFile(e)
	if !later {
		x.dry.noteGone(&st)
	}
	return nil
}

func (x *restorer) dryPutOverDir(ctx context.Context, parent int, e *manifest.Entry, st *unix.Stat_t, later bool) error {
	if err := mayReplace(parent, e.Name, st); err != nil {
		return err
	}
	names, err := namesOf(parent, e.Name)
	if err != nil {
		return fmt.Errorf("looking into the directory that is there: %w", err)
	}
	if len(names) == 0 {
		return nil
	}
	if !x.opts.Delete {
		return unix.ENOTEMPTY
	}
	gone := x.dry.noteGone
	if later {
		gone = nil
	}
	if err := x.dryRemoveAt(ctx, e.Path(), gone); err != nil {
		return err
	}
	x.changes.Deleted += x.beneath[e.Key()]
	return nil
}

// sameMount fails where a file that was made in the target's root cannot be moved to an
// open directory.
func (x *restorer) sameMount(dir int) error {
	root, err := attributesOf(x.root, ".")
	if err != nil {
		return err
	}
	at, err := attributesOf(dir, ".")
	if err == nil && at.mount != root.mount {
		err = fmt.Errorf("%w: something is mounted in the target", unix.EXDEV)
	}
	return err
}

// dryLink is makeLink.
func (x *restorer) dryLink(ctx context.Context, from, to *openDir, l link) error {
	e := &manifest.Entry{Dir: l.name.Dir, Name: l.name.Name, Type: manifest.Link}
	unmade := x.unmade(l.name.Dir)
	if err := x.dry.made[l.name.Dir]; err != nil {
		return err
	}
	if !x.unmade(l.first.Dir) && !x.dry.put[l.first] {
		src, err := x.openDir(from, l.first.Dir)
		if err != nil {
			return err
		}
		var a, b unix.Stat_t
		if err := fsys.StatAt(src, l.first.Name, &a); err != nil {
			return err
		}
		if !unmade {
			dst, err := x.openDir(to, l.name.Dir)
			if err != nil {
				return err
			}
			if fsys.StatAt(dst, l.name.Name, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino {
				x.changes.Unchanged++
				return nil
			}
		}
		if err := x.mayLink(src, l.first.Name, &a); err != nil {
			return err
		}
	}
	if unmade {
		return nil
	}
	dst, err := x.openDir(to, l.name.Dir)
	if err != nil {
		return err
	}
	return x.dryPut(ctx, dst, e, true)
}

// mayLink fails where a file could not be given another name in the target's root.
func (x *restorer) mayLink(parent int, name string, st *unix.Stat_t) error {
	if err := x.sameMount(parent); err != nil {
		return err
	}
	a, err := attributesOf(parent, name)
	if err != nil {
		return err
	}
	// See fs.protected_hardlinks in proc_sys_fs(5).
	own := !fsys.Foreign(st) || st.Mode&unix.S_IFMT == unix.S_IFREG &&
		unix.Faccessat(parent, name, unix.R_OK|unix.W_OK, unix.AT_EACCESS) == nil
	if a.immutable || !own {
		return unix.EPERM
	}
	return nil
}

// dryFinish is finishDir.
func (x *restorer) dryFinish(dir *openDir, e *manifest.Entry) error {
	if x.unmade(e.Path()) {
		return nil
	}
	fd, err := x.openDir(dir, e.Path())
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := fsys.StatAt(fd, ".", &st); err != nil {
		return err
	}
	touched := x.dry.touched[e.Path()]
	if !touched && (x.sameMeta(e, &st, fsys.XattrsAt(fd, ".")) || onlyForeign(e, &st)) {
		return nil
	}
	if err := mayChange(fd, ".", &st); err != nil {
		return fmt.Errorf("changing the mode: %w", err)
	}
	return nil
}

// mayChange fails where the metadata of an entry could not be changed.
func mayChange(parent int, name string, st *unix.Stat_t) error {
	a, err := attributesOf(parent, name)
	if err == nil && (a.immutable || fsys.Foreign(st)) {
		err = unix.EPERM
	}
	return err
}

// remove notes that a path would be deleted.
func (d *dryRun) remove(path string) {
	d.removed[path] = true
	d.touched[keyAt(path).Dir] = true
}

// keyAt is the key of the entry that a path in a tree leads to.
func keyAt(path string) manifest.Key {
	dir, name := filepath.Split(path)
	return manifest.Key{Dir: strings.TrimSuffix(dir, "/"), Name: name}
}

// removes reports whether a path would be deleted.
func (d *dryRun) removes(path string) bool {
	for ; path != "" && path != "."; path = filepath.Dir(path) {
		if d.removed[path] {
			return true
		}
	}
	return false
}

package engine

import (
	"context"
	"fmt"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// Where a restore changes a directory in place, what it meets of snapctl's own stays as
// it is.

// meetsOurs reports whether an entry would be written to a directory of ours, or take the
// place of one, or of what holds one.
func (x *restorer) meetsOurs(ctx context.Context, dir *openDir, e *manifest.Entry) (bool, error) {
	if x.fresh || e.Name == "" || x.unmade(e.Dir) {
		return false, nil
	}
	parent, err := x.openDir(dir, e.Dir)
	if err != nil {
		return false, err
	}
	var st unix.Stat_t
	if fsys.StatAt(parent, e.Name, &st) != nil {
		return false, nil // what is wrong with it is found out when it is made
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	what := x.own.is(&st)
	if what == "" && isDir {
		what = x.own.found(parent, e.Name)
	}
	if what != "" && !isDir && e.Type == manifest.Symlink && leadsAlike(parent, e) {
		return false, nil
	}
	if what == "" && isDir && e.Type != manifest.Dir {
		in, found, count, err := x.own.below(ctx, parent, e.Name)
		if err != nil {
			return false, err
		}
		if count > 1 {
			x.beneath[cloneKey(e.Key())] = count - 1
		}
		if found {
			what = "a directory that holds " + in + ", which is snapctl's own"
		}
	}
	if what == "" {
		return false, nil
	}
	x.kept = append(x.kept, e.Path())
	x.problem(fmt.Errorf("restoring %q: %s is there, and stays as it is", e.Path(), what))
	x.skip(&manifest.Entry{Dir: e.Dir, Name: e.Name, Type: e.Type}) // its bytes are not in the plan
	return true, nil
}

// leadsAlike reports whether a symbolic link is there that says what an entry's does.
func leadsAlike(parent int, e *manifest.Entry) bool {
	buf := make([]byte, manifest.MaxTarget+1)
	n, err := unix.Readlinkat(parent, e.Name, buf)
	return err == nil && string(buf[:n]) == e.Target
}

// remove removes an entry of an open directory, and all below it that is not ours.
func (x *restorer) remove(ctx context.Context, dir int, name, path string) error {
	_, found, count, err := x.own.below(ctx, dir, name)
	if err != nil {
		return err
	}
	if !found {
		if x.dry == nil {
			err = fsys.RemoveAt(dir, name)
		} else {
			err = x.dryRemoveAt(ctx, path, nil)
		}
		if err != nil {
			return err
		}
		x.changes.Deleted += count
		return nil
	}
	var st unix.Stat_t
	if err := fsys.StatAt(dir, name, &st); err != nil {
		return err
	}
	if x.own.is(&st) != "" {
		x.kept = append(x.kept, path)
		return nil
	}
	fd, err := fsys.OpenBelow(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, err := fsys.ReadNames(fd)
	if err != nil {
		return err
	}
	for _, sub := range names {
		if err := x.remove(ctx, fd, sub, manifest.Join(path, sub)); err != nil {
			return err
		}
	}
	return nil
}

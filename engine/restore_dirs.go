package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// deleteOthers removes what the snapshot does not hold from the directories that
// it does.
func (x *restorer) deleteOthers(ctx context.Context) error {
	if x.fresh || !x.opts.Delete {
		return nil
	}
	if err := checkMounts(x.path); err != nil {
		return err
	}
	c, err := x.tree.Seek(ctx, manifest.Key{})
	if err != nil {
		return err
	}
	// A directory without entries has no run in the tree: directories are taken
	// from the plan, in the order of runs, and entries as the cursor meets them.
	var e manifest.Entry
	dirs := make([]string, len(x.plan.dirs))
	for i, rank := range x.plan.dirs {
		if err := x.tree.At(ctx, rank, &e); err != nil {
			return err
		}
		dirs[i] = strings.Clone(e.Path())
	}
	slices.SortFunc(dirs, manifest.ComparePaths)
	more, err := c.Next(ctx, &e) // the root
	if err != nil || !more {
		return err
	}
	more, err = c.Next(ctx, &e)
	for _, dir := range dirs {
		keep := map[string]bool{}
		for err == nil && more && manifest.ComparePaths(e.Dir, dir) < 0 { // not made: see leave
			more, err = c.Next(ctx, &e)
		}
		for err == nil && more && e.Dir == dir {
			keep[e.Name] = true
			more, err = c.Next(ctx, &e)
		}
		if err != nil {
			return err
		}
		if err := x.deleteIn(ctx, dir, keep); err != nil {
			return err
		}
	}
	return nil
}

func (x *restorer) deleteIn(ctx context.Context, dir string, keep map[string]bool) error {
	if x.unmade(dir) {
		return nil
	}
	fd, err := fsys.OpenBelow(x.root, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return x.keeps(fmt.Errorf("deleting in %q what the snapshot does not hold: %w", dir, err))
	}
	defer unix.Close(fd)
	names, err := fsys.ReadNames(fd)
	if err != nil {
		return fmt.Errorf("directory %q: %w", dir, err)
	}
	for _, name := range names {
		if keep[name] || dir == "" && x.stays(name) || x.folding.Has(fd, name) {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		path := manifest.Join(dir, name)
		if err := x.remove(ctx, fd, name, path); err != nil {
			if err := x.keeps(fmt.Errorf("deleting %q, which the snapshot does not hold: %w", path, err)); err != nil {
				return err
			}
		}
	}
	return nil
}

// keeps notes what should have been deleted and was not. What is no obstacle it gives back.
func (x *restorer) keeps(err error) error {
	if !x.inTheWay(err) {
		return err
	}
	x.problem(err)
	return nil
}

// finishDirs gives directories their metadata, the deepest first: from then on
// nothing is written into them.
func (x *restorer) finishDirs(ctx context.Context) error {
	x.endWork() // it is in the root, whose time is about to be set
	dir := &openDir{root: x.root}
	defer dir.close()
	var e manifest.Entry
	for i, rank := range slices.Backward(x.plan.dirs) {
		if i%256 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if err := x.tree.At(ctx, rank, &e); err != nil {
			return err
		}
		if x.chosen != nil && !x.fresh && !x.chosen.Dirs[e.Path()] {
			continue // it was there, and is only on the way
		}
		err := x.finishDir(dir, rank, &e)
		if err == nil {
			x.finished(e.Path())
		}
		if err = x.leave(&e, err); err != nil {
			return fmt.Errorf("directory %q: %w", e.Path(), err)
		}
	}
	return nil
}

func (x *restorer) finishDir(dir *openDir, rank uint64, e *manifest.Entry) error {
	if x.dry != nil {
		return x.dryFinish(dir, e)
	}
	if e.Name == "" {
		if x.how == targetFill {
			return nil // the directory that it is for is another: see settle
		}
		return x.finishOpenDir(x.root, rank, e)
	}
	// Most have the mode that they were made with, and lack only their time.
	if x.fresh && x.owner.asMade(e, madeDirMode(e)) {
		parent, err := x.openDir(dir, e.Dir)
		if err != nil {
			return err
		}
		if err := fsys.SetTimes(parent, e.Name, e.Mtime); err != nil {
			return err
		}
		return x.note(parent, e.Name, rank)
	}
	dir.close() // its own directory may lose its permissions now
	fd, err := fsys.OpenBelow(x.root, e.Path(), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return x.finishOpenDir(fd, rank, e)
}

func (x *restorer) finishOpenDir(fd int, rank uint64, e *manifest.Entry) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if !x.fresh && x.sameMeta(e, &st, fsys.XattrsAt(fd, ".")) {
		return nil
	}
	if onlyForeign(e, &st) {
		return nil
	}
	if err := x.setMetaFD(fd, fsys.Spot{Dir: fd, Name: "."}, e); err != nil {
		return err
	}
	return x.noteFD(fd, rank)
}

// onlyForeign reports whether nothing is to be changed of a directory but what is not ours to
// change.
func onlyForeign(e *manifest.Entry, st *unix.Stat_t) bool {
	return fsys.Foreign(st) && uint32(st.Mode)&manifest.PermMask == e.Mode && fsys.DirentOf("", st).Mtime == (unix.Timespec{Sec: e.Mtime.Sec, Nsec: int64(e.Mtime.Nsec)})
}

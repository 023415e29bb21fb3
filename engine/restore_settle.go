package engine

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// settle does what is left when the tree is in its place: the metadata of a directory that
// was there, and what this machine remembers of the tree.
func (x *restorer) settle(ctx context.Context) error {
	root := x.root
	if x.how == targetFill {
		root = x.old
		if err := x.finishFilled(ctx); err != nil {
			return err
		}
		dir := &openDir{root: root}
		defer dir.close()
		if err := x.markLinks(ctx, dir); err != nil {
			return err
		}
	}
	if !x.fresh {
		return x.rememberChanged(ctx)
	}
	if err := x.noteFD(root, 0); err != nil { // the rename changed its ctime
		return err
	}
	fsys.WaitForTick()
	if x.marks != nil {
		var seen treeMark
		for _, mark := range x.marks {
			if mark != 0 {
				seen.add(mark)
			}
		}
		x.repo.noteRestored(x.path, x.m, x.opts, seen)
	}
	return nil
}

// finishFilled gives the directory that was there its metadata, and notes what was moved
// into it.
func (x *restorer) finishFilled(ctx context.Context) error {
	c, err := x.tree.Seek(ctx, manifest.Key{})
	if err != nil {
		return err
	}
	var e manifest.Entry
	for first := true; ; first = false {
		rank := c.Rank()
		more, err := c.Next(ctx, &e)
		switch {
		case err != nil:
			return err
		case !more || !first && e.Dir != "":
			return nil
		case first:
			err = x.finishRoot(&e)
		case x.chosen.Has(&e) && !x.plan.skipped[e.Key()]:
			err = x.noteAgain(&e, rank)
		}
		if err != nil {
			return err
		}
	}
}

// finishRoot gives the directory its metadata, as far as it is the user's to give.
func (x *restorer) finishRoot(e *manifest.Entry) error {
	err := x.dropXattrs(x.old, e)
	if err == nil {
		err = x.setMetaFD(x.old, fsys.Spot{Dir: x.old, Name: "."}, e)
	}
	if fsys.IsAny(err, unix.EPERM, unix.EACCES) {
		x.partial.Store(true)
		x.problem(fmt.Errorf("restoring the metadata of %s itself: %w", x.path, err))
		return nil
	}
	x.finished("")
	return err
}

// noteAgain notes an entry whose move changed its ctime.
func (x *restorer) noteAgain(e *manifest.Entry, rank uint64) error {
	var st unix.Stat_t
	if err := fsys.StatAt(x.old, e.Name, &st); err != nil {
		return nil // somebody took it away: then it is not as it was left
	}
	d := fsys.DirentOf("", &st)
	if x.prints != nil && x.prints[rank] != 0 {
		x.prints[rank] = statPrint(&d)
	}
	if x.marks != nil {
		x.marks[rank] = entryMark(&d)
	}
	return nil
}

// rememberChanged remembers a directory that was changed in place, if all that it holds is
// the snapshot's.
func (x *restorer) rememberChanged(ctx context.Context) error {
	if !x.whole || len(x.kept) > 0 || x.repo.repo.State == "" {
		return nil
	}
	fsys.WaitForTick()
	seen, ok, err := markTree(ctx, x.root, x.mountPoint)
	if err == nil && ok {
		x.repo.noteRestored(x.path, x.m, x.opts, seen)
	}
	return err
}

// keptPaths are what is snapctl's own in the target.
func (x *restorer) keptPaths() (all []string) {
	for _, path := range x.kept {
		all = append(all, filepath.Join(x.path, path))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// aim decides how a restore writes to a directory, and changes opts to what that takes. It
// has changed nothing yet but a fork that is not mounted, whose place is taken: nor does it
// where opts are of a dry run. implied says that the caller did not name the directory. The
// caller closes the target.
func (r *Repository) aim(ctx context.Context, m *manifest.Manifest, dir string, implied bool, own *ownDirs, opts *RestoreOptions) (_ *target, err error) {
	path, err := fsys.Resolve(dir)
	if err != nil {
		return nil, err
	}
	if what := own.around(path); what != "" {
		return nil, fmt.Errorf("%w: %s, or a part of it", snapshot.ErrOwn, what)
	}
	fork, err := r.forkFor(path)
	if err != nil {
		return nil, err
	}
	if fork != nil && !fork.there {
		if err := r.clearFork(ctx, fork, implied, opts); err != nil {
			return nil, err
		}
		fork = nil
	}
	t := &target{path: path, how: targetNew, old: -1, root: -1, work: -1}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	var wait *lockWait
	if !opts.DryRun {
		wait = newLockWait(func(err error) { r.tell(opts.Progress, err) })
	}
	if t.old, err = lockTarget(ctx, path, wait); err != nil || t.old < 0 {
		return t, err
	}
	if !opts.DryRun {
		sweep(path, tempPrefix)
	}
	if t.mountPoint, err = mountinfo.Mounted(path); err != nil {
		return nil, err
	}
	empty, err := t.isEmpty(opts.DryRun)
	switch {
	case err != nil:
		return nil, err
	case empty && !opts.Into:
		t.how = targetFill
		return t, nil
	case empty:
		t.how = targetInto
		return t, nil
	}
	return t, r.aimAtTree(ctx, t, m, implied, own, fork, opts)
}

// aimAtTree decides how to write to a directory that holds something.
func (r *Repository) aimAtTree(ctx context.Context, t *target, m *manifest.Manifest, implied bool, own *ownDirs, fork *targetFork, opts *RestoreOptions) error {
	last, err := r.restoredAt(ctx, t.path, t.old, t.mountPoint)
	if err != nil {
		return err
	}
	own.recorded = last != nil // all of it is a snapshot's, should that hold a repository
	ours := last != nil || fork != nil && !fork.changed
	switch {
	case ours:
	case implied:
		return fmt.Errorf("%w: it is the one that the snapshot was made of, and was not named", snapshot.ErrNotEmpty)
	case !opts.Into && !opts.Delete:
		return snapshot.ErrNotEmpty
	}
	switch {
	case opts.Into:
		t.how = targetInto
	case last.same(r.repo.Cfg.ID, m, opts):
		t.how, t.why, t.whole = targetInto, "the snapshot was restored there already", true
		opts.Delete = false // there is nothing else
		return nil
	default:
		opts.Delete = true
		if t.how, t.why, err = r.replaceable(ctx, t, own, fork); err != nil {
			return err
		}
	}
	t.whole = opts.Delete
	if t.how == targetInto && opts.Delete && len(opts.Include) > 0 {
		return fmt.Errorf("%w, and cannot be replaced by a part of a snapshot: %s; restore into it (--into)", snapshot.ErrNotEmpty, t.why)
	}
	if opts.Delete {
		return checkMounts(t.path)
	}
	return nil
}

// replaceable decides whether another directory can take the place of the one that is
// there, or why it is changed in place.
func (r *Repository) replaceable(ctx context.Context, t *target, own *ownDirs, fork *targetFork) (how targetMode, why string, err error) {
	switch {
	case fork != nil:
		return targetInto, "it is a fork", nil
	case t.mountPoint:
		return targetInto, "it is a mount point", nil
	case unix.Faccessat(unix.AT_FDCWD, filepath.Dir(t.path), unix.W_OK|unix.X_OK, unix.AT_EACCESS) != nil:
		return targetInto, "the directory that it is in may not be written to", nil
	}
	if why, err := inUse(ctx, t.path); why != "" || err != nil {
		return targetInto, why, err
	}
	kept, found, count, err := own.below(ctx, t.old, ".")
	if found {
		return targetInto, filepath.Join(t.path, kept) + " is snapctl's own", err
	}
	t.replaced = count
	return targetSwap, "", err
}

// clearFork removes a fork that is not mounted, unless that would lose something.
func (r *Repository) clearFork(ctx context.Context, fork *targetFork, implied bool, opts *RestoreOptions) error {
	if fork.changed && (!opts.Delete || opts.Into || implied) {
		return fmt.Errorf("%w: it is the place of the fork %s, which is not mounted, and has changes: mount it with snapctl fork --resume %s, or remove it with snapctl unfork %s", snapshot.ErrExists, fork.name, fork.name, fork.name)
	}
	if opts.DryRun {
		return nil
	}
	return r.replaceFork(ctx, fork)
}

// isEmpty reports whether there is nothing in the directory that is at the path, or, if it
// was not swept, nothing but what a killed restore left.
func (t *target) isEmpty(unswept bool) (bool, error) {
	names, err := fsys.NamesIn(t.old)
	if err != nil {
		return false, &os.PathError{Op: "listing", Path: t.path, Err: err}
	}
	return !slices.ContainsFunc(names, func(name string) bool {
		return !t.stays(name) && !(unswept && isTemp(name, tempPrefix))
	}), nil
}

// stays reports whether a name in the target is no part of what it holds.
func (t *target) stays(name string) bool {
	return t.mountPoint && name == lostFound || name == t.workName && t.workName != ""
}

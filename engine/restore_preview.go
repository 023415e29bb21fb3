package engine

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/engine/view"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// preview tells what a restore would change, and changes nothing.
func (x *restorer) preview(ctx context.Context) (*Receipt, error) {
	x.meter.Start(snapshot.PhasePlanning)
	defer x.meter.Stop()
	if err := x.run(ctx); err != nil {
		return nil, err
	}
	if err := x.dryRemoveOld(ctx); err != nil {
		x.notRemoved(err)
	}
	rec := x.receipt()
	if x.opts.Would == nil {
		return rec, nil
	}
	s, err := view.OpenWhole(ctx, x.repo.repo, x.m)
	if err != nil {
		return nil, err
	}
	v := &dirVerifier{
		repo: x.repo, snapshot: s, meter: x.meter, links: map[fsys.Inode]*linkGroup{}, root: x.old,
		opts:   &VerifyDirOptions{NoOwner: x.opts.NoOwner || os.Geteuid() != 0, Progress: x.opts.Progress},
		chosen: x.chosen, skip: x.own.inodes(), byStat: !x.opts.Verify, unread: true,
	}
	if v.root >= 0 {
		var st unix.Stat_t
		if err := unix.Fstat(v.root, &st); err != nil {
			return nil, &os.PathError{Op: "stat", Path: x.path, Err: err}
		}
		v.rootDir = fsys.DirentOf("", &st)
	}
	x.meter.SetPhase(snapshot.PhaseVerifying)
	err = v.run(ctx, func(c *view.Change) error {
		if x.would(c) {
			return x.opts.Would(c)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking at what would change: %w", err)
	}
	return rec, nil // what v could not look at it has told, but is no problem of the restore
}

// would turns the difference from the snapshot to the target into what a restore does about
// it, and reports whether it does anything.
func (x *restorer) would(c *view.Change) bool {
	c.Old, c.New = c.New, c.Old
	switch c.Kind {
	case view.Added:
		c.Kind = view.Removed
		top, _, _ := strings.Cut(c.Path, "/")
		return x.how == targetSwap && !x.stays(top) || x.dry.removes(c.Path)
	case view.Removed:
		c.Kind = view.Added
	default:
		if x.chosen != nil && x.how == targetInto && c.New.IsDir() && !x.chosen.Dirs[c.Path] && c.What&manifest.ChangedType == 0 {
			return false // it is only on the way
		}
	}
	if !x.plan.skipped[keyAt(c.Path)] {
		return true
	}
	if x.how != targetSwap || c.Old == nil {
		return false
	}
	c.Kind, c.New = view.Removed, nil // it goes with the old tree
	return true
}

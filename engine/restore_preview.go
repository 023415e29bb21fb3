package engine

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// preview tells what a restore would change, and changes nothing.
func (x *restorer) preview(ctx context.Context) (*Receipt, error) {
	source := x.repo.newSource(ctx)
	source.whole.Store(true)
	s, err := source.fs(ctx, x.m)
	if err != nil {
		return nil, err
	}
	v := &dirVerifier{
		repo: x.repo, snapshot: s, meter: x.meter, links: map[inode]*linkGroup{}, root: x.old,
		opts:   &VerifyDirOptions{NoOwner: x.opts.NoOwner || os.Geteuid() != 0, Progress: x.opts.Progress},
		chosen: x.chosen, skip: x.own.inodes(), byStat: !x.opts.Verify,
	}
	if v.root >= 0 {
		var st unix.Stat_t
		if err := unix.Fstat(v.root, &st); err != nil {
			return nil, &os.PathError{Op: "stat", Path: x.path, Err: err}
		}
		v.rootDir = direntOf("", &st)
	}
	x.meter.start(PhaseVerifying)
	defer x.meter.stop()
	rec := &Receipt{Snapshot: *snapshotOf(&x.m.Info), Target: x.path, InPlace: x.why}
	digest := x.m.Digest()
	rec.Digest = hex.EncodeToString(digest[:])
	err = v.run(ctx, func(c *Change) error {
		if c = x.wouldChange(c, &rec.Changes); c == nil || x.opts.Would == nil {
			return nil
		}
		return x.opts.Would(c)
	})
	if err != nil {
		return nil, fmt.Errorf("looking at what would change: %w", err)
	}
	x.kept = v.kept
	rec.Kept, rec.Problems = x.keptPaths(), v.problems
	rec.Changes.Unchanged = max(0, v.met-rec.Changes.Written-rec.Changes.Adjusted)
	return rec, nil
}

// wouldChange turns the difference from the snapshot to the target into what a restore
// does about it, and counts it; nil for nothing.
func (x *restorer) wouldChange(c *Change, n *RestoreChanges) *Change {
	c.Old, c.New = c.New, c.Old
	switch c.Kind {
	case Added:
		top, _, _ := strings.Cut(c.Path, "/")
		if !x.opts.Delete || x.stays(top) {
			return nil
		}
		c.Kind = Removed
		n.Deleted++
	case Removed:
		c.Kind = Added
		n.Written++
	default:
		if x.chosen != nil && x.how == targetInto && c.New.entry.Type == manifest.Dir && !x.chosen.dirs[c.Path] && c.What&manifest.ChangedType == 0 {
			return nil // it is only on the way
		}
		if c.What&(manifest.ChangedType|manifest.ChangedContent|manifest.ChangedLinks) != 0 {
			n.Written++
		} else {
			n.Adjusted++
		}
	}
	return c
}

package view

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/manifest"
)

// ChangeKind is what became of a path from one snapshot to another.
type ChangeKind string

// The kinds of changes.
const (
	Added    ChangeKind = "added"
	Removed  ChangeKind = "removed"
	Modified ChangeKind = "modified" // its Change.What says how
)

// A Change is a path that differs between two snapshots.
type Change struct {
	Path string // from the root of the snapshots, "" for the root; any bytes
	Kind ChangeKind
	What manifest.Changes // of a Modified one; with the type changed, that alone
	// Old and New are the file in either snapshot, nil where there is none. Of a
	// hard link they describe the file that it is a name of.
	Old, New *FileInfo
}

// DiffOptions are how snapshots are compared. nil will do.
type DiffOptions struct {
	// Times has paths of which only the time of modification differs be changes
	// too. Those of a directory change whenever something in it comes or goes.
	Times bool
}

// errInNeither is what there is to say of a path that only looks like one.
var errInNeither = fmt.Errorf("%w in either snapshot", fs.ErrNotExist)

// Diff is engine.Repository.Diff.
func Diff(ctx context.Context, r *repo.Repo, oldRef, newRef, path string, opts *DiffOptions, yield func(*Change) error) error {
	if opts == nil {
		opts = &DiffOptions{}
	}
	p, err := CleanPath(path)
	if err != nil {
		return pathError("diff", path, err)
	}
	// Both at once: a round trip or two less.
	source := newSource(ctx, r)
	refs := r.NewResolver(ctx, 2)
	open := func(ref string) (*FS, error) {
		m, err := refs.Open(ref)
		if err != nil {
			return nil, err
		}
		return source.fs(ctx, m)
	}
	second := repo.Begin(func() (*FS, error) { return open(newRef) })
	before, err := open(oldRef)
	after, err2 := second(ctx)
	if err == nil {
		err = err2
	}
	if err != nil {
		return err
	}

	var stopped error // by yield
	n := 0
	err = manifest.Diff(ctx, before.tree, after.tree, p, func(d *manifest.Difference) error {
		if n++; n == manyDifferences {
			source.whole.Store(true)
		}
		if !opts.Times {
			d.Changes &^= manifest.ChangedTimes
		}
		c, err := changeOf(before, after, d)
		if err != nil || c == nil {
			return err
		}
		stopped = yield(c)
		return stopped
	})
	switch {
	case err == nil || err == stopped:
		return err
	case errors.Is(err, manifest.ErrNotExist):
		return pathError("diff", path, errInNeither)
	}
	return fmt.Errorf("comparing snapshots %v and %v: %w", before.Snapshot.ID, after.Snapshot.ID, repo.Integrity(err))
}

// manyDifferences is how many there are where it is likely that much of the trees
// will be read, so that what follows a page is fetched with it.
const manyDifferences = 1000

// changeOf is the change that a difference makes, nil for none.
func changeOf(before, after *FS, d *manifest.Difference) (*Change, error) {
	c := &Change{Kind: Modified, What: d.Changes}
	switch {
	case d.Old == nil:
		c.Kind = Added
	case d.New == nil:
		c.Kind = Removed
	case c.What == 0:
		return nil, nil
	}
	var err error
	if d.Old != nil {
		c.Path = d.Old.Path()
		if c.Old, err = before.Info(d.OldRank, d.Old); err != nil {
			return nil, err
		}
	}
	if d.New != nil {
		c.Path = d.New.Path()
		if c.New, err = after.Info(d.NewRank, d.New); err != nil {
			return nil, err
		}
	}
	return c, nil
}

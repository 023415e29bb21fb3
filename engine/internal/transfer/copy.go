// Package transfer brings snapshots from one repository into another, under the same ids.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/progress"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sync/errgroup"
)

// Copy is engine.Repository.Copy.
func Run(ctx context.Context, r *repo.Repo, to *repo.Repo, refs []string, opts *snapshot.CopyOptions) (*snapshot.CopyResult, error) {
	if opts == nil {
		opts = &snapshot.CopyOptions{}
	}
	start := time.Now()
	res := &snapshot.CopyResult{}
	c, snapshots, err := newCopier(ctx, r, to, refs, opts)
	if err != nil {
		return res, fmt.Errorf("copying from repository%s to%s: %w", r.Where(), to.Where(), err)
	}
	c.shown.Start(snapshot.PhaseCopying)
	defer c.shown.Stop()
	// Oldest first: each then finds there what it has in common with those before.
	order := slices.Clone(snapshots)
	slices.SortFunc(order, func(a, b *snapshot.Snapshot) int { return a.ID.Compare(b.ID) })
	done := map[manifest.ID]*snapshot.Copied{}
	for _, s := range order {
		var got *snapshot.Copied
		if got, err = c.copy(ctx, s); err != nil {
			err = fmt.Errorf("copying snapshot %v: %w", s.ID, c.side(ctx, err))
			break
		}
		done[s.ID] = got
		c.last = s.ID
		c.doneEntries += s.Files + s.Dirs
		c.doneBytes += s.Bytes
		c.tellDone()
	}
	for _, s := range snapshots {
		if got, ok := done[s.ID]; ok {
			res.Snapshots = append(res.Snapshots, got)
		}
	}
	res.Duration = time.Since(start)
	return res, err
}

// copier is one run of Copy.
type copier struct {
	from, to *repo.Repo
	opts     *snapshot.CopyOptions
	shown    *progress.Meter // of all snapshots together
	names    *chunkNames
	last     manifest.ID // the snapshot that was copied last, or was there

	// Of the snapshots that are done.
	doneEntries, doneBytes int64
}

func newCopier(ctx context.Context, r *repo.Repo, to *repo.Repo, refs []string, opts *snapshot.CopyOptions) (*copier, []*snapshot.Snapshot, error) {
	switch {
	case len(refs) == 0:
		return nil, nil, fmt.Errorf("%w: no snapshot is named", snapshot.ErrInvalid)
	case r.ID() == to.ID():
		return nil, nil, fmt.Errorf("%w: both are the same repository", snapshot.ErrInvalid)
	}
	c := &copier{from: r, to: to, opts: opts, shown: progress.New(opts.Progress), names: newChunkNames(r.Hasher, to.Hasher)}
	found := make([]*snapshot.Snapshot, len(refs))
	errs := make([]error, len(refs))
	var g errgroup.Group
	g.SetLimit(repo.HeadsAtOnce)
	x := r.NewResolver(ctx, len(refs))
	for i, ref := range refs {
		g.Go(func() error {
			found[i], errs[i] = x.Get(ref)
			return errs[i]
		})
	}
	if g.Wait() != nil {
		for _, err := range errs {
			if err != nil {
				return nil, nil, err
			}
		}
	}
	to.AskTime(ctx)
	var all []*snapshot.Snapshot
	seen := map[manifest.ID]bool{}
	for i, s := range found {
		// The clocks of the two may differ, and garbage collection there goes by that one.
		if err := to.CheckExpiry(ctx, s); err != nil {
			return nil, nil, fmt.Errorf("snapshot %s: %w by the clock of repository%s", repo.Printable(refs[i]), err, to.Where())
		}
		if !seen[s.ID] {
			seen[s.ID] = true
			all = append(all, s)
			c.shown.TotalFiles.Add(s.Files + s.Dirs)
			c.shown.TotalBytes.Add(s.Bytes)
		}
	}
	return c, all, nil
}

func (c *copier) warn(err error) {
	c.from.Logger.Warn("copy", "err", err)
	if c.opts.Progress != nil {
		c.opts.Progress.Warn(err)
	}
}

// sourceError is an error about what is read.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// ofSource marks an error, if it is one, as one about what is read.
func ofSource(err error) error {
	if err == nil {
		return nil
	}
	return &sourceError{err}
}

// side says which repository an error is about.
func (c *copier) side(ctx context.Context, err error) error {
	var s *sourceError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &s):
		return fmt.Errorf("reading from repository%s: %w", c.from.Where(), repo.Integrity(err))
	}
	return fmt.Errorf("writing to repository%s: %w", c.to.Where(), repo.Integrity(err))
}

// copy copies a snapshot, unless it is there.
func (c *copier) copy(ctx context.Context, s *snapshot.Snapshot) (*snapshot.Copied, error) {
	start := time.Now()
	copied := &snapshot.Copied{Snapshot: *s}
	defer func() { copied.Duration = time.Since(start) }()
	switch _, err := c.to.Manifest(ctx, s.ID); {
	case err == nil:
		copied.Existed = true
		return copied, nil
	case errors.Is(err, snapshot.ErrIntegrity):
		return nil, fmt.Errorf("%w; it is there, and damaged: remove it there, and copy it again", err)
	case !errors.Is(err, snapshot.ErrNotFound):
		return nil, err
	}
	m, encoded, err := c.from.EncodedManifest(ctx, s.ID)
	if err != nil {
		return nil, ofSource(err)
	}
	// A lease is no lock: it is written in the background, and what it is for, that the
	// snapshot is removed meanwhile, takes a collector two graces.
	hold := write.HoldLease(c.from, s.ID, encoded, c.warn)
	defer hold.Release()
	var before *write.Guard
	fromScratch := false
	for try := 1; ; try++ {
		x := &snapshotCopy{copier: c, m: m}
		x.out = write.NewWriter(c.to, before, c.shown, c.warn)
		x.out.Shared = true
		c.tellDone()
		err := x.run(ctx, fromScratch)
		switch {
		case err == nil:
			copied.CopiedBytes, copied.PutBytes = int64(x.placer.NewBytes), x.out.Up.StoredBytes()
			return copied, nil
		case errors.Is(err, errTaken):
			copied.Existed = true
			return copied, nil
		case ctx.Err() != nil:
		case x.base != nil && errors.Is(repo.Integrity(err), snapshot.ErrIntegrity):
			// What it was to be made from cannot be relied on, here or there.
			x.out.Commit.SawDamage(err)
			c.warn(fmt.Errorf("snapshot %v: %w; all of %v is looked up", x.base.id, err, s.ID))
			fromScratch = true
			continue
		case errors.Is(err, write.ErrAnew) && try < write.AnewTries:
			c.to.Logger.Warn("copy begins anew", "snapshot", s.ID, "err", err)
			before = x.out.Guard
			continue
		case errors.Is(err, write.ErrAnew):
			err = fmt.Errorf("%w, %d times; the repository's grace of %v is too short for this", err, try, c.to.Grace())
		}
		return nil, err
	}
}

// tellDone sets the meter to what is done.
func (c *copier) tellDone() {
	c.shown.Files.Store(c.doneEntries)
	c.shown.Bytes.Store(c.doneBytes)
}

// chunkNames tells what the destination calls the chunks of the source: the same, or,
// if it has another key, what is found out when they are read. It is safe for parallel
// use.
type chunkNames struct {
	alike bool
	mu    sync.Mutex
	names map[chunk.ID]chunk.ID // nil if alike
}

func newChunkNames(from, to *chunk.Hasher) *chunkNames {
	return &chunkNames{alike: from.Alike(to), names: map[chunk.ID]chunk.ID{}}
}

func (n *chunkNames) of(id chunk.ID) (chunk.ID, bool) {
	if n.alike {
		return id, true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	name, ok := n.names[id]
	return name, ok
}

// learn keeps a name. Some are forgotten when there are too many: their chunks are then
// read again.
func (n *chunkNames) learn(id, name chunk.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.names) >= write.MaxPending {
		clear(n.names)
	}
	n.names[id] = name
}

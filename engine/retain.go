package engine

import (
	"context"

	"github.com/snapctl/snapctl/engine/internal/retain"
)

// Change changes what is said of snapshots: name, tags, and when they expire. It gives
// them as they are then, in the order of the references, all of which are resolved
// before anything is changed. What has expired cannot be changed: ErrExpired. If some
// could not be changed, it gives the others together with an error that names those.
//
// A manifest is never changed. What is new goes into an object of its own, so that any
// number of writers may change a snapshot at once: of those that change the same thing
// the last one counts.
//
// When it returns without an error, garbage collection knows the new time to expire.
func (r *Repository) Change(ctx context.Context, c *Changes, refs ...string) ([]*Snapshot, error) {
	return retain.Change(ctx, r.repo, c, refs...)
}

// Prune removes the snapshots that no rule keeps, and tells of all that it looked at,
// sorted by what the groups have in common. Pinned snapshots are always kept, and those
// that have expired are left to garbage collection. If a manifest or note is damaged,
// so that it is not known what there is, or what stays could not be read, nothing is
// removed. When removing fails, the
// decisions are given together with the error.
func (r *Repository) Prune(ctx context.Context, opts *PruneOptions) ([]PruneGroup, error) {
	return retain.Prune(ctx, r.repo, opts)
}

// Remove removes snapshots, and tells which. All references are resolved before
// anything is removed; expired snapshots can be removed too. What only they
// held is freed by garbage collection.
func (r *Repository) Remove(ctx context.Context, refs ...string) ([]*Snapshot, error) {
	return retain.Remove(ctx, r.repo, refs...)
}

// Lifecycle tells which rules the bucket has. It fails with errors.ErrUnsupported for a
// folder, and where the server has no such rules.
func (r *Repository) Lifecycle(ctx context.Context) (*Lifecycle, error) {
	return retain.Lifecycle(ctx, r.repo)
}

// ApplyLifecycle has the bucket have the rules of this repository. Other rules stay as
// they are.
func (r *Repository) ApplyLifecycle(ctx context.Context) (*Lifecycle, error) {
	return retain.ApplyLifecycle(ctx, r.repo)
}

// RemoveLifecycle removes the rules of this repository from the bucket. Other rules
// stay as they are.
func (r *Repository) RemoveLifecycle(ctx context.Context) (*Lifecycle, error) {
	return retain.RemoveLifecycle(ctx, r.repo)
}

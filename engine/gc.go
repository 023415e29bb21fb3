package engine

import (
	"context"

	"github.com/snapctl/snapctl/engine/internal/gc"
)

// GC removes snapshots that have expired, and frees what no snapshot and no mount
// needs. What is of no use is only announced at first; a GC that comes a grace later
// deletes it. It takes no lock, stops nobody, and can be stopped or killed at any
// moment; several at once are harmless.
//
// If a manifest or a lease cannot be read, or names a pack that is missing, GC fails
// with ErrIntegrity, and has deleted nothing.
func (r *Repository) GC(ctx context.Context, opts *GCOptions) (*GCReport, error) {
	return gc.Run(ctx, r.repo, opts)
}

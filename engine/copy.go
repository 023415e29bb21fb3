package engine

import (
	"context"

	"github.com/snapctl/snapctl/engine/internal/transfer"
)

// Copy copies snapshots of this repository to another one, where they have the same
// ids, and all that is said of them, and the same entries. Only what is not there yet is
// read and put. A snapshot that is there is left as it is. Access profiles are not
// copied: they tell of packs.
//
// All references are looked up before anything is copied; what has expired is refused
// with ErrExpired. Each snapshot is durable and whole in the destination when it is
// done, and not there before. If Copy fails or its context ends, the result holds those
// that are done, and what was put of the others is found by the next Copy.
//
// While a snapshot is copied a lease keeps it from garbage collection here. There, Copy
// keeps to what every writer does, so that both may be in use meanwhile.
func (r *Repository) Copy(ctx context.Context, to *Repository, refs []string, opts *CopyOptions) (*CopyResult, error) {
	return transfer.Run(ctx, r.repo, to.repo, refs, opts)
}

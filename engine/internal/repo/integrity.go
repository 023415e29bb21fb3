package repo

import (
	"context"
	"errors"
	"fmt"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
)

// Integrity makes errors about damaged objects ErrIntegrity.
func Integrity(err error) error {
	if err == nil || errors.Is(err, snapshot.ErrIntegrity) {
		return err
	}
	if fsys.IsAny(err, manifest.ErrDamaged, chunk.ErrNotPack, chunk.ErrSeal, index.ErrBadSegment, remote.ErrShort, remote.ErrLarge) {
		return fmt.Errorf("%w: %w", snapshot.ErrIntegrity, err)
	}
	return err
}

// Damaged tells whether an error is of damage, and not of a store that does not
// answer, or of a context that has ended.
func Damaged(ctx context.Context, err error) bool {
	return ctx.Err() == nil && (errors.Is(Integrity(err), snapshot.ErrIntegrity) || errors.Is(err, remote.ErrNotExist))
}

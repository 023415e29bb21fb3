package engine

import (
	"errors"
	"fmt"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
)

// integrity makes errors about damaged objects ErrIntegrity.
func integrity(err error) error {
	if err == nil || errors.Is(err, snapshot.ErrIntegrity) {
		return err
	}
	if fsys.IsAny(err, manifest.ErrDamaged, chunk.ErrNotPack, chunk.ErrSeal, index.ErrBadSegment, remote.ErrShort, remote.ErrLarge) {
		return fmt.Errorf("%w: %w", snapshot.ErrIntegrity, err)
	}
	return err
}

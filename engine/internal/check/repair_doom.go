package check

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/gc"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/remote"
)

// condemn finds out which of the packs that something is wrong with are not what was
// written. With the others something else is: a segment, or a tree, says of them what
// is not so.
func (x *repairer) condemn(ctx context.Context) error {
	x.bad = map[chunk.PackID]bool{}
	var b packBuffers
	for id, p := range x.packs {
		if p.missing() || !x.suspected(p) {
			continue
		}
		bad := p.size > chunk.MaxPack
		if !bad {
			b.pack = slices.Grow(b.pack[:0], int(p.size))[:p.size]
			err := x.repo.Store.ReadAt(ctx, repo.PackName(id), 0, b.pack)
			if errors.Is(err, remote.ErrNotExist) {
				p.size = -1 // collected meanwhile
				continue
			}
			if err == nil {
				err = x.checkPack(p, &b)
			}
			if err != nil && !repo.Damaged(ctx, err) {
				return fmt.Errorf("reading %s: %w", repo.PackName(id), err)
			}
			bad = err != nil
		}
		x.bad[id] = bad
		if bad && !x.guard.Refuses(id) {
			x.report.Doomed = append(x.report.Doomed, repo.PackName(id))
		}
	}
	slices.Sort(x.report.Doomed)
	return nil
}

// doomBad puts tombstones for what was condemned, when what can be saved of it is.
func (x *repairer) doomBad(ctx context.Context) error {
	if !x.opts.Apply {
		return nil
	}
	for names := range slices.Chunk(x.report.Doomed, gc.StonePacks) {
		t := &repo.Tombstone{}
		for _, name := range names {
			id, err := repo.ParsePackName(name)
			if err != nil {
				return err
			}
			t.Packs = append(t.Packs, repo.DoomedPack{Id: id, Size: min(x.pack(id).size, chunk.MaxPack)})
		}
		t.Sort()
		id, err := uuid.NewV7()
		if err != nil {
			return err
		}
		if err := x.repo.Store.Put(ctx, repo.GcPrefix+id.String(), t.Encode()); err != nil {
			return fmt.Errorf("writing a tombstone: %w", err)
		}
	}
	return nil
}

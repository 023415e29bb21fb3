package gc

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
)

// sweep deletes packs that have been doomed for a grace and that nothing needs, and
// tombstones of which nothing is left.
func (c *collector) sweep(ctx context.Context) error {
	var dead, moved []chunk.PackID
	for id, p := range c.packs {
		if !p.there || p.stone == nil || !c.ripe(p.stone) {
			continue
		}
		if !p.needed() {
			dead = append(dead, id)
		} else if len(p.moved) > 0 {
			moved = append(moved, id)
		}
	}
	moved, err := c.movedWhole(ctx, moved)
	if err != nil {
		return err
	}
	dead = append(dead, moved...)
	for _, id := range dead {
		c.packs[id].dead = true
	}
	// The index first: nobody then finds in it what is gone.
	if err := c.compact(ctx, len(dead) > 0); err != nil {
		return err
	}
	slices.SortFunc(dead, func(a, b chunk.PackID) int { return bytes.Compare(a[:], b[:]) })
	names := make([]string, len(dead))
	for i, id := range dead {
		names[i] = repo.PackName(id)
	}
	if err := c.delete(ctx, names); err != nil {
		return fmt.Errorf("deleting packs: %w", err)
	}
	for _, id := range dead {
		count(&c.report.Freed, c.packs[id].size)
	}
	return c.tendStones(ctx)
}

// ripe reports whether a tombstone has stood for a grace.
func (c *collector) ripe(s *standing) bool {
	return !s.seen.IsZero() && c.now.Sub(s.seen) > c.grace
}

// tendStones notes what has become of tombstones, and deletes those that nobody needs.
func (c *collector) tendStones(ctx context.Context) error {
	var gone []string
	for _, id := range slices.Sorted(maps.Keys(c.listed.stones)) {
		s := c.listed.stones[id]
		var err error
		switch {
		case !s.put:
			// Notes that another run was about to delete, or made too late.
			if c.now.Sub(s.oldest) > c.grace {
				gone = append(gone, s.name()+repo.SeenSuffix, s.name()+repo.DoneSuffix)
			}
		case s.seen.IsZero():
			err = c.note(ctx, s, repo.SeenSuffix)
		case !s.done.IsZero():
			if c.now.Sub(s.done) > c.grace {
				gone = append(gone, s.name(), s.name()+repo.SeenSuffix, s.name()+repo.DoneSuffix)
			}
		case c.ripe(s) && !slices.ContainsFunc(s.stone.Packs, c.stands):
			err = c.note(ctx, s, repo.DoneSuffix)
		}
		if err != nil {
			return err
		}
	}
	if err := c.delete(ctx, gone); err != nil {
		return fmt.Errorf("deleting tombstones: %w", err)
	}
	return nil
}

// stands reports whether a tombstone has to stand for the sake of a pack: because it is
// there, or because someone needs to know where its chunks are now.
func (c *collector) stands(d repo.DoomedPack) bool {
	p := c.packs[d.Id]
	return p.there && !p.dead || len(d.Moved) > 0 && p.needed()
}

// note puts a note beside a tombstone that was there to be read before.
func (c *collector) note(ctx context.Context, s *standing, suffix string) error {
	if c.opts.DryRun {
		return nil
	}
	if err := c.repo.Store.Put(ctx, s.name()+suffix, nil); err != nil {
		return fmt.Errorf("writing a note beside a tombstone: %w", err)
	}
	return nil
}

// StonePacks is how many packs a tombstone names at most: writers read all of it.
const StonePacks = 8 << 10

// doom announces packs that nothing needs.
func (c *collector) doom(ctx context.Context) error {
	t := &repo.Tombstone{}
	for id, p := range c.packs {
		if p.there && p.stone == nil && !p.live && !p.leased && c.now.Sub(p.time) > c.grace {
			t.Packs = append(t.Packs, repo.DoomedPack{Id: id, Size: p.size})
			count(&c.report.Doomed, p.size)
		}
	}
	t.Sort()
	for packs := range slices.Chunk(t.Packs, StonePacks) {
		if err := c.putStone(ctx, &repo.Tombstone{Packs: packs}); err != nil {
			return err
		}
	}
	return nil
}

// putStone puts a tombstone and, when it is there, the note of when it was.
func (c *collector) putStone(ctx context.Context, t *repo.Tombstone) error {
	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	s := &standing{id: id.String(), put: true, stone: *t}
	for i := range t.Packs {
		p := c.packs[t.Packs[i].Id]
		p.stone, p.moved = s, t.Packs[i].Moved
	}
	if c.opts.DryRun {
		return nil
	}
	if err := c.inTime(); err != nil {
		return err
	}
	if err := c.repo.Store.Put(ctx, s.name(), t.Encode()); err != nil {
		return fmt.Errorf("writing a tombstone: %w", err)
	}
	if err := c.note(ctx, s, repo.SeenSuffix); err != nil {
		return err
	}
	info, err := c.repo.Store.Stat(ctx, s.name()+repo.SeenSuffix)
	if err != nil {
		return fmt.Errorf("asking when a tombstone was written: %w", err)
	}
	s.seen = info.ModTime
	return nil
}

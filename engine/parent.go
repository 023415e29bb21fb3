package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
)

// findParent opens the snapshot that unchanged files are taken from, if there is
// one. It must be in the repository still, and so must its packs, which are asked for.
func (c *creator) findParent(ctx context.Context) error {
	if c.fork != nil {
		if found, err := c.findLower(ctx); found || err != nil {
			return err
		}
	}
	stats := repo.ReadStats(c.repo.repo.Cache, c.place)
	var id manifest.ID
	switch {
	case c.opts.Parent != "":
		s, err := c.repo.Get(ctx, c.opts.Parent)
		if err != nil {
			return fmt.Errorf("parent: %w", err)
		}
		id = s.ID
		if stats != nil && stats.Snapshot != id {
			stats = nil
		}
	case stats != nil:
		id = stats.Snapshot
		c.guard.present(byCache, repo.ReadTable(c.repo.repo.Cache, repo.DirKey(c.place), id)...)
	default:
		return nil
	}
	p, err := c.repo.openParent(ctx, id)
	switch {
	case err == nil:
		p.stats = stats
		by := byManifest
		if stats != nil {
			by = byCache
		}
		c.guard.present(by, p.packs...)
		if slices.ContainsFunc(p.packs, func(p repo.SizedPack) bool { return c.guard.refuses(p.Id) }) {
			p.avoid = c.guard.refuses
		}
		// As good a guess of what is to come as there is.
		c.meter.TotalFiles.Store(int64(p.info.Entries))
		c.meter.TotalBytes.Store(int64(p.info.Bytes))
		p.failed = func(err error) {
			c.commit.sawDamage(err)
			c.warn(fmt.Errorf("snapshot %v: %w; unchanged files are read again", id, err))
		}
		p.next(ctx)
		c.parent = p
		return nil
	case c.opts.Parent != "":
		return fmt.Errorf("parent: %w", err)
	case errors.Is(err, snapshot.ErrNotFound) || errors.Is(err, snapshot.ErrExpired):
		return nil
	case errors.Is(repo.Integrity(err), snapshot.ErrIntegrity):
		c.commit.sawDamage(err)
		c.warn(fmt.Errorf("snapshot %v: %w; unchanged files are read again", id, err))
		return nil
	}
	return err
}

func (r *Repository) openParent(ctx context.Context, id manifest.ID) (*parentTree, error) {
	m, tree, err := r.repo.LiveTree(ctx, id)
	if err != nil {
		return nil, err
	}
	cursor, err := tree.Seek(ctx, manifest.Key{})
	if err != nil {
		return nil, err
	}
	return &parentTree{id: id, info: &m.Info, packs: packsNamed(m), tree: tree, cursor: cursor}, nil
}

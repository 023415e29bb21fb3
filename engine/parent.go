package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
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
	stats := repo.ReadStats(c.repo.Cache, c.place)
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
		c.out.Guard.Present(write.ByCache, repo.ReadTable(c.repo.Cache, repo.DirKey(c.place), id)...)
	default:
		return nil
	}
	p, err := openParent(ctx, c.repo, id)
	switch {
	case err == nil:
		p.stats = stats
		by := write.ByManifest
		if stats != nil {
			by = write.ByCache
		}
		c.out.Guard.Present(by, p.packs...)
		if slices.ContainsFunc(p.packs, func(p repo.SizedPack) bool { return c.out.Guard.Refuses(p.Id) }) {
			p.avoid = c.out.Guard.Refuses
		}
		// As good a guess of what is to come as there is.
		c.out.Meter.TotalFiles.Store(int64(p.info.Entries))
		c.out.Meter.TotalBytes.Store(int64(p.info.Bytes))
		p.failed = func(err error) {
			c.out.Commit.SawDamage(err)
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
		c.out.Commit.SawDamage(err)
		c.warn(fmt.Errorf("snapshot %v: %w; unchanged files are read again", id, err))
		return nil
	}
	return err
}

func openParent(ctx context.Context, r *repo.Repo, id manifest.ID) (*parentTree, error) {
	m, tree, err := r.LiveTree(ctx, id)
	if err != nil {
		return nil, err
	}
	cursor, err := tree.Seek(ctx, manifest.Key{})
	if err != nil {
		return nil, err
	}
	return &parentTree{id: id, info: &m.Info, packs: write.PacksNamed(m), tree: tree, cursor: cursor}, nil
}

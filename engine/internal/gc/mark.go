package gc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
)

// MarksAtOnce is how many manifests are read in parallel.
const MarksAtOnce = 16

// named is a pack that a snapshot names and that is not there.
type named struct {
	pack chunk.PackID
	by   listedManifest
}

// mark finds out which packs are needed: those in the pack tables of manifests, and
// of leases that count. No tree is walked, and of a manifest nothing is kept.
func (c *collector) mark(ctx context.Context) error {
	c.live = make(map[manifest.ID]bool, len(c.listed.manifests))
	c.meter.TotalFiles.Store(int64(len(c.listed.manifests)))
	for i := range c.listed.manifests {
		c.meter.TotalBytes.Add(c.listed.manifests[i].size)
	}
	var mu sync.Mutex
	var missing []named
	var bad []error
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(MarksAtOnce)
	for _, at := range c.listed.manifests {
		g.Go(func() error {
			m, err := c.repo.Manifest(gctx, at.id)
			var notes []*manifest.Note
			if err == nil {
				notes, err = c.repo.ReadNotes(gctx, at.id, c.listed.notes[at.id])
			}
			mu.Lock()
			defer mu.Unlock()
			c.meter.AddFile()
			c.meter.AddBytes(at.size)
			switch {
			case errors.Is(err, snapshot.ErrNotFound):
				return nil // removed since it was listed
			case errors.Is(err, snapshot.ErrIntegrity) && len(bad) < MaxTold:
				bad = append(bad, err)
				return nil
			case err != nil:
				return err
			}
			missing = append(missing, c.markSnapshot(m, notes, at)...)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if len(bad) > 0 {
		return fmt.Errorf("nothing is deleted: %w", errors.Join(bad...))
	}
	if err := c.markLeases(ctx); err != nil {
		return err
	}
	missing = c.followMoves(missing)
	return c.settleMissing(ctx, missing)
}

// MaxTold bounds how many damaged objects an error names.
const MaxTold = 20

// markSnapshot marks what a snapshot needs, and gives what is not there.
func (c *collector) markSnapshot(m *manifest.Manifest, notes []*manifest.Note, at listedManifest) (missing []named) {
	expired := c.expired(&m.Info, notes)
	if expired {
		c.ends = append(c.ends, at)
	} else {
		c.live[at.id] = true
	}
	for i := range m.Packs {
		p := c.pack(m.Packs[i].ID)
		if expired {
			p.expiring = true
			continue
		}
		p.live, p.used = true, max(p.used, m.Packs[i].Bytes)
		if !p.there {
			missing = append(missing, named{m.Packs[i].ID, at})
		}
	}
	return missing
}

// markLeases marks what mounts need whose snapshot was removed.
func (c *collector) markLeases(ctx context.Context) error {
	for i := range c.listed.leases {
		at := &c.listed.leases[i]
		age := c.now.Sub(at.ModTime)
		if c.live[at.snapshot] || age > manifest.MaxHold {
			continue
		}
		l, m, err := c.readLease(ctx, at)
		switch {
		case errors.Is(err, remote.ErrNotExist):
			continue // the mount has ended
		case err != nil:
			return fmt.Errorf("nothing is deleted: %w", err)
		case age > l.Hold:
			continue
		}
		c.holding = append(c.holding, at)
		for j := range m.Packs {
			// What is gone was gone before: the mount could not renew its lease.
			c.pack(m.Packs[j].ID).leased = true
		}
	}
	return nil
}

func (c *collector) readLease(ctx context.Context, at *listedLease) (*manifest.Lease, *manifest.Manifest, error) {
	b, err := c.repo.Store.Get(ctx, at.Name)
	if err != nil {
		return nil, nil, err
	}
	l, err := manifest.DecodeLease(b)
	if err != nil {
		return nil, nil, fmt.Errorf("object %s: %w; delete it if that mount is gone", at.Name, err)
	}
	m, err := manifest.Decode(c.repo.Codec, l.Manifest)
	if err == nil && m.ID != at.snapshot {
		err = fmt.Errorf("%w: it is of snapshot %v", snapshot.ErrIntegrity, m.ID)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("object %s: %w; delete it if that mount is gone", at.Name, err)
	}
	return l, m, nil
}

// followMoves marks where the chunks of packs are now that were repacked, and drops
// those packs from what is missing.
func (c *collector) followMoves(missing []named) []named {
	for _, p := range c.packs {
		for _, to := range p.moved {
			if !p.needed() {
				break
			}
			// Packs that were moved to are never moved on while they are needed.
			q := c.pack(to)
			q.live = q.live || p.live
			q.expiring = q.expiring || p.expiring
			q.leased = q.leased || p.leased
		}
	}
	var left []named
	for _, n := range missing {
		moved := c.packs[n.pack].moved
		if len(moved) == 0 {
			left = append(left, n)
			continue
		}
		for _, to := range moved {
			if !c.packs[to].there {
				left = append(left, named{to, n.by})
			}
		}
	}
	return left
}

// settleMissing decides what it means that packs are missing.
func (c *collector) settleMissing(ctx context.Context, missing []named) error {
	var bad []error
	void := map[manifest.ID]bool{}
	for _, n := range missing {
		if void[n.by.id] {
			continue
		}
		gone, err := c.reallyMissing(ctx, n)
		switch {
		case err != nil:
			return err
		case !gone:
		case c.withdrawn(n):
			void[n.by.id] = true
			c.voids = append(c.voids, n.by)
			delete(c.live, n.by.id)
		case len(bad) < MaxTold:
			bad = append(bad, fmt.Errorf("%w: snapshot %v needs pack %v, which is missing", snapshot.ErrIntegrity, n.by.id, n.pack))
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("nothing is deleted: %w", errors.Join(bad...))
	}
	return nil
}

// reallyMissing looks again: the snapshot may have been removed since it was listed,
// and its packs deleted.
func (c *collector) reallyMissing(ctx context.Context, n named) (bool, error) {
	_, err := c.repo.Store.Stat(ctx, repo.PackName(n.pack))
	if !errors.Is(err, remote.ErrNotExist) {
		return false, err
	}
	for _, name := range repo.ManifestNames(n.by.id) {
		if _, err = c.repo.Store.Stat(ctx, name); !errors.Is(err, remote.ErrNotExist) {
			return err == nil, err
		}
	}
	return false, nil
}

// withdrawn reports whether a snapshot that needs what is missing is one that no
// create has told anybody of: its writer was stopped in the middle of putting the
// manifest, for so long that a pack that it refers to was deleted meanwhile, and died
// before it could take the manifest back. Whoever keeps to the protocol and puts a
// manifest later than half a grace after a tombstone has read it.
func (c *collector) withdrawn(n named) bool {
	p := c.packs[n.pack]
	return p.stone != nil && !n.by.kept && !p.stone.seen.IsZero() && n.by.time.Sub(p.stone.seen) > c.grace/2 &&
		slices.ContainsFunc(p.stone.stone.Packs, func(d repo.DoomedPack) bool { return d.Id == n.pack && len(d.Moved) == 0 })
}

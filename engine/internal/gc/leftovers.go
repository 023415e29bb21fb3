package gc

import (
	"context"
	"errors"
	"fmt"

	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
)

// removeLeftovers deletes what belonged to snapshots, mounts and collectors that are
// gone.
func (c *collector) removeLeftovers(ctx context.Context) error {
	var names []string
	for i := range c.listed.leases {
		at := &c.listed.leases[i]
		// A machine that was asleep may be about to renew it.
		age := c.now.Sub(at.ModTime) - c.grace
		if age <= 0 {
			continue
		}
		if age <= manifest.MaxHold {
			l, _, err := c.readLease(ctx, at)
			if errors.Is(err, remote.ErrNotExist) || err == nil && age <= l.Hold {
				continue
			}
			if err != nil && !errors.Is(repo.Integrity(err), snapshot.ErrIntegrity) {
				return err
			}
			if err != nil { // its snapshot is there, or mark would have failed
				c.repo.Logger.Warn("gc: damaged lease, left alone", "err", err)
				continue
			}
		}
		names = append(names, at.Name)
	}
	for i := range c.listed.kept {
		if k := &c.listed.kept[i]; !c.live[k.snapshot] && c.now.Sub(k.ModTime) > c.grace {
			names = append(names, k.Name)
		}
	}
	for i := range c.listed.clocks {
		if o := &c.listed.clocks[i]; o.Name != c.clock && c.now.Sub(o.ModTime) > c.grace {
			names = append(names, o.Name)
		}
	}
	if err := c.delete(ctx, names); err != nil {
		return fmt.Errorf("deleting what is left of what is gone: %w", err)
	}
	c.report.Leftovers = len(names)
	return nil
}

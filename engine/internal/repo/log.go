package repo

import (
	"context"
	"fmt"

	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
)

// Log is engine.Repository.Log.
func (r *Repo) Log(ctx context.Context, ref string) (*snapshot.History, error) {
	s, err := r.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	h := &snapshot.History{Snapshots: []*snapshot.Snapshot{s}}
	if s.Parent == nil {
		return h, nil
	}
	all, damaged, err := r.snapshots(ctx)
	if err != nil {
		return nil, fmt.Errorf("history of snapshot %v: %w", s.ID, err)
	}
	known := make(map[manifest.ID]*snapshot.Snapshot, len(all))
	for _, s := range all {
		known[s.ID] = s
	}
	seen := map[manifest.ID]bool{s.ID: true}
	for s.Parent != nil {
		id := *s.Parent
		for _, d := range damaged {
			if d.id == id {
				return h, fmt.Errorf("history of snapshot %v: %w", h.Snapshots[0].ID, d.err)
			}
		}
		parent := known[id]
		if parent == nil {
			h.Removed = &id
			return h, nil
		}
		if seen[id] { // no writer makes that: a parent is there before its child
			return h, fmt.Errorf("history of snapshot %v: %w: %v is its own ancestor", h.Snapshots[0].ID, snapshot.ErrIntegrity, id)
		}
		seen[id] = true
		h.Snapshots = append(h.Snapshots, parent)
		s = parent
	}
	return h, nil
}

package retain

import (
	"context"
	"errors"
	"fmt"

	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
)

// Remove is engine.Repository.Remove.
func Remove(ctx context.Context, r *repo.Repo, refs ...string) ([]*snapshot.Snapshot, error) {
	var all []*snapshot.Snapshot
	seen := map[manifest.ID]bool{}
	x := r.NewResolver(ctx, len(refs))
	for _, ref := range refs {
		s, err := x.Resolve(ref)
		if id, ok := repo.IdOf(ref); ok && errors.Is(err, snapshot.ErrIntegrity) {
			s, err = damagedSnapshot(ctx, r, id) // it can be removed by its id
		}
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", repo.Printable(ref), repo.Integrity(err))
		}
		if seen[s.ID] {
			continue
		}
		seen[s.ID] = true
		all = append(all, s)
	}
	if err := removeAll(ctx, r, all); err != nil {
		return nil, err
	}
	return all, nil
}

// remove removes snapshots, whether or not they are there still.
func removeAll(ctx context.Context, r *repo.Repo, all []*snapshot.Snapshot) error {
	var names []string
	for _, s := range all {
		names = append(names, repo.ManifestNames(s.ID)...)
	}
	// Notes after all manifests: without them a snapshot might seem to have expired.
	for _, s := range all {
		for _, note := range s.Notes {
			names = append(names, s.ID.NotesOf()+note.String())
		}
	}
	if err := r.Store.Delete(ctx, names...); err != nil {
		return fmt.Errorf("removing snapshots: %w", err)
	}
	for _, s := range all {
		r.Cache.Remove("heads", s.ID.String())
		for _, note := range s.Notes {
			r.Cache.Remove("notes", note.String())
		}
	}
	return nil
}

// damagedSnapshot is what there is to remove of a snapshot whose manifest or notes
// cannot be read.
func damagedSnapshot(ctx context.Context, r *repo.Repo, id manifest.ID) (*snapshot.Snapshot, error) {
	listed, err := r.ListNotes(ctx, id.NotesOf())
	if err != nil {
		return nil, err
	}
	return &snapshot.Snapshot{ID: id, Notes: listed[id]}, nil
}

package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/remote"
)

// movedPacks knows where the chunks of packs are now that were repacked and deleted. It
// is filled as readers come upon such packs.
type movedPacks struct {
	mu    sync.Mutex
	packs map[chunk.PackID]map[chunk.ID]chunk.Location // nil for a pack that was not repacked
}

// movedTo finds a chunk of a pack that has gone, if it was repacked. Of a pack that has
// gone nothing more will become known.
func (r *Repository) movedTo(ctx context.Context, gone chunk.PackID, id chunk.ID) (chunk.Location, bool, error) {
	m := &r.moved
	m.mu.Lock()
	defer m.mu.Unlock()
	chunks, ok := m.packs[gone]
	if !ok {
		var err error
		if chunks, err = r.readMoved(ctx, gone); err != nil {
			return chunk.Location{}, false, err
		}
		if m.packs == nil {
			m.packs = map[chunk.PackID]map[chunk.ID]chunk.Location{}
		}
		m.packs[gone] = chunks
	}
	loc, ok := chunks[id]
	return loc, ok, nil
}

// readMoved reads where the chunks of a pack are now.
func (r *Repository) readMoved(ctx context.Context, gone chunk.PackID) (map[chunk.ID]chunk.Location, error) {
	var names []string
	err := r.store.List(ctx, gcPrefix, func(o remote.Info) error {
		if n, ok := parseGCName(o.Name); ok && n.id != "" && n.kind == "" {
			names = append(names, o.Name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing tombstones: %w", err)
	}
	var chunks map[chunk.ID]chunk.Location
	for _, name := range names {
		t, err := r.tombstone(ctx, name)
		if errors.Is(err, remote.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for i := range t.packs {
			if t.packs[i].id != gone {
				continue
			}
			for _, to := range t.packs[i].moved {
				if chunks == nil {
					chunks = map[chunk.ID]chunk.Location{}
				}
				if err := r.addMoved(ctx, chunks, to); err != nil {
					return nil, err
				}
			}
		}
	}
	return chunks, nil
}

// addMoved adds what is in a pack. Two collectors may have repacked at once, and the
// packs of one of them be gone.
func (r *Repository) addMoved(ctx context.Context, chunks map[chunk.ID]chunk.Location, to chunk.PackID) error {
	info, err := r.store.Stat(ctx, packName(to))
	if errors.Is(err, remote.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	x, err := r.packIndex(ctx, to, info.Size)
	if err != nil {
		return err
	}
	for id, loc := range x.All(to) {
		chunks[id] = loc
	}
	return nil
}

package repo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/remote"
)

// movedPacks knows where the chunks of packs are now that were repacked and deleted. It
// is filled as readers come upon such packs.
type movedPacks struct {
	Mu     sync.Mutex
	asked  bool
	at     time.Duration                                // when tombstones were read, by Repository.uptime
	Moved  map[chunk.PackID][]chunk.PackID              // by them
	chunks map[chunk.PackID]map[chunk.ID]chunk.Location // of packs that have gone
}

// MovedTo finds a chunk of a pack that has gone, if it was repacked.
func (r *Repo) MovedTo(ctx context.Context, gone chunk.PackID, id chunk.ID) (chunk.Location, bool, error) {
	m := &r.Moved
	m.Mu.Lock()
	defer m.Mu.Unlock()
	chunks, ok := m.chunks[gone]
	if !ok {
		// The tombstone was there for a grace when the pack went.
		if now := r.Uptime(); !m.asked || len(m.Moved[gone]) == 0 && now-m.at > r.Grace()/2 {
			names, err := r.ListTombstones(ctx)
			if err != nil {
				return chunk.Location{}, false, err
			}
			moved, err := r.ReadMoved(ctx, names)
			if err != nil {
				return chunk.Location{}, false, err
			}
			m.asked, m.at, m.Moved = true, now, moved
		}
		if len(m.Moved[gone]) == 0 {
			return chunk.Location{}, false, nil
		}
		chunks = map[chunk.ID]chunk.Location{}
		for _, to := range m.Moved[gone] {
			if err := r.addMoved(ctx, chunks, to); err != nil {
				return chunk.Location{}, false, err
			}
		}
		if m.chunks == nil {
			m.chunks = map[chunk.PackID]map[chunk.ID]chunk.Location{}
		}
		m.chunks[gone] = chunks
	}
	loc, ok := chunks[id]
	return loc, ok, nil
}

// ListTombstones lists the names of tombstones.
func (r *Repo) ListTombstones(ctx context.Context) (names []string, err error) {
	err = r.Store.List(ctx, GcPrefix, func(o remote.Info) error {
		if IsTombstone(o.Name) {
			names = append(names, o.Name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing tombstones: %w", err)
	}
	return names, nil
}

// ReadMoved reads which packs were repacked, and to which, from tombstones.
func (r *Repo) ReadMoved(ctx context.Context, names []string) (map[chunk.PackID][]chunk.PackID, error) {
	moved := map[chunk.PackID][]chunk.PackID{}
	for _, name := range names {
		t, err := r.Tombstone(ctx, name)
		if errors.Is(err, remote.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for i := range t.Packs {
			if p := &t.Packs[i]; len(p.Moved) > 0 {
				moved[p.Id] = append(moved[p.Id], p.Moved...)
			}
		}
	}
	return moved, nil
}

// addMoved adds what is in a pack. Two collectors may have repacked at once, and the
// packs of one of them be gone.
func (r *Repo) addMoved(ctx context.Context, chunks map[chunk.ID]chunk.Location, to chunk.PackID) error {
	info, err := r.Store.Stat(ctx, PackName(to))
	if errors.Is(err, remote.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	x, err := r.PackIndex(ctx, to, info.Size)
	if err != nil {
		return err
	}
	for id, loc := range x.All(to) {
		chunks[id] = loc
	}
	return nil
}

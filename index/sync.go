package index

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"golang.org/x/sync/errgroup"
)

const (
	// fetchers is how many segments are on their way at once: a round trip is
	// 30 ms, and each may take MaxSegment of memory.
	fetchers = 8
	// keepAfter is how many chunks a Sync must have brought for it to write
	// them to disk itself, 20 ms or so, rather than leave that to Close: if the
	// process is killed, the next one has to fetch them again.
	keepAfter = 4096
)

// Sync brings the index in line with have, a complete listing of the
// repository's segments: it drops segments that have gone, with their packs,
// and fetches those that are new, several at once. fetch may be called from
// several goroutines, and need not verify what it gives.
//
// Without change it neither writes nor fetches. Where fetch fails with an error
// that is fs.ErrNotExist, the segment has gone since the listing and is left
// out. A damaged segment is left out too, and reported when all is done, by an
// error that is [ErrBadSegment]: the index is then good, but not complete. With
// any other error it is not complete either, and holds what came before. What
// has gone is dropped in every case. Lookups meanwhile answer from the old
// listing and more and more from the new one.
func (ix *Index) Sync(ctx context.Context, have []SegmentID, fetch func(context.Context, SegmentID) ([]byte, error)) error {
	ix.writing.Lock()
	defer ix.writing.Unlock()
	if ix.closed {
		return ErrClosed
	}
	onDisk := ix.slot != nil
	err := ix.sync(ctx, have, fetch)
	if ix.mostlyDead() {
		ix.log("index is rebuilt: most of it is about packs that have gone")
		ix.forgetSegments()
		if cerr := ix.clearDisk(); cerr != nil {
			ix.abandon(cerr)
		}
		err = ix.sync(ctx, have, fetch)
	}
	if onDisk && ix.slot == nil {
		// The disk failed on the way, and took with it what it held.
		ix.forgetSegments()
		err = ix.sync(ctx, have, fetch)
	}
	if err != nil {
		return fmt.Errorf("syncing index: %w", err)
	}
	return nil
}

func (ix *Index) sync(ctx context.Context, have []SegmentID, fetch func(context.Context, SegmentID) ([]byte, error)) error {
	listed := make(map[SegmentID]struct{}, len(have))
	var missing []SegmentID
	for _, id := range have {
		if _, twice := listed[id]; twice {
			continue
		}
		listed[id] = struct{}{}
		if _, ok := ix.segments[id]; !ok {
			missing = append(missing, id)
		}
	}
	err := ix.fetchAll(ctx, missing, fetch)
	// After what is new: packs that a compacted segment lists too keep their
	// entries.
	ix.dropUnlisted(listed)
	if len(ix.recent) >= keepAfter || ix.unsaved > 0 {
		ix.settle(true)
	}
	return err
}

// mostlyDead reports whether it is time to begin anew: fetching everything
// again costs less code than a sweep through Badger, and comes at most once
// for every time that the repository's packs are replaced.
func (ix *Index) mostlyDead() bool {
	return ix.canWrite() && ix.dead > bufferLimit+ix.Stats().Chunks
}

func (ix *Index) dropUnlisted(listed map[SegmentID]struct{}) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	for id, numbers := range ix.segments {
		if _, ok := listed[id]; ok {
			continue
		}
		for _, n := range numbers {
			p := ix.packs[n]
			if p == nil {
				continue // forgotten
			}
			if p.segments--; p.segments == 0 {
				ix.drop(n)
			}
		}
		delete(ix.segments, id)
		ix.changed = true
	}
}

type fetched struct {
	id   SegmentID
	data []byte
}

// fetchAll takes the segments in, in the order in which they arrive.
func (ix *Index) fetchAll(ctx context.Context, ids []SegmentID, fetch func(context.Context, SegmentID) ([]byte, error)) error {
	if len(ids) == 0 {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	todo := make(chan SegmentID)
	done := make(chan fetched) // unbuffered: what is not taken in stops the fetching
	g.Go(func() error {
		defer close(todo)
		for _, id := range ids {
			select {
			case todo <- id:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	var workers sync.WaitGroup
	for range min(fetchers, len(ids)) {
		workers.Add(1)
		g.Go(func() error {
			defer workers.Done()
			for id := range todo {
				data, err := fetch(ctx, id)
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err != nil {
					return fmt.Errorf("fetching segment %s: %w", id, err)
				}
				select {
				case done <- fetched{id, data}:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
	}
	go func() {
		workers.Wait()
		close(done)
	}()
	var bad []error
	g.Go(func() error {
		for f := range done {
			if err := ix.takeFetched(f); err != nil {
				bad = append(bad, err)
			}
		}
		return nil
	})
	err := g.Wait()
	return errors.Join(append(bad, err)...)
}

// takeFetched verifies a segment and takes it in. Errors are [ErrBadSegment].
func (ix *Index) takeFetched(f fetched) error {
	if SumSegment(f.data) != f.id {
		return fmt.Errorf("segment %s: %w: bytes are of another name", f.id, ErrBadSegment)
	}
	s, err := DecodeSegment(ix.codec, f.data)
	if err != nil {
		return fmt.Errorf("segment %s: %w", f.id, err)
	}
	ix.take(f.id, s)
	if ix.unsaved >= settleAfter {
		ix.settle(true)
	}
	return nil
}

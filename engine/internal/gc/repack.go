package gc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
)

// A pack of which little is needed is repacked: what is needed is written to new packs,
// and a tombstone tells which. Snapshots go on naming the old pack. Readers who find
// that it has gone look into the new ones.

// repackChunks bounds the chunks of the packs that a run repacks, and so its memory.
const repackChunks = 1 << 20

// chunksUsed are chunks of packs that somebody needs.
type chunksUsed map[chunk.PackID]map[chunk.ID]struct{}

// repack writes anew what is needed of packs of which little is.
func (c *collector) repack(ctx context.Context) error {
	threshold := c.opts.Repack
	if threshold == 0 {
		threshold = snapshot.DefaultRepack
	}
	if threshold < 0 {
		return nil
	}
	contents, err := c.repackable(ctx, threshold)
	if err != nil || len(contents) == 0 {
		return err
	}
	used := make(chunksUsed, len(contents))
	for id := range contents {
		used[id] = map[chunk.ID]struct{}{}
	}
	if err := c.findUsed(ctx, used); err != nil {
		return err
	}
	rp := &repacker{collector: c, moved: map[chunk.PackID][]chunk.PackID{}}
	rp.index.Put = func(ctx context.Context, s *index.Segment) error {
		c.report.SegmentsAfter++
		return c.putSegment(ctx, s)
	}
	for _, id := range sortedPacks(contents) {
		total, needed := plainBytes(contents[id], nil), plainBytes(contents[id], used[id])
		// Several snapshots may each use another part.
		if float64(needed) >= threshold*float64(total) {
			continue
		}
		count(&c.report.Repacked.GCPacks, c.packs[id].size)
		c.report.Repacked.NewBytes += needed
		if c.opts.DryRun {
			continue
		}
		if err := rp.take(ctx, id, contents[id], used[id]); err != nil {
			return fmt.Errorf("repacking: %w", err)
		}
	}
	return rp.finish(ctx)
}

func sortedPacks[T any](m map[chunk.PackID]T) []chunk.PackID {
	ids := make([]chunk.PackID, 0, len(m))
	for id := range m {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b chunk.PackID) int { return bytes.Compare(a[:], b[:]) })
	return ids
}

// plainBytes sums up the chunks of a pack, or those of a set.
func plainBytes(x *chunk.PackIndex, of map[chunk.ID]struct{}) (n int64) {
	for _, f := range x.Frames {
		for _, c := range f.Chunks {
			if _, ok := of[c.ID]; ok || of == nil {
				n += int64(c.Length)
			}
		}
	}
	return n
}

// repackable gives the packs of which no snapshot uses much, with what they hold.
func (c *collector) repackable(ctx context.Context, threshold float64) (map[chunk.PackID]*chunk.PackIndex, error) {
	targets := map[chunk.PackID]bool{}
	for _, p := range c.packs {
		for _, to := range p.moved {
			targets[to] = true // those who need it name another pack
		}
	}
	var ids []chunk.PackID
	for id, p := range c.packs {
		// What is young may be used more soon; for what mounts need it is not worth it.
		ok := p.there && p.live && !p.leased && !p.expiring && p.stone == nil && c.now.Sub(p.time) > c.grace
		// A first guess: in plaintext a pack holds seldom more than three times its size.
		if ok && !targets[id] && float64(p.used) < 3*threshold*float64(p.size) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b chunk.PackID) int { return bytes.Compare(a[:], b[:]) })
	all := make([]*chunk.PackIndex, len(ids))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(write.AsksAtOnce)
	for i, id := range ids {
		g.Go(func() (err error) {
			all[i], err = c.repo.PackIndex(gctx, id, c.packs[id].size)
			if errors.Is(err, remote.ErrNotExist) {
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	contents := map[chunk.PackID]*chunk.PackIndex{}
	chunks := 0
	for i, x := range all {
		if x == nil || float64(c.packs[ids[i]].used) >= threshold*float64(plainBytes(x, nil)) {
			continue
		}
		if chunks += write.ChunksIn(index.Pack{Index: x}); chunks > repackChunks {
			break // the others are for the next run
		}
		contents[ids[i]] = x
	}
	return contents, nil
}

// findUsed finds which chunks of some packs snapshots and leases need. It reads the
// trees of those that name one of the packs, each page once.
func (c *collector) findUsed(ctx context.Context, used chunksUsed) error {
	seen := map[chunk.ID]bool{}
	walk := func(m *manifest.Manifest) error {
		if !slices.ContainsFunc(m.Packs, func(p manifest.PackUse) bool { _, ok := used[p.ID]; return ok }) {
			return nil
		}
		t, err := m.Tree(c.repo)
		if err == nil {
			err = t.Uses(ctx, func(page chunk.ID) bool {
				first := !seen[page]
				seen[page] = true
				return first
			}, func(id chunk.ID, at *chunk.Location) {
				if ids, ok := used[at.Pack]; ok {
					ids[id] = struct{}{}
				}
			})
		}
		if err != nil {
			return fmt.Errorf("snapshot %v: %w", m.ID, err)
		}
		return nil
	}
	for i := range c.listed.manifests {
		if err := ctx.Err(); err != nil {
			return err
		}
		m, err := c.repo.Manifest(ctx, c.listed.manifests[i].id)
		if errors.Is(err, snapshot.ErrNotFound) {
			continue // removed since, or by this run
		}
		if err == nil {
			err = walk(m)
		}
		if err != nil {
			return err
		}
	}
	for _, at := range c.holding {
		_, m, err := c.readLease(ctx, at)
		if errors.Is(err, remote.ErrNotExist) {
			continue
		}
		if err == nil {
			err = walk(m)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// repacker writes new packs.
type repacker struct {
	*collector
	open  *chunk.PackBuilder
	kind  chunk.PackKind
	from  []chunk.PackID // packs that chunks of the open one are of
	raw   []byte
	ids   []chunk.SizedID // of raw
	count int             // chunks of the open one
	moved map[chunk.PackID][]chunk.PackID

	index write.SegmentFiller
}

// take writes what is needed of a pack.
func (rp *repacker) take(ctx context.Context, id chunk.PackID, x *chunk.PackIndex, used map[chunk.ID]struct{}) error {
	if rp.open != nil && rp.kind != x.Kind {
		if err := rp.seal(ctx); err != nil {
			return err
		}
	}
	for _, f := range x.Frames {
		if !slices.ContainsFunc(f.Chunks, func(c chunk.SizedID) bool { _, ok := used[c.ID]; return ok }) {
			continue
		}
		stored := make([]byte, f.Stored)
		if err := rp.repo.Store.ReadAt(ctx, repo.PackName(id), int64(f.Offset), stored); err != nil {
			return err
		}
		at := chunk.Location{Pack: id, Frame: f.Frame}
		for _, c := range f.Chunks {
			at.Length = c.Length
			if _, ok := used[c.ID]; ok {
				data, err := rp.repo.DecodeChunk(c.ID, at, stored)
				if err == nil {
					err = rp.add(ctx, id, x.Kind, c, data)
				}
				if err != nil {
					return err
				}
			}
			at.Offset += c.Length
		}
	}
	return nil
}

// add writes a chunk. A page of a tree is a frame of its own.
func (rp *repacker) add(ctx context.Context, from chunk.PackID, kind chunk.PackKind, id chunk.SizedID, data []byte) error {
	if kind == chunk.TreePack || len(rp.raw)+len(data) > write.FrameTarget {
		rp.endFrame()
	}
	if rp.open != nil && (rp.open.Size() >= write.PackTarget || rp.count >= write.PackChunks) {
		if err := rp.seal(ctx); err != nil {
			return err
		}
	}
	if rp.open == nil {
		rp.open, rp.kind = chunk.NewPackBuilder(kind, nil), kind
	}
	if n := len(rp.from); n == 0 || rp.from[n-1] != from {
		rp.from = append(rp.from, from)
	}
	rp.count++
	rp.raw = append(rp.raw, data...)
	rp.ids = append(rp.ids, id)
	return nil
}

func (rp *repacker) endFrame() {
	if len(rp.raw) > 0 {
		rp.open.Add(rp.repo.Codec.Encode(nil, rp.raw), rp.ids)
		rp.raw, rp.ids = rp.raw[:0], nil
	}
}

// seal puts the open pack.
func (rp *repacker) seal(ctx context.Context) error {
	if rp.open == nil {
		return nil
	}
	rp.endFrame()
	id, data, x := rp.open.Finish(rp.repo.Codec)
	if err := rp.repo.Store.Put(ctx, repo.PackName(id), data); err != nil {
		return fmt.Errorf("writing a pack: %w", err)
	}
	rp.packs[id] = &packState{there: true, live: true, size: int64(len(data)), time: rp.now}
	rp.report.Repacked.NewPacks++
	for _, from := range rp.from {
		rp.moved[from] = append(rp.moved[from], id)
	}
	rp.open, rp.from, rp.count = nil, nil, 0
	return rp.index.Add(ctx, &index.Pack{ID: id, Size: int64(len(data)), Index: x})
}

// finish tells where everything is now: the index, and then tombstones.
func (rp *repacker) finish(ctx context.Context) error {
	err := rp.seal(ctx)
	if err == nil {
		err = rp.index.Flush(ctx)
	}
	if err != nil {
		return fmt.Errorf("repacking: %w", err)
	}
	t := &repo.Tombstone{}
	for _, id := range sortedPacks(rp.moved) {
		to := rp.moved[id]
		slices.SortFunc(to, func(a, b chunk.PackID) int { return bytes.Compare(a[:], b[:]) })
		t.Packs = append(t.Packs, repo.DoomedPack{Id: id, Size: rp.packs[id].size, Moved: slices.Compact(to)})
	}
	for packs := range slices.Chunk(t.Packs, StonePacks) {
		if err := rp.putStone(ctx, &repo.Tombstone{Packs: packs}); err != nil {
			return err
		}
	}
	return nil
}

// movedWhole tells of packs that were repacked, and that snapshots name, those that can
// go: all that is needed of them is in the new packs. It looks for itself, since what a
// snapshot needs that was put since they were repacked may not be.
func (c *collector) movedWhole(ctx context.Context, packs []chunk.PackID) ([]chunk.PackID, error) {
	used := chunksUsed{}
	for _, id := range packs {
		whole := true
		for _, to := range c.packs[id].moved {
			q := c.packs[to]
			whole = whole && q.there && q.stone == nil
		}
		if whole {
			used[id] = map[chunk.ID]struct{}{}
		}
	}
	if len(used) == 0 {
		return nil, nil
	}
	if err := c.findUsed(ctx, used); err != nil {
		return nil, err
	}
	var gone []chunk.PackID
	for _, id := range sortedPacks(used) {
		need := used[id]
		for _, to := range c.packs[id].moved {
			x, err := c.repo.PackIndex(ctx, to, c.packs[to].size)
			if err != nil {
				return nil, err
			}
			for chunkID := range x.All(to) {
				delete(need, chunkID)
			}
		}
		if len(need) == 0 {
			gone = append(gone, id)
		} else {
			c.repo.Logger.Warn("gc: a pack that was repacked is needed still", "pack", id, "chunks", len(need))
		}
	}
	return gone, nil
}

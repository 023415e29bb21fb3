package check

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
)

// PacksAtOnce is how many packs are read at once, each into memory of its own:
// enough to keep the cores busy while others are on their way.
func PacksAtOnce(r *repo.Repo) int {
	if r.Local() {
		return runtime.GOMAXPROCS(0)
	}
	return max(2*runtime.GOMAXPROCS(0), write.Uploads)
}

// readPacks reads the packs that are to be read, in the order of their names.
func (v *checkup) readPacks(ctx context.Context) error {
	if v.opts.ReadData == 0 {
		return nil
	}
	v.meter.SetPhase(snapshot.PhaseData)
	v.meter.Files.Store(0)
	log, err := v.openReadLog()
	if err != nil {
		return err
	}
	todo := v.sample(log.state.Seed)
	slices.SortFunc(todo, func(a, b *packFacts) int { return comparePacks(a.id, b.id) })
	for _, p := range todo {
		v.meter.TotalBytes.Add(p.size)
	}
	log.begin(todo)

	g, gctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range PacksAtOnce(v.repo) {
		g.Go(func() error {
			var b packBuffers
			for gctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(todo) {
					return nil
				}
				if err := v.readNext(gctx, todo[i], log, &b); err != nil {
					return err
				}
			}
			return gctx.Err()
		})
	}
	err = g.Wait()
	log.end(err == nil)
	if v.report.Skipped > 0 {
		v.report.SkippedSince = log.state.Started
	}
	return err
}

// readNext reads a pack, unless the run that is resumed has.
func (v *checkup) readNext(ctx context.Context, p *packFacts, log *readLog, b *packBuffers) error {
	size := p.size
	skip, good := log.read(p), true
	if !skip {
		var err error
		v.meter.Transfer(1, 0)
		good, err = v.readPack(ctx, p, b)
		v.meter.Transfer(-1, size)
		if err != nil {
			return fmt.Errorf("reading %s: %w", repo.PackName(p.id), err)
		}
	}
	v.meter.AddBytes(size)
	log.done(p, good)
	v.mu.Lock()
	defer v.mu.Unlock()
	if skip {
		v.report.Skipped++
		v.report.SkippedBytes += size
	} else {
		v.report.Read++
		v.report.ReadBytes += size
	}
	return nil
}

// sample gives the packs that are to be read: all, or those that come first in an
// order that the seed decides, until they have the share of the bytes.
func (v *checkup) sample(seed uint64) []*packFacts {
	var all []*packFacts
	var total int64
	for p := range maps.Values(v.packs) {
		if p.chosen && !p.missing() {
			all = append(all, p)
			total += p.size
		}
	}
	if v.opts.ReadData == 1 {
		return all
	}
	rank := func(p *packFacts) uint64 {
		return xxhash.Sum64(append(binary.LittleEndian.AppendUint64(nil, seed), p.id[:]...))
	}
	slices.SortFunc(all, func(a, b *packFacts) int {
		if x, y := rank(a), rank(b); x != y {
			if x < y {
				return -1
			}
			return 1
		}
		return comparePacks(a.id, b.id)
	})
	var sum int64
	for i, p := range all {
		if float64(sum) >= v.opts.ReadData*float64(total) {
			return all[:i]
		}
		sum += p.size
	}
	return all
}

// packBuffers is memory for one pack.
type packBuffers struct {
	pack  []byte
	plain []byte
}

// readPack reads a pack, and reports whether it is what it should be.
func (v *checkup) readPack(ctx context.Context, p *packFacts, b *packBuffers) (good bool, err error) {
	if p.size > chunk.MaxPack {
		v.suspect(p, fmt.Errorf("%w: %d bytes, the most is %d", snapshot.ErrIntegrity, p.size, chunk.MaxPack))
		return false, nil
	}
	for again := true; ; again = false {
		if int64(cap(b.pack)) < p.size {
			b.pack = make([]byte, p.size)
		}
		b.pack = b.pack[:p.size]
		err := v.repo.Store.ReadAt(ctx, repo.PackName(p.id), 0, b.pack)
		if err == nil {
			err = v.checkPack(p, b)
			if err == nil {
				err = v.agrees(p, b)
			}
		}
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, remote.ErrNotExist):
			// Collected since it was listed; if a snapshot refers to it, it is missing.
			p.size = -1
			if p.used {
				v.suspect(p, errMissing)
			}
			return !p.used, nil
		case !repo.Damaged(ctx, err):
			return false, err
		case !again: // once more: something on the way may have spoiled it
			v.suspect(p, repo.Integrity(err))
			return false, nil
		}
	}
}

// agrees compares what segments say of a pack with its own index.
func (v *checkup) agrees(p *packFacts, b *packBuffers) error {
	if len(p.segments) == 0 {
		return nil
	}
	x, err := chunk.DecodePack(v.repo.Codec, b.pack)
	if err == nil && !slices.Equal(v.placesOf(x), p.places) {
		err = fmt.Errorf("%w: segment %v says something else of it than its own index", snapshot.ErrIntegrity, p.segments[0])
	}
	return err
}

// checkPack checks every byte of a pack.
func (v *checkup) checkPack(p *packFacts, b *packBuffers) error {
	if chunk.SumPack(b.pack) != p.id {
		return fmt.Errorf("%w: its bytes are not those of its name", snapshot.ErrIntegrity)
	}
	// What its bytes should be they are. So what follows is what a writer did wrong.
	x, err := chunk.DecodePack(v.repo.Codec, b.pack)
	if err != nil {
		return err
	}
	for i := range x.Frames {
		f := &x.Frames[i]
		raw, err := v.repo.Codec.Decode(b.plain, b.pack[f.Offset:f.End()], int(f.Raw))
		if err != nil {
			return fmt.Errorf("%w: at %d: %w", snapshot.ErrIntegrity, f.Offset, err)
		}
		if f.Stored != f.Raw {
			b.plain = raw // else it is the pack's
		}
		off := uint32(0)
		for j := range f.Chunks {
			c := &f.Chunks[j]
			if v.repo.Hasher.Sum(raw[off:off+c.Length]) != c.ID {
				return fmt.Errorf("%w: at %d: the bytes of chunk %v are not what they were", snapshot.ErrIntegrity, f.Offset, c.ID)
			}
			off += c.Length
		}
	}
	return nil
}

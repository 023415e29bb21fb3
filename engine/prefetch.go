package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/access"
	"github.com/snapctl/snapctl/engine/internal/read"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/diskcache"
)

// Prefetch says what a mount of a repository that is no local folder fetches
// before anybody asks for it.
type Prefetch int

const (
	// PrefetchAll fetches the whole snapshot into the disk cache, as far as that
	// evicts nothing that is in use: first what was read from other mounts of the
	// snapshot, then the packs that are being read, then all others. The last
	// only while no reader waits.
	PrefetchAll Prefetch = iota
	// PrefetchHot fetches what was read from other mounts of the snapshot, and
	// what lies beside what is being read.
	PrefetchHot
	// PrefetchNone fetches what lies beside what is being read.
	PrefetchNone
)

var prefetchWords = []string{PrefetchAll: "all", PrefetchHot: "hot", PrefetchNone: "none"}

// ParsePrefetch is the inverse of String.
func ParsePrefetch(s string) (Prefetch, error) {
	if i := slices.Index(prefetchWords, s); i >= 0 {
		return Prefetch(i), nil
	}
	return 0, fmt.Errorf("%w: prefetch %q, not all, hot or none", snapshot.ErrInvalid, s)
}

func (p Prefetch) String() string { return prefetchWords[p] }

// A prefetcher fetches for one mount what its readers have not asked for yet. A
// nil one does nothing.
//
// What it does was measured with node that requires eight large packages of
// app-v1, from nothing, with round trips of 30 ms and 100 MB/s for each
// connection. It reads 65 frames of 17 packs, one after the other.
type prefetcher struct {
	repo  *Repository
	m     *manifest.Manifest
	tree  *manifest.Tree
	mode  Prefetch
	store *diskcache.Store // what the mount reads through
	ctx   context.Context  // ends with the mount
	work  sync.WaitGroup

	chunks *read.Chunks // the mount's
	hot    *access.HotSet
	rec    access.Recorder
	saving sync.Mutex

	mu     sync.Mutex
	wanted []packRange // what may be read next, the most likely last
	busy   int         // workers
	ended  bool

	full            atomic.Bool // more does not go into the cache
	packs, complete atomic.Int64
}

// packRange is a range of a pack. A negative length is up to its end.
type packRange struct {
	name           string
	offset, length int64
}

const (
	aheadWorkers = 6
	// maxWanted bounds what waits; what is left out is the oldest.
	maxWanted = 64

	// neighbour is what is fetched in the background on either side of a miss.
	neighbour = repo.MissWindow

	hydrators = 4
)

// newPrefetcher makes the prefetcher of a mount; nil for a local repository.
// ctx ends with the mount.
func (r *Repository) newPrefetcher(ctx context.Context, m *manifest.Manifest, mode Prefetch) *prefetcher {
	d := r.repo.DiskCache()
	if d == nil {
		return nil
	}
	p := &prefetcher{repo: r, m: m, mode: mode, ctx: ctx}
	p.store = d.Wrap(r.repo.Store, r.repo.Cfg.ID.String()).OnMiss(p.missed)
	p.packs.Store(int64(len(m.Packs)))
	if mode != PrefetchNone {
		p.hot = access.NewHotSet(r.repo.Patience.Hot)
	}
	return p
}

// begin is called when there is something to read through. p has chunks then.
func (p *prefetcher) begin(tree *manifest.Tree) {
	if p == nil {
		return
	}
	p.tree = tree
	// The first page is what every reader needs first.
	p.background(func() {
		var e manifest.Entry
		_ = tree.At(p.ctx, 0, &e) // whoever asks for it is told
	})
	if p.hot != nil {
		p.background(p.fetchHot)
	}
}

// mountPages gives the pages of a mounted tree.
type mountPages struct{ *prefetcher }

// Page is manifest.PageSource.
func (p mountPages) Page(ctx context.Context, ref manifest.PageRef) ([]byte, error) {
	at := ref.Location()
	p.rec.Note(ref.ID, &at, true)
	if page := p.chunks.Copied(ctx, ref.ID, &at); page != nil {
		return bytes.Clone(page), nil // not to hold on to all of its frame
	}
	return p.repo.repo.Page(ctx, ref)
}

func (p *prefetcher) background(f func()) { p.work.Go(f) }

// start is called when the mount serves.
func (p *prefetcher) start() {
	if p == nil {
		return
	}
	p.background(p.record)
	if p.mode == PrefetchAll {
		p.background(p.hydrate)
	}
}

// close is called when the mount has ended, and its context too.
func (p *prefetcher) close() {
	if p == nil {
		return
	}
	p.abandon()
	p.save()
}

// abandon waits for the end of all that is done in the background, and is called when the
// context has ended.
func (p *prefetcher) abandon() {
	if p == nil {
		return
	}
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	p.work.Wait()
}

func (p *prefetcher) stats(s *MountStats) {
	if p == nil {
		return
	}
	c := p.repo.repo.DiskCache().Stats()
	s.Hits, s.Misses, s.Fetched, s.CacheUsed = c.Hits, c.Misses, c.FetchedBytes, c.Used
	s.Packs, s.PacksHere, s.Hydrated = p.packs.Load(), p.complete.Load(), c.FilledBytes
}

// missed is called when a reader waits for a range of a pack that is being fetched
// for it. What lies beside it is likely to be wanted next. If all is fetched
// anyway, that pack comes first; else as much on either side: 57 MB instead of
// 50 are fetched then, and the reader waits 33 times instead of 42.
func (p *prefetcher) missed(name string, offset, length int64) {
	before, after := packRange{name, max(0, offset-neighbour), min(offset, neighbour)}, packRange{name, offset + length, neighbour}
	if p.mode == PrefetchAll && !p.full.Load() {
		before, after = packRange{name, 0, offset}, packRange{name, offset + length, -1}
	}
	p.want(before, after)
}

// want has ranges fetched, the last one first.
func (p *prefetcher) want(ranges ...packRange) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range ranges {
		if r.length != 0 {
			p.wanted = append(p.wanted, r)
		}
	}
	p.wanted = p.wanted[max(0, len(p.wanted)-maxWanted):]
	for ; p.busy < min(aheadWorkers, len(p.wanted)) && !p.ended; p.busy++ {
		p.background(p.fetchWanted)
	}
}

func (p *prefetcher) fetchWanted() {
	for {
		p.mu.Lock()
		n := len(p.wanted) - 1
		if n < 0 || p.ctx.Err() != nil {
			p.busy--
			p.mu.Unlock()
			return
		}
		r := p.wanted[n]
		p.wanted = p.wanted[:n]
		p.mu.Unlock()
		// Whoever reads it is told of a failure. Behind the pack's end is nothing.
		if err := p.store.Prefetch(p.ctx, r.name, r.offset, r.length); err != nil && !errors.Is(err, remote.ErrShort) && p.ctx.Err() == nil {
			p.repo.repo.Logger.Debug("prefetch", "object", r.name, "err", err)
		}
	}
}

// Waits of hydration when the repository cannot be reached, or nothing stored.
const (
	hydrateWait    = time.Second
	hydrateWaitMax = time.Minute
)

// hydrate brings the whole snapshot into the disk cache, pack by pack: those of
// the tree first, which every reader needs.
func (p *prefetcher) hydrate() {
	packs := p.hydrationOrder()
	var next atomic.Int64
	var g sync.WaitGroup
	for range hydrators {
		g.Go(func() {
			for !p.full.Load() {
				i := int(next.Add(1)) - 1
				if i >= len(packs) || !p.hydratePack(packs[i]) {
					return
				}
			}
		})
	}
	g.Wait()
	p.repo.repo.Logger.Debug("hydration ended", "packs", p.complete.Load(), "of", len(packs), "full", p.full.Load())
}

// hydrationOrder gives the snapshot's packs, those of the tree first.
func (p *prefetcher) hydrationOrder() []chunk.PackID {
	all := make([]chunk.PackID, 0, len(p.m.Packs))
	seen := map[chunk.PackID]bool{}
	// A failure leaves the order as it is; readers come upon it too.
	_ = p.tree.Pages(p.ctx, func(ref manifest.PageRef) {
		if !seen[ref.Pack] {
			seen[ref.Pack] = true
			all = append(all, ref.Pack)
		}
	})
	for _, u := range p.m.Packs {
		if !seen[u.ID] {
			all = append(all, u.ID)
		}
	}
	return all
}

// hydratePack brings a pack; it tells whether to go on.
func (p *prefetcher) hydratePack(id chunk.PackID) bool {
	for wait := hydrateWait; ; wait = min(2*wait, hydrateWaitMax) {
		err := p.store.Fill(p.ctx, repo.PackName(id), 0, -1)
		switch {
		case err == nil:
			p.complete.Add(1)
			return true
		case p.ctx.Err() != nil:
			return false
		case errors.Is(err, diskcache.ErrFull):
			if p.full.CompareAndSwap(false, true) {
				p.repo.repo.Logger.Info("hydration ends, the cache is full", "packs", p.complete.Load(), "of", p.packs.Load())
			}
			return false
		case errors.Is(err, remote.ErrNotExist):
			return true // it was repacked
		}
		p.repo.repo.Logger.Info("hydration waits", "pack", id, "err", err, "wait", wait)
		select {
		case <-p.ctx.Done():
			return false
		case <-time.After(wait):
		}
	}
}

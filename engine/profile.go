package engine

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/access"
	"github.com/snapctl/snapctl/engine/internal/crypt"
	"github.com/snapctl/snapctl/engine/internal/read"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/diskcache"
)

const (

	// profilesUsed is how many of a snapshot's profiles a mount reads: the newest,
	// if they are not more than profileBytes in all.
	profilesUsed = 4
	profileBytes = 8 << 20
	// profileAncestors is how many snapshots a mount looks at for profiles: its
	// own, its parent, and so on. Each is a listing, in the background.
	profileAncestors = 8
)

// profileQuiet is how long nothing new must have been read for the profile to be saved
// while the mount lasts: whatever was started has started then.
const profileQuiet = time.Minute

// record saves the profile when the mount is quiet for the first time.
func (p *prefetcher) record() {
	tick := time.NewTicker(profileQuiet / 4)
	defer tick.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-tick.C:
		}
		if p.rec.Quiet(profileQuiet) {
			p.save()
			return
		}
	}
}

// save puts the profile into the repository. That may not be allowed, and is no
// reason to fail.
func (p *prefetcher) save() {
	p.saving.Lock()
	defer p.saving.Unlock()
	bundled, frames, n := p.rec.Unsaved()
	if n == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), p.repo.repo.Patience.Profile)
	defer cancel()
	bundle, err := p.bundle(ctx, bundled)
	if err == nil {
		err = access.Put(ctx, p.repo.repo, &access.Profile{Snapshot: p.m.ID, Frames: frames, Bundle: bundle})
	}
	if err != nil {
		p.repo.repo.Logger.Info("saving the access profile", "err", err)
		return
	}
	p.rec.MarkSaved(n)
}

// bundle makes a bundle of what was touched.
func (p *prefetcher) bundle(ctx context.Context, touched []access.Touch) ([]byte, error) {
	// In the order in which it lies in packs, so that each frame is decoded once. By a
	// reader of its own: when the mount has ended its own does nothing any more.
	slices.SortFunc(touched, func(a, b access.Touch) int {
		return cmp.Or(bytes.Compare(a.Loc.Pack[:], b.Loc.Pack[:]), cmp.Compare(a.Loc.Frame.Offset, b.Loc.Frame.Offset), cmp.Compare(a.Loc.Offset, b.Loc.Offset))
	})
	chunks := read.New(ctx, p.repo.repo, p.store, access.BundleFrame)
	chunks.Hot = p.hot
	b := access.NewBundler(p.repo.repo.Codec)
	for i := range touched {
		t := &touched[i]
		data, err := chunks.Chunk(ctx, &manifest.Extent{ID: t.Id, Location: t.Loc})
		if err != nil {
			return nil, err
		}
		if !b.Add(t.Id, data, t.Page) {
			break
		}
	}
	return b.Finish(), nil
}

// hotGap is what is fetched in vain between two frames of a profile rather than
// asking twice.
const hotGap = 128 << 10

// fetchHot fetches what other mounts of the snapshot read, in few requests.
func (p *prefetcher) fetchHot() {
	frames, bundles, err := p.readProfiles(p.ctx)
	p.hot.Set(bundles)
	if err != nil && p.ctx.Err() == nil {
		p.repo.repo.Logger.Info("reading access profiles", "err", err)
	}
	p.rec.Know(frames, bundles)
	ranges := mergeFrames(frames)
	slices.Reverse(ranges) // the first one last: that is fetched first
	var g sync.WaitGroup
	var mu sync.Mutex
	for range aheadWorkers {
		g.Go(func() {
			for p.ctx.Err() == nil {
				mu.Lock()
				n := len(ranges) - 1
				if n < 0 {
					mu.Unlock()
					return
				}
				r := ranges[n]
				ranges = ranges[:n]
				mu.Unlock()
				if err := p.store.Prefetch(p.ctx, r.name, r.offset, r.length); err != nil && p.ctx.Err() == nil {
					p.repo.repo.Logger.Debug("prefetch by a profile", "object", r.name, "err", err)
				}
			}
		})
	}
	g.Wait()
}

// readProfiles gives what was read from mounts of the snapshot or, if there were
// none, of the nearest of its ancestors whose mounts left a profile: most of a
// fork's snapshot lies where that of its parent does.
func (p *prefetcher) readProfiles(ctx context.Context) ([]access.Frame, []*access.Bundle, error) {
	id, parent := p.m.ID, p.m.Parent
	for generation := range profileAncestors {
		frames, bundles, err := p.profilesOf(ctx, id)
		if err != nil || len(frames)+len(bundles) > 0 || parent.IsZero() {
			return frames, bundles, err
		}
		if generation > 0 {
			// It may be gone, and with it the way further back.
			s, err := p.repo.Get(ctx, id.String())
			if err != nil || s.Parent == nil {
				return nil, nil, nil
			}
			parent = *s.Parent
		}
		id = parent
	}
	return nil, nil, nil
}

// profilesOf gives the bundles of a snapshot's newest profiles, and their frames as
// far as they lie in packs of the mounted one; the newest profile's first.
func (p *prefetcher) profilesOf(ctx context.Context, id manifest.ID) ([]access.Frame, []*access.Bundle, error) {
	var found []remote.Info
	prefix := access.Prefix(id)
	err := p.repo.repo.Store.List(ctx, prefix, func(o remote.Info) error {
		found = append(found, o)
		if len(found) > 16*profilesUsed { // the oldest go
			found = newestProfiles(found)
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	packs := make(map[chunk.PackID]bool, len(p.m.Packs))
	for _, u := range p.m.Packs {
		packs[u.ID] = true
	}
	newest := newestProfiles(found)
	frames, bundles := make([][]access.Frame, len(newest)), make([]*access.Bundle, len(newest))
	var g sync.WaitGroup
	for i, o := range newest {
		g.Go(func() {
			prof, b, err := p.readProfile(ctx, id, o)
			if err == nil {
				frames[i] = slices.DeleteFunc(prof.Frames, func(f access.Frame) bool { return !packs[f.Pack] })
				bundles[i] = b
			} else if ctx.Err() == nil {
				p.repo.repo.Logger.Warn("access profile left out", "object", o.Name, "err", err)
			}
		})
	}
	g.Wait()
	seen := map[access.FrameKey]bool{}
	var all []access.Frame
	for _, f := range slices.Concat(frames...) {
		if key := (access.FrameKey{Pack: f.Pack, Offset: f.Offset}); !seen[key] && len(all) < access.MaxProfileFrames {
			seen[key] = true
			all = append(all, f)
		}
	}
	return all, slices.DeleteFunc(bundles, func(b *access.Bundle) bool { return b == nil }), nil
}

func newestProfiles(all []remote.Info) []remote.Info {
	slices.SortStableFunc(all, func(a, b remote.Info) int { return b.ModTime.Compare(a.ModTime) })
	bytes := int64(0)
	for i := range all {
		if bytes += all[i].Size; i == profilesUsed || i > 0 && bytes > profileBytes {
			return all[:i]
		}
	}
	return all
}

func (p *prefetcher) readProfile(ctx context.Context, id manifest.ID, o remote.Info) (*access.Profile, *access.Bundle, error) {
	if o.Size > access.MaxProfile || o.Size == 0 {
		return nil, nil, fmt.Errorf("%w: %d bytes", access.ErrDamaged, o.Size)
	}
	// Through the disk cache, from which the bundle is read later on.
	if err := p.store.Prefetch(ctx, o.Name, 0, o.Size); err != nil && !errors.Is(err, diskcache.ErrNoCache) {
		return nil, nil, err
	}
	b := make([]byte, o.Size)
	if err := p.store.ReadAt(ctx, o.Name, 0, b); err != nil {
		return nil, nil, err
	}
	if !strings.HasSuffix(o.Name, "/"+crypt.SumHex(b)) {
		p.store.Invalidate(o.Name, 0, o.Size) // the disk may have spoiled it
		return nil, nil, fmt.Errorf("%w: it is not what its name says", access.ErrDamaged)
	}
	prof, err := access.Decode(p.repo.repo, id, b)
	if err != nil || len(prof.Bundle) == 0 {
		return prof, nil, err
	}
	x, err := access.OpenBundle(p.repo.repo.Codec, o.Name, o.Size-int64(len(prof.Bundle)), prof.Bundle)
	return prof, x, err
}

// mergeFrames gives the ranges in which frames lie, in the order in which their
// first frames stand; those that lie close together are one.
func mergeFrames(frames []access.Frame) []packRange {
	type place struct {
		frame access.Frame
		rank  int
	}
	all := make([]place, len(frames))
	for i, f := range frames {
		all[i] = place{f, i}
	}
	slices.SortFunc(all, func(a, b place) int {
		if c := bytes.Compare(a.frame.Pack[:], b.frame.Pack[:]); c != 0 {
			return c
		}
		return int(int64(a.frame.Offset) - int64(b.frame.Offset))
	})
	type run struct {
		packRange
		rank int
	}
	var runs []run
	for _, f := range all {
		name, from, to := repo.PackName(f.frame.Pack), int64(f.frame.Offset), int64(f.frame.Offset)+int64(f.frame.Stored)
		if n := len(runs); n > 0 {
			last := &runs[n-1]
			if last.name == name && from <= last.offset+last.length+hotGap {
				last.length = max(last.length, to-last.offset)
				last.rank = min(last.rank, f.rank)
				continue
			}
		}
		runs = append(runs, run{packRange{name, from, to - from}, f.rank})
	}
	slices.SortFunc(runs, func(a, b run) int { return a.rank - b.rank })
	ranges := make([]packRange, len(runs))
	for i := range runs {
		ranges[i] = runs[i].packRange
	}
	return ranges
}

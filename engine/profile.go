package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/wire"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/zeebo/blake3"
)

// An access profile is which frames the readers of a mount touched, in the order
// in which they first did. A later mount of the snapshot fetches them before
// anybody asks. Profiles are objects hot/SNAPSHOT/ID, where ID is the BLAKE3-256
// of the object. In an encrypted repository it is sealed, together with the
// snapshot's id (Repository.sealObject). All numbers in it are little-endian:
//
//	offset  size  field
//	0       8     magic "snaphot\x00"
//	8       1     format version, 1
//	9       7     zero
//	16      16    snapshot id
//	32      ...   number of packs, uvarint; then each pack's id, 32 bytes
//	...           number of frames, uvarint; then for each
//	                pack            uvarint, place in the table of packs
//	                offset, stored length   uvarints
//
// No frame stands twice. Packs stand in the order in which frames first use them,
// and each is used.
type profile struct {
	snapshot manifest.ID
	frames   []touchedFrame
}

type touchedFrame struct {
	pack   chunk.PackID
	offset uint32
	stored uint32
}

const (
	profilePrefix  = "hot/"
	profileMagic   = "snaphot\x00"
	profileVersion = 1
	profileHead    = 16

	maxProfileFrames = 64 << 10
	maxProfile       = 4 << 20 // bytes

	// profilesUsed is how many of a snapshot's profiles a mount reads: the newest.
	profilesUsed = 4
	// profileAncestors is how many snapshots a mount looks at for profiles: its
	// own, its parent, and so on. Each is a listing, in the background.
	profileAncestors = 8
)

var errProfile = errors.New("damaged access profile")

func profilesOf(id manifest.ID) string { return profilePrefix + id.String() + "/" }

func (p *profile) encode() []byte {
	b := append([]byte(profileMagic), profileVersion, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, p.snapshot[:]...)
	at := map[chunk.PackID]uint64{}
	var packs []chunk.PackID
	for i := range p.frames {
		if _, ok := at[p.frames[i].pack]; !ok {
			at[p.frames[i].pack] = uint64(len(packs))
			packs = append(packs, p.frames[i].pack)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(packs)))
	for i := range packs {
		b = append(b, packs[i][:]...)
	}
	b = binary.AppendUvarint(b, uint64(len(p.frames)))
	for _, f := range p.frames {
		b = binary.AppendUvarint(b, at[f.pack])
		b = binary.AppendUvarint(b, uint64(f.offset))
		b = binary.AppendUvarint(b, uint64(f.stored))
	}
	return b
}

func decodeProfile(b []byte) (*profile, error) {
	r := wire.NewReader(b)
	if len(b) > maxProfile {
		r.Failf("%d bytes, the most is %d", len(b), maxProfile)
	}
	head := r.Fixed("header", profileHead)
	if r.Err() == nil && !bytes.Equal(head, append([]byte(profileMagic), profileVersion, 0, 0, 0, 0, 0, 0, 0)) {
		r.Failf("not an access profile of version %d", profileVersion)
	}
	p := &profile{}
	copy(p.snapshot[:], r.Fixed("snapshot id", len(p.snapshot)))
	packs := make([]chunk.PackID, r.Count("number of packs", chunk.IDSize))
	seenPacks := make(map[chunk.PackID]bool, len(packs))
	for i := range packs {
		copy(packs[i][:], r.Fixed("pack id", chunk.IDSize))
		if seenPacks[packs[i]] {
			r.Failf("pack named twice")
		}
		seenPacks[packs[i]] = true
	}
	n := r.Count("number of frames", 3)
	if n > maxProfileFrames {
		r.Failf("%d frames, the most is %d", n, maxProfileFrames)
		n = 0
	}
	p.frames = make([]touchedFrame, 0, n)
	seen := make(map[touchedFrame]bool, n)
	used := 0
	for ; n > 0 && r.Err() == nil; n-- {
		at := int(r.Uvarint("pack of a frame", uint64(max(len(packs), 1)-1)))
		offset := uint32(r.Uvarint("frame offset", chunk.MaxPack))
		stored := uint32(r.Uvarint("frame stored length", chunk.MaxFrame+chunk.MaxOverhead))
		switch {
		case r.Err() != nil:
			continue
		case len(packs) == 0:
			r.Failf("frame without a pack")
			continue
		case at > used:
			r.Failf("packs out of order")
		case stored == 0 || uint64(offset)+uint64(stored) > chunk.MaxPack:
			r.Failf("frame outside of a pack")
		}
		used = max(used, at+1)
		f := touchedFrame{packs[at], offset, stored}
		if key := (touchedFrame{f.pack, f.offset, 0}); seen[key] {
			r.Failf("frame named twice")
		} else {
			seen[key] = true
		}
		p.frames = append(p.frames, f)
	}
	if r.Err() == nil && used != len(packs) {
		r.Failf("unused pack")
	}
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("%w: %w", errProfile, err)
	}
	return p, nil
}

// recorder notes which frames a mount touched.
type recorder struct {
	mu     sync.Mutex
	frames []touchedFrame
	seen   map[frameKey]bool
	known  map[frameKey]bool // by the profiles that there are
	last   time.Time         // when the last one was noted
	saved  int               // frames
}

func (r *recorder) touched(pack chunk.PackID, at chunk.Frame) {
	key := frameKey{pack, at.Offset}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen[key] || len(r.frames) == maxProfileFrames {
		return
	}
	if r.seen == nil {
		r.seen = map[frameKey]bool{}
	}
	r.seen[key] = true
	r.frames = append(r.frames, touchedFrame{pack, at.Offset, at.Stored})
	r.last = time.Now()
}

// unsaved gives the frames if there are any that neither this mount has saved
// nor another one had.
func (r *recorder) unsaved() []touchedFrame {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.frames[r.saved:] {
		if !r.known[frameKey{f.pack, f.offset}] {
			return slices.Clone(r.frames)
		}
	}
	return nil
}

// touched is what to tell of frames that are read; nil for nothing.
func (p *prefetcher) touched() func(chunk.PackID, chunk.Frame) {
	if p == nil {
		return nil
	}
	return p.rec.touched
}

const (
	// profileQuiet is how long nothing new must have been read for the profile to
	// be saved while the mount lasts: whatever was started has started then.
	profileQuiet = time.Minute
	// profilePatience is how long the end of a mount waits for it to be saved.
	profilePatience = 3 * time.Second
)

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
		p.rec.mu.Lock()
		quiet := len(p.rec.frames) > 0 && time.Since(p.rec.last) >= profileQuiet
		p.rec.mu.Unlock()
		if quiet {
			p.save()
			return
		}
	}
}

// save puts the profile into the repository. That may not be allowed, and is no
// reason to fail.
func (p *prefetcher) save() {
	frames := p.rec.unsaved()
	if frames == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), profilePatience)
	defer cancel()
	b := p.repo.sealObject(useProfile, p.m.ID.String(), (&profile{p.m.ID, frames}).encode())
	sum := blake3.Sum256(b)
	if err := p.repo.store.Put(ctx, profilesOf(p.m.ID)+hex.EncodeToString(sum[:]), b); err != nil {
		p.repo.log.Info("saving the access profile", "err", err)
		return
	}
	p.rec.mu.Lock()
	p.rec.saved = len(frames)
	p.rec.mu.Unlock()
}

// hotGap is what is fetched in vain between two frames of a profile rather than
// asking twice.
const hotGap = 128 << 10

// fetchHot fetches what other mounts of the snapshot read, in few requests.
func (p *prefetcher) fetchHot() {
	frames, err := p.readProfiles(p.ctx)
	if err != nil && p.ctx.Err() == nil {
		p.repo.log.Info("reading access profiles", "err", err)
	}
	p.rec.mu.Lock()
	p.rec.known = make(map[frameKey]bool, len(frames))
	for _, f := range frames {
		p.rec.known[frameKey{f.pack, f.offset}] = true
	}
	p.rec.mu.Unlock()
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
					p.repo.log.Debug("prefetch by a profile", "object", r.name, "err", err)
				}
			}
		})
	}
	g.Wait()
}

// readProfiles gives what was read from mounts of the snapshot or, if there were
// none, of the nearest of its ancestors whose mounts left a profile: most of a
// fork's snapshot lies where that of its parent does.
func (p *prefetcher) readProfiles(ctx context.Context) ([]touchedFrame, error) {
	id, parent := p.m.ID, p.m.Parent
	for generation := range profileAncestors {
		frames, err := p.profilesOf(ctx, id)
		if err != nil || len(frames) > 0 || parent.IsZero() {
			return frames, err
		}
		if generation > 0 {
			// It may be gone, and with it the way further back.
			s, err := p.repo.Get(ctx, id.String())
			if err != nil {
				return nil, nil
			}
			if s.Parent == nil {
				return nil, nil
			}
			parent = *s.Parent
		}
		id = parent
	}
	return nil, nil
}

// profilesOf gives the frames of a snapshot's newest profiles, as far as they lie
// in packs of the mounted one; the newest profile's first.
func (p *prefetcher) profilesOf(ctx context.Context, id manifest.ID) ([]touchedFrame, error) {
	var found []remote.Info
	prefix := profilesOf(id)
	err := p.repo.store.List(ctx, prefix, func(o remote.Info) error {
		found = append(found, o)
		if len(found) > 16*profilesUsed { // the oldest go
			found = newestProfiles(found)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	packs := make(map[chunk.PackID]bool, len(p.m.Packs))
	for _, u := range p.m.Packs {
		packs[u.ID] = true
	}
	newest := newestProfiles(found)
	frames := make([][]touchedFrame, len(newest))
	var g sync.WaitGroup
	for i, o := range newest {
		g.Go(func() {
			prof, err := p.readProfile(ctx, id, o)
			if err == nil {
				frames[i] = slices.DeleteFunc(prof.frames, func(f touchedFrame) bool { return !packs[f.pack] })
			} else if ctx.Err() == nil {
				p.repo.log.Warn("access profile left out", "object", o.Name, "err", err)
			}
		})
	}
	g.Wait()
	seen := map[frameKey]bool{}
	var all []touchedFrame
	for _, f := range slices.Concat(frames...) {
		if key := (frameKey{f.pack, f.offset}); !seen[key] && len(all) < maxProfileFrames {
			seen[key] = true
			all = append(all, f)
		}
	}
	return all, nil
}

func newestProfiles(all []remote.Info) []remote.Info {
	slices.SortStableFunc(all, func(a, b remote.Info) int { return b.ModTime.Compare(a.ModTime) })
	return all[:min(len(all), profilesUsed)]
}

func (p *prefetcher) readProfile(ctx context.Context, id manifest.ID, o remote.Info) (*profile, error) {
	if o.Size > maxProfile+chunk.MaxOverhead {
		return nil, fmt.Errorf("%w: %d bytes", errProfile, o.Size)
	}
	b, err := p.repo.store.Get(ctx, o.Name)
	if err != nil {
		return nil, err
	}
	sum := blake3.Sum256(b)
	if name := o.Name[strings.LastIndexByte(o.Name, '/')+1:]; name != hex.EncodeToString(sum[:]) {
		return nil, fmt.Errorf("%w: it is not what its name says", errProfile)
	}
	if b, err = p.repo.openObject(useProfile, id.String(), b); err != nil {
		return nil, err
	}
	prof, err := decodeProfile(b)
	if err == nil && prof.snapshot != id {
		err = fmt.Errorf("%w: of snapshot %v", errProfile, prof.snapshot)
	}
	return prof, err
}

// mergeFrames gives the ranges in which frames lie, in the order in which their
// first frames stand; those that lie close together are one.
func mergeFrames(frames []touchedFrame) []packRange {
	type place struct {
		touchedFrame
		rank int
	}
	all := make([]place, len(frames))
	for i, f := range frames {
		all[i] = place{f, i}
	}
	slices.SortFunc(all, func(a, b place) int {
		if c := bytes.Compare(a.pack[:], b.pack[:]); c != 0 {
			return c
		}
		return int(int64(a.offset) - int64(b.offset))
	})
	type run struct {
		packRange
		rank int
	}
	var runs []run
	for _, f := range all {
		name, from, to := packName(f.pack), int64(f.offset), int64(f.offset)+int64(f.stored)
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

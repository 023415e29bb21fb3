package engine

import (
	"bytes"
	"cmp"
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
	"github.com/snapctl/snapctl/engine/internal/crypt"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
)

// An access profile is what the readers of a mount touched, in the order in which
// they first did. A later mount of the snapshot fetches that before anybody asks:
// frames where they are, and in a bundle copies of what lies scattered. Profiles are
// objects hot/SNAPSHOT/ID, where ID is the BLAKE3-256 of the object:
//
//	offset  size  field
//	0       4     length of the head as it is stored, h, little-endian
//	4       h     head; in an encrypted repository sealed, together with the snapshot's
//	              id (Repository.repo.SealObject)
//	4+h     ...   bundle: nothing, or a data pack (see chunk), up to the end
//
// and the head, whose numbers are little-endian:
//
//	offset  size  field
//	0       8     magic "snaphot\x00"
//	8       1     format version, 2
//	9       7     zero
//	16      16    snapshot id
//	32      ...   number of packs, uvarint; then each pack's id, 32 bytes
//	...           number of frames, uvarint; then for each
//	                pack            uvarint, place in the table of packs
//	                offset, stored length   uvarints
//	...           length of the bundle, uvarint
//
// No frame stands twice. Packs stand in the order in which frames first use them,
// and each is used.
type profile struct {
	snapshot manifest.ID
	frames   []touchedFrame
	bundle   []byte // a pack, whose index is for openBundle to read; at the end of the object
}

type touchedFrame struct {
	pack   chunk.PackID
	offset uint32
	stored uint32
}

const (
	profileMagic   = "snaphot\x00"
	profileVersion = 2
	profileHead    = 16

	maxProfileFrames = 64 << 10
	maxHead          = 4 << 20  // bytes
	maxProfile       = 24 << 20 // bytes

	// profilesUsed is how many of a snapshot's profiles a mount reads: the newest,
	// if they are not more than profileBytes in all.
	profilesUsed = 4
	profileBytes = 8 << 20
	// profileAncestors is how many snapshots a mount looks at for profiles: its
	// own, its parent, and so on. Each is a listing, in the background.
	profileAncestors = 8
)

var errProfile = errors.New("damaged access profile")

func profilesOf(id manifest.ID) string { return repo.ProfilePrefix + id.String() + "/" }

// parseProfileName tells which snapshot the object is a profile of that has the name.
func parseProfileName(name string) (manifest.ID, bool) {
	rest, ok := strings.CutPrefix(name, repo.ProfilePrefix)
	dir, sum, _ := strings.Cut(rest, "/")
	id, err := manifest.ParseID(dir)
	b, serr := hex.DecodeString(sum)
	return id, ok && err == nil && serr == nil && len(b) == 32 && hex.EncodeToString(b) == sum
}

// encodeHead gives the plaintext of the head.
func (p *profile) encodeHead() []byte {
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
	return binary.AppendUvarint(b, uint64(len(p.bundle)))
}

// decodeHead decodes a head. bundle is what comes behind it.
func decodeHead(b, bundle []byte) (*profile, error) {
	r := wire.NewReader(b)
	if len(b) > maxHead {
		r.Failf("%d bytes, the most is %d", len(b), maxHead)
	}
	head := r.Fixed("header", profileHead)
	if r.Err() == nil && !bytes.Equal(head, append([]byte(profileMagic), profileVersion, 0, 0, 0, 0, 0, 0, 0)) {
		r.Failf("not an access profile of version %d", profileVersion)
	}
	p := &profile{bundle: bundle}
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
	if n := r.Uvarint("length of the bundle", maxProfile); r.Err() == nil && n != uint64(len(bundle)) {
		r.Failf("bundle of %d bytes, %d expected", len(bundle), n)
	}
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("%w: %w", errProfile, err)
	}
	return p, nil
}

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
		if p.rec.quiet(profileQuiet) {
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
	bundled, frames, n := p.rec.unsaved()
	if n == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), p.repo.repo.Patience.Profile)
	defer cancel()
	bundle, err := p.bundle(ctx, bundled)
	if err == nil {
		err = p.repo.putProfile(ctx, &profile{p.m.ID, frames, bundle})
	}
	if err != nil {
		p.repo.repo.Logger.Info("saving the access profile", "err", err)
		return
	}
	p.rec.markSaved(n)
}

// bundle makes a bundle of what was touched.
func (p *prefetcher) bundle(ctx context.Context, touched []touch) ([]byte, error) {
	// In the order in which it lies in packs, so that each frame is decoded once. By a
	// reader of its own: when the mount has ended its own does nothing any more.
	slices.SortFunc(touched, func(a, b touch) int {
		return cmp.Or(bytes.Compare(a.loc.Pack[:], b.loc.Pack[:]), cmp.Compare(a.loc.Frame.Offset, b.loc.Frame.Offset), cmp.Compare(a.loc.Offset, b.loc.Offset))
	})
	chunks := newChunkReader(ctx, p.repo, p.store, bundleFrame)
	chunks.hot = p.hot
	b := newBundler(p.repo.repo.Codec)
	for i := range touched {
		t := &touched[i]
		data, err := chunks.Chunk(ctx, &manifest.Extent{ID: t.id, Location: t.loc})
		if err != nil {
			return nil, err
		}
		if !b.add(t.id, data, t.page) {
			break
		}
	}
	return b.finish(), nil
}

func (r *Repository) putProfile(ctx context.Context, p *profile) error {
	b := r.encodeProfile(p)
	return r.repo.Store.Put(ctx, profilesOf(p.snapshot)+crypt.SumHex(b), b)
}

// encodeProfile gives a profile's object.
func (r *Repository) encodeProfile(p *profile) []byte {
	head := r.repo.SealObject(crypt.UseProfile, p.snapshot.String(), p.encodeHead())
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(head)+len(p.bundle)), uint32(len(head)))
	return append(append(b, head...), p.bundle...)
}

// decodeProfile decodes the object of a profile of a snapshot.
func (r *Repository) decodeProfile(id manifest.ID, b []byte) (*profile, error) {
	if len(b) > maxProfile || len(b) < 4 {
		return nil, fmt.Errorf("%w: %d bytes", errProfile, len(b))
	}
	n := binary.LittleEndian.Uint32(b)
	if uint64(n) > uint64(len(b)-4) {
		return nil, fmt.Errorf("%w: head of %d bytes in %d", errProfile, n, len(b))
	}
	head, err := r.repo.OpenObject(crypt.UseProfile, id.String(), b[4:4+n])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errProfile, err)
	}
	p, err := decodeHead(head, b[4+n:])
	if err == nil && p.snapshot != id {
		err = fmt.Errorf("%w: of snapshot %v", errProfile, p.snapshot)
	}
	return p, err
}

// hotGap is what is fetched in vain between two frames of a profile rather than
// asking twice.
const hotGap = 128 << 10

// fetchHot fetches what other mounts of the snapshot read, in few requests.
func (p *prefetcher) fetchHot() {
	frames, bundles, err := p.readProfiles(p.ctx)
	p.hot.set(bundles)
	if err != nil && p.ctx.Err() == nil {
		p.repo.repo.Logger.Info("reading access profiles", "err", err)
	}
	p.rec.know(frames, bundles)
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
func (p *prefetcher) readProfiles(ctx context.Context) ([]touchedFrame, []*bundle, error) {
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
func (p *prefetcher) profilesOf(ctx context.Context, id manifest.ID) ([]touchedFrame, []*bundle, error) {
	var found []remote.Info
	prefix := profilesOf(id)
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
	frames, bundles := make([][]touchedFrame, len(newest)), make([]*bundle, len(newest))
	var g sync.WaitGroup
	for i, o := range newest {
		g.Go(func() {
			prof, b, err := p.readProfile(ctx, id, o)
			if err == nil {
				frames[i] = slices.DeleteFunc(prof.frames, func(f touchedFrame) bool { return !packs[f.pack] })
				bundles[i] = b
			} else if ctx.Err() == nil {
				p.repo.repo.Logger.Warn("access profile left out", "object", o.Name, "err", err)
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
	return all, slices.DeleteFunc(bundles, func(b *bundle) bool { return b == nil }), nil
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

func (p *prefetcher) readProfile(ctx context.Context, id manifest.ID, o remote.Info) (*profile, *bundle, error) {
	if o.Size > maxProfile || o.Size == 0 {
		return nil, nil, fmt.Errorf("%w: %d bytes", errProfile, o.Size)
	}
	// Through the disk cache, from which the bundle is read later on.
	if err := p.store.Prefetch(ctx, o.Name, 0, o.Size); err != nil && !errors.Is(err, remote.ErrNoCache) {
		return nil, nil, err
	}
	b := make([]byte, o.Size)
	if err := p.store.ReadAt(ctx, o.Name, 0, b); err != nil {
		return nil, nil, err
	}
	if !strings.HasSuffix(o.Name, "/"+crypt.SumHex(b)) {
		p.store.Invalidate(o.Name, 0, o.Size) // the disk may have spoiled it
		return nil, nil, fmt.Errorf("%w: it is not what its name says", errProfile)
	}
	prof, err := p.repo.decodeProfile(id, b)
	if err != nil || len(prof.bundle) == 0 {
		return prof, nil, err
	}
	x, err := openBundle(p.repo.repo.Codec, o.Name, o.Size-int64(len(prof.bundle)), prof.bundle)
	return prof, x, err
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
		name, from, to := repo.PackName(f.pack), int64(f.offset), int64(f.offset)+int64(f.stored)
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

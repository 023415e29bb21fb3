package check

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/gc"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
)

// packFacts is what is known of a pack.
type packFacts struct {
	id       chunk.PackID
	size     int64 // by the listing; -1 if it is not there
	modified time.Time
	used     bool // a snapshot refers to it
	chosen   bool // it is part of what is verified

	// places are fingerprints of where its chunks lie, sorted: 8 bytes each, so
	// that those of ten million chunks can be kept. They are those of a segment or,
	// where none lists it, of the pack's own index.
	places   []uint64
	segments []index.SegmentID
	tail     sync.Once
	tailErr  error

	problems []error // under checkup.mu, as is what follows
	affected []snapshot.Affected
}

// maxProblems bounds what is kept of a pack's problems.
const maxProblems = 3

func (p *packFacts) problem() error {
	if more := len(p.problems) - 1; more > 0 {
		return fmt.Errorf("%w; and more", p.problems[0])
	}
	return p.problems[0]
}

func (p *packFacts) missing() bool { return p.size < 0 }

// pack gives what is known of a pack, which may be missing.
func (v *checkup) pack(id chunk.PackID) *packFacts {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := v.packs[id]
	if p == nil {
		p = &packFacts{id: id, size: -1}
		v.packs[id] = p
	}
	return p
}

// suspect notes what is wrong with a pack. Which files that hits is found out in
// the end.
func (v *checkup) suspect(p *packFacts, err error) {
	v.repo.Logger.Warn("verify", "object", repo.PackName(p.id), "err", err)
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(p.problems) < maxProblems {
		p.problems = append(p.problems, err)
	}
}

func (v *checkup) suspected(p *packFacts) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(p.problems) > 0
}

var errMissing = errors.New("it is missing")

// place is the fingerprint of where a chunk lies in its pack.
func (v *checkup) place(id *chunk.ID, loc *chunk.Location) uint64 {
	var b [chunk.IDSize + 20]byte
	copy(b[:], id[:])
	for i, n := range [...]uint32{loc.Frame.Offset, loc.Frame.Stored, loc.Frame.Raw, loc.Offset, loc.Length} {
		binary.LittleEndian.PutUint32(b[chunk.IDSize+4*i:], n)
	}
	return maphash.Bytes(v.seed, b[:])
}

// placesOf gives the fingerprints of an index, sorted.
func (v *checkup) placesOf(x *chunk.PackIndex) []uint64 {
	n := 0
	for i := range x.Frames {
		n += len(x.Frames[i].Chunks)
	}
	all := make([]uint64, 0, n)
	for id, loc := range x.All(chunk.PackID{}) {
		all = append(all, v.place(&id, &loc))
	}
	slices.Sort(all)
	return all
}

// listPacks finds out which packs there are.
func (v *checkup) listPacks(ctx context.Context) error {
	err := v.repo.Store.List(ctx, gc.PacksPrefix, func(o remote.Info) error {
		id, err := repo.ParsePackName(o.Name)
		if err != nil {
			v.note(o.Name, err)
			return nil
		}
		p := v.pack(id)
		p.size, p.modified = o.Size, o.ModTime
		return nil
	})
	if err != nil {
		return fmt.Errorf("listing packs: %w", err)
	}
	return nil
}

// segmentFacts is what a segment says of its packs.
type segmentFacts struct {
	id    index.SegmentID
	sizes map[chunk.PackID]int64
}

// segmentsAtOnce bounds the memory for segments, each of which may have
// index.MaxSegment bytes.
const segmentsAtOnce = 4

// readSegments reads all index segments: they tell where chunks lie.
func (v *checkup) readSegments(ctx context.Context) error {
	ids, err := v.repo.ListSegments(ctx)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(segmentsAtOnce)
	for _, id := range ids {
		g.Go(func() error {
			s, err := v.repo.Segment(gctx, id)
			if errors.Is(err, remote.ErrNotExist) {
				return nil // compacted since it was listed
			}
			if err != nil && repo.Damaged(gctx, err) {
				v.spoiledSegment(id, err)
				return nil
			}
			if err != nil {
				return err
			}
			v.addSegment(id, s)
			return nil
		})
	}
	return g.Wait()
}

func (v *checkup) spoiledSegment(id index.SegmentID, err error) {
	name := repo.SegmentPrefix + id.String()
	v.found(snapshot.Finding{Object: name, Problem: repo.Integrity(err)})
	v.mu.Lock()
	defer v.mu.Unlock()
	v.badSegments = append(v.badSegments, name)
}

func (v *checkup) addSegment(id index.SegmentID, s *index.Segment) {
	facts := segmentFacts{id, make(map[chunk.PackID]int64, len(s.Packs))}
	for i := range s.Packs {
		x := &s.Packs[i]
		places := v.placesOf(x.Index)
		p := v.pack(x.ID)
		v.mu.Lock()
		if p.segments == nil {
			p.places = places
		} else if !slices.Equal(p.places, places) {
			p.problems = append(p.problems, fmt.Errorf("%w: segments %v and %v do not agree on what it holds", snapshot.ErrIntegrity, p.segments[0], id))
		}
		p.segments = append(p.segments, id)
		v.mu.Unlock()
		facts.sizes[x.ID] = x.Size
	}
	v.mu.Lock()
	v.segments = append(v.segments, facts)
	v.mu.Unlock()
}

// agreeSegments compares what segments say with the packs that there are.
func (v *checkup) agreeSegments(ctx context.Context) error {
	for _, s := range v.segments {
		name := repo.SegmentPrefix + s.id.String()
		gone := 0
		var first chunk.PackID
		for id, size := range s.sizes {
			p := v.pack(id)
			switch {
			case p.missing():
				if gone == 0 || id.String() < first.String() {
					first = id
				}
				gone++
			case p.size != size:
				v.suspect(p, fmt.Errorf("%w: it has %d bytes, and segment %v says %d", snapshot.ErrIntegrity, p.size, s.id, size))
			}
		}
		if gone == 0 {
			continue
		}
		// Unless it was compacted and its packs collected since it was listed.
		switch there, err := v.there(ctx, name); {
		case err != nil:
			return err
		case there:
			v.found(snapshot.Finding{Object: name, Problem: fmt.Errorf("%w: it lists packs that are missing: %d, %s among them", snapshot.ErrIntegrity, gone, repo.PackName(first))})
		}
	}
	return nil
}

// there reports whether an object is still there.
func (v *checkup) there(ctx context.Context, name string) (bool, error) {
	_, err := v.repo.Store.Stat(ctx, name)
	if errors.Is(err, remote.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// holds reports whether a pack has a chunk in that place, by its index.
func (v *checkup) holds(ctx context.Context, p *packFacts, id *chunk.ID, loc *chunk.Location) (bool, error) {
	if p.segments == nil && !p.missing() {
		p.tail.Do(func() {
			x, err := v.repo.PackIndex(ctx, p.id, p.size)
			switch {
			case err == nil:
				p.places = v.placesOf(x)
			case repo.Damaged(ctx, err):
				v.suspect(p, repo.Integrity(err))
			default:
				p.tailErr = err
			}
		})
		if p.tailErr != nil {
			return false, p.tailErr
		}
	}
	_, ok := slices.BinarySearch(p.places, v.place(id, loc))
	return ok, nil
}

// choosePacks settles which packs are part of what is verified. It tells of packs
// that are not there, and of those that no segment lists.
func (v *checkup) choosePacks(context.Context) error {
	var unlisted []string
	for _, p := range v.packs {
		p.chosen = p.used || !v.part
		switch {
		case p.missing() && p.used:
			v.suspect(p, errMissing)
		case p.missing() || !p.chosen:
			continue
		default:
			v.report.Packs++
			v.report.PackBytes += p.size
		}
		if p.used && len(p.segments) == 0 && !p.missing() {
			unlisted = append(unlisted, repo.PackName(p.id))
		}
	}
	if n := len(unlisted); n > 0 {
		slices.Sort(unlisted)
		v.note(unlisted[0], fmt.Errorf("it is in use, and no index segment lists it: whoever has what it holds stores that again (packs like this: %d)", n))
	}
	return nil
}

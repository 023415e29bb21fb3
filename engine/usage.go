package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
)

// Usage is what a repository holds. Sizes are in bytes.
type Usage struct {
	Snapshots int   // those that have expired too, until they are collected
	Logical   int64 // sum of the snapshots' Bytes: what restoring all of them writes
	// Unique is the plaintext of the contents in packs that snapshots refer to, and
	// Stored what these packs take. A chunk counts once, but for one that lies in two
	// packs; chunks that no snapshot refers to any more count as long as their pack
	// has another one.
	Unique int64
	Stored int64
	Trees  int64 // what packs of tree pages take that snapshots refer to
	// Unused is what packs take that no snapshot refers to. Garbage collection frees
	// them when they are old enough, unless a mount of a removed snapshot needs them.
	Unused int64

	Objects []ObjectUsage
	// Of are the snapshots that were asked for, or all, newest first.
	Of []SnapshotUsage
	// Together is what removing all of Of would free: more than the sum of their
	// Only, where a pack is needed by several of them and by no other.
	Together int64
}

// Total is what all objects take.
func (u *Usage) Total() (n int64) {
	for _, o := range u.Objects {
		n += o.Bytes
	}
	return n
}

// ObjectUsage counts objects of a kind.
type ObjectUsage struct {
	Kind  string
	Count int
	Bytes int64
}

// SnapshotUsage is what a snapshot holds.
type SnapshotUsage struct {
	Snapshot
	// Only is what removing this snapshot alone, and collecting garbage, would free:
	// its manifest, and the packs that no other snapshot's manifest names. Chunks that
	// only it refers to do not count where they lie in packs that others need too.
	Only int64
	// Referred is what the packs take that it refers to.
	Referred int64
}

// packUse is what Usage knows of a pack.
type packUse struct {
	size  int64
	uses  int // by snapshots
	asked int // by those of Of
	sole  int // place in Of of the last that uses it
	kind  chunk.PackKind
	plain int64
	known bool // kind and plain are
}

// Usage counts what the repository holds, and what the snapshots do that refs name,
// or all of them. It lists objects and reads manifests, tombstones and index segments:
// of packs that no segment lists it reads the index, and of no pack what it holds.
//
// Where manifests are damaged the usage leaves them out, and comes together with an
// error that is ErrIntegrity; as it does where a tombstone is, which may have said where
// the contents of a pack are now.
func (r *Repository) Usage(ctx context.Context, refs ...string) (*Usage, error) {
	u, err := r.usage(ctx, refs)
	if err != nil {
		err = fmt.Errorf("usage of %s: %w", r.url, err)
	}
	return u, err
}

func (r *Repository) usage(ctx context.Context, refs []string) (*Usage, error) {
	asked := map[manifest.ID]bool{}
	for _, ref := range refs {
		s, err := r.Get(ctx, ref)
		if err != nil {
			return nil, err
		}
		asked[s.ID] = true
	}
	all, err := r.ids(ctx) // before packs: so those that manifests name are listed
	if err != nil {
		return nil, err
	}
	u := &Usage{}
	packs := map[chunk.PackID]*packUse{}
	if err := r.countObjects(ctx, u, packs); err != nil {
		return nil, err
	}
	moved, damage := r.readMoved(ctx)
	if damage != nil && !errors.Is(damage, ErrIntegrity) {
		return nil, damage
	}
	bad, err := r.countSnapshots(ctx, u, packs, moved, all, func(id manifest.ID) bool { return len(refs) == 0 || asked[id] })
	if err != nil {
		return nil, err
	}
	if damage != nil {
		bad = append(bad, damage)
	}
	if err := r.weighPacks(ctx, packs); err != nil {
		return nil, err
	}
	for _, p := range packs {
		switch {
		case p.uses == 0:
			u.Unused += p.size
		case p.kind == chunk.TreePack:
			u.Trees += p.size
		default:
			u.Stored += p.size
			u.Unique += p.plain
		}
		if p.uses == 1 && p.asked == 1 {
			u.Of[p.sole].Only += p.size
		}
		if p.uses > 0 && p.uses == p.asked {
			u.Together += p.size
		}
	}
	return u, errors.Join(bad...)
}

// kinds of objects, by the first part of their names, in the order of a report.
var objectKinds = [...]struct{ prefix, kind string }{
	{manifest.Prefix, "manifests"}, {packsPrefix, "packs"}, {segmentPrefix, "segments"}, {leasePrefix, "leases"},
	{profilePrefix, "profiles"}, {manifest.NotePrefix, "notes"}, {gcPrefix, "tombstones"}, {configName, "config"}, {keyPrefix, "keys"}, {"", "others"},
}

// countObjects lists everything.
func (r *Repository) countObjects(ctx context.Context, u *Usage, packs map[chunk.PackID]*packUse) error {
	counts := make([]ObjectUsage, len(objectKinds))
	err := r.store.List(ctx, "", func(o remote.Info) error {
		for i, k := range objectKinds {
			if strings.HasPrefix(o.Name, k.prefix) {
				counts[i].Kind = k.kind
				counts[i].Count++
				counts[i].Bytes += o.Size
				break
			}
		}
		if id, err := parsePackName(o.Name); err == nil {
			packs[id] = &packUse{size: o.Size}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("listing objects: %w", err)
	}
	u.Objects = slices.DeleteFunc(counts, func(o ObjectUsage) bool { return o.Count == 0 })
	return nil
}

// usedBy gives the packs that a snapshot needs and that are there, each once: in the place
// of one that was repacked those that it was moved to.
func usedBy(m *manifest.Manifest, packs map[chunk.PackID]*packUse, moved map[chunk.PackID][]chunk.PackID) []*packUse {
	var all []*packUse
	seen := make(map[*packUse]bool, len(m.Packs))
	add := func(id chunk.PackID) bool {
		p := packs[id]
		if p != nil && !seen[p] {
			seen[p] = true
			all = append(all, p)
		}
		return p != nil
	}
	for i := range m.Packs {
		found := false
		for _, to := range moved[m.Packs[i].ID] {
			found = add(to) || found
		}
		if !found {
			add(m.Packs[i].ID) // that it is missing is for Verify to tell
		}
	}
	return all
}

// countSnapshots reads all manifests: bad tells of those that are damaged.
func (r *Repository) countSnapshots(ctx context.Context, u *Usage, packs map[chunk.PackID]*packUse, moved map[chunk.PackID][]chunk.PackID, all []sizedID, asked func(manifest.ID) bool) (bad []error, err error) {
	place := make([]int, len(all)) // in u.Of
	for i, id := range all {
		if place[i] = -1; asked(id.ID) {
			place[i] = len(u.Of)
			u.Of = append(u.Of, SnapshotUsage{Only: id.size})
			u.Together += id.size
		}
	}
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(marksAtOnce)
	for i, id := range all {
		g.Go(func() error {
			m, err := r.manifest(gctx, id.ID)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, ErrNotFound):
				return nil // removed since it was listed
			case errors.Is(err, ErrIntegrity):
				bad = append(bad, err)
				return nil
			case err != nil:
				return err
			}
			u.Snapshots++
			u.Logical += int64(m.Bytes)
			var of *SnapshotUsage
			if place[i] >= 0 {
				of = &u.Of[place[i]]
				of.Snapshot = *snapshotOf(&m.Info)
			}
			for _, p := range usedBy(m, packs, moved) {
				p.uses++
				if of != nil {
					p.asked++
					p.sole = place[i]
					of.Referred += p.size
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	// Those that could not be read have no place any more.
	gone := map[int]int{}
	kept := u.Of[:0]
	for i := range u.Of {
		if u.Of[i].ID.IsZero() {
			continue
		}
		gone[i] = len(kept)
		kept = append(kept, u.Of[i])
	}
	u.Of = kept
	for _, p := range packs {
		p.sole = gone[p.sole]
	}
	return bad, nil
}

// weighPacks finds out what is in the packs: from index segments, and for packs that
// none lists, from their own index.
func (r *Repository) weighPacks(ctx context.Context, packs map[chunk.PackID]*packUse) error {
	ids, err := r.listSegments(ctx)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(segmentsAtOnce)
	for _, id := range ids {
		g.Go(func() error {
			s, err := r.segment(gctx, id)
			if errors.Is(err, remote.ErrNotExist) || errors.Is(err, index.ErrBadSegment) {
				return nil // then their own indexes tell
			}
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			for i := range s.Packs {
				packs[s.Packs[i].ID].weigh(s.Packs[i].Index)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	g, gctx = errgroup.WithContext(ctx)
	g.SetLimit(headsAtOnce)
	for id, p := range packs {
		if p.known || p.uses == 0 {
			continue
		}
		g.Go(func() error {
			x, err := r.packIndex(gctx, id, p.size)
			if err != nil && damaged(gctx, err) {
				return nil // what it takes is known all the same
			}
			if err == nil {
				p.weigh(x)
			}
			return err
		})
	}
	return g.Wait()
}

func (p *packUse) weigh(x *chunk.PackIndex) {
	if p == nil || p.known {
		return
	}
	p.known, p.kind = true, x.Kind
	for i := range x.Frames {
		p.plain += int64(x.Frames[i].Raw)
	}
}

package check

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/access"
	"github.com/snapctl/snapctl/engine/internal/crypt"
	"github.com/snapctl/snapctl/engine/internal/gc"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
)

// packUse is what Usage knows of a pack.
type packUse struct {
	size  int64
	uses  int // by snapshots
	asked int // by those of Of
	sole  int // place in Of of the last that uses it
	kind  chunk.PackKind
	plain int64
	known bool           // kind and plain are
	moved []chunk.PackID // if it was repacked
}

// Usage is engine.Repository.Usage.
func Usage(ctx context.Context, r *repo.Repo, refs ...string) (*snapshot.Usage, error) {
	u, err := usageOf(ctx, r, refs)
	if err != nil {
		err = fmt.Errorf("usage of %s: %w", r.URL(), err)
	}
	return u, err
}

func usageOf(ctx context.Context, r *repo.Repo, refs []string) (*snapshot.Usage, error) {
	asked := map[manifest.ID]bool{}
	x := r.NewResolver(ctx, len(refs))
	for _, ref := range refs {
		s, err := x.Get(ref)
		if err != nil {
			return nil, err
		}
		asked[s.ID] = true
	}
	all, err := r.Ids(ctx) // before packs: so those that manifests name are listed
	if err != nil {
		return nil, err
	}
	u := &snapshot.Usage{}
	c := &usageCount{repo: r, u: u, packs: map[chunk.PackID]*packUse{}, notes: map[manifest.ID][]manifest.NoteID{}, own: map[manifest.ID]int64{}}
	if err := c.objects(ctx); err != nil {
		return nil, err
	}
	if err := c.moves(ctx); err != nil {
		return nil, err
	}
	if err := c.snapshots(ctx, all, func(id manifest.ID) bool { return len(refs) == 0 || asked[id] }); err != nil {
		return nil, err
	}
	if err := c.weigh(ctx); err != nil {
		return nil, err
	}
	for _, p := range c.packs {
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
	return u, errors.Join(c.bad...)
}

// usageCount is one run of Usage.
type usageCount struct {
	repo   *repo.Repo
	u      *snapshot.Usage
	packs  map[chunk.PackID]*packUse
	notes  map[manifest.ID][]manifest.NoteID
	own    map[manifest.ID]int64 // bytes of objects that go with a snapshot
	stones []string              // names of tombstones
	bad    []error               // of manifests and notes that are damaged
}

// kinds of objects, by the first part of their names, in the order of a report.
var objectKinds = [...]struct{ prefix, kind string }{
	{manifest.Prefix, "manifests"}, {gc.PacksPrefix, "packs"}, {repo.SegmentPrefix, "segments"}, {write.LeasePrefix, "leases"},
	{repo.ProfilePrefix, "profiles"}, {manifest.NotePrefix, "notes"}, {crypt.KeyPrefix, "keys"}, {repo.GcPrefix, "tombstones"}, {repo.ConfigName, "config"}, {"", "others"},
}

// objects lists everything.
func (c *usageCount) objects(ctx context.Context) error {
	counts := make([]snapshot.ObjectUsage, len(objectKinds))
	err := c.repo.Store.List(ctx, "", func(o remote.Info) error {
		for i, k := range objectKinds {
			if strings.HasPrefix(o.Name, k.prefix) {
				counts[i].Kind = k.kind
				counts[i].Count++
				counts[i].Bytes += o.Size
				break
			}
		}
		if id, err := repo.ParsePackName(o.Name); err == nil {
			c.packs[id] = &packUse{size: o.Size}
		} else if id, note, err := manifest.ParseNoteName(o.Name); err == nil {
			c.notes[id] = append(c.notes[id], note)
			c.own[id] += o.Size
		} else if id, err := manifest.ParseObjectName(o.Name); err == nil {
			c.own[id] += o.Size
		} else if id, ok := access.ParseName(o.Name); ok {
			c.own[id] += o.Size
		} else if repo.IsTombstone(o.Name) {
			c.stones = append(c.stones, o.Name)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("listing objects: %w", err)
	}
	c.u.Objects = slices.DeleteFunc(counts, func(o snapshot.ObjectUsage) bool { return o.Count == 0 })
	return nil
}

// moves finds out where the contents of packs are now that were repacked: what names
// the old one needs the new ones, and garbage collection frees the old one.
func (c *usageCount) moves(ctx context.Context) error {
	moved, err := c.repo.ReadMoved(ctx, c.stones)
	var bad error
	if err := repo.UnlessDamaged(err, &bad); err != nil {
		return err
	}
	if bad != nil {
		c.bad = append(c.bad, bad)
	}
	for id, to := range moved {
		// Two collectors may have repacked at once, and the packs of one of them be gone.
		to = slices.DeleteFunc(to, func(id chunk.PackID) bool { return c.packs[id] == nil })
		if c.packs[id] == nil {
			c.packs[id] = &packUse{}
		}
		c.packs[id].moved = to
	}
	return nil
}

// needs gives the packs that a snapshot needs, each once.
func (c *usageCount) needs(m *manifest.Manifest) []*packUse {
	var all []*packUse
	seen := map[*packUse]bool{}
	add := func(id chunk.PackID) {
		// That one is missing is for Verify to tell.
		if p := c.packs[id]; p != nil && !seen[p] {
			seen[p] = true
			all = append(all, p)
		}
	}
	for i := range m.Packs {
		id := m.Packs[i].ID
		if p := c.packs[id]; p != nil && len(p.moved) > 0 {
			for _, to := range p.moved {
				add(to)
			}
			continue
		}
		add(id)
	}
	return all
}

// snapshots reads all manifests, and the notes of those that are asked for.
func (c *usageCount) snapshots(ctx context.Context, all []repo.SizedID, asked func(manifest.ID) bool) error {
	u := c.u
	place := make([]int, len(all)) // in u.Of
	for i, id := range all {
		if place[i] = -1; asked(id.ID) {
			place[i] = len(u.Of)
			u.Of = append(u.Of, snapshot.SnapshotUsage{Only: c.own[id.ID]})
			u.Together += c.own[id.ID]
		}
	}
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(gc.MarksAtOnce)
	for i, id := range all {
		g.Go(func() error {
			m, err := c.repo.Manifest(gctx, id.ID)
			var notes []*manifest.Note
			var noteErr error
			if err == nil && place[i] >= 0 {
				notes, err = c.repo.ReadNotes(gctx, id.ID, c.notes[id.ID])
				err = repo.UnlessDamaged(err, &noteErr)
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, snapshot.ErrNotFound):
				return nil // removed since it was listed
			case errors.Is(err, snapshot.ErrIntegrity):
				c.bad = append(c.bad, err)
				return nil
			case err != nil:
				return err
			case noteErr != nil: // it counts nevertheless
				c.bad = append(c.bad, noteErr)
			}
			u.Snapshots++
			u.Logical += int64(m.Bytes)
			var of *snapshot.SnapshotUsage
			if place[i] >= 0 {
				of = &u.Of[place[i]]
				of.Snapshot = *repo.SnapshotOf(&m.Info)
				repo.Annotate(&of.Snapshot, notes)
			}
			for _, p := range c.needs(m) {
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
		return err
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
	for _, p := range c.packs {
		p.sole = gone[p.sole]
	}
	return nil
}

// weigh finds out what is in the packs: from index segments, and for packs that
// none lists, from their own index.
func (c *usageCount) weigh(ctx context.Context) error {
	ids, err := c.repo.ListSegments(ctx)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(segmentsAtOnce)
	for _, id := range ids {
		g.Go(func() error {
			s, err := c.repo.Segment(gctx, id)
			if errors.Is(err, remote.ErrNotExist) || errors.Is(err, index.ErrBadSegment) {
				return nil // then their own indexes tell
			}
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			for i := range s.Packs {
				c.packs[s.Packs[i].ID].weigh(s.Packs[i].Index)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	g, gctx = errgroup.WithContext(ctx)
	g.SetLimit(repo.HeadsAtOnce)
	for id, p := range c.packs {
		if p.known || p.uses == 0 {
			continue
		}
		g.Go(func() error {
			x, err := c.repo.PackIndex(gctx, id, p.size)
			if err != nil && repo.Damaged(gctx, err) {
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

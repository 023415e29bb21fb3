package gc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/access"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
)

// listings are what a collector sees of a repository. Each is complete, or there is
// an error.
type listings struct {
	stones    map[string]*standing // tombstones by id
	clocks    []remote.Info
	manifests []listedManifest
	leases    []listedLease
	segments  []listedSegment
	kept      []keptFor
	notes     map[manifest.ID][]manifest.NoteID

	mu     sync.Mutex
	newest time.Time // of all objects
}

// standing is a tombstone as it stands in the repository.
type standing struct {
	id     string
	put    bool // else only its notes are left
	seen   time.Time
	done   time.Time
	stone  repo.Tombstone
	oldest time.Time // of its objects
}

func (s *standing) name() string { return repo.GcPrefix + s.id }

type listedManifest struct {
	id   manifest.ID
	size int64
	time time.Time // that of the older one, if it lies under two names
	kept bool      // it lies under KeptName alone, and time is not when it was made
}

type listedLease struct {
	remote.Info
	snapshot manifest.ID
}

type listedSegment struct {
	remote.Info
	id index.SegmentID
}

// keptFor is an object that is of use only as long as a snapshot is there.
type keptFor struct {
	remote.Info
	snapshot manifest.ID
}

// list lists the repository. Packs are listed after manifests: then those that a
// manifest names are there, unless they were deleted.
func (c *collector) list(ctx context.Context) error {
	c.packs = map[chunk.PackID]*packState{}
	c.listed.notes = map[manifest.ID][]manifest.NoteID{}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.listStones(ctx) })
	g.Go(func() error {
		if err := c.listManifests(ctx); err != nil {
			return err
		}
		return c.listPacks(ctx)
	})
	g.Go(func() error { return c.listLeases(ctx) })
	g.Go(func() error { return c.listSegments(ctx) })
	g.Go(func() error {
		// One after the other: both add to what is kept.
		if err := c.listProfiles(ctx); err != nil {
			return err
		}
		return c.listNotes(ctx)
	})
	if err := g.Wait(); err != nil {
		return err
	}
	for _, s := range c.listed.stones {
		for i := range s.stone.Packs {
			d := &s.stone.Packs[i]
			p := c.pack(d.Id)
			// Of two that name a pack the one counts that was seen first.
			if p.stone == nil || p.stone.seen.IsZero() || !s.seen.IsZero() && s.seen.Before(p.stone.seen) {
				p.stone = s
			}
			// Two collectors may have moved it at once. Either's new packs may be what
			// somebody went by when he deleted the old one.
			p.moved = append(p.moved, d.Moved...)
		}
	}
	return nil
}

// pack gives what is known of a pack.
func (c *collector) pack(id chunk.PackID) *packState {
	p := c.packs[id]
	if p == nil {
		p = &packState{}
		c.packs[id] = p
	}
	return p
}

// each lists the objects below a prefix.
func (c *collector) each(ctx context.Context, prefix, what string, yield func(remote.Info)) error {
	var newest time.Time
	err := c.repo.Store.List(ctx, prefix, func(o remote.Info) error {
		if o.ModTime.After(newest) {
			newest = o.ModTime
		}
		yield(o)
		return nil
	})
	if err != nil {
		return fmt.Errorf("listing %s: %w", what, err)
	}
	c.listed.mu.Lock()
	defer c.listed.mu.Unlock()
	if newest.After(c.listed.newest) {
		c.listed.newest = newest
	}
	return nil
}

func (c *collector) foreign(o remote.Info) {
	c.repo.Logger.Warn("gc: not an object of a repository, left alone", "object", o.Name)
}

func (c *collector) listStones(ctx context.Context) error {
	stones := map[string]*standing{}
	err := c.each(ctx, repo.GcPrefix, "tombstones", func(o remote.Info) {
		n, ok := repo.ParseGCName(o.Name)
		switch {
		case !ok:
			c.foreign(o)
			return
		case n.Id == "":
			c.listed.clocks = append(c.listed.clocks, o)
			return
		}
		s := stones[n.Id]
		if s == nil {
			s = &standing{id: n.Id, oldest: o.ModTime}
			stones[n.Id] = s
		}
		if o.ModTime.Before(s.oldest) {
			s.oldest = o.ModTime
		}
		switch n.Kind {
		case repo.SeenSuffix:
			s.seen = o.ModTime
		case repo.DoneSuffix:
			s.done = o.ModTime
		default:
			s.put = true
		}
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(write.AsksAtOnce)
	for _, s := range stones {
		if !s.put {
			continue
		}
		g.Go(func() error {
			t, err := c.repo.Tombstone(ctx, s.name())
			if errors.Is(err, remote.ErrNotExist) { // another collector was here
				s.put = false
				return nil
			}
			if err == nil {
				s.stone = *t
			}
			return err
		})
	}
	c.listed.stones = stones
	return g.Wait()
}

// listManifests lists manifests, each once.
func (c *collector) listManifests(ctx context.Context) error {
	err := c.each(ctx, manifest.Prefix, "manifests", func(o remote.Info) {
		id, err := manifest.ParseObjectName(o.Name)
		if err != nil {
			c.foreign(o)
			return
		}
		c.listed.manifests = append(c.listed.manifests, listedManifest{id, o.Size, o.ModTime, o.Name != id.ObjectName()})
	})
	all := c.listed.manifests
	slices.SortFunc(all, func(a, b listedManifest) int {
		if order := a.id.Compare(b.id); order != 0 || a.kept == b.kept {
			return order
		}
		if a.kept {
			return 1
		}
		return -1
	})
	c.listed.manifests = slices.CompactFunc(all, func(a, b listedManifest) bool { return a.id == b.id })
	return err
}

// PacksPrefix is where packs lie.
const PacksPrefix = "packs/"

func (c *collector) listPacks(ctx context.Context) error {
	return c.each(ctx, PacksPrefix, "packs", func(o remote.Info) {
		id, err := repo.ParsePackName(o.Name)
		if err != nil {
			c.foreign(o)
			return
		}
		c.packs[id] = &packState{there: true, size: o.Size, time: o.ModTime}
	})
}

func (c *collector) listLeases(ctx context.Context) error {
	return c.each(ctx, write.LeasePrefix, "leases", func(o remote.Info) {
		id, ok := write.ParseLeaseName(o.Name)
		if !ok {
			c.foreign(o)
			return
		}
		c.listed.leases = append(c.listed.leases, listedLease{o, id})
	})
}

func (c *collector) listSegments(ctx context.Context) error {
	return c.each(ctx, repo.SegmentPrefix, "index segments", func(o remote.Info) {
		id, err := index.ParseSegmentID(strings.TrimPrefix(o.Name, repo.SegmentPrefix))
		if err != nil {
			c.foreign(o)
			return
		}
		c.listed.segments = append(c.listed.segments, listedSegment{o, id})
	})
}

// listProfiles lists access profiles.
func (c *collector) listProfiles(ctx context.Context) error {
	return c.each(ctx, repo.ProfilePrefix, "access profiles", func(o remote.Info) {
		if id, ok := access.ParseName(o.Name); ok {
			c.listed.kept = append(c.listed.kept, keptFor{o, id})
		} else {
			c.foreign(o)
		}
	})
}

// listNotes lists notes, in the order in which they apply.
func (c *collector) listNotes(ctx context.Context) error {
	return c.each(ctx, manifest.NotePrefix, "notes", func(o remote.Info) {
		id, note, err := manifest.ParseNoteName(o.Name)
		if err != nil {
			c.foreign(o)
			return
		}
		c.listed.notes[id] = append(c.listed.notes[id], note)
		c.listed.kept = append(c.listed.kept, keptFor{o, id})
	})
}

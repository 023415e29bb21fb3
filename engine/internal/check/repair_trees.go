package check

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sync/errgroup"
)

// rebuildTrees makes the trees of what is left of the snapshots that lost something.
func (x *repairer) rebuildTrees(ctx context.Context) error {
	for _, s := range x.lostOnes {
		if s.m == nil {
			continue
		}
		left, err := x.whatIsLeft(ctx, s)
		if err != nil {
			return fmt.Errorf("snapshot %v: %w", s.ID, err)
		}
		if s.Files == 0 && s.LostEntries() > 0 {
			s.Nothing, s.Why = true, errNothingLeft
			continue
		}
		if !x.opts.Apply {
			continue
		}
		if err := x.rebuild(ctx, s, left); err != nil {
			return fmt.Errorf("what is left of snapshot %v: %w", s.ID, err)
		}
	}
	return nil
}

var errNothingLeft = errors.New("no file of it can be read")

// remains is what is left of a snapshot.
type remains struct {
	dropped map[manifest.Key]bool // files that are lost
	made    []manifest.Entry      // directories that are needed, in order
	bytes   uint64
}

// whatIsLeft goes through a snapshot and finds out what of it is lost.
func (x *repairer) whatIsLeft(ctx context.Context, s *lostSnapshot) (*remains, error) {
	left := &remains{dropped: map[manifest.Key]bool{}}
	have, need := map[string]bool{}, map[string]bool{}
	var root manifest.Entry
	err := x.walk(ctx, s, func(e *manifest.Entry) error {
		if e.Name == "" {
			root = *e.Clone()
			have[""] = true
			return nil
		}
		ok, err := x.keep(ctx, s, left, e.Clone())
		if err != nil {
			return err
		}
		if !ok {
			left.dropped[e.Key()] = true
			s.Lost = append(s.Lost, e.Path())
			return nil
		}
		if e.Type == manifest.Dir {
			have[e.Path()] = true
		} else {
			s.Files++
			left.bytes += e.Size
		}
		for dir := e.Dir; !need[dir]; dir = manifest.KeyOf(dir).Dir {
			need[dir] = true
			if dir == "" {
				break
			}
		}
		return nil
	}, func(p *manifest.Part) { s.Ranges = appendRange(s.Ranges, p) })
	if err != nil {
		return nil, err
	}
	need[""] = true
	for dir := range need {
		if have[dir] {
			continue
		}
		k := manifest.KeyOf(dir)
		made := manifest.Entry{Dir: k.Dir, Name: k.Name, Type: manifest.Dir, Mode: 0o755, UID: root.UID, GID: root.GID, Mtime: manifest.TimeOf(s.m.Created), Links: 1}
		left.made = append(left.made, made)
		s.Made = append(s.Made, dir)
	}
	slices.SortFunc(left.made, func(a, b manifest.Entry) int { return a.Key().Compare(b.Key()) })
	slices.Sort(s.Made)
	return left, nil
}

// keep changes an entry such that it refers to nothing unusable, and reports whether
// that can be done.
func (x *repairer) keep(ctx context.Context, s *lostSnapshot, left *remains, e *manifest.Entry) (bool, error) {
	switch e.Type {
	case manifest.Link:
		if left.dropped[e.First] {
			return false, nil
		}
		var first manifest.Entry
		_, err := s.tree.Lookup(ctx, e.First, &first)
		if err != nil && (repo.Damaged(ctx, err) || errors.Is(err, manifest.ErrNotExist)) {
			return false, nil
		}
		return err == nil, err
	case manifest.File:
		return x.keepFile(ctx, s, e)
	}
	return true, nil
}

func (x *repairer) keepFile(ctx context.Context, s *lostSnapshot, e *manifest.Entry) (bool, error) {
	if e.Spill == nil {
		for i := range e.Extents {
			if !x.saved.place(&e.Extents[i]) {
				return false, nil
			}
		}
		return true, nil
	}
	// Pages of extents stay if neither they nor what they name is unusable.
	use := map[chunk.PackID]uint64{}
	err := s.tree.Use(ctx, e, use)
	if err == nil && !slices.ContainsFunc(slices.Collect(maps.Keys(use)), x.dubious) {
		return true, nil
	}
	lost := false
	var all []manifest.Extent
	if err == nil {
		err = s.tree.Extents(ctx, e, func(_ uint64, ext *manifest.Extent) error {
			c := *ext
			lost = lost || !x.saved.place(&c)
			all = append(all, c)
			return nil
		})
	}
	if err != nil {
		if repo.Damaged(ctx, err) {
			return false, nil
		}
		return false, err
	}
	e.Extents, e.Spill = all, nil
	return !lost, nil
}

// rebuild makes the tree and manifest of what is left.
func (x *repairer) rebuild(ctx context.Context, s *lostSnapshot, left *remains) error {
	known := map[chunk.ID]manifest.PageRef{}
	err := s.tree.Parts(ctx, func(p manifest.Part) error {
		if !p.IsRoot() && !x.unusable(p.Pack) {
			known[p.ID] = p.PageRef
		}
		return nil
	}, func(p manifest.Part, err error) error {
		if repo.Damaged(ctx, err) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	up := x.uploader(g)
	sink := &write.TreeSink{
		Codec: x.repo.Codec, Hasher: x.repo.Hasher, Up: up, Pages: map[chunk.ID]manifest.PageRef{},
		Lookup: func(id chunk.ID) (manifest.PageRef, bool) { ref, ok := known[id]; return ref, ok },
	}
	var root *manifest.Root
	g.Go(func() (err error) {
		root, err = x.build(gctx, s, left, sink)
		return err
	})
	err = g.Wait()
	x.landed(up)
	if err != nil {
		return err
	}
	fresh := &manifest.Manifest{Info: s.m.Info}
	fresh.ID, fresh.Parent = s.m.ID.Next(), s.m.ID
	x.asNoted(fresh, s)
	fresh.Files, fresh.Bytes = uint64(s.Files), left.bytes
	fresh.Unreadable += uint64(s.LostEntries())
	fresh.NewBytes, fresh.StoredBytes, fresh.Version = 0, uint64(up.StoredBytes()), x.repo.Ver
	fresh.SetTree(root)
	s.fresh = fresh
	return nil
}

// asNoted has a manifest that takes the place of a snapshot's say what the notes of that
// one do. Of a pin, putManifests makes a note.
func (x *repairer) asNoted(fresh *manifest.Manifest, s *lostSnapshot) {
	if s.known && len(s.now.Notes) == 0 {
		return
	}
	fresh.Name, fresh.Tags, fresh.Expires = s.now.Name, s.now.Tags, time.Time{}
	class := manifest.ClassFor(0)
	// If it is not known when it ends, it does not.
	if s.known && s.now.ExpiresAt != nil {
		fresh.Expires = *s.now.ExpiresAt
		class = manifest.ClassFor(max(time.Second, fresh.Expires.Sub(x.repo.Time())))
	}
	fresh.ID = fresh.ID.InClass(class)
}

// build adds what is left to a tree.
func (x *repairer) build(ctx context.Context, s *lostSnapshot, left *remains, sink *write.TreeSink) (*manifest.Root, error) {
	b := manifest.NewBuilder(sink)
	b.Reuse(s.tree)
	made := left.made
	before := func(k *manifest.Key) error {
		for len(made) > 0 && (k == nil || made[0].Key().Compare(*k) < 0) {
			if err := b.Add(ctx, &made[0]); err != nil {
				return err
			}
			made = made[1:]
		}
		return nil
	}
	err := x.walk(ctx, s, func(old *manifest.Entry) error {
		e := old.Clone()
		k := e.Key()
		if ok, err := x.keep(ctx, s, left, e); !ok || err != nil {
			return err
		}
		if err := before(&k); err != nil {
			return err
		}
		return b.Add(ctx, e)
	}, nil)
	if err == nil {
		err = before(nil)
	}
	if err != nil {
		return nil, err
	}
	return b.Finish(ctx)
}

package gc

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/flow"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/remote"
)

// Index segments are put together when there are many small ones: whoever has no
// index yet fetches them all.
const (
	smallSegment = 1 << 20 // bytes
	ManySmall    = 32
	// segmentsAhead is how many segments are fetched before they are wanted.
	segmentsAhead = 4
)

// compact writes index segments anew: those that list packs which are about to be
// deleted, or are gone, and, when there are many, the small ones. The new ones are
// there before the old ones go.
func (c *collector) compact(ctx context.Context, dying bool) error {
	all := c.listed.segments
	c.report.SegmentsBefore, c.report.SegmentsAfter = len(all), len(all)
	small := 0
	for i := range all {
		if all[i].Size < smallSegment {
			small++
		}
	}
	merge := small >= ManySmall
	if !merge && !dying {
		return nil
	}
	written := 0
	w := &write.SegmentFiller{Put: func(ctx context.Context, s *index.Segment) error {
		written++
		return c.putSegment(ctx, s)
	}}
	listed := map[chunk.PackID]bool{}
	var old []string
	err := c.eachSegment(ctx, func(at *listedSegment, s *index.Segment) error {
		if !(merge && at.Size < smallSegment) && !c.listsGone(at, s) {
			return nil
		}
		old = append(old, at.Name)
		for i := range s.Packs {
			p := &s.Packs[i]
			if listed[p.ID] || c.gone(at, p.ID) {
				continue
			}
			listed[p.ID] = true
			if err := w.Add(ctx, p); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = w.Flush(ctx)
	}
	if err == nil {
		err = c.inTime()
	}
	if err != nil {
		return err
	}
	if err := c.delete(ctx, old); err != nil {
		return fmt.Errorf("deleting index segments: %w", err)
	}
	c.report.SegmentsAfter += written - len(old)
	return nil
}

// gone reports whether a segment lists a pack in vain. Packs are there before the
// segment that lists them.
func (c *collector) gone(at *listedSegment, id chunk.PackID) bool {
	p := c.packs[id]
	if p != nil && (p.there || p.dead) {
		return p.dead
	}
	return p != nil && p.stone != nil || c.now.Sub(at.ModTime) > c.grace/2
}

func (c *collector) listsGone(at *listedSegment, s *index.Segment) bool {
	for i := range s.Packs {
		if c.gone(at, s.Packs[i].ID) {
			return true
		}
	}
	return false
}

// eachSegment calls yield for all segments in turn. Those that are damaged are left
// alone: what they list is stored again.
func (c *collector) eachSegment(ctx context.Context, yield func(*listedSegment, *index.Segment) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type fetched struct {
		at  *listedSegment
		get func(context.Context) (*index.Segment, error)
	}
	queue := make(chan fetched, segmentsAhead)
	go func() {
		defer close(queue)
		for i := range c.listed.segments {
			at := &c.listed.segments[i]
			f := fetched{at, repo.Begin(func() (*index.Segment, error) { return c.repo.Segment(ctx, at.id) })}
			if !flow.Send(ctx, queue, f) {
				return
			}
		}
	}()
	for f := range queue {
		s, err := f.get(ctx)
		if errors.Is(err, remote.ErrNotExist) {
			continue // another collector was here
		}
		if err != nil && repo.Damaged(ctx, err) {
			c.repo.Logger.Warn("gc: index segment left alone", "object", f.at.Name, "err", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("reading index segments: %w", err)
		}
		if err := yield(f.at, s); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// putSegment puts a segment in the place of others.
func (c *collector) putSegment(ctx context.Context, s *index.Segment) error {
	if c.opts.DryRun {
		return nil
	}
	// Never the name of a segment that was, which another collector may be about to
	// delete.
	rand.Read(s.Salt[:]) // never fails
	_, err := c.repo.PutSegment(ctx, s)
	return err
}

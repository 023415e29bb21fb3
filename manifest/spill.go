package manifest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/snapctl/snapctl/chunk"
)

// The extents of a file that has more than MaxInline of them are cut into pages
// by content, as the file itself is: after a chunk whose id says so, about every
// 512, so that a change in the middle of a large file leaves the other pages as
// they are. References to the pages are cut likewise, until MaxInline suffice.
const (
	spillMask  = 511
	maxSpilled = 4096 // items of a page
)

func spillCut(id chunk.ID, items int) bool {
	return (uint32(id[0])|uint32(id[1])<<8)&spillMask == 0 || items >= maxSpilled
}

// spillPage is a decoded page of extents, or of references to such pages. It is
// immutable.
type spillPage struct {
	level   int
	extents []Extent   // level 0
	refs    []SpillRef // above
	length  uint64     // bytes of the file that it covers
}

func appendExtentPage(dst []byte, w *tableWriter, all []Extent) []byte {
	w.reset()
	body := binary.AppendUvarint(nil, uint64(len(all)))
	for i := range all {
		body = w.appendExtent(body, &all[i], true)
	}
	return append(w.appendTables(dst, ExtentPage, 0), body...)
}

func appendExtentRefsPage(dst []byte, w *tableWriter, level int, refs []SpillRef) []byte {
	w.reset()
	body := appendSpillRefs(nil, w, refs)
	return append(w.appendTables(dst, extentRefsPage, byte(level)), body...)
}

func appendSpillRefs(dst []byte, w *tableWriter, refs []SpillRef) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(refs)))
	for i := range refs {
		dst = w.appendRef(dst, &refs[i].PageRef)
		dst = binary.AppendUvarint(dst, refs[i].Length)
	}
	return dst
}

func decodeSpillPage(page []byte) (*spillPage, error) {
	r, kind, level := newPageReader(page)
	p := &spillPage{level: int(level)}
	switch {
	case r.Err() != nil:
	case kind == ExtentPage:
		r.extentPage(p)
	case kind == extentRefsPage:
		p.refs = r.spillRefs(maxSpilled)
		for i := range p.refs {
			p.length += p.refs[i].Length
		}
	default:
		r.Failf("page of kind %d, extents expected", kind)
	}
	if err := r.close(); err != nil {
		return nil, fmt.Errorf("%w: page of extents: %w", ErrDamaged, err)
	}
	return p, nil
}

func (r *pageReader) extentPage(p *spillPage) {
	n := r.Count("number of extents", 4+chunk.IDSize)
	if n == 0 || n > maxSpilled {
		r.Failf("%d extents, 1 to %d expected", n, maxSpilled)
		return
	}
	p.extents = make([]Extent, n)
	for i := range p.extents {
		r.extent(&p.extents[i], true)
	}
	if r.Err() != nil {
		return
	}
	var err error
	if p.length, err = checkExtents(p.extents); err != nil {
		r.Failf("%v", err)
	}
}

func (r *pageReader) spillRefs(limit int) []SpillRef {
	n := r.Count("number of pages", 2+chunk.IDSize)
	if n == 0 || n > limit {
		r.Failf("%d pages of extents, 1 to %d expected", n, limit)
		return nil
	}
	refs := make([]SpillRef, n)
	rest := uint64(1<<63 - 1)
	for i := range refs {
		r.ref(&refs[i].PageRef)
		refs[i].Length = r.Uvarint("covered bytes", rest)
		rest -= refs[i].Length
		if refs[i].Length == 0 {
			r.Failf("page that covers nothing")
		}
	}
	return refs
}

// spill moves the extents of a large file to pages.
func (b *Builder) spill(ctx context.Context, e *Entry) error {
	var w tableWriter
	var refs []SpillRef
	start := 0
	for i := range e.Extents {
		x := &e.Extents[i]
		b.use.add(&x.Pack, uint64(x.Length))
		if i+1 < len(e.Extents) && !spillCut(x.ID, i+1-start) {
			continue
		}
		run := e.Extents[start : i+1]
		covered, err := checkExtents(run)
		if err != nil {
			return err
		}
		id, err := b.add(ctx, appendExtentPage(nil, &w, run))
		if err != nil {
			return err
		}
		refs = append(refs, SpillRef{PageRef{ID: id}, covered})
		start = i + 1
	}
	level := 0
	for {
		if err := b.sink.Flush(ctx); err != nil {
			return err
		}
		for i := range refs {
			refs[i].PageRef = b.sink.Page(refs[i].ID)
		}
		if len(refs) <= MaxInline {
			e.Extents, e.Spill = nil, &Spill{Level: level, Refs: refs}
			return nil
		}
		level++
		above, err := b.spillLevel(ctx, &w, level, refs)
		if err != nil {
			return err
		}
		refs = above
	}
}

func (b *Builder) spillLevel(ctx context.Context, w *tableWriter, level int, refs []SpillRef) ([]SpillRef, error) {
	var above []SpillRef
	start := 0
	var covered uint64
	for i := range refs {
		covered += refs[i].Length
		b.use.add(&refs[i].Pack, uint64(refs[i].Frame.Raw))
		if i+1 < len(refs) && (i == start || !spillCut(refs[i].ID, i+1-start)) {
			continue
		}
		id, err := b.add(ctx, appendExtentRefsPage(nil, w, level, refs[start:i+1]))
		if err != nil {
			return nil, err
		}
		above = append(above, SpillRef{PageRef{ID: id}, covered})
		start, covered = i+1, 0
	}
	return above, nil
}

// useSpill counts what the pages of an entry's extents use, which was spilled
// for another tree.
func (b *Builder) useSpill(ctx context.Context, e *Entry) error {
	if b.reuse == nil {
		return errors.New("extents in pages of a tree that is not known")
	}
	use := useCount{m: map[chunk.PackID]uint64{}}
	if err := b.reuse.useOfSpill(ctx, e.Spill, &use); err != nil {
		return err
	}
	for pack, n := range use.sum() {
		b.use.add(&pack, n)
	}
	return nil
}

// useOfSpill adds what the pages of a file's extents use.
func (t *Tree) useOfSpill(ctx context.Context, s *Spill, use *useCount) error {
	return t.spilled(ctx, s, 0, func(_ uint64, p *spillPage) error {
		for i := range p.refs {
			use.add(&p.refs[i].Pack, uint64(p.refs[i].Frame.Raw))
		}
		for i := range p.extents {
			use.add(&p.extents[i].Pack, uint64(p.extents[i].Length))
		}
		return nil
	})
}

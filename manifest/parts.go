package manifest

import (
	"context"
	"fmt"

	"github.com/snapctl/snapctl/chunk"
)

// A Part is a page of the tree proper as its parent names it: for those who look
// at a tree page by page, because some page may be damaged, or because they know
// it from another tree.
type Part struct {
	PageRef        // zero for the root page, which is in the manifest
	Level   int    // 0 for a leaf
	First   Key    // of the first entry in the page or below it
	End     *Key   // the first key behind the page; nil at the end of the tree
	Entries uint64 // in the page or below it
	flags   byte
}

// IsRoot reports whether it is the root page.
func (p *Part) IsRoot() bool { return p.PageRef == PageRef{} }

// AppendTo appends what tells the part from any other: a leaf that agrees with its
// parents in one tree agrees with those of every tree that has an equal part.
func (p *Part) AppendTo(b []byte) []byte {
	b = append(append(b, p.ID[:]...), p.Pack[:]...)
	b = fmt.Appendf(b, "%d %d %d %d %d %d ", p.Frame.Offset, p.Frame.Stored, p.Frame.Raw, p.Level, p.Entries, p.flags)
	b = fmt.Appendf(b, "%q %q ", p.First.Dir, p.First.Name)
	if p.End != nil {
		b = fmt.Appendf(b, "%q %q", p.End.Dir, p.End.Name)
	}
	return b
}

// Parts calls yield for every page of the tree proper, in order, the root page
// first and an inner page before what is below it. It reads inner pages only. Of
// one that cannot be read, or is not what its parent says, it tells lost, and goes
// on behind it. It stops at the first error of yield or lost, and returns it.
func (t *Tree) Parts(ctx context.Context, yield func(p Part) error, lost func(p Part, err error) error) error {
	level, entries, flags := t.root.says()
	if err := yield(Part{Level: level, Entries: entries, flags: flags}); err != nil {
		return err
	}
	if n, ok := t.root.(*inner); ok {
		return t.partsBelow(ctx, n, nil, yield, lost)
	}
	return nil
}

func (t *Tree) partsBelow(ctx context.Context, n *inner, end *Key, yield func(Part) error, lost func(Part, error) error) error {
	for i := range n.children {
		c := &n.children[i]
		s := step{page: n, child: i, end: end}
		p := Part{PageRef: c.PageRef, Level: n.level - 1, First: c.first, End: s.childEnd(), Entries: c.entries, flags: c.flags}
		if err := yield(p); err != nil {
			return err
		}
		if p.Level == 0 {
			continue
		}
		below, err := t.down(ctx, &s)
		if err == nil {
			err = t.partsBelow(ctx, below.(*inner), p.End, yield, lost)
		} else if ctx.Err() == nil {
			err = lost(p, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ReadLeaf reads a leaf, and compares it with what its parents say of it.
func (t *Tree) ReadLeaf(ctx context.Context, p *Part) (*Leaf, error) {
	if p.IsRoot() {
		if l, ok := t.root.(*Leaf); ok {
			return l, nil
		}
		return nil, fmt.Errorf("%w: the root page is no leaf", ErrDamaged)
	}
	n, err := t.childPage(ctx, &child{PageRef: p.PageRef, first: p.First, entries: p.Entries, flags: p.flags}, 0, p.End)
	if err != nil {
		return nil, err
	}
	return n.(*Leaf), nil
}

// Use adds the bytes that an entry of the tree uses of each pack to use, pages of
// extents included, as [Root] counts them.
func (t *Tree) Use(ctx context.Context, e *Entry, use map[chunk.PackID]uint64) error {
	u := useCount{m: use}
	e.use(&u)
	var err error
	if e.Spill != nil {
		err = t.useOfSpill(ctx, e.Spill, &u)
	}
	u.sum()
	return err
}

package manifest

import (
	"context"
	"fmt"
	"maps"

	"github.com/snapctl/snapctl/chunk"
)

// A Patch makes a tree of another one and of what differs. It reads and writes
// the pages of what differs, and takes the others as they are: an edit costs a
// leaf, and an inner page per level, whatever the size of the tree. The result
// is, byte for byte, what a [Builder] makes of the same entries.
//
// Put, Remove and RemoveBelow are called in the order of their keys, RemoveBelow
// as if the key were that of the first entry below. A Patch is not safe for
// parallel use; after an error it is of no use.
type Patch struct {
	// Dropped, if it is set, is called with each entry of the old tree that is
	// not in the new one as it was. It must not keep the entry.
	Dropped func(e *Entry)

	b      *Builder
	from   *Tree
	leaves []child
	leaf   *Leaf // the one at hand, nil for none
	next   int   // its next entry; without a leaf, nothing
	at     int   // the next leaf
	e      Entry
}

// NewPatch starts a tree that is like another one. use is that tree's Use; the
// new pages go to sink.
func NewPatch(ctx context.Context, from *Tree, use map[chunk.PackID]uint64, sink PageSink) (*Patch, error) {
	p := &Patch{b: NewBuilder(sink), from: from}
	p.b.Reuse(from)
	p.b.use.m = maps.Clone(use)
	switch root := from.root.(type) {
	case *Leaf:
		return p, p.open(ctx, root)
	case *inner:
		if err := p.gather(ctx, root, nil); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// gather lists the leaves below an inner page, and takes all pages below it off
// what is used: Finish counts those of the new tree.
func (p *Patch) gather(ctx context.Context, n *inner, end *Key) error {
	for i := range n.children {
		c := &n.children[i]
		if err := p.unuse(&c.Pack, uint64(c.Frame.Raw)); err != nil {
			return err
		}
		if n.level == 1 {
			p.leaves = append(p.leaves, *c)
			continue
		}
		s := step{page: n, child: i, end: end}
		below, err := p.from.down(ctx, &s)
		if err != nil {
			return err
		}
		if err := p.gather(ctx, below.(*inner), s.childEnd()); err != nil {
			return err
		}
	}
	return nil
}

// unuse takes bytes off what is used of a pack.
func (p *Patch) unuse(pack *chunk.PackID, bytes uint64) error {
	m := p.b.use.m
	switch have := m[*pack]; {
	case have < bytes:
		return fmt.Errorf("%w: more of pack %v is referred to than the manifest says", ErrDamaged, *pack)
	case have == bytes:
		delete(m, *pack)
	default:
		m[*pack] = have - bytes
	}
	return nil
}

// open takes a leaf apart: from now on its entries are added one by one.
func (p *Patch) open(ctx context.Context, l *Leaf) error {
	p.leaf, p.next = l, 0
	use := map[chunk.PackID]uint64{}
	l.Use(use)
	u := useCount{m: use}
	for i := range l.Len() {
		l.Entry(i, &p.e)
		if p.e.Spill == nil {
			continue
		}
		if err := p.from.useOfSpill(ctx, p.e.Spill, &u); err != nil {
			return err
		}
	}
	// What was counted lately counts as well.
	p.b.use.sum()
	for pack, n := range u.sum() {
		if err := p.unuse(&pack, n); err != nil {
			return err
		}
	}
	return nil
}

// end is the first key behind a leaf, nil for the last.
func (p *Patch) end(leaf int) *Key {
	if leaf+1 < len(p.leaves) {
		return &p.leaves[leaf+1].first
	}
	return nil
}

// load opens the next leaf.
func (p *Patch) load(ctx context.Context) error {
	n, err := p.from.childPage(ctx, &p.leaves[p.at], 0, p.end(p.at))
	if err != nil {
		return err
	}
	p.at++
	return p.open(ctx, n.(*Leaf))
}

// upTo takes over the entries before a key; all that are left, if it is nil.
func (p *Patch) upTo(ctx context.Context, k *Key) error {
	for {
		for p.leaf != nil && p.next < p.leaf.Len() {
			p.leaf.Entry(p.next, &p.e)
			if k != nil && p.e.Key().Compare(*k) >= 0 {
				return nil
			}
			if err := p.b.Add(ctx, &p.e); err != nil {
				return err
			}
			p.next++
		}
		p.leaf = nil
		if p.at == len(p.leaves) {
			return nil
		}
		c := &p.leaves[p.at]
		if k != nil && c.first.Compare(*k) >= 0 {
			return nil
		}
		// A leaf that ends before the key is taken whole if one would begin here
		// anyway; the last one, which no key has ended, only as the last.
		end := p.end(p.at)
		if p.b.leaf.entries == 0 && (k == nil || end != nil && end.Compare(*k) <= 0) {
			p.b.adopt(c)
			p.at++
			continue
		}
		if err := p.load(ctx); err != nil {
			return err
		}
	}
}

// peek reads the next entry of the old tree into p.e; false at the end.
func (p *Patch) peek(ctx context.Context) (bool, error) {
	for p.leaf == nil || p.next == p.leaf.Len() {
		if p.at == len(p.leaves) {
			return false, nil
		}
		if err := p.load(ctx); err != nil {
			return false, err
		}
	}
	p.leaf.Entry(p.next, &p.e)
	return true, nil
}

func (p *Patch) drop() {
	if p.Dropped != nil {
		p.Dropped(&p.e)
	}
	p.next++
}

// Put adds an entry, in the place of the one that has its key if there is one.
// As [Builder.Add] it may change e, and keeps nothing of it.
func (p *Patch) Put(ctx context.Context, e *Entry) error {
	if _, err := p.Remove(ctx, e.Key()); err != nil {
		return err
	}
	return p.b.Add(ctx, e)
}

// Remove leaves out an entry, and tells whether there was one. What is below a
// directory stays: see RemoveBelow.
func (p *Patch) Remove(ctx context.Context, k Key) (bool, error) {
	if err := p.upTo(ctx, &k); err != nil {
		return false, err
	}
	ok, err := p.peek(ctx)
	if !ok || err != nil || p.e.Key() != k {
		return false, err
	}
	p.drop()
	return true, nil
}

// RemoveBelow leaves out all entries below a directory.
func (p *Patch) RemoveBelow(ctx context.Context, dir string) error {
	if err := p.upTo(ctx, &Key{dir, "\x01"}); err != nil { // no name comes before that
		return err
	}
	for {
		ok, err := p.peek(ctx)
		if !ok || err != nil || !Within(p.e.Dir, dir) {
			return err
		}
		p.drop()
	}
}

// Finish takes over what is left, and ends the tree as [Builder.Finish] does.
func (p *Patch) Finish(ctx context.Context) (*Root, error) {
	if err := p.upTo(ctx, nil); err != nil {
		return nil, err
	}
	return p.b.Finish(ctx)
}

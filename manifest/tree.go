package manifest

import (
	"context"
	"errors"
	"fmt"
	"slices"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/snapctl/snapctl/chunk"
	"golang.org/x/sync/singleflight"
)

// ErrNotExist: the snapshot has no such entry.
var ErrNotExist = errors.New("not in the snapshot")

// A PageSource gives the pages of a tree. It must be safe for parallel use.
type PageSource interface {
	// Page gives the plaintext of a page, checked against its id. The caller
	// keeps it and does not change it.
	Page(ctx context.Context, ref PageRef) ([]byte, error)
}

// A Tree reads the tree of a snapshot. It holds a bounded number of decoded
// pages, and is safe for parallel use.
type Tree struct {
	src   PageSource
	root  node
	cache *lru.Cache[chunk.ID, any]
	load  singleflight.Group
}

// cachedPages bounds what a tree keeps: at about 40 KiB a page, 10 MiB.
const cachedPages = 256

// NewTree reads the tree below a root page.
func NewTree(root []byte, src PageSource) (*Tree, error) {
	p, err := decodePage(root)
	if err != nil {
		return nil, fmt.Errorf("root page: %w", err)
	}
	n, ok := p.(node)
	if !ok || n.first() != (Key{}) {
		return nil, fmt.Errorf("%w: root page: no root directory", ErrDamaged)
	}
	t := &Tree{src: src, root: n}
	if t.cache, err = lru.New[chunk.ID, any](cachedPages); err != nil {
		return nil, err
	}
	return t, nil
}

// decodePage gives a *Leaf, *inner or *spillPage.
func decodePage(page []byte) (any, error) {
	switch {
	case len(page) > 0 && page[0] == innerPage:
		return decodeInner(page)
	case len(page) > 0 && (page[0] == ExtentPage || page[0] == extentRefsPage):
		return decodeSpillPage(page)
	}
	return DecodeLeaf(page)
}

// node is a page of the tree proper, decoded: a *Leaf or an *inner. says is what
// its parent says of it.
type node interface {
	first() Key
	says() (level int, entries uint64, flags byte)
}

func (l *Leaf) says() (int, uint64, byte)  { return 0, uint64(len(l.at)), l.flags }
func (n *inner) says() (int, uint64, byte) { return n.level, n.total, n.flags }
func (n *inner) first() Key                { return n.children[0].first }

// Len is the number of entries, the root directory included.
func (t *Tree) Len() uint64 {
	_, n, _ := t.root.says()
	return n
}

// page gives a decoded page. All that goes through a tree comes by here, and so stops
// when its context ends, whatever the cache has.
func (t *Tree) page(ctx context.Context, ref *PageRef) (any, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if p, ok := t.cache.Get(ref.ID); ok {
		return p, nil
	}
	// Two readers of one page fetch it once; each waits no longer than its own
	// context. A fetch ends with the context of whoever began it, and one of
	// the others then begins again.
	for {
		ch := t.load.DoChan(string(ref.ID[:]), func() (any, error) {
			if p, ok := t.cache.Get(ref.ID); ok {
				return p, nil // since the look above
			}
			raw, err := t.src.Page(ctx, *ref)
			if err != nil && ctx.Err() != nil {
				return nil, errAbandoned
			}
			if err != nil {
				return nil, err
			}
			p, err := decodePage(raw)
			if err != nil {
				return nil, fmt.Errorf("page %v: %w", ref.ID, err)
			}
			t.cache.Add(ref.ID, p)
			return p, nil
		})
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case r := <-ch:
			switch {
			case r.Err != errAbandoned:
				return r.Val, r.Err
			case ctx.Err() != nil:
				return nil, ctx.Err()
			}
		}
	}
}

// errAbandoned: whoever began the fetch does not want it any more.
var errAbandoned = errors.New("fetch abandoned")

// step is a child of an inner page on the way down.
type step struct {
	page  *inner
	child int
	// end is the first key behind the page, nil at the end of the tree.
	end *Key
}

// childEnd is the first key behind the step's child.
func (s *step) childEnd() *Key {
	if s.child+1 < len(s.page.children) {
		return &s.page.children[s.child+1].first
	}
	return s.end
}

// down reads the child, and compares it with what its parents say of it: they
// may be forged, or the page may be another valid one.
func (t *Tree) down(ctx context.Context, s *step) (node, error) {
	return t.childPage(ctx, &s.page.children[s.child], s.page.level-1, s.childEnd())
}

// childPage is down for a child of that level, behind which the tree has that key.
func (t *Tree) childPage(ctx context.Context, c *child, level int, end *Key) (node, error) {
	p, err := t.page(ctx, &c.PageRef)
	if err != nil {
		return nil, err
	}
	n, ok := p.(node)
	if ok {
		at, entries, flags := n.says()
		ok = at == level && entries == c.entries && flags == c.flags && n.first() == c.first
	}
	if !ok {
		return nil, fmt.Errorf("%w: page %v is not what its parent says", ErrDamaged, c.ID)
	}
	if l, ok := n.(*Leaf); ok && end != nil && l.last.Compare(*end) >= 0 {
		return nil, fmt.Errorf("%w: pages overlap at %q", ErrDamaged, end.Path())
	}
	return n, nil
}

// At reads the entry of a rank, which must be below Len, into e.
func (t *Tree) At(ctx context.Context, rank uint64, e *Entry) error {
	if rank >= t.Len() {
		return fmt.Errorf("rank %d of %d: %w", rank, t.Len(), ErrNotExist)
	}
	l, before, err := t.descend(ctx, nil, func(n *inner, before uint64) int { return n.byRank(rank - before) })
	if err != nil {
		return err
	}
	l.Entry(int(rank-before), e)
	return nil
}

// Lookup finds an entry by its key, reads it into e and tells its rank. It
// fails with ErrNotExist where there is none.
func (t *Tree) Lookup(ctx context.Context, k Key, e *Entry) (rank uint64, err error) {
	l, before, err := t.descend(ctx, nil, func(n *inner, _ uint64) int { return n.byKey(k) })
	if err != nil {
		return 0, err
	}
	i := l.search(k)
	if i == l.Len() {
		return 0, missing(k)
	}
	if l.Entry(i, e); e.Key() != k {
		return 0, missing(k)
	}
	return before + uint64(i), nil
}

// missing is the ErrNotExist of a key: most look-ups of a running program miss, and
// nobody reads what it says.
type missing Key

func (k missing) Error() string { return fmt.Sprintf("%q: %v", Key(k).Path(), ErrNotExist) }
func (k missing) Unwrap() error { return ErrNotExist }

// Seek gives a cursor before the first entry whose key is k or later.
func (t *Tree) Seek(ctx context.Context, k Key) (*Cursor, error) {
	c := &Cursor{tree: t}
	l, before, err := t.descend(ctx, &c.above, func(n *inner, _ uint64) int { return n.byKey(k) })
	if err != nil {
		return nil, err
	}
	c.setLeaf(l, l.search(k))
	c.rank = before + uint64(c.next)
	return c, nil
}

// SeekRank gives a cursor before the entry of a rank, at the end from Len on.
func (t *Tree) SeekRank(ctx context.Context, rank uint64) (*Cursor, error) {
	rank = min(rank, t.Len())
	c := &Cursor{tree: t, rank: rank}
	l, before, err := t.descend(ctx, &c.above, func(n *inner, before uint64) int { return n.byRank(rank - before) })
	if err != nil {
		return nil, err
	}
	c.setLeaf(l, int(rank-before)) // the end is a place in the last leaf
	return c, nil
}

// descend goes down to a leaf, by what child tells of a page before which there are so
// many entries, and tells that of the leaf. The steps are added to above, if it is not
// nil.
func (t *Tree) descend(ctx context.Context, above *[]step, child func(n *inner, before uint64) int) (l *Leaf, before uint64, err error) {
	n := t.root
	var end *Key
	for {
		in, ok := n.(*inner)
		if !ok {
			return n.(*Leaf), before, nil
		}
		s := step{page: in, child: child(in, before), end: end}
		before += in.ranks[s.child]
		if above != nil {
			*above = append(*above, s)
		}
		if n, err = t.down(ctx, &s); err != nil {
			return nil, 0, err
		}
		end = s.childEnd()
	}
}

// A Cursor reads entries in order. It is not safe for parallel use.
type Cursor struct {
	tree  *Tree
	above []step // from the root down
	leaf  *Leaf
	next  int // entry of the leaf
	run   int // its directory
	rank  uint64
}

// Rank is the rank of the entry that Next will read.
func (c *Cursor) Rank() uint64 { return c.rank }

// Next reads the next entry into e, reusing its slices; false at the end.
// Strings of e stay valid for as long as they are used.
func (c *Cursor) Next(ctx context.Context, e *Entry) (bool, error) {
	for c.next == c.leaf.Len() {
		if ok, err := c.nextLeaf(ctx); !ok || err != nil {
			return false, err
		}
	}
	for c.run+1 < len(c.leaf.dirs) && c.leaf.dirs[c.run+1].first <= c.next {
		c.run++
	}
	c.leaf.entryIn(c.run, c.next, e)
	c.next++
	c.rank++
	return true, nil
}

func (c *Cursor) setLeaf(l *Leaf, next int) { c.leaf, c.next, c.run = l, next, 0 }

// nextLeaf moves to the leaf to the right; false if there is none.
func (c *Cursor) nextLeaf(ctx context.Context) (bool, error) {
	up := len(c.above)
	for up > 0 && c.above[up-1].child+1 == len(c.above[up-1].page.children) {
		up--
	}
	if up == 0 {
		return false, nil
	}
	// The cursor moves when all pages are there: a failed Next can be repeated.
	above := slices.Clone(c.above[:up])
	above[up-1].child++
	for {
		top := &above[len(above)-1]
		n, err := c.tree.down(ctx, top)
		if err != nil {
			return false, err
		}
		if in, ok := n.(*inner); ok {
			above = append(above, step{page: in, end: top.childEnd()})
			continue
		}
		c.above = above
		c.setLeaf(n.(*Leaf), 0)
		return true, nil
	}
}

// Extents calls yield for the extents of a file in order, with the offset of
// each in the file. It stops at yield's first error, and returns it.
func (t *Tree) Extents(ctx context.Context, e *Entry, yield func(offset uint64, x *Extent) error) error {
	return t.ExtentsFrom(ctx, e, 0, yield)
}

// ExtentsFrom is Extents without those that end at from or before. It reads no
// more pages than it must.
func (t *Tree) ExtentsFrom(ctx context.Context, e *Entry, from uint64, yield func(offset uint64, x *Extent) error) error {
	if e.Spill == nil {
		return eachExtent(0, from, e.Extents, yield)
	}
	return t.spilled(ctx, e.Spill, from, func(at uint64, p *spillPage) error {
		return eachExtent(at, from, p.extents, yield)
	})
}

func eachExtent(at, from uint64, all []Extent, yield func(uint64, *Extent) error) error {
	for i := range all {
		at += all[i].Hole
		end := at + uint64(all[i].Length)
		if end > from {
			if err := yield(at, &all[i]); err != nil {
				return err
			}
		}
		at = end
	}
	return nil
}

// spilled calls visit for the pages of a file's extents, with the offset at
// which each begins: in order, a page of references before what it refers to,
// and none that ends at from or before.
func (t *Tree) spilled(ctx context.Context, s *Spill, from uint64, visit func(at uint64, p *spillPage) error) error {
	var below func(level int, at uint64, refs []SpillRef) error
	below = func(level int, at uint64, refs []SpillRef) error {
		for i := range refs {
			ref := &refs[i]
			begin := at
			at += ref.Length
			if at <= from {
				continue
			}
			p, err := t.spillPage(ctx, ref, level)
			if err != nil {
				return err
			}
			if err := visit(begin, p); err != nil {
				return err
			}
			if err := below(level-1, begin, p.refs); err != nil {
				return err
			}
		}
		return nil
	}
	return below(s.Level, 0, s.Refs)
}

// spillPage reads a page of a file's extents, of that level.
func (t *Tree) spillPage(ctx context.Context, ref *SpillRef, level int) (*spillPage, error) {
	v, err := t.page(ctx, &ref.PageRef)
	if err != nil {
		return nil, err
	}
	p, ok := v.(*spillPage)
	if !ok || p.level != level || p.length != ref.Length {
		return nil, fmt.Errorf("%w: page %v of extents is not what its parent says", ErrDamaged, ref.ID)
	}
	return p, nil
}

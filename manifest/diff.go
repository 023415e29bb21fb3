package manifest

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"
)

// Changes are the ways in which an entry of one tree differs from that of the
// same path in another.
type Changes uint8

// What can differ. Entries of different types are compared no further.
const (
	ChangedType    Changes = 1 << iota
	ChangedContent         // size, chunks or holes of a file; target of a symbolic link; number of a device
	ChangedMode
	ChangedOwner  // user or group
	ChangedXattrs // extended attributes
	ChangedLinks  // it is a hard link in one tree and not in the other, or to another entry
	ChangedTimes  // time of modification
)

var changeWords = [...]string{"type", "content", "mode", "owner", "xattrs", "links", "times"}

// Words are the changes as words for people and programs: type, content, mode,
// owner, xattrs, links, times.
func (c Changes) Words() []string {
	var all []string
	for i, word := range changeWords {
		if c&(1<<i) != 0 {
			all = append(all, word)
		}
	}
	return all
}

// A Difference is a path that two trees do not have alike.
type Difference struct {
	// Old and New are the entries, nil where there is none. They are valid until
	// yield returns; their strings, for as long as they are used.
	Old, New         *Entry
	OldRank, NewRank uint64
	Changes          Changes // of an entry that both trees have
}

// Diff calls yield for every path within dir that is in only one of the trees,
// or not alike in both, in the order of keys; dir may also be a file, and "" is
// all. It stops at yield's first error, and returns it. It fails with
// ErrNotExist where neither tree has dir.
//
// Pages with one id are skipped, wherever they are in the trees: what is read
// is the pages that differ. Nothing is read for what lies outside of dir but
// the way to it.
//
// Contents are compared by the ids of chunks, wherever those lie, so that a hole
// is not the same as zeros that were written. The number of links is not
// compared: each name that comes or goes is a difference of its own. A file that
// was moved is one that went and one that came. A change of a file of several
// names is shown at the first of them, the one that the others are links to; but
// a link that is dir itself is followed.
func Diff(ctx context.Context, a, b *Tree, dir string, yield func(*Difference) error) error {
	w := &differ{old: a, new: b, yield: yield}
	if dir == "" {
		return w.between(ctx, Key{}, nil)
	}
	// The entry itself, which is far from what is below it.
	k := KeyOf(dir)
	if err := w.between(ctx, k, &Key{k.Dir, k.Name + "\x00"}); err != nil {
		return err
	}
	if w.yielded == 0 {
		// It is alike in both, or in neither.
		if err := w.alike(ctx, k); err != nil {
			return err
		}
	}
	// No name holds a NUL, so that dir\x00 comes right behind all that is below dir/.
	return w.between(ctx, Key{Dir: dir}, &Key{Dir: dir + "\x00"})
}

// differ is one run of Diff.
type differ struct {
	old, new *Tree
	yield    func(*Difference) error
	yielded  int
	exact    bool // counts of links are compared too, and links by themselves
}

// alike looks at an entry that both trees have, or none: if it is a link, at what
// it leads to.
func (w *differ) alike(ctx context.Context, k Key) error {
	var old, new Entry
	d := Difference{Old: &old, New: &new}
	var err error
	if d.OldRank, err = w.old.Lookup(ctx, k, &old); err != nil || old.Type != Link {
		return err
	}
	if d.NewRank, err = w.new.Lookup(ctx, k, &new); err != nil {
		return err
	}
	if d.Changes, err = w.linked(ctx, &old, &new); err != nil || d.Changes == 0 {
		return err
	}
	return w.yield(&d)
}

// between compares the entries from lo on and before hi, nil for the end.
//
// Either side has something at hand: an entry, or a page that is not open yet.
// The one with the smaller key comes next, and where both have the same key and
// are pages, they are the same one or the one of the higher level is opened. So
// a page that both trees have is at hand on both sides at once, whatever came
// before it, unless the keys before it reach into it: then it is not in both.
func (w *differ) between(ctx context.Context, lo Key, hi *Key) error {
	x, y := newDiffSide(w.old, lo, hi), newDiffSide(w.new, lo, hi)
	for !x.done || !y.done {
		c := 0
		switch {
		case y.done:
			c = -1
		case x.done:
			c = 1
		default:
			c = x.first.Compare(y.first)
		}
		var err error
		switch xl, yl := x.level(), y.level(); {
		case c < 0 && xl < 0:
			err = w.yields(&Difference{Old: &x.e, OldRank: x.rank()})
			x.skip()
		case c > 0 && yl < 0:
			err = w.yields(&Difference{New: &y.e, NewRank: y.rank()})
			y.skip()
		case c < 0:
			err = x.open(ctx)
		case c > 0:
			err = y.open(ctx)
		case xl < 0 && yl < 0:
			err = w.both(ctx, x, y)
			x.skip()
			y.skip()
		case xl >= 0 && yl >= 0 && x.page().ID == y.page().ID:
			x.skip()
			y.skip()
		case xl > yl:
			err = x.open(ctx)
		case xl < yl:
			err = y.open(ctx)
		default: // both at once: from a bucket that is half the time
			var g errgroup.Group
			g.Go(func() error { return x.open(ctx) })
			g.Go(func() error { return y.open(ctx) })
			err = g.Wait()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *differ) yields(d *Difference) error {
	w.yielded++
	return w.yield(d)
}

// both compares entries of one key.
func (w *differ) both(ctx context.Context, x, y *diffSide) error {
	changes, err := w.changes(ctx, &x.e, &y.e)
	if err != nil {
		return err
	}
	if changes == 0 && !(w.exact && x.e.Links != y.e.Links) {
		return nil
	}
	return w.yields(&Difference{Old: &x.e, New: &y.e, OldRank: x.rank(), NewRank: y.rank(), Changes: changes})
}

func (w *differ) changes(ctx context.Context, old, new *Entry) (Changes, error) {
	if old.Type == Link || new.Type == Link {
		if old.Type == new.Type && old.First == new.First {
			return 0, nil
		}
		changes, err := w.linked(ctx, old, new)
		return changes | ChangedLinks, err
	}
	if old.Type != new.Type {
		return ChangedType, nil
	}
	c := MetaChanges(old, new)
	same := old.Size == new.Size && old.Target == new.Target && old.Device == new.Device
	if same && old.Type == File {
		var err error
		if same, err = w.sameExtents(ctx, old, new); err != nil {
			return 0, fmt.Errorf("%q: %w", new.Path(), err)
		}
	}
	if !same {
		c |= ChangedContent
	}
	return c, nil
}

// MetaChanges compares mode, owner, time and extended attributes of entries of one
// type.
func MetaChanges(old, new *Entry) (c Changes) {
	if old.Mode != new.Mode {
		c |= ChangedMode
	}
	if old.UID != new.UID || old.GID != new.GID {
		c |= ChangedOwner
	}
	if old.Mtime != new.Mtime {
		c |= ChangedTimes
	}
	if !slices.EqualFunc(old.Xattrs, new.Xattrs, func(a, b Xattr) bool { return a.Name == b.Name && bytes.Equal(a.Value, b.Value) }) {
		c |= ChangedXattrs
	}
	return c
}

// linked compares what entries lead to of which one at least is a link.
func (w *differ) linked(ctx context.Context, old, new *Entry) (Changes, error) {
	a, b := *old, *new
	// Into slices of their own, not those of what was read before.
	if a.Type == Link {
		a.Extents, a.Xattrs = nil, nil
	}
	if b.Type == Link {
		b.Extents, b.Xattrs = nil, nil
	}
	if _, err := w.old.Resolve(ctx, 0, &a); err != nil {
		return 0, err
	}
	if _, err := w.new.Resolve(ctx, 0, &b); err != nil {
		return 0, err
	}
	return w.changes(ctx, &a, &b)
}

// diffSide is a place in a tree: before an entry of an open leaf, or before a
// page that is not open.
type diffSide struct {
	tree *Tree
	lo   Key
	hi   *Key
	done bool // nothing is left before hi

	above []step // the open inner pages, from the root down
	leaf  *Leaf  // nil before a page that is not open
	next  int    // entry of the leaf
	run   int    // its directory
	e     Entry  // the entry at hand
	first Key    // the first key of what is at hand
}

func newDiffSide(t *Tree, lo Key, hi *Key) *diffSide {
	s := &diffSide{tree: t, lo: lo, hi: hi}
	s.enter(t.root, nil)
	return s
}

// enter goes into a page, behind which the tree has the key end.
func (s *diffSide) enter(n node, end *Key) {
	switch n := n.(type) {
	case *inner:
		s.above = append(s.above, step{page: n, child: n.byKey(s.lo), end: end})
	case *Leaf:
		s.leaf, s.next, s.run = n, n.search(s.lo), 0
	}
	s.settle()
}

// settle looks at what is at hand, after leaving what has ended.
func (s *diffSide) settle() {
	for s.leaf != nil && s.next == s.leaf.Len() || s.leaf == nil && s.top().child == len(s.top().page.children) {
		if s.leaf != nil {
			s.leaf = nil
		} else {
			s.above = s.above[:len(s.above)-1]
		}
		if len(s.above) == 0 {
			s.done = true
			return
		}
		s.top().child++
	}
	if l := s.leaf; l != nil {
		for s.run+1 < len(l.dirs) && l.dirs[s.run+1].first <= s.next {
			s.run++
		}
		l.entryIn(s.run, s.next, &s.e)
		s.first = s.e.Key()
	} else {
		s.first = s.page().first
	}
	s.done = s.hi != nil && s.first.Compare(*s.hi) >= 0
}

func (s *diffSide) top() *step { return &s.above[len(s.above)-1] }

// page is the page at hand.
func (s *diffSide) page() *child { return &s.top().page.children[s.top().child] }

// level is that of the page at hand, -1 of an entry.
func (s *diffSide) level() int {
	if s.done || s.leaf != nil {
		return -1
	}
	return s.top().page.level - 1
}

// rank is that of the entry at hand.
func (s *diffSide) rank() uint64 {
	rank := uint64(s.next)
	for i := range s.above {
		rank += s.above[i].page.ranks[s.above[i].child]
	}
	return rank
}

// open reads the page at hand.
func (s *diffSide) open(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	top := s.top()
	n, err := s.tree.down(ctx, top)
	if err != nil {
		return err
	}
	s.enter(n, top.childEnd())
	return nil
}

// skip passes over what is at hand.
func (s *diffSide) skip() {
	if s.leaf != nil {
		s.next++
	} else {
		s.top().child++
	}
	s.settle()
}

// sameExtents reports whether files of one size have the same chunks and holes.
// It reads no page of extents that both have, and none behind the first
// difference.
func (w *differ) sameExtents(ctx context.Context, old, new *Entry) (bool, error) {
	if old.Spill == nil && new.Spill == nil {
		return slices.EqualFunc(old.Extents, new.Extents, Extent.alike), nil
	}
	x, y := newExtentSide(w.old, old), newExtentSide(w.new, new)
	for {
		a, b := x.top(), y.top()
		if a == nil || b == nil {
			return a == nil && b == nil, nil
		}
		// What came before was the same on both sides: they are at one offset.
		var err error
		switch al, bl := a.level, b.level; {
		case al < 0 && bl < 0:
			if !a.extents[a.next].alike(b.extents[b.next]) {
				return false, nil
			}
			a.next++
			b.next++
		case al >= 0 && bl >= 0 && a.refs[a.next].ID == b.refs[b.next].ID:
			a.next++
			b.next++
		default:
			if al >= bl {
				err = x.open(ctx)
			}
			if bl >= al && err == nil {
				err = y.open(ctx)
			}
		}
		if err != nil {
			return false, err
		}
	}
}

// alike reports whether extents are the same hole and the same chunk, wherever it lies.
func (x Extent) alike(y Extent) bool { return x.Hole == y.Hole && x.Length == y.Length && x.ID == y.ID }

// extentSide is a place in the extents of a file.
type extentSide struct {
	tree  *Tree
	above []extentStep
}

// extentStep is a place among extents, level -1, or among pages of a level.
type extentStep struct {
	level   int
	extents []Extent
	refs    []SpillRef
	next    int
}

func newExtentSide(t *Tree, e *Entry) *extentSide {
	s := &extentSide{tree: t}
	if e.Spill != nil {
		s.above = append(s.above, extentStep{level: e.Spill.Level, refs: e.Spill.Refs})
	} else {
		s.above = append(s.above, extentStep{level: -1, extents: e.Extents})
	}
	return s
}

// top is what is at hand, nil at the end.
func (s *extentSide) top() *extentStep {
	for len(s.above) > 0 {
		top := &s.above[len(s.above)-1]
		if top.next < len(top.refs)+len(top.extents) {
			return top
		}
		s.above = s.above[:len(s.above)-1]
	}
	return nil
}

// open reads the page at hand, and passes to what is in it.
func (s *extentSide) open(ctx context.Context) error {
	top := s.top()
	ref, level := &top.refs[top.next], top.level
	p, err := s.tree.spillPage(ctx, ref, level)
	if err != nil {
		return err
	}
	top.next++
	s.above = append(s.above, extentStep{level: level - 1, extents: p.extents, refs: p.refs})
	return nil
}

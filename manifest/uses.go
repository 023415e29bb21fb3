package manifest

import (
	"context"

	"github.com/snapctl/snapctl/chunk"
)

// Uses calls yield for all that the tree refers to in packs: its pages and the chunks
// of its files, in no order, what is referred to twice perhaps twice. enter says
// whether to look into a page; whoever walks several trees looks into each page that
// they share once.
func (t *Tree) Uses(ctx context.Context, enter func(page chunk.ID) bool, yield func(id chunk.ID, at *chunk.Location)) error {
	u := user{t, ctx, enter, yield}
	return u.node(t.root, nil)
}

type user struct {
	tree  *Tree
	ctx   context.Context
	enter func(chunk.ID) bool
	yield func(chunk.ID, *chunk.Location)
}

func (u *user) node(n node, end *Key) error {
	if l, ok := n.(*Leaf); ok {
		return u.leaf(l)
	}
	in := n.(*inner)
	for i := range in.children {
		if !u.page(&in.children[i].PageRef) {
			continue
		}
		s := step{page: in, child: i, end: end}
		c, err := u.tree.down(u.ctx, &s)
		if err == nil {
			err = u.node(c, s.childEnd())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// page yields a page, and reports whether to look into it.
func (u *user) page(ref *PageRef) bool {
	at := ref.Location()
	u.yield(ref.ID, &at)
	return u.enter(ref.ID)
}

func (u *user) leaf(l *Leaf) error {
	var e Entry
	for i := range l.Len() {
		l.Entry(i, &e)
		for j := range e.Extents {
			u.yield(e.Extents[j].ID, &e.Extents[j].Location)
		}
		if e.Spill != nil {
			if err := u.spilled(e.Spill.Level, e.Spill.Refs); err != nil {
				return err
			}
		}
	}
	return nil
}

// spilled is node for the pages of a file's extents.
func (u *user) spilled(level int, refs []SpillRef) error {
	for i := range refs {
		if !u.page(&refs[i].PageRef) {
			continue
		}
		p, err := u.tree.spillPage(u.ctx, &refs[i], level)
		if err != nil {
			return err
		}
		for j := range p.extents {
			u.yield(p.extents[j].ID, &p.extents[j].Location)
		}
		if err := u.spilled(level-1, p.refs); err != nil {
			return err
		}
	}
	return nil
}

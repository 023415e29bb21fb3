package manifest

import (
	"context"

	"github.com/snapctl/snapctl/chunk"
)

// Revised calls yield for the entries that are not the same in both trees, to the last
// field, counts of links included that Diff does not compare; but wherever their chunks
// lie. They come in the order of keys: old is nil for one that only b has, new for one
// that only a has. So whoever has a tree of the entries of a, and puts and removes what
// it is told of (see [Patch]), has one of those of b.
//
// The entries are valid until yield returns; their strings, for as long as they are
// used. It stops at yield's first error, and returns it.
func Revised(ctx context.Context, a, b *Tree, yield func(old, new *Entry) error) error {
	w := &differ{old: a, new: b, exact: true, yield: func(d *Difference) error { return yield(d.Old, d.New) }}
	return w.between(ctx, Key{}, nil)
}

// SharedEntries tells how many entries are in pages that both trees have. It reads
// inner pages only.
func SharedEntries(ctx context.Context, a, b *Tree) (uint64, error) {
	have := map[chunk.ID]bool{}
	if err := a.leaves(ctx, func(c *child) { have[c.ID] = true }); err != nil {
		return 0, err
	}
	var n uint64
	err := b.leaves(ctx, func(c *child) {
		if have[c.ID] {
			n += c.entries
		}
	})
	return n, err
}

// leaves calls yield for every leaf but one that is the root page.
func (t *Tree) leaves(ctx context.Context, yield func(*child)) error {
	var below func(n *inner, end *Key) error
	below = func(n *inner, end *Key) error {
		for i := range n.children {
			if n.level == 1 {
				yield(&n.children[i])
				continue
			}
			s := step{page: n, child: i, end: end}
			c, err := t.down(ctx, &s)
			if err == nil {
				err = below(c.(*inner), s.childEnd())
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	if n, ok := t.root.(*inner); ok {
		return below(n, nil)
	}
	return nil
}

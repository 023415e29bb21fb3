package manifest

import "context"

// Pages calls yield for the reference to every page of the tree but the root
// page and pages of extents. It reads inner pages only.
func (t *Tree) Pages(ctx context.Context, yield func(PageRef)) error {
	if n, ok := t.root.(*inner); ok {
		return t.pagesBelow(ctx, n, nil, yield)
	}
	return nil
}

func (t *Tree) pagesBelow(ctx context.Context, n *inner, end *Key, yield func(PageRef)) error {
	for i := range n.children {
		yield(n.children[i].PageRef)
		if n.level == 1 {
			continue
		}
		s := step{page: n, child: i, end: end}
		c, err := t.down(ctx, &s)
		if err != nil {
			return err
		}
		if err := t.pagesBelow(ctx, c.(*inner), s.childEnd(), yield); err != nil {
			return err
		}
	}
	return nil
}

package manifest

import "context"

// Links calls yield for each entry that is a [Link], in order. It reads the pages
// alone that have some. yield must not keep the entry.
func (t *Tree) Links(ctx context.Context, yield func(e *Entry) error) error {
	return t.linksBelow(ctx, t.root, nil, yield)
}

func (t *Tree) linksBelow(ctx context.Context, n node, end *Key, yield func(*Entry) error) error {
	if _, _, flags := n.says(); flags&hasLinks == 0 {
		return nil
	}
	in, ok := n.(*inner)
	if !ok {
		return eachLink(n.(*Leaf), yield)
	}
	for i := range in.children {
		if in.children[i].flags&hasLinks == 0 {
			continue
		}
		s := step{page: in, child: i, end: end}
		below, err := t.down(ctx, &s)
		if err != nil {
			return err
		}
		if err := t.linksBelow(ctx, below, s.childEnd(), yield); err != nil {
			return err
		}
	}
	return nil
}

func eachLink(l *Leaf, yield func(*Entry) error) error {
	var e Entry
	for i := range l.Len() {
		l.Entry(i, &e)
		if e.Type != Link {
			continue
		}
		if err := yield(&e); err != nil {
			return err
		}
	}
	return nil
}

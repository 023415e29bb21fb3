package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/snapctl/snapctl/manifest"
)

// linkPlan finds out what a fork makes of the hard links of its snapshot. The first
// of a file's names in the order of the tree has the contents, and the others
// refer to it. So when that one is removed, or another comes before it because a
// directory was moved, entries change that nobody touched, and before others that
// are decided already: all acts must be known first.
//
// A name that is written to becomes a file of its own. The other names keep the
// number of links that they had, as an overlay without an index shows it.
type linkPlan struct {
	affected bool // some name of a file with several is gone, replaced or moved
	moved    map[manifest.Key][]manifest.Key
	nodes    map[string]*dirNode // upper directories, resolved

	fixed map[manifest.Key]*manifest.Entry // what becomes of names that show
	extra []manifest.Key                   // those of them that no act is about, in order
}

func newLinkPlan() *linkPlan {
	return &linkPlan{
		moved: map[manifest.Key][]manifest.Key{}, nodes: map[string]*dirNode{},
		fixed: map[manifest.Key]*manifest.Entry{},
	}
}

// hasLinks reports whether an entry may be one of several names of a file.
func hasLinks(e *manifest.Entry) bool {
	return e.Type == manifest.Link || e.Type != manifest.Dir && e.Links > 1
}

// touch notes an entry of the snapshot that does not stay.
func (p *linkPlan) touch(e *manifest.Entry) {
	if p != nil && hasLinks(e) {
		p.affected = true
	}
}

// move notes an entry of the snapshot that shows in another directory now.
func (p *linkPlan) move(e *manifest.Entry, dir string) {
	if p != nil && hasLinks(e) {
		p.affected = true
		p.moved[e.Key()] = append(p.moved[e.Key()], manifest.Key{Dir: dir, Name: e.Name})
	}
}

// settle decides, when all acts are known.
func (p *linkPlan) settle(ctx context.Context, tree *manifest.Tree) error {
	if !p.affected {
		return nil
	}
	groups := map[manifest.Key][]manifest.Key{}
	err := tree.Links(ctx, func(e *manifest.Entry) error {
		groups[e.First] = append(groups[e.First], e.Key())
		return nil
	})
	if err != nil {
		return err
	}
	for first, rest := range groups {
		if err := p.group(ctx, tree, first, rest); err != nil {
			return err
		}
	}
	slices.SortFunc(p.extra, manifest.Key.Compare)
	return nil
}

// group decides for the names of one file.
func (p *linkPlan) group(ctx context.Context, tree *manifest.Tree, first manifest.Key, rest []manifest.Key) error {
	type name struct {
		at   manifest.Key
		stay bool
		was  manifest.Key
	}
	var names []name
	for _, k := range append([]manifest.Key{first}, rest...) {
		if p.stays(k) {
			names = append(names, name{k, true, k})
		}
		for _, at := range p.moved[k] {
			names = append(names, name{at, false, k})
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.SortFunc(names, func(a, b name) int { return a.at.Compare(b.at) })
	file := &manifest.Entry{}
	if _, err := tree.Lookup(ctx, first, file); err != nil {
		return fmt.Errorf("the first name of a hard link: %w", err)
	}
	if file.Type == manifest.Link || file.Type == manifest.Dir {
		return fmt.Errorf("%w: %q is the first name of a hard link", manifest.ErrDamaged, first.Path())
	}
	head := names[0].at
	for i, n := range names {
		e := &manifest.Entry{Dir: n.at.Dir, Name: n.at.Name, Type: manifest.Link, First: head}
		if i == 0 {
			*e = *file
			e.Dir, e.Name = n.at.Dir, n.at.Name
		}
		if n.stay && (n.was == first) == (i == 0) && (i == 0 || head == first) {
			continue // it is so already
		}
		p.fixed[n.at] = e
		if n.stay {
			p.extra = append(p.extra, n.at)
		}
	}
	return nil
}

// stays reports whether an entry of the snapshot shows where it was: nothing of the
// upper directory is in its place, or in that of a directory on the way.
func (p *linkPlan) stays(k manifest.Key) bool {
	for at := 0; ; {
		dir := k.Dir[:at]
		n := p.nodes[dir]
		if n == nil {
			return true // no upper directory: all of it is as it was
		}
		if !n.fork.same {
			return false
		}
		name := k.Name
		if at < len(k.Dir) {
			rest := k.Dir[at:]
			if at > 0 {
				rest = rest[1:]
			}
			name, _, _ = strings.Cut(rest, "/")
			at = len(k.Dir) - len(rest) + len(name)
		} else {
			at = -1
		}
		d, hidden := n.names(name)
		switch {
		case hidden || d != nil && (at < 0 || !d.IsDir()):
			return false
		case d == nil:
			return true
		}
	}
}

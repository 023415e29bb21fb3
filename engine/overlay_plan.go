package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/manifest"
)

// A create of a fork reads its upper directory alone, and changes the tree of the
// snapshot below accordingly. For each directory of the upper one there is a
// directory of the snapshot that shows through it, or none. As a rule it is the one
// of the same path: then what has no name in the upper directory stays as it is in
// the tree, and costs nothing. If the directory was moved it is another one: then
// all that shows is put into the tree under its new path.
//
// 1. The same walker lists the upper directory. overlayPlan.resolve finds out for each
//    of its directories which directory of the snapshot shows through: the one of the same
//    path, another one (it was moved, and has a redirect), or none (it is opaque or new).
//    In the first case the acts are edits: what the upper directory names is put or,
//    if it is a whiteout, removed. In the others what the tree has below that path is
//    removed, and all that shows is put, what is the snapshot's with its old extents.
// 2. overlaySequencer passes acts on in tree order, as items like any other. Readers read
//    what is to be put from the upper directory: a file without contents of its own
//    (metacopy) takes the extents of the snapshot's, wherever its redirect leads; the
//    overlay's own attributes are left out, and escaped ones get their name back.
// 3. The assembler's treeBuilder is an overlayTree, around a manifest.Patch of the
//    snapshot's tree: pages that no act is about are never read. Its Dropped keeps the
//    totals. The result is, byte for byte, the tree that a Builder makes of all entries.
// 4. Instead of a stat cache an overlayMemo is written: fingerprints of what was read.
//    The next create of the fork takes what is unchanged from the snapshot made then, and
//    records that as its parent.
//
// Hard links of the snapshot: when the first name of a file goes, or moves behind another
// one, entries change that nobody touched and that may come earlier in the order. So for a
// snapshot that has any (the manifest says so) all acts are made before the first is
// passed on, and if a name was touched that may be one of several, linkPlan reads the
// leaves that have links and decides for each file which name is the first now.
//
// What cannot be right, such as a redirect to nowhere or a file without contents of
// another size than the snapshot's, is errBadUpper: no snapshot, and the path in the
// message. If a page of the snapshot's tree turns out damaged all of the fork is read.

// overlayDir is what shows in a directory of a fork.
type overlayDir struct {
	in    *lowerDir // what shows in the directory above, nil for none
	lower *lowerDir // the snapshot's directory that shows through, nil for none
	old   bool      // the tree has a directory of this path, which is not removed yet
	same  bool      // that is the one that shows: what nobody names stays as it is
	bare  bool      // there is no upper directory
	gone  bool      // there is nothing here any more

	dropBelow bool // what the tree has below this path goes
	acts      []overlayAct
}

// lowerDir is a directory of the snapshot.
type lowerDir struct{ path string }

// overlayAct is what becomes of a name in a directory: what the upper directory has is
// put, or what the lower one has is copied, or the tree's entry is removed.
type overlayAct struct {
	put    *fsys.Dirent
	copy   *manifest.Entry
	remove string
}

// overlayPlan finds out what becomes of the directories of a fork.
type overlayPlan struct {
	tree  *manifest.Tree // of the snapshot
	links *linkPlan      // nil for a snapshot without hard links
	fuse  bool
}

// rootOfFork is what is known of the root of a fork before it is listed.
func rootOfFork() *overlayDir { return &overlayDir{lower: &lowerDir{}, old: true} }

// resolve decides what becomes of a listed directory: its acts, and its
// subdirectories, among them those that have no upper directory.
func (p *overlayPlan) resolve(ctx context.Context, n *dirNode) error {
	f := n.fork
	if f.gone || n.err != nil {
		// What cannot be listed is empty, as without a snapshot.
		f.dropBelow, f.lower = f.old, nil
		n.entries, n.subdirs, n.hidden = nil, nil, nil
		return p.dropped(ctx, n)
	}
	if err := p.through(ctx, n); err != nil {
		return err
	}
	f.same = f.old && f.lower != nil && f.lower.path == n.path
	f.dropBelow = f.old && !f.same
	if err := p.dropped(ctx, n); err != nil {
		return err
	}
	m := merge{plan: p, n: n, dirs: map[string]*dirNode{}}
	for _, sub := range n.subdirs {
		m.dirs[manifest.KeyOf(sub.path).Name] = sub
	}
	slices.Sort(n.hidden)
	n.subdirs = nil
	switch {
	case f.same:
		return m.edits(ctx)
	case f.lower != nil:
		return m.all(ctx)
	}
	return m.upperAlone()
}

// through finds the lower directory that shows through an upper one.
func (p *overlayPlan) through(ctx context.Context, n *dirNode) error {
	f := n.fork
	switch {
	case f.bare:
	case n.path == "" && !p.fuse: // the kernel has no opaque or redirected root
	case n.marks.opaque:
		f.lower = nil
	case n.marks.redirect != "":
		to, err := redirected(n.path, n.marks.redirect, f.in)
		if err != nil {
			return err
		}
		e, ok, err := p.lookup(ctx, manifest.KeyOf(to))
		if err != nil {
			return err
		}
		if !ok || e.Type != manifest.Dir {
			return badUpper(n.path, "redirect to %q, which is no directory of the snapshot", to)
		}
		f.lower = &lowerDir{to}
	}
	return nil
}

// lookup finds an entry of the snapshot.
func (p *overlayPlan) lookup(ctx context.Context, k manifest.Key) (*manifest.Entry, bool, error) {
	e := &manifest.Entry{}
	_, err := p.tree.Lookup(ctx, k, e)
	if errors.Is(err, manifest.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return e, true, nil
}

// dropped notes the hard links below a directory that is removed from the tree.
func (p *overlayPlan) dropped(ctx context.Context, n *dirNode) error {
	if !n.fork.dropBelow || p.links == nil || p.links.affected {
		return nil
	}
	c, err := p.tree.Seek(ctx, manifest.Key{Dir: n.path})
	if err != nil {
		return err
	}
	var e manifest.Entry
	for {
		more, err := c.Next(ctx, &e)
		if !more || err != nil || !manifest.Within(e.Dir, n.path) {
			return err
		}
		p.links.touch(&e)
	}
}

// merge is a directory whose acts are being made.
type merge struct {
	plan *overlayPlan
	n    *dirNode
	dirs map[string]*dirNode // its upper subdirectories
}

// sub adds a subdirectory.
func (m *merge) sub(name string, f *overlayDir) {
	node := m.dirs[name]
	if node == nil {
		node = &dirNode{path: manifest.Join(m.n.path, name), taken: true, listed: make(chan struct{})}
		close(node.listed)
	}
	f.in = m.n.fork.lower
	node.fork = f
	m.n.subdirs = append(m.n.subdirs, node)
}

// lower is the lower directory below this one's.
func (m *merge) lower(name string) *lowerDir {
	return &lowerDir{manifest.Join(m.n.fork.lower.path, name)}
}

// edits makes the acts where the tree's own directory shows through: of the names
// alone that the upper directory has.
func (m *merge) edits(ctx context.Context) error {
	f := m.n.fork
	return m.upper(func(name string, d *fsys.Dirent) error {
		e, ok, err := m.plan.lookup(ctx, manifest.Key{Dir: f.lower.path, Name: name})
		if err != nil {
			return err
		}
		wasDir := ok && e.Type == manifest.Dir
		if ok {
			m.plan.links.touch(e)
		}
		switch {
		case d != nil:
			f.acts = append(f.acts, overlayAct{put: d})
		case ok:
			f.acts = append(f.acts, overlayAct{remove: name})
		}
		switch {
		case d != nil && d.IsDir() && wasDir:
			m.sub(name, &overlayDir{lower: m.lower(name), old: true})
		case d != nil && d.IsDir():
			m.sub(name, &overlayDir{})
		case wasDir:
			m.sub(name, &overlayDir{old: true, gone: true})
		}
		return nil
	})
}

// upper calls yield for the names in the upper directory in order, with a nil
// dirent for those that are hidden.
func (m *merge) upper(yield func(name string, d *fsys.Dirent) error) error {
	entries, hidden := m.n.entries, m.n.hidden
	for len(entries) > 0 || len(hidden) > 0 {
		if len(hidden) == 0 || len(entries) > 0 && entries[0].Name < hidden[0] {
			if err := yield(entries[0].Name, &entries[0]); err != nil {
				return err
			}
			entries = entries[1:]
			continue
		}
		name := hidden[0]
		for len(hidden) > 0 && hidden[0] == name {
			hidden = hidden[1:]
		}
		if len(entries) > 0 && entries[0].Name == name {
			entries = entries[1:]
		}
		if err := yield(name, nil); err != nil {
			return err
		}
	}
	return nil
}

// upperAlone makes the acts where nothing of the snapshot shows.
func (m *merge) upperAlone() error {
	f := m.n.fork
	return m.upper(func(name string, d *fsys.Dirent) error {
		if d == nil {
			return nil
		}
		f.acts = append(f.acts, overlayAct{put: d})
		if d.IsDir() {
			m.sub(name, &overlayDir{})
		}
		return nil
	})
}

// all makes the acts where a directory shows that was another one in the snapshot:
// of everything.
func (m *merge) all(ctx context.Context) error {
	f := m.n.fork
	lower, err := m.plan.tree.Seek(ctx, manifest.Key{Dir: f.lower.path})
	if err != nil {
		return err
	}
	var e *manifest.Entry
	next := func() error {
		e = &manifest.Entry{}
		more, err := lower.Next(ctx, e)
		if more && e.Name == "" { // the root of the snapshot
			return fmt.Errorf("%w: the root in a directory", manifest.ErrDamaged)
		}
		if !more || e.Dir != f.lower.path {
			e = nil
		}
		return err
	}
	if err := next(); err != nil {
		return err
	}
	show := func() error {
		m.plan.links.move(e, m.n.path)
		moved := *e
		moved.Dir = m.n.path
		f.acts = append(f.acts, overlayAct{copy: &moved})
		if e.Type == manifest.Dir {
			m.sub(e.Name, &overlayDir{lower: m.lower(e.Name), bare: true})
		}
		return next()
	}
	err = m.upper(func(name string, d *fsys.Dirent) error {
		for e != nil && e.Name < name {
			if err := show(); err != nil {
				return err
			}
		}
		wasDir := false
		if e != nil && e.Name == name {
			wasDir = e.Type == manifest.Dir
			m.plan.links.touch(e)
			if err := next(); err != nil {
				return err
			}
		}
		if d == nil {
			return nil
		}
		f.acts = append(f.acts, overlayAct{put: d})
		switch {
		case d.IsDir() && wasDir:
			m.sub(name, &overlayDir{lower: m.lower(name)})
		case d.IsDir():
			m.sub(name, &overlayDir{})
		}
		return nil
	})
	for err == nil && e != nil {
		err = show()
	}
	return err
}

// names reports whether an upper directory names an entry, be it to hide it.
func (n *dirNode) names(name string) (d *fsys.Dirent, hidden bool) {
	if _, ok := slices.BinarySearch(n.hidden, name); ok {
		return nil, true
	}
	i := sort.Search(len(n.entries), func(i int) bool { return n.entries[i].Name >= name })
	if i < len(n.entries) && n.entries[i].Name == name {
		return &n.entries[i], false
	}
	return nil, false
}

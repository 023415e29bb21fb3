package engine

import (
	"context"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/flow"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// sequencer turns the walk into batches in tree order. It recognises what the
// parent has already, and hard links.
type sequencer struct {
	*creator
	work  chan *batch // for readers
	order chan *batch // for the assembler: all of them
	cur   *batch
	links map[fsys.Inode]*linkGroup
}

// linkGroup is a file with several names, of which some are still to come.
type linkGroup struct {
	first manifest.Key
	left  uint32
}

func newSequencer(c *creator) *sequencer {
	return &sequencer{
		creator: c, cur: &batch{}, links: map[fsys.Inode]*linkGroup{},
		work: make(chan *batch, inFlight), order: make(chan *batch, inFlight),
	}
}

func (s *sequencer) run(ctx context.Context, workers int) error {
	w := &walker{
		root: s.root, dev: s.rootDir.Dev, exclude: s.exclude, oneFS: s.opts.OneFileSystem,
		skip: s.host.ownDirs().byInode,
	}
	if err := s.add(ctx, "", &s.rootDir); err != nil {
		return err
	}
	// One more than cores: the visit itself takes part.
	err := w.walk(ctx, workers+1, func(n *dirNode) error { return s.visit(ctx, n) })
	if err != nil {
		return err
	}
	return s.dispatch(ctx)
}

func (s *sequencer) visit(ctx context.Context, n *dirNode) error {
	if n.err != nil && n.path == "" {
		return n.err
	}
	s.note(n)
	for i := range n.entries {
		if err := s.add(ctx, n.path, &n.entries[i]); err != nil {
			return err
		}
	}
	return nil
}

// note tells what went wrong in a directory, and counts what is left out.
func (s *sequencer) note(n *dirNode) {
	if n.err != nil {
		if isGone(n.err) {
			s.vanished(n.path)
		} else {
			s.problem(n.err)
		}
	}
	for _, err := range n.failed {
		s.problem(err)
	}
	for _, name := range n.own {
		s.leftOut = append(s.leftOut, filepath.Join(s.dir, n.path, name))
	}
	if n.sockets > 0 {
		s.sockets.Add(int64(n.sockets))
	}
}

// add appends an entry to the batch.
func (s *sequencer) add(ctx context.Context, dir string, d *fsys.Dirent) error {
	s.out.Meter.AddFile()
	file := s.whole.join(ctx, dir, d)
	it := item{entry: entryOf(dir, file), stat: *d, lane: write.LaneOf(d.Name), linked: file.Nlink > 1 && !d.IsDir(), joined: file != d}
	if first, ok := s.linkTo(it.entry.Key(), file); ok {
		it.entry = manifest.Entry{Dir: dir, Name: d.Name, Type: manifest.Link, First: first}
		return s.append(ctx, &it, false)
	}
	s.recent.see(dir, d)
	it.print = fingerprint(d, s.started.Unix())
	all, contents := s.parent.reuse(ctx, &it)
	if all {
		s.out.Meter.AddBytes(int64(it.entry.Size))
		return s.append(ctx, &it, false)
	}
	it.settle = true
	if it.entry.Type != manifest.File || contents {
		return s.append(ctx, &it, false)
	}
	return s.append(ctx, &it, streams(d))
}

// maxHoleless is the size in bytes up to which nobody asks whether a file is a hole.
const maxHoleless = 4 << 10

// streams reports whether a file is read as a batch of its own: one that is large,
// or of fewer blocks than bytes, so that it may have holes.
func streams(d *fsys.Dirent) bool {
	return d.Size > batchBytes || d.Size > maxHoleless && d.Alloc < d.Size
}

// linkTo reports whether an earlier entry is the same file.
func (s *sequencer) linkTo(k manifest.Key, d *fsys.Dirent) (first manifest.Key, ok bool) {
	if d.Nlink < 2 || d.IsDir() {
		return first, false
	}
	at := fsys.Inode{Dev: d.Dev, Ino: d.Ino}
	g := s.links[at]
	if g == nil {
		s.links[at] = &linkGroup{k, d.Nlink - 1}
		return first, false
	}
	if g.left--; g.left == 0 {
		delete(s.links, at)
	}
	return g.first, true
}

func (s *sequencer) append(ctx context.Context, it *item, stream bool) error {
	b := s.cur
	if stream && len(b.items) > 0 {
		if err := s.dispatch(ctx); err != nil {
			return err
		}
		b = s.cur
	}
	if b.items == nil {
		b.items = make([]item, 0, batchItems)
	}
	b.items = append(b.items, *it)
	b.stream = stream
	if it.settle && !it.bare {
		b.bytes += it.stat.Size
	}
	if stream || len(b.items) == batchItems || b.bytes >= batchBytes {
		return s.dispatch(ctx)
	}
	return nil
}

// dispatch sends the batch off.
func (s *sequencer) dispatch(ctx context.Context) error {
	b := s.cur
	s.cur = &batch{}
	if len(b.items) == 0 {
		return nil
	}
	settle := false
	for i := range b.items {
		settle = settle || b.items[i].settle
	}
	b.parts = make(chan *part, 1)
	if !settle {
		close(b.parts)
	}
	if !flow.Send(ctx, s.order, b) {
		return ctx.Err()
	}
	if settle && !flow.Send(ctx, s.work, b) {
		close(b.parts) // the assembler has the batch, and would wait for a reader
		return ctx.Err()
	}
	return nil
}

// isGone reports that what a path named is not there any more. ESTALE may mean that
// too, but also that a file system has lost its way: that is told.
func isGone(err error) bool {
	return fsys.IsAny(err, unix.ENOENT, unix.ENOTDIR)
}

// parentTree is the snapshot that unchanged files are taken from.
type parentTree struct {
	id     manifest.ID
	info   *manifest.Info
	packs  []repo.SizedPack
	tree   *manifest.Tree
	cursor *manifest.Cursor
	stats  *repo.StatCache         // nil: size and mtime suffice, as the caller asked
	failed func(error)             // told why the tree cannot be read any further
	avoid  func(chunk.PackID) bool // packs that must not be referred to; nil for none

	entry manifest.Entry
	rank  uint64
	more  bool
	bad   atomic.Bool // some page could not be read: none is taken from it any more
}

// next moves to the parent's next entry.
func (p *parentTree) next(ctx context.Context) {
	p.rank = p.cursor.Rank()
	var err error
	if p.more, err = p.cursor.Next(ctx, &p.entry); err != nil {
		if ctx.Err() == nil {
			p.fail(err)
		}
		p.more = false
	}
}

// fail says that nothing more is taken from the parent.
func (p *parentTree) fail(err error) {
	p.bad.Store(true)
	p.failed(err)
}

// avoids reports whether an entry may refer to what must not be referred to.
func (p *parentTree) avoids(e *manifest.Entry) bool {
	if e.Spill != nil {
		return true // what its pages refer to takes reading them
	}
	return slices.ContainsFunc(e.Extents, func(x manifest.Extent) bool { return p.avoid(x.Pack) })
}

// reuse completes the item from the parent's entry, if the file has not changed
// since: all of it, or, where only that is known, its contents. Items must come
// in order.
func (p *parentTree) reuse(ctx context.Context, it *item) (all, contents bool) {
	if p == nil {
		return false, false
	}
	k := it.entry.Key()
	for p.more && p.entry.Key().Compare(k) < 0 {
		p.next(ctx)
	}
	e := &p.entry
	if !p.more || e.Key() != k || e.Type != it.entry.Type || e.Mtime != it.entry.Mtime {
		return false, false
	}
	if e.Type == manifest.File && e.Size != it.entry.Size {
		return false, false
	}
	if p.avoid != nil && p.avoids(e) {
		return false, false
	}
	if p.stats == nil {
		// Without ctime nothing tells that metadata are as they were.
		if e.Type != manifest.File {
			return false, false
		}
		contents = true
	} else if known := p.stats.Print(p.rank); known == 0 || known != statPrint(&it.stat) {
		return false, false
	}
	it.entry.Target, it.entry.Spill = e.Target, e.Spill
	// The cursor reuses the slices of its entry.
	it.entry.Extents = append([]manifest.Extent(nil), e.Extents...)
	if contents {
		it.known = true
		return false, true
	}
	if len(e.Xattrs) > 0 {
		it.entry.Xattrs = append([]manifest.Xattr(nil), e.Xattrs...)
	}
	if it.print == 0 {
		it.print = statPrint(&it.stat)
	}
	return true, true
}

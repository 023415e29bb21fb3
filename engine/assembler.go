package engine

import (
	"context"
	"sync"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sync/errgroup"
)

// assembler takes batches in tree order: it puts chunks that the repository does
// not have into frames, and entries whose chunks have a place into the tree.
type assembler struct {
	*creator
	placer  write.Placer
	builder treeBuilder
	fork    *overlayTree // the builder, if it is a fork's; else nil

	// queue holds the entries, in order, of which some chunk has no place yet.
	queue []*item
	// goneDirs are directories that went away while they were read: what was
	// listed in them goes too.
	goneDirs map[string]bool
	// heirs are, for files that could not be read under their first name, the
	// name that took its place; nil where there is none yet.
	heirs map[manifest.Key]*manifest.Key

	root   *manifest.Root
	prints []uint64          // of the entries in the tree
	memo   map[uint64]uint64 // of the entries of a fork's upper directory, by keyHash
	files  uint64
	bytes  uint64
}

// treeBuilder makes a tree of entries that come in order: a [manifest.Builder], or
// a [manifest.Patch] of another tree.
type treeBuilder interface {
	Add(ctx context.Context, e *manifest.Entry) error
	Finish(ctx context.Context) (*manifest.Root, error)
}

func newAssembler(ctx context.Context, c *creator, g *errgroup.Group, workers int) (*assembler, error) {
	sink := c.out.NewSink(c.pageLookup(ctx))
	a := &assembler{
		creator:  c,
		goneDirs: map[string]bool{}, heirs: map[manifest.Key]*manifest.Key{},
	}
	if c.fork != nil {
		if err := a.patchTree(ctx, sink); err != nil {
			return nil, err
		}
	} else {
		builder := manifest.NewBuilder(sink)
		if c.parent != nil {
			builder.Reuse(c.parent.tree)
		}
		a.builder = builder
	}
	a.placer = write.NewPlacer(c.out, write.NewPacker(ctx, g, c.repo.Codec, c.out.Up, workers))
	return a, nil
}

// pageLookup finds tree pages that the repository has: the parent's without the
// index, which is then not even opened when nothing changed.
func (c *creator) pageLookup(ctx context.Context) func(chunk.ID) (manifest.PageRef, bool) {
	var known map[chunk.ID]manifest.PageRef
	return func(id chunk.ID) (manifest.PageRef, bool) {
		if known == nil {
			known = map[chunk.ID]manifest.PageRef{}
			if c.parent != nil {
				err := c.parent.tree.Pages(ctx, func(p manifest.PageRef) { known[p.ID] = p })
				if err != nil && ctx.Err() == nil {
					c.parent.fail(err)
				}
			}
			if c.fork != nil {
				c.fork.pages(ctx, known)
			}
		}
		if ref, ok := known[id]; ok && !c.parent.bad.Load() && !c.fork.damaged() && !c.out.Guard.Refuses(ref.Pack) {
			return ref, true
		}
		return c.out.IndexedPage(id)
	}
}

func (a *assembler) run(ctx context.Context, order <-chan *batch, rd *reader) error {
	for b := range order {
		for p := range b.parts {
			err := a.part(ctx, b, p)
			if err == nil {
				err = a.out.Commit.Err()
			}
			if err != nil {
				return err
			}
			rd.release(p)
		}
		if err := ctx.Err(); err != nil {
			return err // the batch may not be whole
		}
		for i := range b.items {
			if err := a.settled(ctx, &b.items[i], rd); err != nil {
				return err
			}
		}
		if err := a.drain(ctx, false); err != nil {
			return err
		}
		if len(a.queue) > write.MaxQueue {
			if err := a.settleQueue(ctx); err != nil {
				return err
			}
		}
		if err := a.placer.ForgetPending(ctx); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err // the walk may not be whole
	}
	if err := a.placer.NoMore(ctx); err != nil {
		return err
	}
	if err := a.drain(ctx, true); err != nil {
		return err
	}
	root, err := a.builder.Finish(ctx)
	if err == nil {
		err = a.out.Commit.Err()
	}
	a.root = root
	return err
}

// settleQueue closes the pack at hand, so that all that waits can go on.
func (a *assembler) settleQueue(ctx context.Context) error {
	if err := a.placer.SealOpen(ctx); err != nil {
		return err
	}
	return a.drain(ctx, true)
}

// settled queues an item of which all is known, unless it is not there any more.
func (a *assembler) settled(ctx context.Context, it *item, rd *reader) error {
	if it.op != opAdd {
		a.queue = append(a.queue, it)
		return nil
	}
	e := &it.entry
	if a.goneDirs[e.Dir] {
		it.drop = true
	}
	if e.Type == manifest.Link && !it.drop {
		if heir, ok := a.heirs[e.First]; ok {
			if heir == nil {
				return a.inherit(ctx, it, rd)
			}
			e.First = *heir
		}
	}
	if it.outgrown {
		again, err := a.stream(ctx, it, rd)
		if err != nil {
			return err
		}
		it = again
		e = &it.entry
	}
	if it.linked && (it.drop || it.renewed) {
		a.heirs[e.Key()] = nil
	}
	if it.drop && e.Type == manifest.Dir {
		a.goneDirs[e.Path()] = true
	}
	a.enqueue(it)
	return nil
}

// enqueue queues an item, unless it is not there any more: then the tree that a fork
// began with must not have it either.
func (a *assembler) enqueue(it *item) {
	switch {
	case !it.drop:
	case a.fork == nil:
		return
	default:
		it = &item{op: opRemove, drop: true, entry: manifest.Entry{Dir: it.entry.Dir, Name: it.entry.Name, Type: it.entry.Type}}
	}
	a.queue = append(a.queue, it)
}

// inherit reads a file under its second name, because it could not be read under
// its first.
func (a *assembler) inherit(ctx context.Context, it *item, rd *reader) error {
	first := it.entry.First
	it, err := a.stream(ctx, it, rd)
	if err != nil {
		return err
	}
	if !it.drop {
		k := it.entry.Key()
		a.heirs[first] = &k
	}
	a.enqueue(it)
	return nil
}

// stream has an item read again, as a batch of its own, while the pipeline waits.
func (a *assembler) stream(ctx context.Context, it *item, rd *reader) (*item, error) {
	again := item{entry: entryOf(it.entry.Dir, &it.stat), stat: it.stat, settle: true, joined: it.joined, lane: it.lane, lower: it.lower}
	b := &batch{items: []item{again}, stream: again.entry.Type == manifest.File, parts: make(chan *part, 1)}
	ctx, cancel := context.WithCancel(ctx)
	var settling sync.WaitGroup
	settling.Go(func() { rd.settle(ctx, b) })
	defer settling.Wait()
	defer cancel()
	for p := range b.parts {
		if err := a.part(ctx, b, p); err != nil {
			return nil, err
		}
		rd.release(p)
	}
	b.items[0].linked = b.items[0].linked || it.linked
	return &b.items[0], ctx.Err()
}

// part takes the chunks of a part.
func (a *assembler) part(ctx context.Context, b *batch, p *part) error {
	if p.restart {
		b.items[0].parts = write.FileExtents{}
		return nil
	}
	for i := range p.pieces {
		pc := &p.pieces[i]
		it := &b.items[pc.item]
		x := manifest.Extent{Hole: pc.hole, ID: pc.id}
		var f *write.Frame
		if pc.known {
			x.Location = pc.loc
		} else {
			var err error
			if f, x.Offset, err = a.placer.Put(ctx, it.lane, pc.id, pc.data); err != nil {
				return err
			}
			x.Length = pc.length
		}
		it.parts.Add(x, f)
	}
	return nil
}

// drain adds entries to the tree, in order, up to the first that has to wait;
// with wait, it waits.
func (a *assembler) drain(ctx context.Context, wait bool) error {
	done := 0
	for _, it := range a.queue {
		ok, err := it.parts.Settle(ctx, wait)
		if err != nil {
			return err
		}
		if !ok {
			a.queue = a.queue[done:]
			return nil
		}
		if err := a.add(ctx, it); err != nil {
			return err
		}
		a.queue[done] = nil
		done++
	}
	a.queue = a.queue[:0]
	return nil
}

// add puts an entry into the tree.
func (a *assembler) add(ctx context.Context, it *item) error {
	if it.op != opAdd {
		return a.fork.remove(ctx, it)
	}
	e := &it.entry
	if it.parts.Extents != nil {
		e.Extents = it.parts.Extents
	}
	if err := a.builder.Add(ctx, e); err != nil {
		return err
	}
	switch {
	case a.fork == nil:
		a.prints = append(a.prints, it.print)
	case it.print != 0:
		a.memo[keyHash(e.Key())] = it.print
	}
	if e.Type != manifest.Dir {
		a.files++
	}
	if e.Type == manifest.File {
		a.bytes += e.Size
	}
	return nil
}

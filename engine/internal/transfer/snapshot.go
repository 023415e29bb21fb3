package transfer

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/crypt"
	"github.com/snapctl/snapctl/engine/internal/gc"
	"github.com/snapctl/snapctl/engine/internal/read"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
)

// snapshotCopy is the copy of one snapshot:
//
//	entries of the source's tree ──▶ where does the destination have each chunk?
//	    └─▶ those that it does not have, decoded ahead ──▶ frames and packs
//	    └─▶ entries, when all their chunks have a place ──▶ the destination's tree
//
// If another snapshot is in both repositories that has much in common with this one,
// only the pages of the source's tree that those two do not share are looked at, and
// the new tree is a patch of what that snapshot has in the destination.
//
//  1. Snapshots are copied oldest first. One whose manifest is there is done. Else a lease
//     keeps it in the source, and a writer begins in the destination: guard, committer
//     and uploader, the same as a create's.
//  2. findBase looks for a snapshot to begin with that is in both repositories, the parent
//     or the one copied before. If half of the entries are in pages of the source that both
//     have, the new tree is a manifest.Patch of what the base has in the destination, by the
//     entries in which the source's trees differ (manifest.Revised: to the last field, unlike
//     Diff). Else it is a Builder's, of every entry.
//  3. produce goes through entries and asks the destination's index for each chunk. Of what
//     is missing the source's frames are decoded ahead (read.Chunks.ReadAhead), in the order of the
//     tree, mostly each once; placer puts it into frames and packs, and an entry goes into
//     the tree when its chunks have places. Keyed ids (chunkNames) are known when the bytes
//     are: then every chunk that no base has is read.
//  4. publish puts segment and manifest, as a create does, but others may put the same
//     name. What is there is never taken back unless it is what this run put, byte for byte;
//     another run may even have put the same bytes, if it found the packs in the index.
//     The snapshot's notes (copyNotes) are put before: without them it may have expired.
type snapshotCopy struct {
	*copier
	out    *write.Writer
	placer write.Placer
	m      *manifest.Manifest // of the source
	tree   *manifest.Tree     // of the source
	chunks *read.Chunks       // of the source
	base   *copyBase          // nil for none
	queue  []*copiedEntry
	root   *manifest.Root

	builder copyBuilder
	patch   *manifest.Patch // the builder, if there is a base; else nil

	asked map[chunk.ID]struct{} // chunks that are on their way, or were; the producer's
}

// copyBase is a snapshot that is in both repositories.
type copyBase struct {
	id     manifest.ID
	source *manifest.Tree
	there  *manifest.Tree
	use    map[chunk.PackID]uint64 // of the latter
}

// copiedEntry is an entry on its way.
type copiedEntry struct {
	entry  manifest.Entry
	remove bool // it is in the base and not in the snapshot

	chunks []copiedChunk
	next   int               // of chunks, that has no place in the new tree yet
	places write.FileExtents // of those before
}

// copiedChunk is a chunk of a file. Its id and place are those of the destination if
// that has it, else those of the source.
type copiedChunk struct {
	manifest.Extent
	there bool
}

// errTaken: somebody else has put the manifest.
var errTaken = errors.New("another copy was faster")

func (x *snapshotCopy) run(ctx context.Context, fromScratch bool) (err error) {
	if x.tree, err = x.m.Tree(x.from); err != nil {
		return ofSource(err)
	}
	x.out.Meter.SetPhase(snapshot.PhaseCopying)
	g, gctx := x.out.Begin(ctx)
	defer x.out.End()
	if !fromScratch {
		if err := x.findBase(ctx); err != nil {
			return err
		}
	}
	g.Go(func() error {
		err := x.pipeline(gctx, g)
		if err == nil {
			err = x.out.Guard.Refresh(gctx)
		}
		return err
	})
	if err := x.out.Wait(ctx, g); err != nil {
		return err
	}
	x.out.Meter.SetPhase(snapshot.PhaseCommitting)
	m := &manifest.Manifest{Info: x.m.Info}
	m.SetTree(x.root)
	if m.Entries != x.m.Entries || m.Xattrs != x.m.Xattrs || m.HardLinks != x.m.HardLinks {
		return ofSource(fmt.Errorf("%w: its tree has %d entries, its manifest says %d", snapshot.ErrIntegrity, m.Entries, x.m.Entries))
	}
	// Notes come first: by them alone it may not have expired.
	lifetime, err := x.copyNotes(ctx)
	if err != nil {
		return err
	}
	err = x.out.Publish(ctx, m, nil)
	if errors.Is(err, remote.ErrExist) {
		return errTaken
	}
	if err == nil && lifetime != nil {
		if _, err := retain.KeepLonger(ctx, x.to, repo.SnapshotOf(&m.Info), lifetime); err != nil {
			x.warn(fmt.Errorf("%w; a lifecycle rule of the bucket may remove the copy early: extend it there", err))
		}
	}
	return err
}

// copyNotes puts the notes of the snapshot, and gives the last one's lifetime that has
// any.
func (x *snapshotCopy) copyNotes(ctx context.Context) (last *manifest.Lifetime, err error) {
	notes, err := x.from.NotesOf(ctx, x.m.ID)
	if err != nil {
		return nil, ofSource(err)
	}
	for _, n := range notes {
		object, err := n.Encode()
		if err == nil {
			err = x.to.Store.Put(ctx, n.ObjectName(), x.to.SealObject(crypt.UseNote, n.ObjectName(), object))
		}
		// One of that name says the same.
		if err != nil && !errors.Is(err, remote.ErrExist) {
			return nil, fmt.Errorf("writing a note: %w", err)
		}
		if n.Lifetime != nil {
			last = n.Lifetime
		}
	}
	return last, nil
}

// findBase looks for a snapshot to begin with: the parent, or the one before.
func (x *snapshotCopy) findBase(ctx context.Context) error {
	if err := x.out.Guard.Ready(ctx); err != nil {
		return err
	}
	for _, id := range []manifest.ID{x.m.Parent, x.last} {
		if id.IsZero() || x.base != nil {
			continue
		}
		b, err := x.openBase(ctx, id)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			// It is not needed.
			x.from.Logger.Info("copy without a snapshot to begin with", "snapshot", x.m.ID, "base", id, "err", err)
		}
		x.base = b
	}
	return nil
}

// openBase opens a snapshot, if it is one to begin with: of the entries at least half
// must be in pages that both have.
func (x *snapshotCopy) openBase(ctx context.Context, id manifest.ID) (*copyBase, error) {
	there, thereTree, err := x.to.LiveTree(ctx, id)
	if err != nil {
		return nil, err
	}
	if x.out.Guard.RefusesAny(there.Packs) {
		return nil, write.ErrAnew
	}
	source, sourceTree, err := x.from.LiveTree(ctx, id)
	if err != nil {
		return nil, err
	}
	if there.Entries != source.Entries || !there.Created.Equal(source.Created) {
		return nil, errors.New("it is another snapshot there")
	}
	shared, err := manifest.SharedEntries(ctx, sourceTree, x.tree)
	if err != nil || 2*shared < max(x.m.Entries, source.Entries) {
		return nil, err
	}
	x.out.Guard.Present(write.ByManifest, write.PacksNamed(there)...)
	b := &copyBase{id: id, source: sourceTree, there: thereTree, use: make(map[chunk.PackID]uint64, len(there.Packs))}
	for _, p := range there.Packs {
		b.use[p.ID] = p.Bytes
	}
	return b, nil
}

// pipeline runs until every entry is in the tree and all packs are on their way.
func (x *snapshotCopy) pipeline(ctx context.Context, g *errgroup.Group) error {
	sink := x.out.NewSink(x.out.IndexedPage)
	x.builder = manifest.NewBuilder(sink)
	if x.base != nil {
		var err error
		if x.patch, err = manifest.NewPatch(ctx, x.base.there, x.base.use, sink); err != nil {
			return err
		}
		x.builder = patchBuilder{x.patch}
	}
	x.placer = write.NewPlacer(x.out, write.NewPacker(ctx, g, x.to.Codec, x.out.Up, runtime.GOMAXPROCS(0)))
	x.chunks = read.New(ctx, x.from, x.from.PackStore(), read.Memory)
	x.asked = map[chunk.ID]struct{}{}
	if err := x.chunks.ReadAhead(ctx, x.produce, func(p *read.Piece) error { return x.take(ctx, p) }); err != nil {
		return err
	}
	x.from.Logger.Debug("copy", "snapshot", x.m.ID, "base", x.base != nil, "frames", x.chunks.Decoded.Load())
	if err := x.placer.NoMore(ctx); err != nil {
		return err
	}
	if err := x.drain(ctx, true); err != nil {
		return err
	}
	var err error
	if x.root, err = x.builder.Finish(ctx); err == nil {
		err = x.out.Commit.Err()
	}
	return err
}

// produce emits what has to be put and removed, in the order of keys.
func (x *snapshotCopy) produce(ctx context.Context, emit func(read.Piece) error) error {
	if x.base != nil {
		return manifest.Revised(ctx, x.base.source, x.tree, func(old, new *manifest.Entry) error {
			if new == nil {
				gone := manifest.Entry{Dir: old.Dir, Name: old.Name}
				return emit(read.Piece{Copied: &copiedEntry{entry: gone, remove: true}})
			}
			e := *new
			e.Extents, e.Xattrs = slices.Clone(e.Extents), slices.Clone(e.Xattrs)
			return x.emit(ctx, &e, emit)
		})
	}
	c, err := x.tree.Seek(ctx, manifest.Key{})
	for err == nil {
		var more bool
		e := &manifest.Entry{}
		if more, err = c.Next(ctx, e); err == nil && !more {
			return nil
		}
		if err == nil {
			err = x.emit(ctx, e, emit)
		}
	}
	return err
}

// emit emits an entry: in one piece, or in as many as it has chunks that the
// destination does not have.
func (x *snapshotCopy) emit(ctx context.Context, e *manifest.Entry, emit func(read.Piece) error) error {
	it := &copiedEntry{entry: *e}
	var missing []int
	err := x.tree.Extents(ctx, e, func(_ uint64, ext *manifest.Extent) error {
		c := copiedChunk{Extent: *ext}
		if id, ok := x.names.of(ext.ID); ok {
			if c.Location, c.there = x.out.Commit.Lookup(id); c.there {
				c.ID = id
			} else {
				c.Location = ext.Location
			}
		}
		if !c.there {
			missing = append(missing, len(it.chunks))
		}
		it.chunks = append(it.chunks, c)
		return nil
	})
	if err != nil {
		return fmt.Errorf("%q: %w", e.Path(), err)
	}
	it.entry.Extents, it.entry.Spill = nil, nil
	if len(missing) == 0 {
		return emit(read.Piece{Copied: it})
	}
	for _, i := range missing {
		// The consumer has it from then on, but for what must not change: the extent.
		p := read.Piece{Copied: it, Extent: it.chunks[i].Extent}
		if _, ok := x.asked[p.Extent.ID]; ok {
			p.Extent = manifest.Extent{}
		} else if len(x.asked) < write.MaxPending {
			x.asked[p.Extent.ID] = struct{}{}
		}
		if err := emit(p); err != nil {
			return err
		}
	}
	return nil
}

// take takes a piece: the next chunk of an entry that is missing, or an entry of which
// none is.
func (x *snapshotCopy) take(ctx context.Context, p *read.Piece) error {
	it, _ := p.Copied.(*copiedEntry) // nil where there is none
	switch {
	case x.out.Commit.Err() != nil:
		return x.out.Commit.Err()
	case p.Err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case p.Err != nil && it == nil:
		return ofSource(p.Err)
	case p.Err != nil:
		return ofSource(x.lost(ctx, it, &p.Extent, p.Err))
	}
	placed := false
	for it.next < len(it.chunks) {
		c := &it.chunks[it.next]
		if c.there {
			it.places.Add(c.Extent, nil)
		} else if placed {
			return x.placer.ForgetPending(ctx) // the next piece goes on
		} else if err := x.place(ctx, it, c, p.Data); err != nil {
			return err
		} else {
			placed = true
		}
		it.next++
	}
	x.out.Meter.AddFile()
	if it.entry.Type == manifest.File {
		x.out.Meter.AddBytes(int64(it.entry.Size))
	}
	x.queue = append(x.queue, it)
	if err := x.drain(ctx, false); err != nil {
		return err
	}
	if len(x.queue) > write.MaxQueue {
		if err := x.placer.SealOpen(ctx); err != nil {
			return err
		}
		if err := x.drain(ctx, true); err != nil {
			return err
		}
	}
	return x.placer.ForgetPending(ctx)
}

// place gives a chunk of the source a place in the destination. data is nil for one that
// was on its way before.
func (x *snapshotCopy) place(ctx context.Context, it *copiedEntry, c *copiedChunk, data []byte) (err error) {
	read := func() error {
		if data == nil {
			if data, err = x.chunks.Chunk(ctx, &c.Extent); err != nil {
				return ofSource(x.lost(ctx, it, &c.Extent, err))
			}
		}
		return nil
	}
	name, ok := x.names.of(c.ID)
	if !ok {
		if err := read(); err != nil {
			return err
		}
		name = x.to.Hasher.Sum(data)
		x.names.learn(c.ID, name)
	}
	ext := manifest.Extent{Hole: c.Hole, ID: name}
	if at, ok := x.placer.Pending[name]; ok {
		ext.Offset, ext.Length = at.Offset, c.Length
		it.places.Add(ext, at.Frame)
		return nil
	}
	// Its name may have been unknown before, or the index have learnt of it.
	if ext.Location, ok = x.out.Commit.Lookup(name); ok {
		it.places.Add(ext, nil)
		return nil
	}
	if err := read(); err != nil {
		return err
	}
	f, off, err := x.placer.Put(ctx, write.LaneOf(it.entry.Name), name, data)
	if err != nil {
		return err
	}
	ext.Offset, ext.Length = off, c.Length
	it.places.Add(ext, f)
	return nil
}

// drain puts entries into the tree, in order, up to the first that has to wait; with
// wait, it waits.
func (x *snapshotCopy) drain(ctx context.Context, wait bool) error {
	for len(x.queue) > 0 {
		it := x.queue[0]
		ok, err := it.places.Settle(ctx, wait)
		if !ok || err != nil {
			return err
		}
		x.queue[0] = nil
		x.queue = x.queue[1:]
		if it.remove {
			_, err = x.patch.Remove(ctx, it.entry.Key())
		} else {
			it.entry.Extents = it.places.Extents
			err = x.builder.Add(ctx, &it.entry)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// lost adds to an error about a chunk which files need what cannot be read.
func (x *snapshotCopy) lost(ctx context.Context, it *copiedEntry, ext *manifest.Extent, err error) error {
	if !errors.Is(repo.Integrity(err), snapshot.ErrIntegrity) {
		return fmt.Errorf("%q: %w", it.entry.Path(), err)
	}
	_, serr := x.from.Store.Stat(ctx, repo.PackName(ext.Pack))
	all := errors.Is(serr, remote.ErrNotExist) // of the pack
	var names []string
	more := 0
	var e manifest.Entry
	c, cerr := x.tree.Seek(ctx, manifest.Key{})
	for cerr == nil {
		var ok bool
		if ok, cerr = c.Next(ctx, &e); cerr != nil || !ok {
			break
		}
		needs := false
		cerr = x.tree.Extents(ctx, &e, func(_ uint64, at *manifest.Extent) error {
			needs = needs || at.Pack == ext.Pack && (all || at.Frame.Offset == ext.Frame.Offset)
			return nil
		})
		switch {
		case !needs:
		case len(names) < gc.MaxTold:
			names = append(names, fmt.Sprintf("%q", e.Path()))
		default:
			more++
		}
	}
	if len(names) == 0 {
		names = []string{fmt.Sprintf("%q", it.entry.Path())}
	}
	if more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return fmt.Errorf("%w; pack %v has contents of %s", err, ext.Pack, strings.Join(names, ", "))
}

// copyBuilder makes a tree of entries that come in order: a [manifest.Builder], or
// a patchBuilder.
type copyBuilder interface {
	Add(ctx context.Context, e *manifest.Entry) error
	Finish(ctx context.Context) (*manifest.Root, error)
}

// patchBuilder is a copyBuilder of a patch.
type patchBuilder struct{ *manifest.Patch }

// Add is copyBuilder's.
func (b patchBuilder) Add(ctx context.Context, e *manifest.Entry) error { return b.Put(ctx, e) }

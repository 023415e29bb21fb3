package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/flow"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/read"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/diskcache"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// How contents are fetched: neighbouring frames of a pack in one request.
const (
	fetchSize      = 2 << 20   // stored bytes of a request
	fetchGap       = 256 << 10 // bytes that are fetched in vain rather than asking twice
	localFetchSize = 1 << 20
)

// fetch is a run of frames of one pack, and the chunks wanted from them.
type fetch struct {
	first, end uint32 // bytes of the pack
	wants      []want // sorted by frame and offset
}

// writeContents writes all contents: frames in the order in which they lie in
// their packs, each fetched and decoded once, files in parallel.
func (x *restorer) writeContents(ctx context.Context) error {
	fetches := x.planFetches()
	x.packs = x.repo.repo.PackStore()
	workers, slots := runtime.GOMAXPROCS(0), runtime.GOMAXPROCS(0)
	if !x.repo.repo.Local() {
		slots = max(slots, read.RemoteFetches) // they mostly wait
	}
	g, ctx := errgroup.WithContext(ctx)
	cpu := make(chan struct{}, workers) // so many decode and write at once
	var next atomic.Int64
	for range min(slots, len(fetches)) {
		g.Go(func() error {
			w := &contentWriter{restorer: x, dir: openDir{root: x.root}}
			defer w.dir.close()
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(fetches) {
					return nil
				}
				if err := w.fetch(ctx, &fetches[i], cpu); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

// planFetches orders what is wanted by where it lies. The plan is complete by then.
func (x *restorer) planFetches() []fetch {
	p := x.plan
	// Packs in the order in which the tree first names them, which is that in
	// which they were made; frames by their place in the pack.
	pack := map[chunk.PackID]int{}
	place := make([]uint64, len(p.frames)) // of each frame
	order := make([]uint32, len(p.frames))
	for i, f := range p.frames {
		n, ok := pack[f.pack]
		if !ok {
			n = len(pack)
			pack[f.pack] = n
		}
		place[i], order[i] = uint64(n)<<32|uint64(f.frame.Offset), uint32(i)
	}
	slices.SortFunc(order, func(a, b uint32) int { return cmp.Compare(place[a], place[b]) })
	// Frames are numbered by their places, so that comparing wants looks at nothing else:
	// there are hundreds of them in a frame.
	frames, number := make([]planFrame, len(p.frames)), make([]uint32, len(p.frames))
	for i, old := range order {
		frames[i], number[old] = p.frames[old], uint32(i)
	}
	p.frames, p.frameAt = frames, nil
	for i := range p.wants {
		p.wants[i].frame = number[p.wants[i].frame]
	}
	slices.SortFunc(p.wants, func(a, b want) int {
		if c := cmp.Compare(uint64(a.frame)<<32|uint64(a.rank), uint64(b.frame)<<32|uint64(b.rank)); c != 0 {
			return c
		}
		return cmp.Compare(a.at, b.at)
	})
	size, gap := uint32(fetchSize), uint32(fetchGap)
	if x.repo.repo.Local() {
		size, gap = localFetchSize, 0
	}
	var all []fetch
	var last planFrame
	for i := 0; i < len(p.wants); {
		f := p.frames[p.wants[i].frame]
		j := i
		for j < len(p.wants) && p.wants[j].frame == p.wants[i].frame {
			j++
		}
		if n := len(all); n > 0 && last.pack == f.pack && f.frame.Offset >= all[n-1].end &&
			f.frame.Offset <= all[n-1].end+gap && f.frame.End() <= all[n-1].first+size {
			all[n-1].end = f.frame.End()
			// Wants are sorted, so those of neighbours are neighbours too.
			all[n-1].wants = p.wants[i-len(all[n-1].wants) : j]
		} else {
			all = append(all, fetch{f.frame.Offset, f.frame.End(), p.wants[i:j]})
		}
		last, i = f, j
	}
	return all
}

// contentWriter is one worker's memory.
type contentWriter struct {
	*restorer
	dir    openDir
	stored []byte
	raw    []byte
	entry  manifest.Entry
}

func (w *contentWriter) fetch(ctx context.Context, f *fetch, cpu chan struct{}) error {
	frames := w.plan.frames
	pack := frames[f.wants[0].frame].pack
	w.stored = slices.Grow(w.stored[:0], int(f.end-f.first))[:f.end-f.first]
	w.meter.Transfer(1, 0)
	fetched := int64(len(w.stored))
	if s, ok := w.packs.(*diskcache.Store); ok {
		fetched = min(fetched, s.Missing(repo.PackName(pack), int64(f.first), fetched))
	}
	err := w.packs.ReadAt(ctx, repo.PackName(pack), int64(f.first), w.stored)
	w.meter.Transfer(-1, int64(len(w.stored)))
	if errors.Is(err, remote.ErrNotExist) {
		return w.writeRelocated(ctx, f, pack)
	}
	if err != nil {
		return fmt.Errorf("pack %v: %w", pack, err)
	}
	w.mu.Lock()
	w.fetched += fetched
	w.mu.Unlock()
	if !flow.Send(ctx, cpu, struct{}{}) {
		return ctx.Err()
	}
	defer func() { <-cpu }()
	for i := 0; i < len(f.wants); {
		at := frames[f.wants[i].frame].frame
		n, err := w.writeFrame(ctx, f.wants[i:], pack, at, w.stored[at.Offset-f.first:at.End()-f.first])
		if s, ok := w.packs.(read.Invalidator); ok && errors.Is(err, snapshot.ErrIntegrity) {
			// The disk cache may have kept what was spoiled on the way.
			w.repo.repo.Logger.Warn("wrong bytes, fetching again", "err", err)
			s.Invalidate(repo.PackName(pack), int64(at.Offset), int64(at.Stored))
			again := make([]byte, at.Stored)
			if err := w.packs.ReadAt(ctx, repo.PackName(pack), int64(at.Offset), again); err != nil {
				return fmt.Errorf("pack %v: %w", pack, err)
			}
			var m int
			m, err = w.writeFrame(ctx, f.wants[i+n:], pack, at, again)
			n += m
		}
		if err != nil {
			return err
		}
		i += n
	}
	return ctx.Err()
}

// writeFrame writes the chunks of a frame, of which wants begins with some. It
// tells how many it has written.
func (w *contentWriter) writeFrame(ctx context.Context, wants []want, pack chunk.PackID, at chunk.Frame, stored []byte) (n int, err error) {
	raw, err := w.repo.repo.Codec.Decode(w.raw, stored, int(at.Raw))
	if err != nil {
		return 0, fmt.Errorf("%w: pack %v at %d: %w; %s cannot be restored", snapshot.ErrIntegrity, pack, at.Offset, err, w.names(ctx, uint64(wants[0].rank)))
	}
	if at.Stored != at.Raw { // else it is the stored bytes themselves
		w.raw = raw
	}
	for frame := wants[0].frame; n < len(wants) && wants[n].frame == frame; n++ {
		// Checked when the page was decoded: it lies within the frame.
		wt := &wants[n]
		if err := w.write(ctx, wt, raw[wt.offset:wt.offset+wt.length]); err != nil {
			return n, err
		}
	}
	return n, nil
}

// names describes the file of a rank in a message.
func (w *contentWriter) names(ctx context.Context, rank uint64) string {
	var e manifest.Entry
	if err := w.tree.At(ctx, rank, &e); err != nil {
		return "a file"
	}
	return fmt.Sprintf("%q", e.Path())
}

// writeRelocated writes chunks whose pack has gone, from where they are now.
func (w *contentWriter) writeRelocated(ctx context.Context, f *fetch, gone chunk.PackID) error {
	for i := range f.wants {
		wt := &f.wants[i]
		x, err := w.extent(ctx, wt)
		if err != nil {
			return err
		}
		loc, err := w.repo.repo.Relocate(ctx, x.ID, gone)
		if err != nil {
			return fmt.Errorf("%w; %s cannot be restored", err, w.names(ctx, uint64(wt.rank)))
		}
		stored := make([]byte, loc.Frame.Stored)
		if err := w.packs.ReadAt(ctx, repo.PackName(loc.Pack), int64(loc.Frame.Offset), stored); err != nil {
			return fmt.Errorf("pack %v: %w", loc.Pack, err)
		}
		data, err := w.repo.repo.DecodeChunk(x.ID, loc, stored)
		if err != nil {
			return err
		}
		if err := w.write(ctx, wt, data); err != nil {
			return err
		}
	}
	return nil
}

// extent finds the extent that a want is for, and reads its file's entry.
func (w *contentWriter) extent(ctx context.Context, wt *want) (x manifest.Extent, err error) {
	rank := uint64(wt.rank)
	src, elsewhere := w.plan.sources[rank]
	if elsewhere {
		rank = src
	}
	if err := w.tree.At(ctx, rank, &w.entry); err != nil {
		return x, err
	}
	found := false
	err = w.tree.ExtentsFrom(ctx, &w.entry, wt.at, func(at uint64, ext *manifest.Extent) error {
		if x, found = *ext, at == wt.at; found {
			return repo.ErrFound
		}
		return nil
	})
	if err != nil && !errors.Is(err, repo.ErrFound) {
		return x, err
	}
	if !found {
		return x, fmt.Errorf("%w: %q has no chunk at %d", snapshot.ErrIntegrity, w.entry.Path(), wt.at)
	}
	if elsewhere {
		var e manifest.Entry
		if err := w.tree.At(ctx, uint64(wt.rank), &e); err != nil {
			return x, err
		}
		w.entry.Dir, w.entry.Name = e.Dir, e.Name
	}
	return x, nil
}

// write checks a chunk and writes it.
func (w *contentWriter) write(ctx context.Context, wt *want, data []byte) error {
	x, err := w.extent(ctx, wt)
	if err != nil {
		return err
	}
	e := &w.entry
	if w.repo.repo.Hasher.Sum(data) != x.ID {
		return fmt.Errorf("%w: pack %v at %d: chunk %v of %q is not what it was", snapshot.ErrIntegrity, x.Pack, x.Frame.Offset, x.ID, e.Path())
	}
	if err := w.leave(e, w.writePiece(wt, e, data)); err != nil {
		return fmt.Errorf("file %q: %w", e.Path(), err)
	}
	w.meter.AddBytes(int64(len(data)))
	return nil
}

func (w *contentWriter) writePiece(wt *want, e *manifest.Entry, data []byte) error {
	parent, err := w.openDir(&w.dir, e.Dir)
	if err != nil {
		return err
	}
	part := w.plan.parted[uint64(wt.rank)]
	var fd int
	if part == nil {
		fd, err = w.createFile(parent, uint64(wt.rank), e, false)
	} else {
		dir, name, _ := w.workplace(parent, uint64(wt.rank), e) // which there is since createFile
		fd, err = fsys.OpenAt(dir, name, unix.O_WRONLY|unix.O_NOFOLLOW)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := pwriteAll(fd, data, int64(wt.at)); err != nil {
		return err
	}
	if part != nil && atomic.AddInt64(&part.left, -1) > 0 {
		return nil
	}
	return w.finishFile(fd, parent, uint64(wt.rank), e)
}

func pwriteAll(fd int, data []byte, off int64) error {
	for len(data) > 0 {
		n, err := unix.Pwrite(fd, data, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		data, off = data[n:], off+int64(n)
	}
	return nil
}

// createFile makes an empty file, which nobody but us may write to if it is
// written in pieces.
func (x *restorer) createFile(parent int, rank uint64, e *manifest.Entry, pieces bool) (int, error) {
	mode := e.Mode & 0o777
	if pieces || len(e.Xattrs) > 0 {
		mode |= 0o600
	}
	dir, name, err := x.workplace(parent, rank, e)
	if err != nil {
		return -1, err
	}
	for {
		fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		if !errors.Is(err, unix.EINTR) {
			return fd, x.sameName(err)
		}
	}
}

// finishFile gives a file whose contents are there its metadata and its name.
func (x *restorer) finishFile(fd, parent int, rank uint64, e *manifest.Entry) error {
	x.meter.AddFile()
	dir, name, err := x.workplace(parent, rank, e)
	if err != nil {
		return err
	}
	at := fsys.Spot{Dir: dir, Name: name}
	// What is written in pieces was made with other permissions.
	if x.plan.parted[rank] == nil && x.owner.asMade(e, e.Mode&0o777) {
		if err := fsys.SetTimesFD(fd, at, e.Mtime); err != nil {
			return err
		}
	} else if err := x.setMetaFD(fd, at, e); err != nil {
		return err
	}
	if !x.fresh {
		return x.moveInto(name, parent, e.Key())
	}
	if e.Links > 1 {
		return x.markFD(fd, rank) // its ctime changes with each link, and then its mark
	}
	return x.noteFD(fd, rank)
}

package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/progress"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
)

// writer puts a snapshot into a repository: packs, index segments on the way, and at
// last the manifest, as guard wants it. It is what create and copy have in common.
type writer struct {
	repo   *Repository
	commit committer
	guard  *guard
	up     *uploader
	meter  *progress.Meter
	tell   func(error) // what a person should know
	// shared: somebody else may put a manifest of the same id at the same time.
	shared bool

	cancel context.CancelFunc
}

// newWriter makes a writer; before is the guard of a run that had to begin anew, or nil.
func (r *Repository) newWriter(before *guard, m *progress.Meter, tell func(error)) *writer {
	w := &writer{repo: r, guard: r.newGuard(before), commit: committer{repo: r}, meter: m, tell: tell}
	w.guard.tellBad = tell
	return w
}

// begin starts what works in the background, until end. What the run itself does in
// parallel goes to the group, with its context.
func (w *writer) begin(ctx context.Context) (*errgroup.Group, context.Context) {
	runCtx, cancel := context.WithCancel(ctx)
	w.cancel = cancel
	g, gctx := errgroup.WithContext(runCtx)
	puts := uploads
	if w.repo.repo.Local() {
		puts = localPuts
	}
	w.up = newUploader(w.repo.repo.Store, g, puts)
	w.up.busy = w.meter.Transfer
	w.up.onPut = w.landed
	w.up.onLand = w.commit.flushSome
	w.commit.up, w.commit.last, w.commit.guard = w.up, w.repo.repo.Uptime(), w.guard
	w.guard.start(ctx)
	w.commit.start(gctx)
	return g, gctx
}

func (w *writer) end() {
	w.cancel()
	w.commit.listing.Wait()
	w.guard.stop()
}

// wait waits until all packs are there.
func (w *writer) wait(ctx context.Context, g *errgroup.Group) error {
	err := g.Wait()
	if err != nil {
		w.commit.rescue(ctx)
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	}
	return err
}

// landed is told of every pack that was put. Tree packs are kept for the next create,
// which reads its parent's tree.
func (w *writer) landed(pack index.Pack, data []byte) {
	w.guard.vouch(pack.ID, pack.Size)
	if pack.Index.Kind == chunk.TreePack && !w.repo.repo.Local() {
		w.repo.repo.KeepTree(pack.ID, data)
	}
}

// newSink is where the pages of the new tree go. known finds pages that the repository
// has.
func (w *writer) newSink(known func(chunk.ID) (manifest.PageRef, bool)) *treeSink {
	return &treeSink{
		codec: w.repo.repo.Codec, hasher: w.repo.repo.Hasher, up: w.up,
		lookup: known, pages: map[chunk.ID]manifest.PageRef{},
	}
}

// indexedPage finds a page that the index knows.
func (w *writer) indexedPage(id chunk.ID) (manifest.PageRef, bool) {
	loc, ok := w.commit.lookup(id)
	// Only as a page of its own can it be referred to.
	if !ok || loc.Offset != 0 || loc.Length != loc.Frame.Raw {
		return manifest.PageRef{}, false
	}
	return manifest.PageRef{ID: id, Pack: loc.Pack, Frame: loc.Frame}, true
}

// publish commits: the index segment and the manifest, when all packs are there. beside,
// if not nil, is called side by side.
func (w *writer) publish(ctx context.Context, m *manifest.Manifest, beside func()) error {
	data, err := m.Encode(w.repo.repo.Codec)
	if err != nil {
		return err
	}
	if err := w.guard.check(ctx, m.Packs); err != nil {
		w.commit.rescue(ctx)
		return err
	}
	// Side by side: the manifest needs no segment. Without one the snapshot is
	// whole, and only what it holds is stored again by whoever has it too.
	var others sync.WaitGroup
	if beside != nil {
		others.Go(beside)
	}
	others.Go(func() {
		if err := w.commit.flushAll(ctx); err != nil {
			w.tell(fmt.Errorf("%w; the next snapshot may store again what this one stored", err))
		}
	})
	err = w.repo.repo.Store.Put(ctx, m.ID.ObjectName(), data)
	others.Wait()
	if err != nil && w.shared {
		// What is there now may be another run's. If it is not, it came through.
		ours, _ := w.isOurs(ctx, m.ID, data)
		if !ours || errors.Is(err, remote.ErrExist) {
			return w.unpublished(ctx, err)
		}
		err = nil
	}
	if err == nil {
		err = w.guard.late(ctx, m.Packs)
	}
	if err != nil {
		if werr := w.withdraw(ctx, m.ID, data); werr != nil && errors.Is(err, errAnew) {
			return fmt.Errorf("%v: what it refers to is gone, and removing it failed; remove it: %w", m.ID, werr)
		}
		return w.unpublished(ctx, err)
	}
	w.repo.repo.CacheHead(m.ID, data)
	return nil
}

// unpublished ends a run without a snapshot.
func (w *writer) unpublished(ctx context.Context, err error) error {
	w.commit.rescue(ctx) // the segment may have been cut short too
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("writing the manifest: %w", err)
}

// isOurs reports whether the manifest that is there has these bytes. Another run may
// have put the same: it found the packs of this one in the index.
func (w *writer) isOurs(ctx context.Context, id manifest.ID, data []byte) (bool, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.repo.repo.Patience.Rescue)
	defer cancel()
	there, err := w.repo.repo.Store.Get(ctx, id.ObjectName())
	if errors.Is(err, remote.ErrNotExist) {
		err = nil
	}
	return bytes.Equal(there, data), err
}

// withdraw removes a manifest whose Put failed, but may have come through, or came
// through too late. One that another run put is not ours to remove.
func (w *writer) withdraw(ctx context.Context, id manifest.ID, data []byte) error {
	if w.shared {
		if ours, err := w.isOurs(ctx, id, data); !ours || err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.repo.repo.Patience.Rescue)
	defer cancel()
	err := w.repo.repo.Store.Delete(ctx, id.ObjectName())
	if err != nil {
		w.repo.repo.Logger.Info("withdrawing a manifest", "id", id, "err", err)
	}
	return err
}

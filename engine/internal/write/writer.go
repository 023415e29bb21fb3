package write

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/progress"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
)

// Writer puts a snapshot into a repository: packs, index segments on the way, and at
// last the manifest, as guard wants it. It is what create and copy have in common.
type Writer struct {
	repo   *repo.Repo
	Commit committer
	Guard  *Guard
	Up     *Uploader
	Meter  *progress.Meter
	tell   func(error) // what a person should know
	// Shared: somebody else may put a manifest of the same id at the same time.
	Shared bool

	cancel context.CancelFunc
}

// NewWriter makes a writer; before is the guard of a run that had to begin anew, or nil.
func NewWriter(r *repo.Repo, before *Guard, m *progress.Meter, tell func(error)) *Writer {
	w := &Writer{repo: r, Guard: NewGuard(r, before), Commit: committer{repo: r}, Meter: m, tell: tell}
	w.Guard.tellBad = tell
	return w
}

// Begin starts what works in the background, until End. What the run itself does in
// parallel goes to the group, with its context.
func (w *Writer) Begin(ctx context.Context) (*errgroup.Group, context.Context) {
	runCtx, cancel := context.WithCancel(ctx)
	w.cancel = cancel
	g, gctx := errgroup.WithContext(runCtx)
	puts := Uploads
	if w.repo.Local() {
		puts = localPuts
	}
	w.Up = NewUploader(w.repo.Store, g, puts)
	w.Up.Busy = w.Meter.Transfer
	w.Up.onPut = w.landed
	w.Up.OnLand = w.Commit.flushSome
	w.Commit.up, w.Commit.last, w.Commit.guard = w.Up, w.repo.Uptime(), w.Guard
	w.Guard.Start(ctx)
	w.Commit.start(gctx)
	return g, gctx
}

// End stops what runs in the background. It is called once, after Wait or instead of it.
func (w *Writer) End() {
	w.cancel()
	w.Commit.listing.Wait()
	w.Guard.Stop()
}

// Wait waits until all packs are there.
func (w *Writer) Wait(ctx context.Context, g *errgroup.Group) error {
	err := g.Wait()
	if err != nil {
		w.Commit.rescue(ctx)
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	}
	return err
}

// landed is told of every pack that was put. Tree packs are kept for the next create,
// which reads its parent's tree.
func (w *Writer) landed(pack index.Pack, data []byte) {
	w.Guard.Vouch(pack.ID, pack.Size)
	if pack.Index.Kind == chunk.TreePack && !w.repo.Local() {
		w.repo.KeepTree(pack.ID, data)
	}
}

// NewSink is where the pages of the new tree go. known finds pages that the repository
// has.
func (w *Writer) NewSink(known func(chunk.ID) (manifest.PageRef, bool)) *TreeSink {
	return &TreeSink{
		Codec: w.repo.Codec, Hasher: w.repo.Hasher, Up: w.Up,
		Lookup: known, Pages: map[chunk.ID]manifest.PageRef{},
	}
}

// IndexedPage finds a page that the index knows.
func (w *Writer) IndexedPage(id chunk.ID) (manifest.PageRef, bool) {
	loc, ok := w.Commit.Lookup(id)
	// Only as a page of its own can it be referred to.
	if !ok || loc.Offset != 0 || loc.Length != loc.Frame.Raw {
		return manifest.PageRef{}, false
	}
	return manifest.PageRef{ID: id, Pack: loc.Pack, Frame: loc.Frame}, true
}

// Publish commits: the index segment and the manifest, when all packs are there. beside,
// if not nil, is called side by side.
func (w *Writer) Publish(ctx context.Context, m *manifest.Manifest, beside func()) error {
	data, err := m.Encode(w.repo.Codec)
	if err != nil {
		return err
	}
	if err := w.Guard.Check(ctx, m.Packs); err != nil {
		w.Commit.rescue(ctx)
		return err
	}
	// Side by side: the manifest needs no segment. Without one the snapshot is
	// whole, and only what it holds is stored again by whoever has it too.
	var others sync.WaitGroup
	if beside != nil {
		others.Go(beside)
	}
	others.Go(func() {
		if err := w.Commit.flushAll(ctx); err != nil {
			w.tell(fmt.Errorf("%w; the next snapshot may store again what this one stored", err))
		}
	})
	err = w.repo.Store.Put(ctx, m.ID.ObjectName(), data)
	others.Wait()
	if err != nil && w.Shared {
		// What is there now may be another run's. If it is not, it came through.
		ours, _ := w.isOurs(ctx, m.ID, data)
		if !ours || errors.Is(err, remote.ErrExist) {
			return w.unpublished(ctx, err)
		}
		err = nil
	}
	if err == nil {
		err = w.Guard.Late(ctx, m.Packs)
	}
	if err != nil {
		if werr := w.withdraw(ctx, m.ID, data); werr != nil && errors.Is(err, ErrAnew) {
			return fmt.Errorf("%v: what it refers to is gone, and removing it failed; remove it: %w", m.ID, werr)
		}
		return w.unpublished(ctx, err)
	}
	w.repo.CacheHead(m.ID, data)
	return nil
}

// unpublished ends a run without a snapshot.
func (w *Writer) unpublished(ctx context.Context, err error) error {
	w.Commit.rescue(ctx) // the segment may have been cut short too
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("writing the manifest: %w", err)
}

// isOurs reports whether the manifest that is there has these bytes. Another run may
// have put the same: it found the packs of this one in the index.
func (w *Writer) isOurs(ctx context.Context, id manifest.ID, data []byte) (bool, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.repo.Patience.Rescue)
	defer cancel()
	there, err := w.repo.Store.Get(ctx, id.ObjectName())
	if errors.Is(err, remote.ErrNotExist) {
		err = nil
	}
	return bytes.Equal(there, data), err
}

// withdraw removes a manifest whose Put failed, but may have come through, or came
// through too late. One that another run put is not ours to remove.
func (w *Writer) withdraw(ctx context.Context, id manifest.ID, data []byte) error {
	if w.Shared {
		if ours, err := w.isOurs(ctx, id, data); !ours || err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.repo.Patience.Rescue)
	defer cancel()
	err := w.repo.Store.Delete(ctx, id.ObjectName())
	if err != nil {
		w.repo.Logger.Info("withdrawing a manifest", "id", id, "err", err)
	}
	return err
}

package check

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/manifest"
)

// Repair is engine.Repository.Repair.
func Repair(ctx context.Context, r *repo.Repo, opts *snapshot.RepairOptions) (*snapshot.RepairReport, error) {
	if opts == nil {
		opts = &snapshot.RepairOptions{}
	}
	start := time.Now()
	vo := &snapshot.VerifyOptions{MaxFiles: -1, Progress: opts.Progress}
	if opts.ReadData {
		vo.ReadData = 1
	}
	x := &repairer{checkup: newCheckup(r, vo), opts: opts, guard: write.NewGuard(r, nil), report: &snapshot.RepairReport{Applied: opts.Apply}}
	x.meter.Start(snapshot.PhaseChecking)
	defer x.meter.Stop()
	if err := x.run(ctx); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("repairing %s: %w", r.URL(), err)
	}
	x.report.Found = &x.checkup.report
	x.report.Duration = time.Since(start)
	return x.report, nil
}

// repairer is one run of Repair. What is wrong it knows from a checkup.
//
// It is a writer with a guard. condemn reads suspected
// packs once more: only those whose bytes are not those of their name are bad, whatever a
// forged manifest says. Chunks that the snapshots need which lost something are copied out of
// bad packs, or found in good ones (salvage); the trees of what is left are built from
// entries that remain, with directories made up where only what is below them is left; index
// segments are made of good packs alone. Order: packs, segments, manifests, a tombstone for
// the bad packs, and only then deletes of segments and, if that is wanted, of snapshots.
//
// The tombstone is what keeps a bad pack from coming back: its own index may be in order, so
// that whoever rebuilds the index from it would have creates refer to it again. A snapshot
// that lost something is not rewritten in its place but made anew: manifests are immutable,
// mounts and caches go by the id, and as long as the old one is there nothing is lost that
// another machine's cache may still have. Its id is that of the old one a millisecond later
// (ID.Next), since names go by the order of ids: the copy of an old snapshot must not
// become the newest of its name. A second repair knows it by parent and time. What the notes
// of the old one say stands in its manifest, but for a pin, which is a note put before that
// (asNoted); if they are damaged it never expires, as nobody knows that it may. A manifest
// that lies under two names is checked under both, and either is enough.
type repairer struct {
	*checkup
	opts   *snapshot.RepairOptions
	guard  *write.Guard // the repairer is a writer
	report *snapshot.RepairReport

	bad      map[chunk.PackID]bool // packs that are there, and are not what was written
	lostOnes []*lostSnapshot
	saved    *salvage
	fresh    []index.Pack // that were put, and are in no segment yet
}

func (x *repairer) run(ctx context.Context) error {
	x.guard.Start(ctx)
	defer x.guard.Stop()
	if x.opts.Apply {
		x.repo.AskTime(ctx)
	}
	if err := x.checkup.run(ctx, nil); err != nil {
		return err
	}
	if err := x.guard.Ready(ctx); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{
		x.condemn, x.findLost, x.salvage, x.rebuildTrees, x.rebuildIndex, x.putManifests, x.doomBad, x.removeOld,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	for _, s := range x.lostOnes {
		x.report.Snapshots = append(x.report.Snapshots, s.RepairedSnapshot)
	}
	return nil
}

// putManifests commits the new snapshots, when all that they refer to is there.
func (x *repairer) putManifests(ctx context.Context) error {
	if !x.opts.Apply {
		return nil
	}
	for _, s := range x.lostOnes {
		if s.fresh == nil {
			continue
		}
		for i := range s.fresh.Packs {
			id := s.fresh.Packs[i].ID
			x.guard.Present(write.ByCache, repo.SizedPack{Id: id, Size: x.pack(id).size})
		}
		data, err := s.fresh.Encode(x.repo.Codec)
		if err == nil {
			err = x.guard.Check(ctx, s.fresh.Packs)
		}
		if err != nil {
			return fmt.Errorf("what is left of snapshot %v: %w", s.ID, x.again(err))
		}
		id := s.fresh.ID
		names := []string{id.ObjectName()}
		if s.now.Pinned {
			// Before the manifest: whoever stops here leaves a note of nothing.
			pin := &manifest.Note{Snapshot: id, ID: manifest.NewNoteID(manifest.NoteID{}), Lifetime: &manifest.Lifetime{Pinned: true}}
			names = append(names, pin.ObjectName())
			var object []byte
			if object, err = x.repo.EncodeNote(pin); err == nil {
				err = x.repo.Store.Put(ctx, pin.ObjectName(), object)
			}
		}
		if err == nil {
			err = x.repo.Store.Put(ctx, id.ObjectName(), data)
		}
		if err == nil {
			err = x.guard.Late(ctx, s.fresh.Packs)
		}
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), x.repo.Patience.Rescue)
			defer cancel()
			return fmt.Errorf("what is left of snapshot %v: %w", s.ID, errors.Join(x.again(err), x.repo.Store.Delete(ctx, names...)))
		}
		s.New = id
	}
	return nil
}

// again says what to do where garbage collection was in the way.
func (x *repairer) again(err error) error {
	if errors.Is(err, write.ErrAnew) {
		return fmt.Errorf("%w; run it again", err)
	}
	return err
}

// removeOld deletes what the new objects take the place of.
func (x *repairer) removeOld(ctx context.Context) error {
	if !x.opts.Apply {
		return nil
	}
	if err := x.repo.Store.Delete(ctx, x.report.BadSegments...); err != nil {
		return fmt.Errorf("deleting index segments: %w", err)
	}
	if !x.opts.RemoveDamaged {
		return nil
	}
	for _, s := range x.lostOnes {
		if s.New.IsZero() && !s.Nothing {
			continue
		}
		if _, err := retain.Remove(ctx, x.repo, s.ID.String()); err != nil && !errors.Is(err, snapshot.ErrNotFound) {
			return err
		}
		s.Removed = true
	}
	return nil
}

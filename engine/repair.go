package engine

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

// RepairOptions are how a repository is repaired. nil will do.
type RepairOptions struct {
	// Apply does what is otherwise only told.
	Apply bool
	// ReadData looks for damage in what files hold too, as VerifyOptions.ReadData
	// with 1. Without it, only what shows without is found.
	ReadData bool
	// RemoveDamaged removes the snapshots that lost something, when what is left of
	// them is a snapshot of its own, or nothing is.
	RemoveDamaged bool
	Progress      snapshot.Progress
}

// A RepairReport says what Repair did or, without Apply, would do.
type RepairReport struct {
	Applied bool
	Found   *VerifyReport // what is wrong: before, with all paths

	Doomed       []string // damaged packs that nobody will refer to any more
	Indexed      int      // packs that new index segments list
	BadSegments  []string // objects that the new ones take the place of
	SavedChunks  int      // that were copied from damaged packs, or found elsewhere
	SavedBytes   int64
	Snapshots    []RepairedSnapshot // those that lost something, oldest first
	BytesWritten int64              // packs that were put
	Duration     time.Duration
}

// A RepairedSnapshot is one that lost something.
type RepairedSnapshot struct {
	ID   manifest.ID
	Name string
	Dir  string
	// New is the snapshot of what is left: the zero ID without Apply, and where
	// nothing is left. Before says that an earlier Repair made it.
	New    manifest.ID
	Before bool
	Files  int64       // that are left; entries of every type but directories
	Lost   []string    // paths of all that is not in the new one, as far as they are known
	Ranges []LostRange // and of what they are not
	Made   []string    // directories of which nothing but the path is known
	// Nothing is left of it, for Why.
	Nothing bool
	Why     error
	Removed bool // RemoveDamaged
}

// LostEntries counts what is lost.
func (s *RepairedSnapshot) LostEntries() int64 {
	n := int64(len(s.Lost))
	for _, r := range s.Ranges {
		n += r.Entries
	}
	return n
}

// Nothing reports whether there is nothing to repair.
func (r *RepairReport) Nothing() bool {
	return r.Indexed == 0 && len(r.Doomed) == 0 && len(r.BadSegments) == 0 && len(r.Snapshots) == 0
}

// Repair mends what Verify finds, as far as that can be done, without making anything
// worse: whatever is new is in the repository before anything old goes, and no pack is
// deleted.
//
// Packs that are not what was written are doomed, as garbage collection dooms packs: no
// writer refers to them any more, whatever index it has, and they are deleted once no
// snapshot refers to them and a grace has passed.
//
// Index segments that are damaged, or that list packs which are missing or damaged,
// are replaced by new ones, made from the packs' own indexes; packs that no segment
// lists are listed again. Of each snapshot that lost something a new one is made, of
// all that can still be read: chunks are copied out of damaged packs, or found in other
// ones. If files are lost it is marked incomplete. It has the time of the old one, and
// name, tags, expiry and pin as Change has left them; where notes are damaged, so that
// nobody knows when it ends, it does not. The old one is its parent, and it comes right
// behind that in the history, so that a name goes on leading to its newest snapshot. The
// old one stays, unless RemoveDamaged is set: another machine may have more of it in its
// cache. But garbage collection does not run while there are snapshots whose packs are
// missing.
//
// It can be stopped and run again at any time.
func (r *Repository) Repair(ctx context.Context, opts *RepairOptions) (*RepairReport, error) {
	if opts == nil {
		opts = &RepairOptions{}
	}
	start := time.Now()
	vo := &VerifyOptions{MaxFiles: -1, Progress: opts.Progress}
	if opts.ReadData {
		vo.ReadData = 1
	}
	x := &repairer{checkup: newCheckup(r, vo), opts: opts, guard: write.NewGuard(r.repo, nil), report: &RepairReport{Applied: opts.Apply}}
	x.meter.Start(snapshot.PhaseChecking)
	defer x.meter.Stop()
	if err := x.run(ctx); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("repairing %s: %w", r.repo.URL(), err)
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
	opts   *RepairOptions
	guard  *write.Guard // the repairer is a writer
	report *RepairReport

	bad      map[chunk.PackID]bool // packs that are there, and are not what was written
	lostOnes []*lostSnapshot
	saved    *salvage
	fresh    []index.Pack // that were put, and are in no segment yet
}

func (x *repairer) run(ctx context.Context) error {
	x.guard.Start(ctx)
	defer x.guard.Stop()
	if x.opts.Apply {
		x.repo.repo.AskTime(ctx)
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
		data, err := s.fresh.Encode(x.repo.repo.Codec)
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
			if object, err = x.repo.repo.EncodeNote(pin); err == nil {
				err = x.repo.repo.Store.Put(ctx, pin.ObjectName(), object)
			}
		}
		if err == nil {
			err = x.repo.repo.Store.Put(ctx, id.ObjectName(), data)
		}
		if err == nil {
			err = x.guard.Late(ctx, s.fresh.Packs)
		}
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), x.repo.repo.Patience.Rescue)
			defer cancel()
			return fmt.Errorf("what is left of snapshot %v: %w", s.ID, errors.Join(x.again(err), x.repo.repo.Store.Delete(ctx, names...)))
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
	if err := x.repo.repo.Store.Delete(ctx, x.report.BadSegments...); err != nil {
		return fmt.Errorf("deleting index segments: %w", err)
	}
	if !x.opts.RemoveDamaged {
		return nil
	}
	for _, s := range x.lostOnes {
		if s.New.IsZero() && !s.Nothing {
			continue
		}
		if _, err := retain.Remove(ctx, x.repo.repo, s.ID.String()); err != nil && !errors.Is(err, snapshot.ErrNotFound) {
			return err
		}
		s.Removed = true
	}
	return nil
}

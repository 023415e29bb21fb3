package engine

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/ignore"
	"github.com/snapctl/snapctl/engine/internal/progress"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/engine/view"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
)

// RestoreOptions are how a snapshot is written out. nil will do.
//
// Into a directory that is missing or empty it is written without any of them. Of one that
// holds something, Into and Delete say what becomes of that. Without them Restore fails
// with ErrNotEmpty, unless all of it was written by a restore of this machine, or is a fork
// of this machine's, and has not changed since: that is replaced. What this machine
// restored, it knows by Options.StateDir.
type RestoreOptions struct {
	// Into writes into a directory that is there, changing what differs and
	// keeping what else it holds.
	Into bool
	// Delete makes the target hold the snapshot and nothing else. Without Into the
	// snapshot is written beside the target and takes its place in one step, so that
	// whoever looks sees the old tree or the new one; where that cannot be, it is
	// as with Into: at a mount point, where a process works in the directory, where it
	// is mounted elsewhere too, and where it holds what is snapctl's own, which stays.
	Delete bool
	// Include restores only what matches one of the patterns, which are
	// written as in a .gitignore file, and the directories above it.
	Include []string
	// NoOwner leaves files to the user who restores. The default for anybody
	// but root.
	NoOwner bool
	// Verify reads every file back from the target after it was written.
	Verify bool
	// DryRun changes nothing, and calls Would for each path that would change, in the
	// order of Diff: the Old of a Change is what the target holds, the New what it would.
	// Restore returns Would's first error. It goes the way of the restore itself: the
	// Receipt has the same Changes, Kept and Problems.
	DryRun bool
	Would  func(*view.Change) error `json:"-"`

	Progress snapshot.Progress
}

// Receipt says what Restore wrote.
type Receipt struct {
	Snapshot snapshot.Snapshot `json:"snapshot"`
	Target   string            `json:"target"`
	Files    int64             `json:"files"`
	Dirs     int64             `json:"dirs"`
	Bytes    int64             `json:"bytes"`
	Fetched  int64             `json:"fetchedBytes"`
	Digest   string            `json:"digest"`   // of the snapshot's whole tree; every byte written was checked against it
	Verified bool              `json:"verified"` // and read back from the target
	// Changes says how much was changed, or with DryRun would be. Where a new directory
	// takes the place of another, all of the one is written and all of the other deleted.
	Changes RestoreChanges `json:"changes"`
	// InPlace says why a directory was changed in place although Into was not set; "" if
	// it was not.
	InPlace string `json:"inPlace,omitempty"`
	// Kept are paths in the target that are snapctl's own, and stay as they are.
	Kept     []string      `json:"kept,omitempty"`
	Duration time.Duration `json:"-"`
	// Problems names what could not be restored as it was, such as an owner
	// when not root, or, with Into, what could not take its place at all.
	Problems []error `json:"-"`
}

// Restore writes a snapshot out to dir; "" is the directory that it was made of, if that
// is missing or empty, or what a restore left there. Every byte is checked against the
// snapshot before it is written.
//
// When Restore fails or is interrupted, what was at dir is as it was, unless the error is
// ErrPartlyWritten: a directory that is changed in place, where every single file is
// either the old one or the new one. Restores of one directory take turns, by an flock on
// it: who waits for longer than a second tells Progress, and where another program than a
// restore holds the lock for a minute it is ErrExists. A dry run does not wait.
//
// What snapctl keeps on this machine, its repositories, caches and state, is neither
// deleted nor replaced: a target in it is ErrOwn, and where it lies in a target it stays.
// So does a symbolic link on the way to it. A repository that was moved, or is another
// machine's, is known by its config.
func (r *Repository) Restore(ctx context.Context, ref, dir string, opts *RestoreOptions) (*Receipt, error) {
	if opts == nil {
		opts = &RestoreOptions{}
	}
	start := time.Now()
	m, err := r.repo.ManifestOf(ctx, ref)
	if err != nil {
		return nil, err
	}
	implied := dir == ""
	if implied {
		dir = m.Dir
	}
	var rec *Receipt
	for range targetTries {
		if rec, err = r.restore(ctx, m, dir, implied, *opts); !errors.Is(err, errTargetCame) || ctx.Err() != nil {
			break
		}
		r.repo.Logger.Info("restore begins again", "dir", dir, "err", err)
	}
	if err != nil {
		if ctx.Err() != nil {
			partly := errors.Is(err, snapshot.ErrPartlyWritten)
			if err = context.Cause(ctx); partly {
				err = fmt.Errorf("%w: %w", snapshot.ErrPartlyWritten, err)
			}
		}
		return nil, fmt.Errorf("restoring %v to %s: %w", m.ID, dir, repo.Integrity(err))
	}
	rec.Duration = time.Since(start)
	return rec, nil
}

// targetTries is how often another restore may be faster to put something where nothing
// was, before it is an error.
const targetTries = 5

// restorer is one run of Restore.
type restorer struct {
	repo *Repository
	m    *manifest.Manifest
	tree *manifest.Tree
	opts *RestoreOptions
	*target
	packs  remote.Store // with the disk cache before it
	meter  *progress.Meter
	owner  ownerPolicy
	chosen *ignore.Selection // nil for everything

	plan   *plan
	prints []uint64 // of the entries that were met, by rank, 0 for none; nil where nobody asked
	marks  []uint64 // of the same, as in entryMark; nil where nobody asked

	// Where the target is changed in place.
	own     *ownDirs
	kept    []string // what is ours in the target
	names   map[manifest.Key][]manifest.Key
	beneath map[manifest.Key]int64 // entries in directories where the snapshot has no directory
	changes RestoreChanges
	dry     *dryRun // nil if it is none

	// partial is set when some entry could not be given what the snapshot says:
	// then the next create has to look at everything.
	partial  atomic.Bool
	noOwner  atomic.Bool // some owner could not be set
	noSetuid atomic.Bool // some setuid or setgid bit was left out
	mu       sync.Mutex
	problems []error
	fetched  int64
	left     struct{ files, bytes int64 } // of the plan, what could not take its place
}

func (r *Repository) restore(ctx context.Context, m *manifest.Manifest, dir string, implied bool, opts RestoreOptions) (*Receipt, error) {
	if opts.Delete && len(opts.Include) > 0 {
		return nil, fmt.Errorf("%w: to restore a part and to delete all else do not go together", snapshot.ErrInvalid)
	}
	include, err := ignore.ParsePatterns(opts.Include)
	if err != nil {
		return nil, err
	}
	tree, err := m.Tree(r.repo)
	if err != nil {
		return nil, err
	}
	own := r.protected()
	t, err := r.aim(ctx, m, dir, implied, own, &opts)
	if err != nil {
		return nil, err
	}
	defer t.close()
	x := &restorer{repo: r, m: m, tree: tree, opts: &opts, target: t, own: own, meter: progress.New(opts.Progress), beneath: map[manifest.Key]int64{}}
	x.changes.Deleted = t.replaced
	if len(include) > 0 {
		if x.chosen, err = ignore.Choose(ctx, tree, include); err != nil {
			return nil, err
		}
	}
	if opts.DryRun {
		x.dry, err = t.openDry()
	} else {
		err = t.open()
	}
	if err != nil {
		return nil, err
	}
	if t.root >= 0 {
		if x.owner, err = newOwnerPolicy(t, opts.NoOwner); err != nil {
			return nil, err
		}
	}
	if x.dry != nil {
		return x.preview(ctx)
	}
	if t.fresh && len(include) == 0 {
		x.prints = []uint64{}
	}
	if t.fresh && r.repo.State != "" {
		x.marks = []uint64{}
	}
	x.meter.TotalFiles.Store(int64(m.Entries))
	x.meter.TotalBytes.Store(int64(m.Bytes))
	x.meter.Start(snapshot.PhasePlanning)
	defer x.meter.Stop()
	if err := x.write(ctx); err != nil {
		if t.how == targetInto {
			err = fmt.Errorf("%w: %w", snapshot.ErrPartlyWritten, err)
		}
		return nil, err
	}
	return x.receipt(), nil
}

// write writes the snapshot, and puts it in its place.
func (x *restorer) write(ctx context.Context) error {
	if err := x.run(ctx); err != nil {
		return err
	}
	if x.prints != nil || x.marks != nil {
		fsys.WaitForTick()
	}
	if err := x.commit(); err != nil {
		return err
	}
	if err := x.removeOld(); err != nil {
		x.notRemoved(err)
	}
	if x.late != nil {
		x.problem(fmt.Errorf("syncing the folder of %s: %w; after a power cut the old tree may be back", x.path, x.late))
	}
	if err := x.settle(ctx); err != nil {
		return err
	}
	if x.prints != nil && !x.partial.Load() {
		err := repo.WriteStats(x.repo.repo.Cache, x.path, x.m.ID, x.prints)
		if err == nil {
			err = repo.WriteTable(x.repo.repo.Cache, repo.DirKey(x.path), x.m.ID, write.PacksNamed(x.m))
		}
		if err != nil {
			x.repo.repo.Logger.Info("caching what is known of the files", "err", err)
		}
	}
	return nil
}

func (x *restorer) notRemoved(err error) {
	x.problem(fmt.Errorf("removing the tree that was replaced: %w; what is left of it can be deleted", err))
}

func (x *restorer) receipt() *Receipt {
	digest := x.m.Digest()
	files := x.plan.files - x.left.files
	c := x.changes
	c.Written = files + int64(len(x.plan.dirs)) - c.Adjusted - c.Unchanged
	return &Receipt{
		Snapshot: *repo.SnapshotOf(&x.m.Info), Target: x.path,
		Files: files, Dirs: int64(len(x.plan.dirs)), Bytes: x.plan.bytes - x.left.bytes, Fetched: x.fetched,
		Digest: hex.EncodeToString(digest[:]), Verified: x.opts.Verify && x.dry == nil, Problems: x.problems,
		Changes: c, InPlace: x.why, Kept: x.keptPaths(),
	}
}

// run writes everything below the root: directories and what has no contents
// first, then contents pack by pack, then what depends on those. A dry run goes the same
// way: see dryRun.
func (x *restorer) run(ctx context.Context) error {
	if x.m.Entries > math.MaxUint32 {
		return fmt.Errorf("%w: %d entries", snapshot.ErrUnsupported, x.m.Entries)
	}
	x.plan = newPlan(x.m.Files)
	steps := []struct {
		name  string
		phase snapshot.Phase
		do    func(context.Context) error
	}{
		{"names", snapshot.PhasePlanning, x.findNames},
		{"directories", snapshot.PhasePlanning, x.makeTree},
		{"contents", snapshot.PhaseWriting, x.writeContents},
		{"hard links", snapshot.PhaseWriting, x.makeLinks},
		{"deleting others", snapshot.PhaseWriting, x.deleteOthers},
		{"directories' metadata", snapshot.PhaseWriting, x.finishDirs},
		{"reading back", snapshot.PhaseVerifying, x.verify},
	}
	for _, s := range steps {
		start := time.Now()
		x.meter.SetPhase(s.phase)
		if err := s.do(ctx); err != nil {
			return err
		}
		x.repo.repo.Logger.Debug("restore", "step", s.name, "took", time.Since(start))
	}
	return nil
}

// problem notes what could not be restored as it was.
func (x *restorer) problem(err error) {
	x.mu.Lock()
	x.problems = append(x.problems, err)
	x.mu.Unlock()
	x.repo.tell(x.opts.Progress, err)
}

// tell tells a person what they should know of a restore.
func (r *Repository) tell(p snapshot.Progress, err error) {
	r.repo.Logger.Warn("restore", "err", err)
	if p != nil {
		p.Warn(err)
	}
}

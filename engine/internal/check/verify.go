// Package check verifies a repository, mends what can be mended, and counts what it is made of.
package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/progress"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
)

// maxAffectedFiles is the default of VerifyOptions.MaxFiles.
const maxAffectedFiles = 10

// Verify is engine.Repository.Verify.
func Verify(ctx context.Context, r *repo.Repo, refs []string, opts *snapshot.VerifyOptions) (*snapshot.VerifyReport, error) {
	if opts == nil {
		opts = &snapshot.VerifyOptions{}
	}
	if !(opts.ReadData >= 0 && opts.ReadData <= 1) {
		return nil, fmt.Errorf("verifying %s: %w: a share of %v of the data, 0 to 1 can be read", r.URL(), snapshot.ErrInvalid, opts.ReadData)
	}
	v := newCheckup(r, opts)
	v.meter.Start(snapshot.PhaseChecking)
	defer v.meter.Stop()
	start := time.Now()
	if err := v.run(ctx, refs); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("verifying %s: %w", r.URL(), err)
	}
	v.report.Duration = time.Since(start)
	return &v.report, nil
}

// checkup is one run of Verify.
//
//  1. Segments tell where chunks lie. Of each chunk 8 bytes are kept, a fingerprint of id and
//     place; packs that no segment lists tell it themselves (repo.PackIndex).
//  2. Eight manifests at a time: Tree.Parts goes through the inner pages, and leaves that no
//     tree before had (leafKey: with all that their parents say of them) are read by
//     several goroutines. A leaf's facts are 150 bytes, whatever it holds: how much it uses
//     of which pack. Their sum must be the pack table, to the byte. Each extent is looked
//     up among the fingerprints of its pack.
//  3. With the data: packs are read whole in the order of their names, each into one of a few
//     buffers: name, index, every frame, every chunk. readLog writes down up to which name
//     all were read. A pack that a resumed run passes over must be older, by the store's
//     clock, than the newest one was when the first run began.
//  4. What is wrong with a pack makes it suspected. In the end findAffected tries to read
//     what lies in suspected packs, as a reader would, in those leaves alone that use one:
//     only a file that cannot be read is named.
type checkup struct {
	repo  *repo.Repo
	opts  *snapshot.VerifyOptions
	meter *progress.Meter
	pages *storePages
	seed  maphash.Seed // of fingerprints of places
	part  bool         // only some snapshots, and what they need

	snapshots []*checkedSnapshot // oldest first
	leaves    map[[16]byte]*leafFacts
	segments  []segmentFacts
	// badSegments are objects: segments that cannot be read.
	badSegments []string

	mu     sync.Mutex
	packs  map[chunk.PackID]*packFacts
	report snapshot.VerifyReport
}

// checkedSnapshot is what is kept of a snapshot: little, for there may be many.
type checkedSnapshot struct {
	id        manifest.ID
	object    string // name of its manifest
	copied    bool   // which lies under KeptName too
	name, dir string
	parent    manifest.ID
	created   time.Time
	packs     []*packFacts // that its table names or its tree refers to
	whole     bool         // its manifest cannot be read
}

func newCheckup(r *repo.Repo, opts *snapshot.VerifyOptions) *checkup {
	return &checkup{
		repo: r, opts: opts, meter: progress.New(opts.Progress), seed: maphash.MakeSeed(),
		pages: newStorePages(r), packs: map[chunk.PackID]*packFacts{}, leaves: map[[16]byte]*leafFacts{},
	}
}

// run looks at everything. What refers to something is listed before what it
// refers to, so that what a writer adds meanwhile is not missed.
func (v *checkup) run(ctx context.Context, refs []string) error {
	steps := []func(context.Context) error{
		func(ctx context.Context) error { return v.listSnapshots(ctx, refs) },
		v.readSegments,
		v.listPacks,
		v.agreeSegments,
		v.readTrees,
		v.choosePacks,
		v.readPacks,
		v.findAffected,
	}
	v.part = len(refs) > 0
	if !v.part {
		steps = append(steps, v.readRest)
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	v.finish()
	return nil
}

// listSnapshots chooses the snapshots.
func (v *checkup) listSnapshots(ctx context.Context, refs []string) error {
	if len(refs) > 0 {
		x := v.repo.NewResolver(ctx, len(refs))
		for _, ref := range refs {
			s, err := x.Resolve(ref)
			if err == nil {
				err = v.repo.CheckExpiry(ctx, s)
			}
			if id, ok := repo.IdOf(ref); ok && errors.Is(err, snapshot.ErrIntegrity) {
				s, err = &snapshot.Snapshot{ID: id}, nil // what is wrong with it is told later
			}
			if err != nil {
				return fmt.Errorf("snapshot %s: %w", repo.Printable(ref), repo.Integrity(err))
			}
			if !slices.ContainsFunc(v.snapshots, func(c *checkedSnapshot) bool { return c.id == s.ID }) {
				v.snapshots = append(v.snapshots, &checkedSnapshot{id: s.ID, object: s.ID.ObjectName()})
			}
		}
		slices.SortFunc(v.snapshots, func(a, b *checkedSnapshot) int { return a.id.Compare(b.id) })
		return nil
	}
	at := map[manifest.ID]*checkedSnapshot{}
	err := v.repo.Store.List(ctx, manifest.Prefix, func(o remote.Info) error {
		id, err := manifest.ParseObjectName(o.Name)
		if err != nil {
			v.note(o.Name, fmt.Errorf("not the name of a manifest: %w", err))
			return nil
		}
		if s := at[id]; s != nil {
			s.object, s.copied = id.ObjectName(), true
			return nil
		}
		at[id] = &checkedSnapshot{id: id, object: o.Name}
		v.snapshots = append(v.snapshots, at[id])
		return nil
	})
	if err != nil {
		return fmt.Errorf("listing manifests: %w", err)
	}
	// The oldest first: its packs hold what later ones share, in order.
	slices.SortFunc(v.snapshots, func(a, b *checkedSnapshot) int { return a.id.Compare(b.id) })
	return nil
}

// found adds a finding. Those of packs come with finish.
func (v *checkup) found(f snapshot.Finding) {
	v.repo.Logger.Warn("verify", "object", f.Object, "err", f.Problem)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Findings = append(v.report.Findings, f)
}

func (v *checkup) note(object string, err error) {
	v.found(snapshot.Finding{Object: object, Problem: err, Note: true})
}

// annotate has a snapshot be as its notes say. It reports whether that is known: notes
// that are damaged are left out.
func (v *checkup) annotate(ctx context.Context, s *snapshot.Snapshot) (known bool, err error) {
	notes, err := v.repo.NotesOf(ctx, s.ID)
	if err != nil && repo.Damaged(ctx, err) {
		v.repo.Logger.Warn("verify: notes are left out", "id", s.ID, "err", err)
		return false, nil
	}
	repo.Annotate(s, notes)
	return true, err
}

// finish makes the findings of packs, and sorts all.
func (v *checkup) finish() {
	for id, p := range v.packs {
		if len(p.problems) == 0 {
			continue
		}
		f := snapshot.Finding{Object: repo.PackName(id), Problem: p.problem(), Affected: p.affected}
		if f.Note = p.missing() && len(f.Affected) == 0; f.Note {
			if wasMoved(v.repo, id) {
				continue
			}
			f.Problem = fmt.Errorf("%w, and what snapshots need of it is elsewhere", errMissing)
		}
		v.report.Findings = append(v.report.Findings, f)
	}
	slices.SortStableFunc(v.report.Findings, func(a, b snapshot.Finding) int { return bytes.Compare([]byte(a.Object), []byte(b.Object)) })
	v.report.Snapshots = len(v.snapshots)
	v.report.Segments = len(v.segments)
}

// wasMoved reports whether a pack that has gone was repacked, as far as readers have
// come upon that.
func wasMoved(r *repo.Repo, gone chunk.PackID) bool {
	r.Moved.Mu.Lock()
	defer r.Moved.Mu.Unlock()
	return len(r.Moved.Moved[gone]) > 0
}

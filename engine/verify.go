package engine

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

// VerifyOptions are how a repository is verified. nil will do.
type VerifyOptions struct {
	// ReadData is the share of the packs' bytes that is read: 0 for none, 1 for
	// all, and what lies between for a random sample of packs.
	ReadData float64
	// Resume goes on with the reading of packs where the last Verify on this
	// machine, of the same snapshots and share, was stopped.
	Resume bool
	// MaxFiles bounds the paths that an Affected names: 0 for 10, negative for all.
	MaxFiles int
	Progress snapshot.Progress
}

// maxAffectedFiles is the default of VerifyOptions.MaxFiles.
const maxAffectedFiles = 10

// A VerifyReport is what Verify looked at and what it found.
type VerifyReport struct {
	Snapshots int   // those that have expired too
	Entries   int64 // of all snapshots
	Pages     int64 // of trees, each once however many snapshots share it
	Segments  int
	Packs     int   // that were looked at
	PackBytes int64 // their sizes

	Read, Skipped           int   // packs of which every byte was read; that an earlier run had read
	ReadBytes, SkippedBytes int64 // their sizes
	SkippedSince            time.Time

	Findings []Finding // by the names of objects
	Duration time.Duration
}

// A Finding is something that is not as it should be.
type Finding struct {
	Object  string // name of the object in the repository
	Problem error
	// Note: nothing is damaged and nothing can be lost by it, but a person may
	// want to know.
	Note     bool
	Affected []Affected // snapshots that lost something by it, oldest first
}

// Affected is what a snapshot lost by one Finding.
type Affected struct {
	ID    manifest.ID
	Name  string // of the snapshot
	Dir   string
	Whole bool     // its manifest cannot be read, and so nothing of it
	Files int64    // that cannot be read whole; not those of Ranges
	Paths []string // the first of them
	// Ranges are runs of entries that cannot be found, as the page that names them
	// cannot be read.
	Ranges []LostRange
}

// A LostRange is a run of entries in the order of Walk.
type LostRange struct {
	Entries int64
	From    string // path of the first
	Before  string // path of the first behind it, "" for the end of the snapshot
}

// Damaged counts the findings that are no notes.
func (r *VerifyReport) Damaged() (n int) {
	for i := range r.Findings {
		if !r.Findings[i].Note {
			n++
		}
	}
	return n
}

// Err is ErrIntegrity, in one sentence, if something is damaged; else nil.
func (r *VerifyReport) Err() error {
	n := r.Damaged()
	if n == 0 {
		return nil
	}
	hit := map[manifest.ID]bool{}
	for i := range r.Findings {
		for _, a := range r.Findings[i].Affected {
			hit[a.ID] = true
		}
	}
	word := "objects are"
	if n == 1 {
		word = "object is"
	}
	if len(hit) == 0 {
		return fmt.Errorf("%w: %d %s not what was written; no snapshot has lost anything", snapshot.ErrIntegrity, n, word)
	}
	return fmt.Errorf("%w: %d %s not what was written, and of %d of %d snapshots something cannot be read",
		snapshot.ErrIntegrity, n, word, len(hit), r.Snapshots)
}

// Verify looks for damage in the repository, in what the snapshots need that refs
// name or, without refs, in all of it. Snapshots that have expired are part of all until
// they are collected; one that is named is ErrExpired, as everywhere. It reads config, manifests, every page of their trees,
// index segments, notes, leases, access profiles, tombstones and keys, and checks each
// against its name or checksum and against the others: that pack tables are what trees
// refer to, and that every pack is there, of the size and with the chunks in the places
// that the index tells. A page that several snapshots share is read once.
//
// With ReadData, packs are read too, whole and in the order of their names: the name
// must be the BLAKE3 of the bytes, each frame must decode, and each chunk must be what
// its id says.
//
// Everything is read from the store itself, not from this machine's cache. What is
// damaged is in the report, with the files of all snapshots that cannot be read
// because of it, each of which was tried to be read; the error is that of a store
// that does not answer. Writers and collectors may be at work meanwhile.
func (r *Repository) Verify(ctx context.Context, refs []string, opts *VerifyOptions) (*VerifyReport, error) {
	if opts == nil {
		opts = &VerifyOptions{}
	}
	if !(opts.ReadData >= 0 && opts.ReadData <= 1) {
		return nil, fmt.Errorf("verifying %s: %w: a share of %v of the data, 0 to 1 can be read", r.repo.URL(), snapshot.ErrInvalid, opts.ReadData)
	}
	v := newCheckup(r, opts)
	v.meter.Start(snapshot.PhaseChecking)
	defer v.meter.Stop()
	start := time.Now()
	if err := v.run(ctx, refs); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("verifying %s: %w", r.repo.URL(), err)
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
	repo  *Repository
	opts  *VerifyOptions
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
	report VerifyReport
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

func newCheckup(r *Repository, opts *VerifyOptions) *checkup {
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
		x := v.repo.repo.NewResolver(ctx, len(refs))
		for _, ref := range refs {
			s, err := x.Resolve(ref)
			if err == nil {
				err = v.repo.repo.CheckExpiry(ctx, s)
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
	err := v.repo.repo.Store.List(ctx, manifest.Prefix, func(o remote.Info) error {
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
func (v *checkup) found(f Finding) {
	v.repo.repo.Logger.Warn("verify", "object", f.Object, "err", f.Problem)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Findings = append(v.report.Findings, f)
}

func (v *checkup) note(object string, err error) {
	v.found(Finding{Object: object, Problem: err, Note: true})
}

// annotate has a snapshot be as its notes say. It reports whether that is known: notes
// that are damaged are left out.
func (v *checkup) annotate(ctx context.Context, s *snapshot.Snapshot) (known bool, err error) {
	notes, err := v.repo.repo.NotesOf(ctx, s.ID)
	if err != nil && repo.Damaged(ctx, err) {
		v.repo.repo.Logger.Warn("verify: notes are left out", "id", s.ID, "err", err)
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
		f := Finding{Object: repo.PackName(id), Problem: p.problem(), Affected: p.affected}
		if f.Note = p.missing() && len(f.Affected) == 0; f.Note {
			if v.repo.wasMoved(id) {
				continue
			}
			f.Problem = fmt.Errorf("%w, and what snapshots need of it is elsewhere", errMissing)
		}
		v.report.Findings = append(v.report.Findings, f)
	}
	slices.SortStableFunc(v.report.Findings, func(a, b Finding) int { return bytes.Compare([]byte(a.Object), []byte(b.Object)) })
	v.report.Snapshots = len(v.snapshots)
	v.report.Segments = len(v.segments)
}

// wasMoved reports whether a pack that has gone was repacked, as far as readers have
// come upon that.
func (r *Repository) wasMoved(gone chunk.PackID) bool {
	r.repo.Moved.Mu.Lock()
	defer r.repo.Moved.Mu.Unlock()
	return len(r.repo.Moved.Moved[gone]) > 0
}

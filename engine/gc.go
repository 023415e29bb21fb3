package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/progress"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sync/errgroup"
)

// GCOptions are how a repository is collected. The zero value, and nil, will do.
type GCOptions struct {
	// DryRun writes and deletes nothing, and reports what would be done.
	DryRun bool
	// Repack is the share of a pack's contents, by bytes, below which what is needed of
	// it is written anew, so that the rest can be freed: 0 is the default,
	// DefaultRepack, anything below 0 is never, and the most is 0.9.
	Repack float64

	Progress snapshot.Progress
}

// DefaultRepack is the default of GCOptions.Repack.
const DefaultRepack = 0.25

// maxRepack bounds GCOptions.Repack: what is needed nearly whole is not worth it.
const maxRepack = 0.9

// GCReport says what GC did or, with DryRun, would do. All times are those of the
// store's clock.
type GCReport struct {
	Time   time.Time `json:"time"` // when it began
	DryRun bool      `json:"dryRun"`

	Removed   []manifest.ID `json:"removed"`   // snapshots that had expired
	Withdrawn []manifest.ID `json:"withdrawn"` // snapshots that no create has told anybody of: see gc_protocol.go
	Snapshots int           `json:"snapshots"` // that are left

	Live    GCPacks `json:"live"`    // packs that snapshots need
	Leased  GCPacks `json:"leased"`  // packs that only mounts of removed snapshots need
	Young   GCPacks `json:"young"`   // packs that nothing needs yet, or that are left to be doomed later
	Freed   GCPacks `json:"freed"`   // packs that were deleted
	Doomed  GCPacks `json:"doomed"`  // packs that were found to be of no use: part of Waiting
	Revived GCPacks `json:"revived"` // doomed packs that a snapshot or mount needs after all: part of Live and Leased

	Repacked GCRepacked `json:"repacked"` // packs of which little was needed: part of Waiting

	// Waiting are doomed packs, by the time from which on a GC will delete them.
	Waiting []GCWaiting `json:"waiting"`

	SegmentsBefore int           `json:"segmentsBefore"` // objects that the index is made of
	SegmentsAfter  int           `json:"segmentsAfter"`
	Leftovers      int           `json:"leftovers"` // objects deleted that belonged to what is gone
	Duration       time.Duration `json:"-"`
}

// GCPacks counts packs.
type GCPacks struct {
	Packs int   `json:"packs"`
	Bytes int64 `json:"bytes"`
}

func (p *GCPacks) add(size int64) { p.Packs++; p.Bytes += size }

// GCWaiting are packs that will be deleted.
type GCWaiting struct {
	GCPacks
	From time.Time `json:"from"`
}

// GCRepacked counts packs that were repacked, and those that what is needed of them is
// in now.
type GCRepacked struct {
	GCPacks
	NewPacks int   `json:"newPacks"`
	NewBytes int64 `json:"newBytes"`
}

// GC removes snapshots that have expired, and frees what no snapshot and no mount
// needs. What is of no use is only announced at first; a GC that comes a grace later
// deletes it. It takes no lock, stops nobody, and can be stopped or killed at any
// moment; several at once are harmless.
//
// If a manifest or a lease cannot be read, or names a pack that is missing, GC fails
// with ErrIntegrity, and has deleted nothing.
func (r *Repository) GC(ctx context.Context, opts *GCOptions) (*GCReport, error) {
	if opts == nil {
		opts = &GCOptions{}
	}
	if !(opts.Repack <= maxRepack) { // not a number neither
		return nil, fmt.Errorf("%w: repacking below a share of %v, the most is %v", snapshot.ErrInvalid, opts.Repack, maxRepack)
	}
	start := time.Now()
	c := &collector{
		repo: r, opts: opts, grace: r.repo.Grace(), began: r.repo.Uptime(),
		meter:  progress.New(opts.Progress),
		report: &GCReport{DryRun: opts.DryRun, Removed: []manifest.ID{}, Withdrawn: []manifest.ID{}, Waiting: []GCWaiting{}},
	}
	c.meter.Start(snapshot.PhaseMarking)
	err := c.run(ctx)
	c.meter.Stop()
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("collecting garbage of %s: %w", r.repo.URL(), repo.Integrity(err))
	}
	c.report.Duration = time.Since(start)
	return c.report, nil
}

// collector is one run of GC.
type collector struct {
	repo   *Repository
	opts   *GCOptions
	grace  time.Duration
	began  time.Duration // by Repository.uptime
	now    time.Time     // by the store's clock, before anything was listed
	clock  string        // the object that told it; "" for none
	meter  *progress.Meter
	report *GCReport

	listed listings
	packs  map[chunk.PackID]*packState // those that there are, and those that are named
	live   map[manifest.ID]bool        // snapshots that stay
	ends   []listedManifest            // snapshots that have expired
	voids  []listedManifest            // see withdrawn

	holding []*listedLease // leases that count, of snapshots that are gone
}

// packState is what a run knows of a pack.
type packState struct {
	there    bool
	size     int64
	time     time.Time
	used     uint64 // bytes of plaintext that the snapshot uses which uses most
	live     bool   // a snapshot that stays needs it
	expiring bool   // one that this run removes did
	leased   bool   // a lease that counts keeps it
	dead     bool   // this run deletes it
	stone    *standing
	moved    []chunk.PackID // where its chunks are now, if it was repacked
}

// needed reports whether a pack that is doomed has to stay, for now.
func (p *packState) needed() bool { return p.live || p.expiring || p.leased }

// errHeldUp: what was seen of the repository is too old to act by.
var errHeldUp = errors.New("it was held up for longer than half of the repository's grace; run it again")

func (c *collector) run(ctx context.Context) error {
	if err := c.tellTime(ctx); err != nil {
		return err
	}
	defer c.dropClock(ctx)
	if err := c.list(ctx); err != nil {
		return err
	}
	if c.opts.DryRun {
		c.now = c.listed.newest
	}
	c.report.Time = c.now
	if err := c.mark(ctx); err != nil {
		return err
	}
	c.meter.SetPhase(snapshot.PhaseSweeping)
	for _, step := range []func(context.Context) error{c.removeExpired, c.sweep, c.doom, c.repack, c.removeLeftovers} {
		if err := c.inTime(); err != nil {
			return err
		}
		if err := step(ctx); err != nil {
			return err
		}
	}
	c.count()
	return nil
}

// inTime says whether there is time left to act by what was seen. It is not what
// keeps snapshots safe, but spares packs that came to be needed since.
func (c *collector) inTime() error {
	if c.repo.repo.Uptime()-c.began > c.grace/2 {
		return errHeldUp
	}
	return nil
}

// tellTime asks the store for the time: the clock of this machine does not count. The
// answer may be early, and is never late.
func (c *collector) tellTime(ctx context.Context) error {
	if c.opts.DryRun {
		return nil // list takes the newest time that it sees
	}
	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	name := repo.ClockPrefix + id.String()
	c.clock = name
	began := c.repo.repo.Uptime()
	if err := c.repo.repo.Store.Put(ctx, name, nil); err != nil {
		return fmt.Errorf("asking the store for the time: %w", err)
	}
	info, err := c.repo.repo.Store.Stat(ctx, name)
	if err != nil {
		return fmt.Errorf("asking the store for the time: %w", err)
	}
	c.now = info.ModTime
	c.repo.repo.HearTime(c.now, began)
	return nil
}

// dropClock deletes what tellTime made. What is left is for the next run.
func (c *collector) dropClock(ctx context.Context) {
	if c.clock == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.repo.repo.Patience.Rescue)
	defer cancel()
	if err := c.repo.repo.Store.Delete(ctx, c.clock); err != nil {
		c.repo.repo.Logger.Info("deleting a clock", "err", err)
	}
}

// expired reports whether a snapshot's time has passed for good, which Change may have
// set anew at the last moment.
func (c *collector) expired(i *manifest.Info, notes []*manifest.Note) bool {
	s := repo.SnapshotOf(i)
	repo.Annotate(s, notes)
	return s.ExpiresAt != nil && c.now.Sub(*s.ExpiresAt) > c.repo.expirySlack()
}

// removeExpired removes the snapshots that have expired, and those that were put too
// late.
func (c *collector) removeExpired(ctx context.Context) error {
	var names []string
	for _, m := range c.ends {
		names = append(names, manifestNames(m.id)...)
		c.report.Removed = append(c.report.Removed, m.id)
	}
	for _, m := range c.voids {
		names = append(names, manifestNames(m.id)...)
		c.report.Withdrawn = append(c.report.Withdrawn, m.id)
	}
	if err := c.delete(ctx, names); err != nil {
		return fmt.Errorf("removing snapshots that have expired: %w", err)
	}
	return nil
}

// deletesAtOnce is how many objects one request deletes at most, and how many requests
// go out side by side.
const (
	deleteBatch   = 1000
	deletesAtOnce = 4
)

// delete deletes objects, unless this is a dry run.
func (c *collector) delete(ctx context.Context, names []string) error {
	if c.opts.DryRun {
		return nil
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(deletesAtOnce)
	for batch := range slices.Chunk(names, deleteBatch) {
		g.Go(func() error { return c.repo.repo.Store.Delete(gctx, batch...) })
	}
	return g.Wait()
}

// count fills in the report.
func (c *collector) count() {
	c.report.Snapshots = len(c.live)
	for _, p := range c.packs {
		if !p.there || p.dead {
			continue
		}
		switch {
		case p.live:
			c.report.Live.add(p.size)
		case p.leased:
			c.report.Leased.add(p.size)
		case p.stone == nil:
			c.report.Young.add(p.size)
		}
		if c.revived(p) {
			c.report.Revived.add(p.size)
		}
	}
	waiting := map[time.Time]*GCWaiting{}
	for _, p := range c.packs {
		if !p.there || p.dead || p.stone == nil || c.revived(p) {
			continue
		}
		// What this run leaves for the snapshots that it removes the next one frees.
		from := c.freeFrom(p.stone)
		if from.Before(c.now) {
			from = c.now
		}
		w := waiting[from]
		if w == nil {
			w = &GCWaiting{From: from}
			waiting[from] = w
		}
		w.add(p.size)
	}
	for _, w := range waiting {
		c.report.Waiting = append(c.report.Waiting, *w)
	}
	slices.SortFunc(c.report.Waiting, func(a, b GCWaiting) int { return a.From.Compare(b.From) })
}

// revived reports whether a doomed pack is needed after all, so that no run that is known
// of frees it: of one that was repacked, whether the sweep found that something of it is not
// where it was moved to.
func (c *collector) revived(p *packState) bool {
	return p.stone != nil && (p.live || p.leased) && (len(p.moved) == 0 || c.ripe(p.stone))
}

// freeFrom is when what a tombstone names can be deleted.
func (c *collector) freeFrom(s *standing) time.Time {
	seen := s.seen
	if seen.IsZero() {
		seen = c.now
	}
	return seen.Add(c.grace)
}

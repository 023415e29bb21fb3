// Package gc frees what no snapshot and no mount needs: see protocol.go for what makes it
// safe beside everything else.
package gc

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

// maxRepack bounds GCOptions.Repack: what is needed nearly whole is not worth it.
const maxRepack = 0.9

func count(p *snapshot.GCPacks, size int64) { p.Packs++; p.Bytes += size }

// GC is engine.Repository.GC.
func Run(ctx context.Context, r *repo.Repo, opts *snapshot.GCOptions) (*snapshot.GCReport, error) {
	if opts == nil {
		opts = &snapshot.GCOptions{}
	}
	if !(opts.Repack <= maxRepack) { // not a number neither
		return nil, fmt.Errorf("%w: repacking below a share of %v, the most is %v", snapshot.ErrInvalid, opts.Repack, maxRepack)
	}
	start := time.Now()
	c := &collector{
		repo: r, opts: opts, grace: r.Grace(), began: r.Uptime(),
		meter:  progress.New(opts.Progress),
		report: &snapshot.GCReport{DryRun: opts.DryRun, Removed: []manifest.ID{}, Withdrawn: []manifest.ID{}, Waiting: []snapshot.GCWaiting{}},
	}
	c.meter.Start(snapshot.PhaseMarking)
	err := c.run(ctx)
	c.meter.Stop()
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("collecting garbage of %s: %w", r.URL(), repo.Integrity(err))
	}
	c.report.Duration = time.Since(start)
	return c.report, nil
}

// collector is one run of GC.
type collector struct {
	repo   *repo.Repo
	opts   *snapshot.GCOptions
	grace  time.Duration
	began  time.Duration // by Repository.uptime
	now    time.Time     // by the store's clock, before anything was listed
	clock  string        // the object that told it; "" for none
	meter  *progress.Meter
	report *snapshot.GCReport

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
	if c.repo.Uptime()-c.began > c.grace/2 {
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
	began := c.repo.Uptime()
	if err := c.repo.Store.Put(ctx, name, nil); err != nil {
		return fmt.Errorf("asking the store for the time: %w", err)
	}
	info, err := c.repo.Store.Stat(ctx, name)
	if err != nil {
		return fmt.Errorf("asking the store for the time: %w", err)
	}
	c.now = info.ModTime
	c.repo.HearTime(c.now, began)
	return nil
}

// dropClock deletes what tellTime made. What is left is for the next run.
func (c *collector) dropClock(ctx context.Context) {
	if c.clock == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.repo.Patience.Rescue)
	defer cancel()
	if err := c.repo.Store.Delete(ctx, c.clock); err != nil {
		c.repo.Logger.Info("deleting a clock", "err", err)
	}
}

// expired reports whether a snapshot's time has passed for good, which Change may have
// set anew at the last moment.
func (c *collector) expired(i *manifest.Info, notes []*manifest.Note) bool {
	s := repo.SnapshotOf(i)
	repo.Annotate(s, notes)
	return s.ExpiresAt != nil && c.now.Sub(*s.ExpiresAt) > c.repo.ExpirySlack()
}

// removeExpired removes the snapshots that have expired, and those that were put too
// late.
func (c *collector) removeExpired(ctx context.Context) error {
	var names []string
	for _, m := range c.ends {
		names = append(names, repo.ManifestNames(m.id)...)
		c.report.Removed = append(c.report.Removed, m.id)
	}
	for _, m := range c.voids {
		names = append(names, repo.ManifestNames(m.id)...)
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
		g.Go(func() error { return c.repo.Store.Delete(gctx, batch...) })
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
			count(&c.report.Live, p.size)
		case p.leased:
			count(&c.report.Leased, p.size)
		case p.stone == nil:
			count(&c.report.Young, p.size)
		}
		if c.revived(p) {
			count(&c.report.Revived, p.size)
		}
	}
	waiting := map[time.Time]*snapshot.GCWaiting{}
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
			w = &snapshot.GCWaiting{From: from}
			waiting[from] = w
		}
		count(&w.GCPacks, p.size)
	}
	for _, w := range waiting {
		c.report.Waiting = append(c.report.Waiting, *w)
	}
	slices.SortFunc(c.report.Waiting, func(a, b snapshot.GCWaiting) int { return a.From.Compare(b.From) })
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

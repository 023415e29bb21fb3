package write

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
)

// A Guard keeps a writer from committing what refers to packs that garbage collection
// is about to delete. It is the writers' half of a protocol without locks: see
// engine/internal/gc/protocol.go. What a writer has to do:
//
//  1. start, before it looks at anything in the repository that tells it of packs;
//  2. vouch for packs that it has put, and have every other one that it takes over
//     asked for (present), whatever tells of it;
//  3. check, when all that it refers to is known and durable, and commit at once;
//  4. late, when it has committed: if that fails, take the commit back.
//
// With ErrAnew it begins anew, with another guard that takes over what this one knows.
type Guard struct {
	repo    *repo.Repo
	ctx     context.Context // of work in the background
	cancel  context.CancelFunc
	work    sync.WaitGroup
	started time.Duration  // when start was called, by Repository.uptime
	first   chan struct{}  // closed when the first reading is over
	asking  sync.WaitGroup // for packs: see present
	asks    chan struct{}  // has room for those that are under way

	reading sync.Mutex // one reading at a time

	mu      sync.Mutex
	err     error         // why nothing can be promised any more
	began   time.Duration // when the last reading did that succeeded
	checked time.Duration // when the one did that check went by
	read    map[string]bool
	barred  map[chunk.PackID]struct{} // doomed, or not there
	known   map[chunk.PackID]int64    // vouched for, or asked for: the size, or 0
	learned func([]chunk.PackID)      // told of what is doomed; may be nil
	tellBad func(error)               // told of packs that a snapshot may have lost; may be nil
}

// ErrAnew: what was found in the repository may be gone before it is committed.
var ErrAnew = errors.New("packs that it needs are gone, or are being garbage collected")

// AnewTries is how often a writer begins before it gives up.
const AnewTries = 4

// AsksAtOnce is how many packs are asked for in parallel.
const AsksAtOnce = 16

// NewGuard makes a guard. before, if not nil, is that of a run that had to begin anew.
func NewGuard(r *repo.Repo, before *Guard) *Guard {
	g := &Guard{
		repo: r, first: make(chan struct{}),
		read: map[string]bool{}, barred: map[chunk.PackID]struct{}{}, known: map[chunk.PackID]int64{},
		asks: make(chan struct{}, looksAtOnce),
	}
	if before != nil {
		before.mu.Lock()
		defer before.mu.Unlock()
		for id := range before.barred {
			g.barred[id] = struct{}{} // doomed is for ever
		}
	}
	return g
}

// fresh is how long ago a reading may have begun for check to do without another.
func (g *Guard) fresh() time.Duration { return min(g.repo.Grace()/100, 5*time.Second) }

// Start begins to read tombstones, in the background, until stop.
func (g *Guard) Start(ctx context.Context) {
	g.ctx, g.cancel = context.WithCancel(ctx)
	g.started = g.repo.Uptime()
	g.repo.Ahead.Forget() // a manifest that was read before may have gone since
	g.began = g.started
	g.work.Go(func() {
		if err := g.readTombstones(g.ctx, g.started); err != nil {
			g.fail(err)
		}
		close(g.first)
		ticks := g.repo.GuardTicks // of a test
		if ticks == nil {
			t := time.NewTicker(g.repo.Grace() / 4)
			defer t.Stop()
			ticks = t.C
		}
		for {
			select {
			case <-g.ctx.Done():
				return
			case <-ticks:
			}
			// What fails is for check to do again, while there is time.
			if err := g.readTombstones(g.ctx, g.repo.Uptime()); err != nil && g.ctx.Err() == nil {
				g.repo.Logger.Info("reading tombstones", "err", err)
			}
		}
	})
}

// Stop ends what is done in the background.
func (g *Guard) Stop() {
	g.cancel()
	g.work.Wait()
	g.asking.Wait()
}

// fail says that nothing can be promised any more.
func (g *Guard) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
	}
}

func (g *Guard) failed() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// Ready waits for the first reading.
func (g *Guard) Ready(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-g.first:
		return g.failed()
	}
}

// readTombstones reads those that are new. Readings must not lie further apart than
// half a grace: a tombstone is there for longer than that.
func (g *Guard) readTombstones(ctx context.Context, began time.Duration) error {
	g.reading.Lock()
	defer g.reading.Unlock()
	g.mu.Lock()
	before := g.began
	g.mu.Unlock()
	if err := g.readNew(ctx); err != nil {
		return err
	}
	ended := g.repo.Uptime()
	g.mu.Lock()
	g.began = max(g.began, began)
	g.mu.Unlock()
	if ended-before > g.repo.Grace()/2 {
		g.fail(fmt.Errorf("%w: it was stopped, or could not read tombstones, for %v", ErrAnew, (ended - before).Round(time.Second)))
	}
	return nil
}

// readNew reads the tombstones that there are and that were not read before.
func (g *Guard) readNew(ctx context.Context) error {
	names, err := g.repo.ListTombstones(ctx)
	if err != nil {
		return err
	}
	all := map[string]bool{}
	for _, name := range names {
		all[strings.TrimPrefix(name, repo.GcPrefix)] = true
	}
	for _, id := range g.repo.Cache.Names("tombstones") {
		if repo.ValidUUID(id) && !all[id] {
			g.repo.Cache.Remove("tombstones", id)
		}
	}
	names = slices.DeleteFunc(names, func(name string) bool { return g.read[name] })
	eg, ectx := errgroup.WithContext(ctx)
	eg.SetLimit(AsksAtOnce)
	for _, name := range names {
		eg.Go(func() error {
			t, err := g.repo.Tombstone(ectx, name)
			if errors.Is(err, remote.ErrNotExist) {
				// Its packs have been gone for a grace: for longer than this writer
				// can have known of them.
				return nil
			}
			if err == nil {
				g.bar(t)
			}
			return err
		})
	}
	if err := eg.Wait(); err != nil {
		return err
	}
	for _, name := range names {
		g.read[name] = true
	}
	return nil
}

// bar notes the packs of a tombstone.
func (g *Guard) bar(t *repo.Tombstone) {
	ids := make([]chunk.PackID, len(t.Packs))
	g.mu.Lock()
	for i := range t.Packs {
		ids[i] = t.Packs[i].Id
		g.barred[ids[i]] = struct{}{}
	}
	learned := g.learned
	g.mu.Unlock()
	if learned != nil {
		learned(ids)
	}
}

// tell has f told of all packs that are doomed, those known already at once.
func (g *Guard) tell(f func([]chunk.PackID)) {
	g.mu.Lock()
	g.learned = f
	ids := slices.Collect(maps.Keys(g.barred))
	g.mu.Unlock()
	if len(ids) > 0 {
		f(ids)
	}
}

// Refuses reports whether a pack must not be referred to.
func (g *Guard) Refuses(pack chunk.PackID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.barred[pack]
	return ok
}

// RefusesAny reports whether one of the packs must not be referred to.
func (g *Guard) RefusesAny(packs []manifest.PackUse) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range packs {
		if _, ok := g.barred[packs[i].ID]; ok {
			return true
		}
	}
	return false
}

// Vouch says that a pack is sure to be there: this run has put it.
func (g *Guard) Vouch(pack chunk.PackID, size int64) {
	g.mu.Lock()
	g.known[pack] = size
	g.mu.Unlock()
}

// Sizes gives packs with what is known of their sizes.
func (g *Guard) Sizes(packs []manifest.PackUse) []repo.SizedPack {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make([]repo.SizedPack, len(packs))
	for i := range packs {
		all[i] = repo.SizedPack{Id: packs[i].ID, Size: g.known[packs[i].ID]}
	}
	return all
}

// Refresh reads tombstones again, if the last reading began too long ago for check.
// It is called when what is referred to is known, and goes side by side with the last
// uploads.
func (g *Guard) Refresh(ctx context.Context) error {
	if err := g.Ready(ctx); err != nil {
		return err
	}
	g.mu.Lock()
	began := g.began
	g.mu.Unlock()
	now := g.repo.Uptime()
	if now-began <= g.fresh() {
		return nil
	}
	return g.readTombstones(ctx, now)
}

// Check says whether a manifest with these packs may be put, within half a grace.
func (g *Guard) Check(ctx context.Context, packs []manifest.PackUse) error {
	if err := g.Refresh(ctx); err != nil {
		return err
	}
	g.asking.Wait()
	if err := g.failed(); err != nil {
		return err
	}
	g.mu.Lock()
	g.checked = g.began // before what was read is looked at: more may come meanwhile
	g.mu.Unlock()
	if g.RefusesAny(packs) {
		return ErrAnew
	}
	if g.overdue() {
		return fmt.Errorf("%w: it was stopped for too long", ErrAnew)
	}
	return nil
}

// overdue reports whether the reading that check went by began so long ago that what
// was doomed since may be gone. Readings in the background go on while a manifest is
// being put, and what they find nobody has looked at.
func (g *Guard) overdue() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.repo.Uptime()-g.checked > g.repo.Grace()/2
}

// Late says whether a manifest with these packs, which was put after check, may stay:
// if putting it took too long, a collector may have looked before it was there.
func (g *Guard) Late(ctx context.Context, packs []manifest.PackUse) error {
	if !g.overdue() {
		return nil
	}
	g.repo.Logger.Warn("committing took longer than half a grace, looking again")
	g.reading.Lock()
	err := g.readNew(ctx)
	g.reading.Unlock()
	if err != nil {
		return err
	}
	eg, ectx := errgroup.WithContext(ctx)
	eg.SetLimit(looksAtOnce)
	for _, p := range g.Sizes(packs) {
		eg.Go(func() error { return g.ask(ectx, p, ByCache) })
	}
	if err := eg.Wait(); err != nil {
		return err
	}
	if g.RefusesAny(packs) {
		return ErrAnew
	}
	return nil
}

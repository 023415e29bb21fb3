//go:build linux

package engine

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/internal/gc"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// TestGCNotes: a snapshot lives as long as its notes say, and no longer.
func TestGCNotes(t *testing.T) {
	y := newYard(t)
	r := y.enter()
	make := func(name string, ttl time.Duration) (manifest.ID, tree) {
		src := y.dirOf(name, 1)
		return complete(t, r, src, &CreateOptions{Name: name, TTL: ttl}).ID, scan(t, src)
	}
	longer, longerTree := make("longer", 2*time.Hour)
	far, farTree := make("far", 2*time.Hour)
	pinned, pinnedTree := make("pinned", 2*time.Hour)
	shorter, _ := make("shorter", 200*time.Hour)
	ever, _ := make("ever", 0)
	changed(t, r, "longer", &snapshot.Changes{Until: y.now().Add(10 * time.Hour)})
	changed(t, r, "far", &snapshot.Changes{Until: y.now().Add(100 * time.Hour)})
	changed(t, r, "pinned", &snapshot.Changes{Pin: true})
	changed(t, r, "shorter", &snapshot.Changes{Until: y.now().Add(3 * time.Hour)})
	changed(t, r, "ever", &snapshot.Changes{Until: y.now().Add(10 * time.Hour)})
	began := y.now()
	removed := func(at time.Duration, want ...manifest.ID) {
		t.Helper()
		y.pass(began.Add(at).Sub(y.now()))
		got := y.gc(r, nil).Removed
		slices.SortFunc(got, manifest.ID.Compare)
		if !slices.Equal(got, want) {
			t.Errorf("removed %v, want %v", got, want)
		}
	}
	removed(3*time.Hour + 14*time.Minute)
	removed(3*time.Hour+16*time.Minute, shorter)
	y.whole(longer, longerTree)
	// What lies under two names counts once, and stays when the first one goes.
	if rep := y.gc(r, nil); rep.Snapshots != 4 {
		t.Errorf("%d snapshots", rep.Snapshots)
	}
	must(t, y.mem.Delete(t.Context(), far.ObjectName(), pinned.ObjectName()))
	if rep := y.gc(r, nil); rep.Snapshots != 4 {
		t.Errorf("%d snapshots", rep.Snapshots)
	}
	removed(11*time.Hour, longer, ever)
	y.whole(far, farTree)
	removed(101*time.Hour, far)
	removed(100_000 * time.Hour)
	y.whole(pinned, pinnedTree)
	changed(t, r, "pinned", &snapshot.Changes{Until: y.now().Add(time.Hour)})
	removed(100_002*time.Hour, pinned)
	y.collectAll(r)
	y.exactly(nil)
	if left := y.objects(""); !slices.Equal(left, []string{repo.ConfigName}) {
		t.Errorf("left: %v", left)
	}
}

// TestGCDamagedNote: when a snapshot ends that cannot be known, nothing is deleted.
func TestGCDamagedNote(t *testing.T) {
	y := newYard(t)
	r := y.enter()
	src := y.dirOf("a", 1)
	id := complete(t, r, src, &CreateOptions{TTL: 2 * time.Hour}).ID
	changed(t, r, id.String(), &snapshot.Changes{Pin: true})
	note := y.objects(manifest.NotePrefix)[0]
	must(t, y.mem.Replace(t.Context(), note, []byte("nonsense")))
	y.pass(10 * time.Hour)
	before := y.objects("")
	if rep, err := gc.Run(t.Context(), y.enter().repo, nil); !errors.Is(err, snapshot.ErrIntegrity) {
		t.Errorf("%+v, %v", rep, err)
	}
	if after := y.objects(""); !slices.Equal(before, after) {
		t.Errorf("%q\n%q", before, after)
	}
}

// TestGCExtend: a change that succeeds at the last moment, by a machine whose clock is
// behind, while time passes and a collector runs, is one that the collector sees.
func TestGCExtend(t *testing.T) {
	var succeeded, failed, collected int
	for seed := range uint64(times(60, 600)) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		y := newYard(t)
		collector, late := y.enter(), y.enter()
		// What the store's clock says it learns by its own note alone.
		late.repo.StoreTime = func(context.Context) (time.Time, error) { return time.Time{}, errors.ErrUnsupported }
		late.repo.Clock.Heard, late.repo.Now = false, func() time.Time { return y.now().Add(-45 * time.Minute) }
		src := y.dirOf("a", 1)
		want := scan(t, src)
		id := complete(t, collector, src, &CreateOptions{TTL: time.Hour}).ID
		y.pass(time.Hour + 14*time.Minute + time.Duration(40+rnd.IntN(40))*time.Second)

		var inside atomic.Bool
		extend := func() {
			inside.Store(true)
			defer inside.Store(false)
			c := &snapshot.Changes{Until: y.now().Add(time.Duration(1+rnd.IntN(40)) * time.Hour)}
			if rnd.IntN(3) == 0 {
				c = &snapshot.Changes{Pin: true}
			}
			_, err := retain.Change(context.Background(), late.repo, c, id.String())
			switch {
			case err == nil:
				succeeded++
			case errors.Is(err, snapshot.ErrExpired) || errors.Is(err, snapshot.ErrNotFound):
				failed++
				id = manifest.ID{}
			default:
				t.Errorf("seed %d: %v", seed, err)
			}
		}
		at := 1 + rnd.IntN(12)
		var mu atomic.Int64
		y.fail(func(op remote.Op, name string) remotetest.Fault {
			n := mu.Add(1)
			if rnd := rand.New(rand.NewPCG(seed, uint64(n))); rnd.IntN(4) == 0 {
				y.pass(time.Duration(rnd.IntN(8)) * time.Second)
			}
			if int(n) == at && inside.CompareAndSwap(false, true) {
				extend()
			}
			return remotetest.Fault{}
		})
		rep, err := gc.Run(t.Context(), collector.repo, nil)
		must(t, err)
		if len(rep.Removed) > 0 {
			collected++
		}
		y.heal()
		if mu.Load() < int64(at) { // the run was shorter
			extend()
		}
		if !id.IsZero() {
			y.whole(id, want)
			y.pass(yardGrace/2 - time.Second) // before the earliest new time
			y.gc(collector, nil)
			y.whole(id, want)
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	t.Logf("%d changes succeeded, %d did not, %d collected", succeeded, failed, collected)
	if succeeded == 0 || failed == 0 || collected == 0 {
		t.Error("nothing was raced for")
	}
}

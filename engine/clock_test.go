//go:build linux

package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/gc"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/internal/transfer"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote/remotetest"
)

const year = 365 * 24 * time.Hour

// clocksOff are how far clocks of machines are ahead in these tests.
var clocksOff = []time.Duration{time.Hour, -time.Hour, year, -year}

// A clockPlace is a repository of which a test opens more: with clocks that are off, and
// stores that keep to the time that it is.
type clockPlace struct {
	*place
	open     func(o *Options) *Repository
	machines int
}

// clockPlaces gives one of each kind of store.
func clockPlaces(t *testing.T, f func(t *testing.T, s *clockPlace)) {
	opened := func(t *testing.T, r *Repository, err error) *Repository {
		t.Helper()
		must(t, err)
		t.Cleanup(func() { r.Close() })
		return r
	}
	t.Run("folder", func(t *testing.T) {
		p := newPlace(t)
		p.init()
		f(t, &clockPlace{place: p, open: func(o *Options) *Repository {
			r, err := Open(t.Context(), p.repo, keyed(t, o))
			return opened(t, r, err)
		}})
	})
	t.Run("memory", func(t *testing.T) {
		w, _ := emptyRepo(t)
		f(t, &clockPlace{place: w.place, open: func(o *Options) *Repository {
			o.Store = w.options().Store
			r, err := Open(t.Context(), "", keyed(t, o))
			return opened(t, r, err)
		}})
	})
	t.Run("S3", func(t *testing.T) {
		b := newBucket(t)
		b.init()
		f(t, &clockPlace{place: b.place, open: func(o *Options) *Repository {
			o.Store = b.store(nil)
			r, err := Open(t.Context(), "", keyed(t, o))
			return opened(t, r, err)
		}})
	})
}

// machine opens the repository on a machine whose clock is ahead. It notes what it is told.
func (s *clockPlace) machine(ahead time.Duration) (r *Repository, told *[]time.Duration) {
	s.Helper()
	told = new([]time.Duration)
	s.machines++
	r = s.open(&Options{
		CacheDir: s.path(fmt.Sprint("machine", s.machines)),
		Now:      func() time.Time { return time.Now().Add(ahead) },
		OnClock:  func(ahead time.Duration) { *told = append(*told, ahead) },
	})
	return r, told
}

// about reports whether two times are the same as far as clocks go that are not off, on a
// machine that is busy.
func about(a, b time.Time) bool { return a.Sub(b).Abs() < 2*time.Minute }

// TestClocks: whatever a machine's clock says, what it makes expires when it should, and
// the one who uses that machine is told.
func TestClocks(t *testing.T) {
	clockPlaces(t, func(t *testing.T, s *clockPlace) {
		src := s.files("src", map[string]string{"f": "1"})
		right, _ := s.machine(0)
		for _, ahead := range clocksOff {
			r, told := s.machine(ahead)
			made := complete(t, r, src, &CreateOptions{TTL: 30 * time.Minute})
			if !about(made.CreatedAt, time.Now()) || !about(*made.ExpiresAt, time.Now().Add(30*time.Minute)) || !about(made.ID.Time(), made.CreatedAt) {
				t.Errorf("%v ahead: made %v, expires %v, id of %v", ahead, made.CreatedAt, made.ExpiresAt, made.ID.Time())
			}
			if len(*told) != 1 || ((*told)[0]-ahead).Abs() > time.Minute {
				t.Errorf("%v ahead: told %v", ahead, *told)
			}
			// It is there, for all of them.
			for _, ahead := range clocksOff {
				other, _ := s.machine(ahead)
				other.repo.AskTime(t.Context()) // in a folder only what writes does
				if _, err := other.Get(t.Context(), made.ID.String()); err != nil {
					t.Errorf("%v ahead: %v", ahead, err)
				}
			}
			extended := complete(t, r, src, &CreateOptions{TTL: time.Hour}).ID.String()
			all := changed(t, r, extended, &snapshot.Changes{TTL: 40 * time.Minute})
			if !about(*all.ExpiresAt, time.Now().Add(40*time.Minute)) {
				t.Errorf("%v ahead: extended until %v", ahead, all.ExpiresAt)
			}
			rep, err := gc.Run(t.Context(), right.repo, nil)
			must(t, err)
			if len(rep.Removed) > 0 {
				t.Errorf("%v ahead: removed %v", ahead, rep.Removed)
			}
			// A time that has passed is refused, even if this machine has it still to come,
			// and one that has not is not.
			past, future := time.Now().Add(-30*time.Minute), time.Now().Add(20*time.Minute)
			if _, err := retain.Change(t.Context(), r.repo, &snapshot.Changes{Until: past}, extended); !errors.Is(err, snapshot.ErrInvalid) || !strings.Contains(err.Error(), "the clock of the repository") {
				t.Errorf("%v ahead: extended into the past: %v", ahead, err)
			}
			changed(t, r, extended, &snapshot.Changes{Until: future})
		}
		if _, told := s.machine(2 * time.Second); len(*told) > 0 {
			t.Errorf("told of %v", *told)
		}
	})
}

// TestClocksUnknown: of a store that tells no time what is extended into the past is found
// out by the note, and taken back.
func TestClocksUnknown(t *testing.T) {
	p := newPlace(t)
	behind := func(r *Repository, by time.Duration) {
		r.repo.Now = func() time.Time { return time.Now().Add(-by) }
		r.repo.StoreTime = func(context.Context) (time.Time, error) { return time.Time{}, errors.ErrUnsupported }
		r.repo.Clock.Heard = false
	}
	r := p.init()
	src := p.files("src", map[string]string{"f": "1"})
	id := complete(t, r, src, &CreateOptions{TTL: 24 * time.Hour}).ID
	for _, by := range []time.Duration{time.Hour, year} {
		behind(r, by)
		if _, err := retain.Change(t.Context(), r.repo, &snapshot.Changes{TTL: 30 * time.Minute}, id.String()); !errors.Is(err, snapshot.ErrInvalid) {
			t.Errorf("%v behind: %v", by, err)
		}
		if notes := objects(t, r.repo.Store, manifest.NotePrefix); len(notes) > 0 {
			t.Errorf("%v behind: left %q", by, notes)
		}
	}
}

// made makes a snapshot on a machine whose clock is ahead and that does not know it, as
// those of before did.
func (s *clockPlace) made(ahead time.Duration, dir string, o *CreateOptions) string {
	s.Helper()
	r, _ := s.machine(0)
	r.repo.Now = func() time.Time { return time.Now().Add(ahead) }
	r.repo.StoreTime = func(context.Context) (time.Time, error) { return time.Time{}, errors.ErrUnsupported }
	r.repo.Clock.Heard = false
	return complete(s, r, dir, o).ID.String()
}

// TestPruneClocks: a snapshot from the future neither has others removed nor takes the
// place of one; and what time it is does not depend on who prunes.
func TestPruneClocks(t *testing.T) {
	clockPlaces(t, func(t *testing.T, s *clockPlace) {
		src := s.files("src", map[string]string{"f": "1"})
		ids := map[string]string{}
		for _, c := range []struct {
			what  string
			ahead time.Duration
		}{
			{"old", -2 * time.Hour}, {"older", -40 * 24 * time.Hour}, {"recent", -30 * time.Minute}, {"newest", -time.Minute},
			{"an hour ahead", time.Hour}, {"a year ahead", year},
		} {
			ids[s.made(c.ahead, src, &CreateOptions{Name: "app"})] = c.what
		}
		for _, c := range []struct {
			o    snapshot.PruneOptions
			want string
		}{
			{snapshot.PruneOptions{KeepWithin: time.Hour}, "newest within, recent within"},
			{snapshot.PruneOptions{KeepWithin: 24 * time.Hour}, "newest within, old within, recent within"},
			{snapshot.PruneOptions{KeepWithin: time.Second}, "newest within"},
			{snapshot.PruneOptions{KeepLast: 1}, "newest last"},
			{snapshot.PruneOptions{KeepLast: 2}, "newest last, recent last"},
			{snapshot.PruneOptions{KeepYearly: 1}, "newest yearly"},
		} {
			want := "a year ahead future, an hour ahead future, " + c.want
			for _, ahead := range append([]time.Duration{0}, clocksOff...) {
				r, _ := s.machine(ahead)
				c.o.DryRun = true
				groups, err := retain.Prune(t.Context(), r.repo, &c.o)
				must(t, err)
				var kept []string
				for _, d := range groups[0].Snapshots {
					if d.Keep {
						kept = append(kept, ids[d.Snapshot.ID.String()]+" "+strings.Join(d.Reasons, "+"))
					}
				}
				slices.Sort(kept)
				if got := strings.Join(kept, ", "); got != want || len(groups) != 1 {
					t.Errorf("%+v, %v ahead: keeps %s; want %s", c.o, ahead, got, want)
				}
			}
		}
		// All are from the future: of a machine whose clock is behind, or was ahead.
		right, _ := s.machine(0)
		setClocks(right, func() time.Time { return time.Now().Add(-2 * year) })
		groups, err := retain.Prune(t.Context(), right.repo, &snapshot.PruneOptions{KeepLast: 1, KeepWithin: time.Hour})
		must(t, err)
		for _, d := range groups[0].Snapshots {
			if !slices.Equal(d.Reasons, []string{snapshot.Future}) {
				t.Errorf("%+v", d)
			}
		}
	})
}

// TestExpiredClocks: what has expired a bucket's clock says, from the first answer on.
func TestExpiredClocks(t *testing.T) {
	w, right := emptyRepo(t)
	src := w.files("src", map[string]string{"f": "1"})
	id := complete(t, right, src, &CreateOptions{TTL: time.Hour}).ID.String()
	there, to := emptyRepo(t)
	for _, c := range []struct {
		ahead, store time.Duration
		err          error
	}{
		{0, 0, nil}, {year, 0, nil}, {-year, 0, nil}, {0, 2 * time.Hour, snapshot.ErrExpired}, {-year, 2 * time.Hour, snapshot.ErrExpired},
	} {
		w.mem.Now = func() time.Time { return time.Now().Add(c.store) }
		o := w.options()
		o.Now = func() time.Time { return time.Now().Add(c.ahead) }
		r, err := Open(t.Context(), "", keyed(t, o))
		must(t, err)
		defer r.Close()
		if _, err := r.Get(t.Context(), id); !errors.Is(err, c.err) {
			t.Errorf("%v: get: %v", c, err)
		}
		if all, err := r.List(t.Context(), nil); err != nil || (len(all) > 0) != (c.err == nil) {
			t.Errorf("%v: list: %v, %v", c, all, err)
		}
	}
	// Where it is copied to, it would be collected at once.
	w.mem.Now, there.mem.Now = nil, func() time.Time { return time.Now().Add(2 * time.Hour) }
	if _, err := transfer.Run(t.Context(), right.repo, to.repo, []string{id}, nil); !errors.Is(err, snapshot.ErrExpired) {
		t.Errorf("copied: %v", err)
	}
	if left := objects(t, to.repo.Store, manifest.Prefix); len(left) > 0 {
		t.Errorf("there: %q", left)
	}
}

// TestKeptClocks: a snapshot that is to outlive its class is put under its second name
// even if by its own account it was made so late that it would not: a rule of the bucket
// goes by the bucket's clock.
func TestKeptClocks(t *testing.T) {
	w, r := emptyRepo(t)
	src := w.files("src", map[string]string{"f": "1"})
	r.repo.StoreTime = func(context.Context) (time.Time, error) { return time.Time{}, errors.ErrUnsupported }
	r.repo.Clock.Heard, r.repo.Now = false, func() time.Time { return time.Now().Add(year) }
	id := complete(t, r, src, &CreateOptions{TTL: time.Hour}).ID
	next := w.open()
	changed(t, next, id.String(), &snapshot.Changes{TTL: 60 * 24 * time.Hour})
	if _, err := w.mem.Stat(t.Context(), id.KeptName()); err != nil {
		t.Error(err)
	}
}

// TestClockIDs: ids, by whose order a name leads to the newest, go by the store's clock too.
func TestClockIDs(t *testing.T) {
	for _, ahead := range clocksOff {
		w, _ := emptyRepo(t)
		w.mem.Now = func() time.Time { return time.Now().Add(ahead) }
		r := w.open()
		s := complete(t, r, w.files("src", map[string]string{"f": "1"}), nil)
		if now := w.mem.Now(); !about(s.ID.Time(), now) || !about(s.CreatedAt, now) {
			t.Errorf("%v ahead: made %v, id of %v", ahead, s.CreatedAt, s.ID.Time())
		}
	}
}

// TestClockStopped: what the store said before this process was stopped for long says
// nothing of what time it is.
func TestClockStopped(t *testing.T) {
	y := newYard(t)
	r := y.enter()
	stops := 1
	r.repo.StoreTime = func(context.Context) (time.Time, error) {
		at := y.now()
		if stops > 0 {
			stops--
			y.pass(time.Hour)
		}
		return at, nil
	}
	r.repo.Clock.Heard = false
	r.repo.AskTime(t.Context())
	if r.repo.Skew() != 0 || !r.repo.Clock.Heard {
		t.Errorf("%v, %v", r.repo.Skew(), r.repo.Clock.Heard)
	}
	stops = 100
	r.repo.Clock.Heard = false
	r.repo.AskTime(t.Context())
	if r.repo.Skew() != 0 {
		t.Errorf("%v", r.repo.Skew())
	}
}

// TestClockSteps: a machine's clock that is set while a repository is open changes nothing.
func TestClockSteps(t *testing.T) {
	mem := remotetest.NewMemory()
	p := newPlace(t)
	var step time.Duration
	r, err := Init(t.Context(), "", nil, &Options{CacheDir: p.cache, Store: mem, Now: func() time.Time { return time.Now().Add(step) }})
	must(t, err)
	defer r.Close()
	for _, step = range clocksOff {
		if !about(r.repo.Time(), time.Now()) {
			t.Errorf("%v: it is %v", step, r.repo.Time())
		}
	}
}

// TestRepairClocks: what repair puts in a snapshot's place is in the lifetime class of the
// time that is left by the store's clock: a bucket's rule does not remove it before it ends.
func TestRepairClocks(t *testing.T) {
	const day = 24 * time.Hour
	clockPlaces(t, func(t *testing.T, s *clockPlace) {
		right, _ := s.machine(0)
		seed := uint64(0)
		for _, ahead := range clocksOff {
			// On either side of the end of a class, by less than any clock is off.
			lefts := []time.Duration{7*day - 30*time.Minute, 7*day + 30*time.Minute}
			want := map[manifest.ID]manifest.Class{}
			for _, left := range lefts {
				seed++
				src := s.files(fmt.Sprint("src", seed), map[string]string{"f": string(random(seed, 200<<10)), "g": fmt.Sprint("stays", seed)})
				id := complete(t, right, src, &CreateOptions{TTL: time.Hour}).ID
				changed(t, right, id.String(), &snapshot.Changes{Until: time.Now().Add(left)})
				alter(t, right, repo.PackName(packsOf(t, right, id, chunk.DataPack)[0]), flipAt(100_000))
				want[id] = manifest.ClassFor(left)
			}
			r, _ := s.machine(ahead)
			rep := repair(t, r, snapshot.RepairOptions{ReadData: true, RemoveDamaged: true})
			if len(rep.Snapshots) != len(lefts) {
				t.Fatalf("%v ahead: %+v", ahead, rep.Snapshots)
			}
			for _, snap := range rep.Snapshots {
				if got := snap.New.Class(); got != want[snap.ID] {
					t.Errorf("%v ahead: a class of %d days, not %d", ahead, got.Days(), want[snap.ID].Days())
				}
			}
		}
	})
}

//go:build linux

package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/internal/access"
	"github.com/snapctl/snapctl/engine/internal/gc"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// yard is a repository in memory in a world whose time stands still unless the test
// lets it pass.
type yard struct {
	*wobbly
	mu   sync.Mutex
	time time.Time
	seed uint64
}

const yardGrace = time.Hour

func newYard(t testing.TB) *yard {
	y := &yard{wobbly: newWobbly(t), time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	y.mem.Now = y.now
	o := y.options()
	o.Now = y.now
	r, err := Init(t.Context(), "", &snapshot.InitOptions{GCGrace: yardGrace}, o)
	must(t, err)
	must(t, r.Close())
	return y
}

func (y *yard) now() time.Time {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.time
}

func (y *yard) pass(d time.Duration) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.time = y.time.Add(d)
}

// enter opens the repository on another machine.
func (y *yard) enter() *Repository {
	y.Helper()
	return y.enterWith("")
}

// enterWith is enter with a state folder, for forks.
func (y *yard) enterWith(state string) *Repository {
	y.Helper()
	o := y.options()
	o.Now, o.StateDir = y.now, state
	r, err := Open(context.Background(), "", o)
	must(y, err)
	r.setUptime(func() time.Duration { return y.now().Sub(time.Unix(0, 0)) })
	y.Cleanup(func() { r.Close() })
	return r
}

// dirOf makes a directory of so many files of a MiB that are like no others.
func (y *yard) dirOf(name string, files int) string {
	y.Helper()
	for i := range files {
		y.seed++
		writeFile(y, y.path(name, fmt.Sprint(i)), random(y.seed, 1<<20))
	}
	return y.path(name)
}

func (y *yard) gc(r *Repository, opts *snapshot.GCOptions) *snapshot.GCReport {
	y.Helper()
	rep, err := gc.Run(context.Background(), r.repo, opts)
	must(y, err)
	for _, w := range rep.Waiting {
		if w.From.Before(rep.Time) {
			y.Errorf("at %v something waits for %v", rep.Time, w.From)
		}
	}
	return rep
}

// objects gives the names of the objects below a prefix.
func (y *yard) objects(prefix string) (names []string) {
	y.Helper()
	must(y, y.mem.List(context.Background(), prefix, func(o remote.Info) error {
		names = append(names, o.Name)
		return nil
	}))
	return names
}

// packsOf gives the packs that snapshots name, by object name.
func (y *yard) packsOf(r *Repository, ids ...manifest.ID) map[string]bool {
	y.Helper()
	all := map[string]bool{}
	for _, id := range ids {
		m, err := r.repo.Manifest(context.Background(), id)
		must(y, err)
		for _, p := range m.Packs {
			all[repo.PackName(p.ID)] = true
		}
	}
	return all
}

// exactly checks that there are these packs and no others, and that the index lists
// no others.
func (y *yard) exactly(want map[string]bool) {
	y.Helper()
	y.packsAre(want)
	y.indexLists(want)
}

func (y *yard) packsAre(want map[string]bool) {
	y.Helper()
	if got := y.objects(gc.PacksPrefix); !slices.Equal(got, slices.Sorted(maps.Keys(want))) {
		y.Errorf("packs %v\nwant %v", got, slices.Sorted(maps.Keys(want)))
	}
}

func (y *yard) indexLists(want map[string]bool) {
	y.Helper()
	r := y.enter()
	have, err := r.repo.ListSegments(y.Context())
	must(y, err)
	ix, err := r.repo.SyncIndex(y.Context(), have)
	must(y, err)
	for id := range ix.Packs() {
		if !want[repo.PackName(id)] {
			y.Errorf("the index lists pack %v", id)
		}
	}
	must(y, r.Close())
}

// whole restores a snapshot with an empty cache and compares it.
func (y *yard) whole(id manifest.ID, want tree) {
	y.Helper()
	y.seed++
	out := y.path(fmt.Sprint("out-", y.seed))
	restore(y, y.enter(), id.String(), out, nil)
	compare(y, want, scan(y, out))
}

// collectAll is as many runs as it takes to leave nothing behind, a grace apart.
func (y *yard) collectAll(r *Repository) {
	y.Helper()
	for range 4 {
		y.gc(r, nil)
		y.pass(yardGrace + time.Second)
	}
}

// TestGC: what only a removed snapshot held is announced, stays for a grace, and goes;
// what another one needs stays.
func TestGC(t *testing.T) {
	y := newYard(t)
	r := y.enter()
	a, b := y.dirOf("a", 3), y.dirOf("b", 3)
	first := complete(t, r, a, nil).ID
	second := complete(t, r, b, nil).ID
	want := scan(t, b)
	all := y.packsOf(r, first, second)
	rep := y.gc(r, nil)
	if rep.Snapshots != 2 || rep.Live.Packs != len(all) || rep.Doomed.Packs != 0 || rep.Freed.Packs != 0 || !rep.Time.Equal(y.now()) {
		t.Errorf("nothing to do: %+v", rep)
	}
	_, err := retain.Remove(t.Context(), r.repo, first.String())
	must(t, err)
	rep = y.gc(r, nil)
	if rep.Doomed.Packs != 0 || rep.Young.Packs == 0 {
		t.Errorf("young packs: %+v", rep)
	}
	y.pass(yardGrace + time.Second)
	kept := y.packsOf(r, second)
	rep = y.gc(r, nil)
	dead := len(all) - len(kept)
	from := y.now().Add(yardGrace)
	if dead == 0 || rep.Doomed.Packs != dead || rep.Freed.Packs != 0 || len(rep.Waiting) != 1 || !rep.Waiting[0].From.Equal(from) || rep.Waiting[0].Packs != dead {
		t.Errorf("%d packs are of no use: %+v", dead, rep)
	}
	y.pass(yardGrace)
	if rep = y.gc(r, nil); rep.Freed.Packs != 0 || rep.Doomed.Packs != 0 || rep.Waiting[0].Packs != dead || len(y.objects(gc.PacksPrefix)) != len(all) {
		t.Errorf("not longer than a grace: %+v", rep)
	}
	y.pass(time.Second)
	stored := rep.Waiting[0].Bytes
	rep = y.gc(r, nil)
	if rep.Freed.Packs != dead || rep.Freed.Bytes != stored || len(rep.Waiting) != 0 || rep.Live.Packs != len(kept) {
		t.Errorf("a grace later: %+v", rep)
	}
	y.exactly(kept)
	y.whole(second, want)
	// The tombstone stays for as long as somebody may have seen the packs.
	for range 2 {
		if n := len(y.objects(repo.GcPrefix)); n != 3 {
			t.Errorf("%v", y.objects(repo.GcPrefix))
		}
		y.pass(yardGrace / 2)
		y.gc(r, nil)
	}
	y.pass(time.Second)
	y.gc(r, nil)
	if left := y.objects(repo.GcPrefix); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestGCDryRun: the report of what would be done, and not one byte written.
func TestGCDryRun(t *testing.T) {
	y := newYard(t)
	r := y.enter()
	first := complete(t, r, y.dirOf("a", 2), &CreateOptions{TTL: time.Minute}).ID
	complete(t, r, y.dirOf("b", 1), nil)
	y.pass(3 * yardGrace)
	complete(t, r, y.dirOf("c", 1), nil) // tells what time it is
	dry := y.enter()
	y.fail(func(op remote.Op, name string) remotetest.Fault {
		if op == remote.OpPut || op == remote.OpReplace || op == remote.OpDelete {
			t.Errorf("%v %s", op, name)
		}
		return remotetest.Fault{}
	})
	rep := y.gc(dry, &snapshot.GCOptions{DryRun: true})
	y.heal()
	real := y.gc(r, nil)
	if !rep.DryRun || len(rep.Removed) != 1 || rep.Removed[0] != first || rep.Doomed != real.Doomed || rep.Doomed.Packs == 0 || rep.Live != real.Live {
		t.Errorf("%+v\nthe real run: %+v", rep, real)
	}
	y.pass(yardGrace + time.Second)
	complete(t, r, y.dirOf("d", 1), nil)
	rep = y.gc(dry, &snapshot.GCOptions{DryRun: true})
	if rep.Freed != real.Doomed || rep.SegmentsAfter >= rep.SegmentsBefore {
		t.Errorf("%+v", rep)
	}
	if got := y.gc(r, nil); got.Freed != rep.Freed || got.SegmentsAfter != rep.SegmentsAfter {
		t.Errorf("%+v, announced was %+v", got, rep)
	}
}

// copy gives a yard of its own with the same objects, written at the same times.
func (y *yard) copy() *yard {
	y.Helper()
	c := &yard{wobbly: newWobbly(y.TB), time: y.now()}
	var at time.Time
	c.mem.Now = func() time.Time { return at }
	must(y, y.mem.List(context.Background(), "", func(o remote.Info) error {
		b, err := y.mem.Get(context.Background(), o.Name)
		at = o.ModTime
		return errors.Join(err, c.mem.Put(context.Background(), o.Name, b))
	}))
	c.mem.Now = c.now
	return c
}

// TestGCKilled kills a collector at each of its operations, with the operation done
// and not done: when it announces, when it deletes packs, and when it deletes the
// tombstone. Those that come later end what it began; the snapshot that stays is whole.
func TestGCKilled(t *testing.T) {
	base := newYard(t)
	r := base.enter()
	dir := base.dirOf("b", 1)
	want := scan(t, dir)
	id := complete(t, r, dir, nil).ID
	kept := base.packsOf(r, id)
	_, err := retain.Remove(t.Context(), r.repo, complete(t, r, base.dirOf("a", 1), nil).ID.String())
	must(t, err)
	complete(t, r, base.dirOf("c", 1), &CreateOptions{TTL: time.Minute})
	killed := errors.New("killed")
	operations := 0
	for range 3 {
		base.pass(yardGrace + time.Second)
		for n := 0; ; n += unlessShort(1, 3) {
			ended := false
			for _, done := range []bool{false, true} {
				y := base.copy()
				r := y.enter()
				var k atomic.Int64
				y.fail(func(remote.Op, string) remotetest.Fault {
					if k := int(k.Add(1)); k > n {
						return remotetest.Fault{Err: killed, Done: done && k == n+1}
					}
					return remotetest.Fault{}
				})
				_, err := gc.Run(t.Context(), r.repo, nil)
				y.heal()
				if err != nil && !errors.Is(err, killed) {
					t.Fatalf("killed at operation %d: %v", n, err)
				}
				ended = err == nil && int(k.Load()) <= n
				y.pass(time.Second)
				y.collectAll(r)
				y.exactly(kept)
				y.whole(id, want)
				if left := y.objects(repo.GcPrefix); len(left) != 0 {
					t.Errorf("killed at operation %d, left: %v", n, left)
				}
				if t.Failed() {
					t.FailNow()
				}
			}
			if ended {
				operations += n
				break
			}
		}
		base.gc(r, nil)
	}
	t.Logf("killed at %d operations", operations)
	if operations < 30 {
		t.Error("there were more than that")
	}
}

// TestGCTwice: collectors at once do each other no harm.
func TestGCTwice(t *testing.T) {
	y := newYard(t)
	r := y.enter()
	b := y.dirOf("b", 2)
	want := scan(t, b)
	second := complete(t, r, b, nil).ID
	kept := y.packsOf(r, second)
	for n := range 5 {
		id := complete(t, r, y.dirOf(fmt.Sprint("a", n), 1), nil).ID
		_, err := retain.Remove(t.Context(), r.repo, id.String())
		must(t, err)
		y.pass(yardGrace + time.Second)
		var g sync.WaitGroup
		for range 4 {
			other := y.enter()
			g.Go(func() { y.gc(other, nil) })
		}
		g.Wait()
	}
	y.pass(yardGrace + time.Second)
	y.collectAll(r)
	y.exactly(kept)
	y.whole(second, want)
	if left := y.objects(repo.GcPrefix); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestGCMissingPack: nothing is deleted while a snapshot needs what is not there, and
// the error names both.
func TestGCMissingPack(t *testing.T) {
	y := newYard(t)
	r := y.enter()
	gone := complete(t, r, y.dirOf("a", 1), nil).ID
	id := complete(t, r, y.dirOf("b", 1), nil).ID
	_, err := retain.Remove(t.Context(), r.repo, gone.String())
	must(t, err)
	y.pass(yardGrace + time.Second)
	y.gc(r, nil)
	y.pass(yardGrace + time.Second)
	var pack string
	for name := range y.packsOf(r, id) {
		pack = name
	}
	must(t, y.mem.Delete(t.Context(), pack))
	before := y.objects("")
	_, err = gc.Run(t.Context(), r.repo, nil)
	if !errors.Is(err, snapshot.ErrIntegrity) || !strings.Contains(err.Error(), id.String()) || !strings.Contains(err.Error(), pack[len("packs/00/"):]) {
		t.Errorf("%v", err)
	}
	if after := y.objects(""); !slices.Equal(before, after) {
		t.Errorf("before %v\nafter %v", before, after)
	}
	// A manifest that cannot be read.
	_, err = retain.Remove(t.Context(), r.repo, id.String())
	must(t, err)
	other := complete(t, r, y.dirOf("c", 1), nil).ID
	must(t, y.mem.Replace(t.Context(), other.ObjectName(), []byte("nonsense")))
	if _, err = gc.Run(t.Context(), y.enter().repo, nil); !errors.Is(err, snapshot.ErrIntegrity) || !strings.Contains(err.Error(), other.String()) {
		t.Errorf("%v", err)
	}
	// With it out of the way.
	_, err = retain.Remove(t.Context(), r.repo, other.String())
	must(t, err)
	y.collectAll(r)
	y.exactly(nil)
}

// TestGCExpired: a snapshot goes when it has expired, but not at the very moment.
func TestGCExpired(t *testing.T) {
	y := newYard(t)
	r := y.enter()
	id := complete(t, r, y.dirOf("a", 1), &CreateOptions{TTL: 2 * time.Hour}).ID
	changed(t, r, id.String(), renamed("a"))
	must(t, y.mem.Put(t.Context(), access.Prefix(id)+strings.Repeat("0", 64), []byte("profile")))
	foreign := access.Prefix(id) + "another" // whose that is cannot be known
	must(t, y.mem.Put(t.Context(), foreign, nil))
	y.pass(2*time.Hour + 15*time.Minute)
	if rep := y.gc(r, nil); len(rep.Removed) != 0 || rep.Snapshots != 1 || rep.Leftovers != 0 {
		t.Errorf("%+v", rep)
	}
	y.pass(time.Second)
	if rep := y.gc(r, nil); !slices.Equal(rep.Removed, []manifest.ID{id}) || rep.Snapshots != 0 || rep.Doomed.Packs != 1 || rep.Leftovers != 2 {
		t.Errorf("%+v", rep)
	}
	y.pass(yardGrace + time.Second)
	y.collectAll(r)
	if left := y.objects(""); !slices.Equal(left, []string{repo.ConfigName, foreign}) {
		t.Errorf("left: %v", left)
	}
}

// TestGCLease: what a mount of a removed snapshot needs stays as long as its lease
// counts, and the lease goes later.
func TestGCLease(t *testing.T) {
	y := newYard(t)
	r := y.enter()
	a := y.dirOf("a", 2)
	id := complete(t, r, a, nil).ID
	encoded, err := y.mem.Get(t.Context(), id.ObjectName())
	must(t, err)
	kept := y.packsOf(r, id)
	l := write.HoldLease(r.repo, id, encoded, func(err error) { t.Error(err) })
	eventually(t, "the lease", func() bool { return len(leases(t, y.mem, id)) == 1 })
	_, err = retain.Remove(t.Context(), r.repo, id.String())
	must(t, err)
	y.pass(yardGrace)
	if rep := y.gc(r, nil); rep.Leased.Packs != len(kept) || rep.Doomed.Packs != 0 {
		t.Errorf("%+v", rep)
	}
	for range 4 { // its refreshes
		y.pass(yardGrace / 2)
		must(t, l.Write(t.Context()))
		y.gc(r, nil)
	}
	y.exactly(kept)
	// Its process is killed.
	l.Cancel()
	<-l.Ended
	y.pass(write.LeaseHold + time.Second)
	if rep := y.gc(r, nil); rep.Leased.Packs != 0 || rep.Doomed.Packs != len(kept) || rep.Leftovers != 0 {
		t.Errorf("%+v", rep)
	}
	y.pass(yardGrace + time.Second)
	y.collectAll(r)
	if left := y.objects(""); !slices.Equal(left, []string{repo.ConfigName}) {
		t.Errorf("left: %v", left)
	}
}

// TestGCSegments: many small segments become few, which say the same, and the next
// create finds everything.
func TestGCSegments(t *testing.T) {
	y := newYard(t)
	r := y.enter()
	dir := y.path("a")
	for i := range gc.ManySmall + 3 {
		writeFile(t, fmt.Sprintf("%s/%d", dir, i), random(uint64(i), 5000))
		complete(t, r, dir, nil)
	}
	// One is damaged, and left alone; one lists a pack that has been gone for long.
	damaged := y.objects(repo.SegmentPrefix)[0]
	must(t, y.mem.Replace(t.Context(), damaged, []byte("nonsense")))
	gone := y.packsOf(r, complete(t, r, y.dirOf("b", 1), nil).ID)
	list, err := r.List(t.Context(), &snapshot.ListOptions{Limit: 1})
	must(t, err)
	must(t, y.remove(r, list[0].ID))
	for name := range gone {
		must(t, y.mem.Delete(t.Context(), name))
	}
	y.pass(yardGrace + time.Second)
	rep := y.gc(r, nil)
	if rep.SegmentsBefore != gc.ManySmall+4 || rep.SegmentsAfter != 2 || len(y.objects(repo.SegmentPrefix)) != 2 {
		t.Errorf("%+v, %v", rep, y.objects(repo.SegmentPrefix))
	}
	other := y.enter()
	have, err := other.repo.ListSegments(t.Context())
	must(t, err)
	ix, err := other.repo.SyncIndex(t.Context(), have)
	must(t, err)
	if s := ix.Stats(); s.Packs < gc.ManySmall+2 {
		t.Errorf("%+v", s)
	}
	for id := range ix.Packs() {
		if gone[repo.PackName(id)] {
			t.Errorf("pack %v is listed still", id)
		}
	}
	if res := complete(t, other, dir, nil); res.NewBytes > 5000 { // what the damaged one listed
		t.Errorf("%d new bytes", res.NewBytes)
	}
	if rep := y.gc(r, nil); rep.SegmentsBefore != rep.SegmentsAfter {
		t.Errorf("%+v", rep)
	}
}

// TestGCOnS3 is a collection over a real server, whose times are in seconds: what is
// old it is told by a repository whose grace is short and whose objects are not young.
func TestGCOnS3(t *testing.T) {
	b := newBucket(t)
	store := &aged{Store: b.store(nil)}
	r, err := Init(t.Context(), "", &snapshot.InitOptions{GCGrace: time.Minute}, &Options{CacheDir: b.cache, Store: store})
	must(t, err)
	defer r.Close()
	src := b.files("src", map[string]string{"a": "kept"})
	kept := complete(t, r, src, nil).ID
	want := scan(t, src)
	writeFile(t, src+"/b", random(1, 1<<20))
	second := complete(t, r, src, nil).ID
	_, err = retain.Remove(t.Context(), r.repo, second.String())
	must(t, err)
	gc := func() *snapshot.GCReport {
		t.Helper()
		rep, err := gc.Run(t.Context(), r.repo, nil)
		must(t, err)
		return rep
	}
	if rep := gc(); rep.Doomed.Packs != 0 || rep.Snapshots != 1 || time.Since(rep.Time).Abs() > time.Minute {
		t.Errorf("%+v", rep)
	}
	store.years.Add(1)
	rep := gc()
	if rep.Doomed.Packs != 1 || rep.Freed.Packs != 0 || len(rep.Waiting) != 1 {
		t.Errorf("%+v", rep)
	}
	store.years.Add(1)
	if rep = gc(); rep.Freed.Packs != 1 || rep.Freed.Bytes < 1<<20 {
		t.Errorf("%+v", rep)
	}
	store.years.Add(1)
	gc()
	must(t, store.List(t.Context(), repo.GcPrefix, func(o remote.Info) error {
		t.Errorf("left: %s", o.Name)
		return nil
	}))
	out := b.path("out")
	restore(t, r, kept.String(), out, nil)
	compare(t, want, scan(t, out))
}

// aged is a store whose clock a test has put forward: what was written before is older
// by years than what is written from then on.
type aged struct {
	remote.Store
	years atomic.Int64
	puts  sync.Map // years by name
}

func (a *aged) Put(ctx context.Context, name string, data []byte) error {
	a.puts.Store(name, a.years.Load())
	return a.Store.Put(ctx, name, data)
}

func (a *aged) at(o remote.Info) remote.Info {
	if y, ok := a.puts.Load(o.Name); ok {
		o.ModTime = o.ModTime.AddDate(int(y.(int64)), 0, 0)
	}
	return o
}

func (a *aged) Stat(ctx context.Context, name string) (remote.Info, error) {
	o, err := a.Store.Stat(ctx, name)
	return a.at(o), err
}

func (a *aged) List(ctx context.Context, prefix string, yield func(remote.Info) error) error {
	return a.Store.List(ctx, prefix, func(o remote.Info) error { return yield(a.at(o)) })
}

//go:build linux

package engine

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/gc"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"pgregory.net/rapid"
)

// The grace of the repository under test, and when it is made.
const protocolGrace = 4 * time.Hour

var protocolBegin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// protocol is several machines that use one repository at once: real Repositories
// over a sim. Whatever was committed must be there, whatever happens.
type protocol struct {
	*sim
	dir  string
	pick func(label string, n int) int // a number below n

	actors  []*protocolActor
	witness *Repository // sees the store as it is
	config  *repo.Config

	flaw     *flaw // of the protocol, on purpose; nil for none
	promises map[manifest.ID]*promise
	holds    []*hold
	seen     int  // changes when the promises were last looked at
	broken   bool // a snapshot that nobody was promised has been without a pack
	course   []string
	over     bool // nothing is looked at any more
}

// A promise is a snapshot whose Create returned without an error.
type promise struct {
	id      manifest.ID
	packs   []chunk.PackID
	dump    string
	expires time.Time // zero for never
	removed bool      // by whoever asked for it, successfully or not
	at      time.Time // when that was
}

// A hold is a snapshot that a mount keeps by a lease: what it needs stays, whether or
// not it is removed, as long as the lease is renewed in time.
type hold struct {
	*promise
	prefix  string    // of the lease
	written time.Time // last; zero for not yet
	lapsed  bool
}

// A protocolActor is one process at a time on one machine.
type protocolActor struct {
	*simActor
	cache string
	skew  time.Duration // of the machine's clock
	acts  []protocolAct

	writes, collects bool         // it may
	readings         atomic.Int32 // listings since its operation began, of a flawed one

	repo  *Repository
	doing *protocolRun // nil while it is idle

	leaseTicks, guardTicks chan time.Time
}

func (a *protocolActor) mounts() bool {
	return a.doing != nil && strings.HasPrefix(a.doing.what, "mount")
}
func (a *protocolActor) creates() bool {
	return a.doing != nil && strings.HasPrefix(a.doing.what, "create")
}

// A protocolAct begins something, or returns nil if there is nothing to do.
type protocolAct func(p *protocol, a *protocolActor) *protocolRun

// A protocolRun is an operation of an actor.
type protocolRun struct {
	what  string
	run   func(ctx context.Context) error
	ended func(err error) // on the test's goroutine

	cancel context.CancelFunc
	done   chan error
}

func newProtocol(t testing.TB, dir string, f *flaw, pick func(label string, n int) int) *protocol {
	p := &protocol{sim: newSim(t, protocolBegin), dir: dir, flaw: f, pick: pick, promises: map[manifest.ID]*promise{}}
	cfg, err := repo.NewConfig(nil)
	must(t, err)
	cfg.GCGrace, cfg.CreatedAt = int64(protocolGrace/time.Second), p.clock
	p.config = cfg
	p.objects[repo.ConfigName] = simObject{cfg.Encode(), p.clock}
	p.witness = p.open(&protocolActor{simActor: &simActor{name: "witness", free: true}, cache: dir + "/witness", collects: true})
	for i, a := range []*protocolActor{
		{acts: []protocolAct{create1}, writes: true},
		{acts: []protocolAct{create1}, writes: true, skew: 2 * protocolGrace},
		{acts: []protocolAct{create1, remove1}, writes: true, skew: -30 * time.Hour},
		{acts: []protocolAct{remove1}},
		{acts: []protocolAct{collect1}, collects: true},
		{acts: []protocolAct{collect1}, collects: true, skew: 100 * protocolGrace},
		{acts: []protocolAct{mount1}},
	} {
		a.simActor = &simActor{name: fmt.Sprint(i)}
		a.cache = fmt.Sprintf("%s/cache-%d", dir, i)
		a.repo = p.open(a)
		p.actors = append(p.actors, a)
	}
	return p
}

func (p *protocol) close() {
	p.over = true
	for _, a := range p.actors {
		if a.doing != nil {
			p.crash(a)
		}
		a.repo.Close()
	}
	p.witness.Close()
	p.sim.close()
}

// open opens the repository as a new process of the actor's machine does.
func (p *protocol) open(a *protocolActor) *Repository {
	a.leaseTicks, a.guardTicks = make(chan time.Time), make(chan time.Time)
	var store remote.Store = simStore{p.sim, a.simActor}
	if p.flaw != nil && p.flaw.store != nil {
		store = p.flaw.store(a, store.(simStore))
	}
	store = remote.Retry(store, &remote.RetryOptions{
		Initial: 4, Max: 4, Total: 1 << 60, // until the store refuses
		Sleep: func(ctx context.Context, _ time.Duration) error { return context.Cause(ctx) },
	})
	free := a.free
	a.free = true
	defer func() { a.free = free }()
	// A file where the index would be: it is kept in memory then, and opens sooner.
	index := fmt.Sprintf("%s/%s/index", a.cache, p.config.ID)
	must(p.t, os.MkdirAll(index[:strings.LastIndexByte(index, '/')], 0o700))
	must(p.t, os.WriteFile(index, nil, 0o600))
	r, err := Open(p.t.Context(), "", &Options{
		CacheDir: a.cache, Store: store, patience: calm(), Now: func() time.Time { return p.now().Add(a.skew) },
	})
	must(p.t, err)
	r.repo.Dir = p.dir // no cache of packs: what is gone is gone
	r.repo.LeaseTicks, r.repo.GuardTicks = a.leaseTicks, a.guardTicks
	r.setUptime(func() time.Duration { return p.now().Sub(protocolBegin) })
	if p.flaw != nil && p.flaw.repo != nil {
		p.flaw.repo(a, r)
	}
	return r
}

func (p *protocol) note(format string, args ...any) {
	p.course = append(p.course, fmt.Sprintf(format, args...))
}

// A broken promise ends the run.
type brokenPromise struct{ error }

func (p *protocol) fail(format string, args ...any) {
	panic(brokenPromise{fmt.Errorf(format, args...)})
}

// start has an actor begin what it does.
func (p *protocol) start(a *protocolActor, r *protocolRun) {
	ctx, cancel := context.WithCancel(p.t.Context())
	r.cancel, r.done = cancel, make(chan error, 1)
	a.doing = r
	a.readings.Store(0)
	p.note("%s begins: %s", a.name, r.what)
	go func() { r.done <- r.run(ctx) }()
}

// reap notes which operations have ended, and keeps them to their word.
func (p *protocol) reap() {
	p.settle()
	for _, a := range p.actors {
		if a.doing == nil {
			continue
		}
		select {
		case err := <-a.doing.done:
			r := a.doing
			a.doing = nil
			r.cancel()
			p.note("%s ends: %s: %v", a.name, r.what, err)
			r.ended(err)
		default:
		}
	}
	p.check()
}

// step ends one call.
func (p *protocol) step(c *simCall, f fate) {
	if p.flaw != nil && p.flaw.late != nil && p.flaw.late(c) && p.pick("late", 2) == 0 {
		f = fateLate
	}
	if f == fateLate && !c.changes() {
		f = fateLost
	}
	p.note("%s: %v %s: %s", c.actor.name, c.op, simKind(c.name), [...]string{"done", "lost", "unheard", "refused", "late"}[f])
	p.decide(c, f)
	p.reap()
}

// crash kills an actor, and has its machine start anew.
func (p *protocol) crash(a *protocolActor) {
	p.note("%s is killed: %s", a.name, a.doing.what)
	p.kill(a.simActor, func() fate { return []fate{fateDone, fateLost, fateLate}[p.pick("fate of what it waits for", 3)] })
	a.doing.cancel()
	<-a.doing.done
	a.doing = nil
	a.repo.Close()
	a.simActor = &simActor{name: a.name}
	a.repo = p.open(a)
	p.check()
}

// check looks whether everything is there that was promised.
func (p *protocol) check() {
	p.renew()
	if p.over || p.seen == p.changes {
		return // nothing has gone, nothing was committed
	}
	p.seen = p.changes
	now := p.now()
	for _, s := range p.promises {
		if s.removed || !s.expires.IsZero() && !now.Before(s.expires) {
			continue
		}
		if !p.has(s.id.ObjectName()) {
			p.fail("the manifest of snapshot %v is gone", s.id)
		}
		if !p.hasAll(s.packs) {
			p.whole(s)
		}
	}
	for _, h := range p.holds {
		if !h.lapsed && !h.written.IsZero() && !p.hasAll(h.packs) {
			p.fail("snapshot %v is mounted, and its packs are gone", h.id)
		}
	}
	for _, name := range p.names("manifests/") {
		id, err := manifest.ParseObjectName(name)
		must(p.t, err)
		if m, err := p.witness.repo.Manifest(p.t.Context(), id); err == nil && p.promises[id] == nil {
			p.broken = p.broken || !p.hasAll(packIDs(m))
		}
	}
}

// renew looks at what became of leases.
func (p *protocol) renew() {
	now := p.now()
	for _, h := range p.holds {
		if h.lapsed {
			continue
		}
		for _, name := range p.names(h.prefix) {
			at := p.objects[name].time
			if at == h.written {
				continue
			}
			if h.written.IsZero() {
				// It must be there before the packs are deleted of a snapshot that was
				// removed since the mount began.
				h.lapsed = h.removed && at.Sub(h.at) >= protocolGrace
			} else if at.Sub(h.written) > write.LeaseHold {
				h.lapsed = true
			}
			h.written = at
		}
		if !h.written.IsZero() && now.Sub(h.written) > write.LeaseHold {
			h.lapsed = true
		}
	}
}

func (p *protocol) hasAll(packs []chunk.PackID) bool {
	return !slices.ContainsFunc(packs, func(id chunk.PackID) bool { return !p.has(repo.PackName(id)) })
}

func packIDs(m *manifest.Manifest) []chunk.PackID {
	var all []chunk.PackID
	for _, u := range m.Packs {
		all = append(all, u.ID)
	}
	return all
}

// whole reads a snapshot.
func (p *protocol) whole(s *promise) {
	dump, err := dumpOf(p.t.Context(), p.witness, s.id)
	if err != nil {
		p.fail("snapshot %v: %w", s.id, err)
	}
	if s.dump != "" && s.dump != dump {
		p.fail("snapshot %v holds something else", s.id)
	}
	s.dump = dump
}

// live gives the promises that hold, oldest first.
func (p *protocol) live() []*promise {
	var all []*promise
	for _, s := range p.promises {
		if !s.removed && (s.expires.IsZero() || p.now().Before(s.expires)) {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b *promise) int {
		return p.ordinal(a.id.ObjectName()) - p.ordinal(b.id.ObjectName())
	})
	return all
}

// create1 begins a snapshot of one of three directories, which have files in common.
func create1(p *protocol, a *protocolActor) *protocolRun {
	dir := "testdata/protocol/" + []string{"one", "two", "three"}[p.pick("directory", 3)]
	o := &CreateOptions{}
	if p.pick("with a time to live", 4) == 0 {
		o.TTL = 3 * protocolGrace
	}
	var res *CreateResult
	repo := a.repo
	return &protocolRun{
		what: fmt.Sprintf("create %s, ttl %v", dir, o.TTL),
		run: func(ctx context.Context) (err error) {
			res, err = repo.Create(ctx, dir, o)
			return err
		},
		ended: func(err error) {
			if err != nil {
				return
			}
			if res.Incomplete {
				p.fail("snapshot %v is incomplete: %v", res.ID, res.Problems)
			}
			s := &promise{id: res.ID}
			if res.ExpiresAt != nil {
				s.expires = *res.ExpiresAt
			}
			if !s.expires.IsZero() && !p.now().Before(s.expires) {
				return // it took longer than it was to live
			}
			m, err := p.witness.repo.Manifest(p.t.Context(), s.id)
			if err != nil {
				p.fail("snapshot %v, just committed: %w", s.id, err)
			}
			s.packs = packIDs(m)
			p.whole(s)
			p.promises[s.id] = s
		},
	}
}

// remove1 begins to remove a snapshot, or all.
func remove1(p *protocol, a *protocolActor) *protocolRun {
	live := p.live()
	if len(live) == 0 {
		return nil
	}
	if p.pick("all", 2) == 0 {
		i := p.pick("snapshot", len(live))
		live = live[i : i+1]
	}
	var refs []string
	for _, s := range live {
		s.removed, s.at = true, p.now()
		refs = append(refs, s.id.String())
	}
	repo := a.repo
	return &protocolRun{
		what: fmt.Sprintf("remove %d snapshots", len(refs)),
		run: func(ctx context.Context) error {
			_, err := retain.Remove(ctx, repo.repo, refs...)
			return err
		},
		ended: func(error) {},
	}
}

// mount1 begins to hold a snapshot by a lease, as a mount does, for a while.
func mount1(p *protocol, a *protocolActor) *protocolRun {
	live := p.live()
	if len(live) == 0 {
		return nil
	}
	s := live[p.pick("snapshot", len(live))]
	repo := a.repo
	h := &hold{promise: s, prefix: "leases/" + s.id.String() + "/" + fmt.Sprintf("00000000-0000-4000-8000-%012d", len(p.holds))}
	p.holds = append(p.holds, h)
	return &protocolRun{
		what: fmt.Sprintf("mount snapshot %d", p.ordinal(s.id.ObjectName())),
		run: func(ctx context.Context) error {
			_, encoded, err := repo.repo.EncodedManifest(ctx, s.id)
			if err != nil {
				return err
			}
			l := write.HoldLeaseAs(repo.repo, h.prefix, encoded, func(error) {})
			<-ctx.Done()
			l.Release()
			return nil
		},
		ended: func(error) { h.lapsed = true },
	}
}

// collect1 begins a garbage collection.
func collect1(p *protocol, a *protocolActor) *protocolRun {
	repo := a.repo
	return &protocolRun{
		what: "gc",
		run: func(ctx context.Context) error {
			_, err := gc.Run(ctx, repo.repo, nil)
			return err
		},
		ended: func(err error) {
			if errors.Is(err, snapshot.ErrIntegrity) && !p.broken {
				p.fail("gc of a sound repository: %w", err)
			}
		},
	}
}

// decisions makes a number of decisions, brings everything to its end, and reports what
// went wrong. A run in which everything is decided alike ends alike.
func decisions(n int) func(p *protocol) error {
	return func(p *protocol) error {
		return p.guarded(func() {
			for range n {
				p.decision()
			}
			p.finish()
		})
	}
}

// guarded reports what went wrong.
func (p *protocol) guarded(f func()) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case brokenPromise:
			err = r.error
		default:
			panic(r)
		}
	}()
	f()
	return nil
}

func (p *protocol) decision() {
	switch n := p.pick("decision", 16); {
	case n < 10:
		a := p.actors[p.pick("actor", len(p.actors))]
		if a.doing == nil {
			r := a.acts[p.pick("act", len(a.acts))](p, a)
			if r == nil {
				return
			}
			p.start(a, r)
			p.reap()
		}
		calls, stop := 1<<20, false
		switch p.pick("calls", 8) {
		case 0:
			calls = 1
		case 1:
			calls = 1 + p.pick("how many", 8)
		case 2, 3, 4:
			stop = true
		}
		p.drive(a, calls, stop)
	case n < 11:
		if waiting := p.calls(nil); len(waiting) > 0 {
			fates := []fate{fateLost, fateUnheard, fateRefused, fateLate}
			p.step(waiting[p.pick("call", len(waiting))], fates[p.pick("fate", len(fates))])
		}
	case n < 12:
		if len(p.late) > 0 {
			c := p.late[p.pick("late", len(p.late))]
			p.note("late: %v %s", c.op, simKind(c.name))
			p.arrive(c)
			p.check()
		}
	case n < 15:
		d := []time.Duration{
			time.Minute, protocolGrace/4 + time.Minute, protocolGrace/2 - time.Minute, protocolGrace/2 + time.Minute,
			protocolGrace + time.Minute, protocolGrace + time.Minute, 2*protocolGrace + time.Minute,
		}
		if p.flaw != nil && p.flaw.jumps != nil {
			d = p.flaw.jumps
		}
		p.later(d[p.pick("time", len(d))], p.pick("awake", 2) == 0)
	default:
		a := p.actors[p.pick("actor", len(p.actors))]
		if a.doing != nil && p.pick("crash", 2) == 0 {
			p.crash(a)
		}
	}
}

// drive has calls of an actor done, all but those that count if it is to stop there.
func (p *protocol) drive(a *protocolActor, calls int, stop bool) {
	run := a.doing
	for range calls {
		if a.doing != run {
			return
		}
		waiting := p.calls(a.simActor)
		if stop {
			waiting = slices.DeleteFunc(waiting, (*simCall).counts)
		}
		if len(waiting) == 0 {
			// It waits for time to pass, as a mount does.
			if a.mounts() && p.pick("unmount", 8) == 0 {
				a.doing.cancel()
				p.reap()
			}
			return
		}
		p.step(waiting[p.pick("call", len(waiting))], fateDone)
	}
}

// counts reports whether a call is one before which much may happen: a commit, or a
// deletion of what may be needed.
func (c *simCall) counts() bool {
	kind := simKind(c.name)
	return kind == "manifests" && c.op == remote.OpPut || c.op == remote.OpDelete && (kind == "packs" || kind == "index") ||
		kind == "gc" && c.op == remote.OpPut && !strings.HasPrefix(c.name, repo.ClockPrefix)
}

// perform has an actor do something, to its end or up to what counts.
func (p *protocol) perform(a *protocolActor, act protocolAct, stop bool) {
	p.start(a, act(p, a))
	p.reap()
	p.drive(a, 1<<20, stop)
}

// later moves the clock: at once, as if all machines slept meanwhile, or in steps in
// which mounts renew their leases, and writers read tombstones.
func (p *protocol) later(d time.Duration, awake bool) {
	p.note("%v later, awake %t", d, awake)
	if !awake {
		p.advance(d, protocolGrace/4)
		p.reap()
		return
	}
	for d > 0 {
		step := min(d, write.LeaseHold/2)
		d -= step
		p.advance(step, protocolGrace/4)
		for _, a := range p.actors {
			if a.doing == nil {
				continue
			}
			p.settle() // whoever waits for a tick does so now
			for _, ticks := range []chan time.Time{a.leaseTicks, a.guardTicks} {
				select {
				case ticks <- p.now():
				default:
				}
			}
			for again := true; again && a.doing != nil; {
				again = false
				for _, c := range p.calls(a.simActor) {
					if a.mounts() || a.creates() && simKind(c.name) == "gc" {
						p.step(c, fateDone)
						again = true
						break
					}
				}
			}
		}
		p.reap()
	}
}

// finish lets everybody come to an end, and then has garbage collected until nothing
// is left that nobody needs.
func (p *protocol) finish() {
	for _, a := range p.actors {
		if a.mounts() {
			a.doing.cancel()
		}
		for run := a.doing; run != nil && a.doing == run; {
			waiting := p.calls(a.simActor)
			if len(waiting) == 0 {
				p.fail("%s waits for nothing: %s", a.name, run.what)
			}
			p.step(waiting[0], fateDone)
		}
	}
	for len(p.late) > 0 {
		p.arrive(p.late[0])
		p.check()
	}
	p.repair()
	// Something to delete, so that the index is written anew: a segment that came late
	// may list what was deleted before, until then.
	last := p.dir + "/last"
	writeFile(p.t, last+"/f", random(1, 100))
	res, err := p.witness.Create(p.t.Context(), last, nil)
	must(p.t, err)
	_, err = retain.Remove(p.t.Context(), p.witness.repo, res.ID.String())
	must(p.t, err)
	// Packs become old enough to be doomed; are doomed; are deleted; and then their
	// tombstones are.
	for range 10 {
		p.advance(protocolGrace+time.Minute, 0)
		if _, err := gc.Run(p.t.Context(), p.witness.repo, nil); err != nil {
			p.fail("the last gc: %w", err)
		}
		p.check()
	}
	needed := map[string]bool{}
	for _, s := range p.live() {
		p.whole(s)
		m, err := p.witness.repo.Manifest(p.t.Context(), s.id)
		must(p.t, err)
		for _, id := range packIDs(m) {
			needed[repo.PackName(id)] = true
		}
	}
	for _, name := range p.names("packs/") {
		if !needed[name] && !p.inManifest(name) {
			p.fail("%s is left, and nothing needs it", name)
		}
	}
	for _, name := range p.names(repo.SegmentPrefix) {
		s, err := index.DecodeSegment(p.witness.repo.Codec, p.objects[name].data)
		must(p.t, err)
		for i := range s.Packs {
			if !p.has(repo.PackName(s.Packs[i].ID)) {
				p.fail("%s lists pack %v, which is gone", name, s.Packs[i].ID)
			}
		}
	}
	for _, name := range p.names(repo.GcPrefix) {
		if !p.stands(name) {
			p.fail("%s is left, and names no pack that is there", name)
		}
	}
	if left := p.names("leases/"); len(left) > 0 {
		p.fail("left: %q", left)
	}
}

// repair removes snapshots that nobody was promised and that are without a pack: their
// writers slept in the middle of a commit, for longer than tombstones last, and were
// killed when they woke up. They are for people to remove: gc refuses to run.
func (p *protocol) repair() {
	for _, name := range p.names("manifests/") {
		if !p.has(name) {
			continue // a gc below saw what happened to it
		}
		id, err := manifest.ParseObjectName(name)
		must(p.t, err)
		m, err := p.witness.repo.Manifest(p.t.Context(), id)
		must(p.t, err)
		if p.promises[id] != nil || p.hasAll(packIDs(m)) {
			continue
		}
		if _, err := gc.Run(p.t.Context(), p.witness.repo, nil); !errors.Is(err, snapshot.ErrIntegrity) {
			continue
		}
		_, err = retain.Remove(p.t.Context(), p.witness.repo, id.String())
		must(p.t, err)
	}
}

// stands reports whether an object is a tombstone, or a note beside one, of a pack that
// somebody came to refer to just before it was doomed: that stays.
func (p *protocol) stands(name string) bool {
	n, ok := repo.ParseGCName(name)
	if !ok || n.Id == "" {
		return false
	}
	t, err := repo.DecodeTombstone(p.objects[repo.GcPrefix+n.Id].data)
	return err == nil && slices.ContainsFunc(t.Packs, func(d repo.DoomedPack) bool { return p.has(repo.PackName(d.Id)) })
}

// inManifest reports whether a snapshot needs a pack that is there and that nobody was
// promised: its writer was killed behind its last step, or did not hear of it.
func (p *protocol) inManifest(pack string) bool {
	for _, name := range p.names("manifests/") {
		id, err := manifest.ParseObjectName(name)
		must(p.t, err)
		m, err := p.witness.repo.Manifest(p.t.Context(), id)
		must(p.t, err)
		for _, id := range packIDs(m) {
			if repo.PackName(id) == pack {
				return true
			}
		}
	}
	return false
}

// drawn decides by rapid.
func drawn(rt *rapid.T) func(string, int) int {
	return func(label string, n int) int { return rapid.IntRange(0, n-1).Draw(rt, label) }
}

// seeded decides by a seed.
func seeded(seed uint64) func(string, int) int {
	r := rand.New(rand.NewPCG(seed, seed))
	return func(_ string, n int) int { return r.IntN(n) }
}

// repeatable is random, and the same every time.
type repeatable struct {
	mu sync.Mutex
	r  *rand.ChaCha8
}

func (r *repeatable) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.r.Read(p)
}

// runProtocol is one run, and what it came to.
func runProtocol(t testing.TB, f *flaw, pick func(string, int) int, run func(p *protocol) error) (*protocol, error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "protocol-")
	must(t, err)
	defer os.RemoveAll(dir)
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	// Names depend on salts, and the order of listings on names.
	defer func(r io.Reader) { crand.Reader = r }(crand.Reader)
	crand.Reader = &repeatable{r: rand.NewChaCha8([32]byte{byte(pick("salt", 256))})}
	if f != nil && f.salt != nil {
		crand.Reader = f.salt
	}
	p := newProtocol(t, dir, f, pick)
	defer p.close()
	return p, run(p)
}

// TestProtocol has machines use a repository in every order that can be thought of,
// with requests that are lost, refused or late, and processes that are killed.
func TestProtocol(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p, err := runProtocol(t, nil, drawn(rt), decisions(rapid.IntRange(10, 100).Draw(rt, "decisions")))
		if err != nil {
			rt.Fatalf("%v\n%s", err, strings.Join(p.course, "\n"))
		}
	})
}

// TestProtocolTwice: the same decisions lead to the same course.
func TestProtocolTwice(t *testing.T) {
	if raced {
		t.Skip("the race detector has goroutines run in a random order, and which of several readers comes first counts")
	}
	for seed := range uint64(times(4, 100)) {
		one, err1 := runProtocol(t, nil, seeded(seed), decisions(80))
		two, err2 := runProtocol(t, nil, seeded(seed), decisions(80))
		if (err1 == nil) != (err2 == nil) {
			t.Errorf("seed %d: %v, then %v", seed, err1, err2)
		}
		if i := firstDifference(one.course, two.course); i >= 0 {
			t.Errorf("seed %d differs from %d on:\n%q\n\n%q", seed, i, one.course[max(0, i-9):min(i+1, len(one.course))], two.course[max(0, i-9):min(i+1, len(two.course))])
		}
	}
}

// TestCommitHangs: the request that puts a manifest takes longer than it takes to doom
// and delete the packs that it refers to. Meanwhile the writer reads tombstones in the
// background, so that it does not look as if it had been stopped.
func TestCommitHangs(t *testing.T) {
	for _, awake := range []bool{false, true} {
		p := newProtocol(t, t.TempDir(), nil, func(string, int) int { return 0 })
		defer p.close()
		err := p.guarded(func() {
			writers, collector := p.actors[:2], p.actors[4]
			create := func(p *protocol, a *protocolActor) *protocolRun {
				p.pick = func(label string, n int) int { return n - 1 } // the last directory, no time to live
				return create1(p, a)
			}
			p.perform(writers[0], create, false)
			p.later(protocolGrace+time.Minute, false)
			p.perform(writers[1], create, true)
			p.perform(p.actors[3], remove1, false)
			p.perform(collector, collect1, false)
			p.later(protocolGrace+time.Minute, awake)
			p.perform(collector, collect1, false)
			if n := len(p.names("packs/")); n != 0 {
				t.Errorf("%d packs are left", n)
			}
			p.drive(writers[1], 1<<20, false)
			if len(p.live()) != 1 {
				t.Error("no snapshot")
			}
			p.finish()
		})
		if err != nil {
			t.Errorf("awake %t: %v\n%s", awake, err, strings.Join(p.course, "\n"))
		}
	}
}

// firstDifference is where two courses part, -1 for nowhere.
func firstDifference(a, b []string) int {
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || a[i] != b[i] && !errorsAlike(a[i], b[i]) {
			return i
		}
	}
	return -1
}

// errorsAlike: messages name ids, which are random.
func errorsAlike(a, b string) bool {
	return strings.Contains(a, " ends: ") && strings.Contains(b, " ends: ") &&
		strings.HasSuffix(a, "<nil>") == strings.HasSuffix(b, "<nil>")
}

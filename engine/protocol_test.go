package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"pgregory.net/rapid"
)

// The grace of the repository under test.
const protocolGrace = 4 * time.Hour

// protocol is several machines that use one repository at once: real Repositories
// over a sim. Whatever was committed must be there, whatever happens.
type protocol struct {
	*sim
	dir  string
	pick func(label string, n int) int // a number below n

	actors  []*protocolActor
	witness *Repository // sees the store as it is
	config  *config

	promises map[manifest.ID]*promise
	seen     int // deletes when the promises were last looked at
	course   []string
}

// A promise is a snapshot whose Create returned without an error.
type promise struct {
	id      manifest.ID
	packs   []chunk.PackID
	dump    string
	expires time.Time // zero for never
	removed bool      // by whoever asked for it, successfully or not
}

// A protocolActor is one process at a time on one machine.
type protocolActor struct {
	*simActor
	cache string
	skew  time.Duration // of the machine's clock
	acts  []protocolAct

	repo  *Repository
	doing *protocolRun // nil while it is idle
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

func newProtocol(t testing.TB, dir string, pick func(label string, n int) int) *protocol {
	p := &protocol{sim: newSim(t), dir: dir, pick: pick, promises: map[manifest.ID]*promise{}}
	cfg, err := newConfig(nil)
	must(t, err)
	cfg.GCGrace, cfg.CreatedAt = int64(protocolGrace/time.Second), p.clock
	p.config = cfg
	p.objects[configName] = simObject{cfg.encode(), p.clock}
	p.witness = p.open(&protocolActor{simActor: &simActor{name: "witness", free: true}, cache: dir + "/witness"})
	for i, a := range []*protocolActor{
		{acts: []protocolAct{create1}},
		{acts: []protocolAct{create1}, skew: 2 * protocolGrace},
		{acts: []protocolAct{create1, remove1}, skew: -30 * time.Hour},
		{acts: []protocolAct{remove1}},
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
	store := remote.Retry(simStore{p.sim, a.simActor}, &remote.RetryOptions{
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
		CacheDir: a.cache, Store: store, Now: func() time.Time { return p.now().Add(a.skew) },
	})
	must(p.t, err)
	r.dir = p.dir // no cache of packs: what is gone is gone
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
	if p.seen == p.deletes {
		return // nothing has gone
	}
	p.seen = p.deletes
	now := p.now()
	for _, s := range p.promises {
		if s.removed || !s.expires.IsZero() && !now.Before(s.expires) {
			continue
		}
		if !p.has(s.id.ObjectName()) {
			p.fail("the manifest of snapshot %v is gone", s.id)
		}
		for _, pack := range s.packs {
			if !p.has(packName(pack)) {
				p.whole(s)
				break
			}
		}
	}
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
			m, err := p.witness.manifest(p.t.Context(), s.id)
			if err != nil {
				p.fail("snapshot %v, just committed: %w", s.id, err)
			}
			for _, u := range m.Packs {
				s.packs = append(s.packs, u.ID)
			}
			p.whole(s)
			p.promises[s.id] = s
		},
	}
}

// remove1 begins to remove a snapshot.
func remove1(p *protocol, a *protocolActor) *protocolRun {
	live := p.live()
	if len(live) == 0 {
		return nil
	}
	s := live[p.pick("snapshot", len(live))]
	s.removed = true
	repo := a.repo
	return &protocolRun{
		what: fmt.Sprintf("remove snapshot %d", p.ordinal(s.id.ObjectName())),
		run: func(ctx context.Context) error {
			_, err := repo.Remove(ctx, s.id.String())
			return err
		},
		ended: func(error) {},
	}
}

// mount1 begins to hold a snapshot by a lease, as a mount does.
func mount1(p *protocol, a *protocolActor) *protocolRun { return nil }

// run makes a number of decisions, brings everything to its end, and reports what
// went wrong. A run in which everything is decided alike ends alike.
func (p *protocol) run(decisions int) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case brokenPromise:
			err = r.error
		default:
			panic(r)
		}
	}()
	for range decisions {
		p.decision()
	}
	p.finish()
	return nil
}

func (p *protocol) decision() {
	switch n := p.pick("decision", 16); {
	case n < 5:
		a := p.actors[p.pick("actor", len(p.actors))]
		if a.doing != nil {
			p.drive(a)
			return
		}
		if r := a.acts[p.pick("act", len(a.acts))](p, a); r != nil {
			p.start(a, r)
			p.reap()
		}
	case n < 10:
		var busy []*protocolActor
		for _, a := range p.actors {
			if a.doing != nil {
				busy = append(busy, a)
			}
		}
		if len(busy) > 0 {
			p.drive(busy[p.pick("busy actor", len(busy))])
		}
	case n < 12:
		if waiting := p.calls(nil); len(waiting) > 0 {
			p.step(waiting[p.pick("call", len(waiting))], fate(1+p.pick("fate", int(numFates)-1)))
		}
	case n < 13:
		if len(p.late) > 0 {
			c := p.late[p.pick("late", len(p.late))]
			p.note("late: %v %s", c.op, simKind(c.name))
			p.arrive(c)
			p.check()
		}
	case n < 15:
		d := []time.Duration{time.Minute, protocolGrace / 8, protocolGrace/2 - time.Minute, protocolGrace/2 + time.Minute, protocolGrace + time.Minute, 2*protocolGrace + time.Minute}
		p.later(d[p.pick("time", len(d))])
	default:
		a := p.actors[p.pick("actor", len(p.actors))]
		if a.doing != nil && p.pick("crash", 2) == 0 {
			p.crash(a)
		}
	}
}

// drive has some calls of an actor done: one, some, or all to its end.
func (p *protocol) drive(a *protocolActor) {
	run := a.doing
	for range []int{1, 2, 4, 8, 1 << 20, 1 << 20}[p.pick("calls", 6)] {
		if a.doing != run {
			return
		}
		waiting := p.calls(a.simActor)
		if len(waiting) == 0 {
			return // it waits for time to pass
		}
		p.step(waiting[p.pick("call", len(waiting))], fateDone)
	}
}

// later moves the clock.
func (p *protocol) later(d time.Duration) {
	p.note("%v later", d)
	p.advance(d, protocolGrace/4)
	p.reap()
}

// finish lets everybody come to an end.
func (p *protocol) finish() {
	for _, a := range p.actors {
		for run := a.doing; run != nil && a.doing == run; {
			waiting := p.calls(a.simActor)
			if len(waiting) == 0 {
				p.crash(a)
				break
			}
			p.step(waiting[0], fateDone)
		}
	}
	for _, s := range p.live() {
		p.whole(s)
	}
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

// runProtocol is one run, and what it came to.
func runProtocol(t testing.TB, decisions int, pick func(string, int) int) (*protocol, error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "protocol-")
	must(t, err)
	defer os.RemoveAll(dir)
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	p := newProtocol(t, dir, pick)
	defer p.close()
	return p, p.run(decisions)
}

// TestProtocol has machines use a repository in every order that can be thought of,
// with requests that are lost, refused or late, and processes that are killed.
func TestProtocol(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p, err := runProtocol(t, rapid.IntRange(10, 60).Draw(rt, "decisions"), drawn(rt))
		if err != nil {
			rt.Fatalf("%v\n%s", err, strings.Join(p.course, "\n"))
		}
	})
}

// TestProtocolTwice: the same decisions lead to the same course.
func TestProtocolTwice(t *testing.T) {
	for seed := range uint64(times(10, 100)) {
		one, err1 := runProtocol(t, 50, seeded(seed))
		two, err2 := runProtocol(t, 50, seeded(seed))
		if (err1 == nil) != (err2 == nil) {
			t.Errorf("seed %d: %v, then %v", seed, err1, err2)
		}
		if i := firstDifference(one.course, two.course); i >= 0 {
			t.Errorf("seed %d differs from %d on:\n%q\n\n%q", seed, i, one.course[max(0, i-9):min(i+1, len(one.course))], two.course[max(0, i-9):min(i+1, len(two.course))])
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

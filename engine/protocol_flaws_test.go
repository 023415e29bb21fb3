//go:build linux

package engine

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/remote"
)

// A flaw is a way to break the protocol. The engine is as it is: what a flawed actor
// does other than it should is that its store, its clock or its grace lies to it.
type flaw struct {
	name string
	// course is one in which the flaw does harm, up to finish.
	course func(p *protocol)
	store  func(a *protocolActor, s simStore) remote.Store // nil for the sim's
	repo   func(a *protocolActor, r *Repository)           // nil for nothing
	salt   io.Reader                                       // nil for what is random

	// What makes it show in a random course: how far the clock moves, and what mostly
	// comes late; nil for nothing in particular.
	jumps []time.Duration
	late  func(c *simCall) bool
}

var protocolFlaws = []flaw{
	{
		name: "a writer looks at tombstones when it begins, and not before it commits",
		course: func(p *protocol) {
			collector, writer := p.abandon(), p.actors[1]
			p.start(writer, create1(p, writer))
			p.driveTo(writer, func(c *simCall) bool { return c.op == remote.OpStat })
			p.sweepUnder(collector, func() { p.drive(writer, 1<<20, false) })
		},
		store: func(a *protocolActor, s simStore) remote.Store {
			return lyingStore{simStore: s, hides: func(prefix string) bool {
				return a.writes && prefix == repo.GcPrefix && a.readings.Add(1) > 1
			}}
		},
	},
	{
		name: "a writer ignores tombstones",
		course: func(p *protocol) {
			collector := p.abandon()
			p.sweepUnder(collector, func() { p.perform(p.actors[1], create1, false) })
		},
		store: func(a *protocolActor, s simStore) remote.Store {
			return lyingStore{simStore: s, hides: func(prefix string) bool { return a.writes && prefix == repo.GcPrefix }}
		},
	},
	{
		name: "a writer's clock stands still while it is stopped",
		course: func(p *protocol) {
			collector, writer := p.abandon(), p.actors[1]
			p.perform(writer, create1, true)
			p.perform(collector, collect1, false)
			p.later(protocolGrace+time.Minute, false)
			p.perform(collector, collect1, false)
			p.drive(writer, 1<<20, false)
		},
		repo: func(a *protocolActor, r *Repository) {
			if a.writes {
				r.repo.Uptime = func() time.Duration { return 0 }
			}
		},
	},
	{
		name: "manifests before packs",
		course: func(p *protocol) {
			writer := p.actors[0]
			p.start(writer, create1(p, writer))
			p.driveTo(writer, func(c *simCall) bool { return simKind(c.name) == "packs" })
			p.reap()
		},
		store: func(a *protocolActor, s simStore) remote.Store {
			if !a.writes {
				return s
			}
			return &hastyStore{simStore: s}
		},
	},
	{
		name: "the index before packs, and nobody asks whether they are there",
		course: func(p *protocol) {
			writer := p.actors[0]
			p.start(writer, create1(p, writer))
			p.driveTo(writer, func(c *simCall) bool { return simKind(c.name) == "packs" })
			p.crash(writer)
			p.perform(p.actors[1], create1, false)
		},
		store: func(a *protocolActor, s simStore) remote.Store {
			if !a.writes {
				return s
			}
			return &hastyStore{simStore: s, waits: "manifests", believes: true}
		},
	},
	{
		// Half of the grace would do, if nothing came late: writers use half of it.
		name: "collectors hardly wait", jumps: []time.Duration{time.Minute, 10 * time.Minute, protocolGrace / 4},
		course: func(p *protocol) {
			collector, writer := p.abandon(), p.actors[1]
			p.perform(writer, create1, true)
			p.perform(collector, collect1, false)
			p.later(time.Minute, false)
			p.perform(collector, collect1, false)
			p.drive(writer, 1<<20, false)
		},
		repo: func(a *protocolActor, r *Repository) {
			if a.collects {
				cfg := *r.repo.Cfg
				cfg.GCGrace = 30
				r.repo.Cfg = &cfg
			}
		},
	},
	{
		name: "collectors know no leases", jumps: []time.Duration{protocolGrace + time.Minute},
		course: func(p *protocol) {
			p.perform(p.actors[0], create1, false)
			mount, collector := p.actors[6], p.actors[4]
			p.perform(mount, mount1, false)
			p.perform(p.actors[3], remove1, false)
			for range 2 {
				p.later(protocolGrace+time.Minute, true)
				p.perform(collector, collect1, false)
			}
		},
		store: func(a *protocolActor, s simStore) remote.Store {
			return lyingStore{simStore: s, hides: func(prefix string) bool { return a.collects && !a.free && prefix == "leases/" }}
		},
	},
	{
		name: "segments are not rewritten before packs are deleted",
		course: func(p *protocol) {
			p.sweepUnder(p.abandon(), func() {})
		},
		store: func(a *protocolActor, s simStore) remote.Store {
			if !a.collects {
				return s
			}
			return lyingStore{simStore: s, drops: func(name string) bool { return simKind(name) == "index" }}
		},
	},
	{
		name: "tombstones are deleted before what they name",
		course: func(p *protocol) {
			collector := p.abandon()
			p.sweepUnder(collector, func() { p.perform(p.actors[1], create1, false) })
		},
		store: func(a *protocolActor, s simStore) remote.Store {
			if !a.collects {
				return s
			}
			return lyingStore{simStore: s, before: func(name string) {
				if kind := simKind(name); kind == "index" || kind == "packs" {
					_ = s.Delete(context.Background(), s.sim.names(repo.GcPrefix)...)
				}
			}}
		},
	},
	{
		name: "packs without a salt",
		course: func(p *protocol) {
			collector, other := p.abandon(), p.actors[5]
			p.sweepUnder(collector, func() {
				for range 3 {
					p.perform(other, collect1, false)
					p.later(protocolGrace+time.Minute, false)
				}
				p.perform(p.actors[1], create1, false)
			})
		},
		salt:  zeros{},
		late:  func(c *simCall) bool { return c.op == remote.OpDelete && simKind(c.name) == "packs" },
		jumps: []time.Duration{time.Minute, protocolGrace + time.Minute},
	},
}

// zeros is what is not random.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// lyingStore does not do all that it is asked to.
type lyingStore struct {
	simStore
	hides  func(prefix string) bool // listings
	drops  func(name string) bool   // changes
	before func(name string)        // is called before changes
}

func (l lyingStore) List(ctx context.Context, prefix string, yield func(remote.Info) error) error {
	return l.ListAfter(ctx, prefix, "", yield)
}

func (l lyingStore) ListAfter(ctx context.Context, prefix, after string, yield func(remote.Info) error) error {
	if l.hides != nil && l.hides(prefix) {
		return nil
	}
	return l.simStore.ListAfter(ctx, prefix, after, yield)
}

func (l lyingStore) Put(ctx context.Context, name string, data []byte) error {
	if l.before != nil {
		l.before(name)
	}
	if l.drops != nil && l.drops(name) {
		return nil
	}
	return l.simStore.Put(ctx, name, data)
}

func (l lyingStore) Delete(ctx context.Context, names ...string) error {
	for _, name := range names {
		if l.before != nil {
			l.before(name)
		}
		if l.drops != nil && l.drops(name) {
			continue
		}
		if err := l.simStore.Delete(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// hastyStore says that packs are there when they are on their way.
type hastyStore struct {
	simStore
	waits    string // for what they have to be there after all
	believes bool   // and that any pack is there, as it was to be

	puts sync.WaitGroup
}

func (h *hastyStore) Put(ctx context.Context, name string, data []byte) error {
	switch simKind(name) {
	case "packs":
		data = bytes.Clone(data)
		h.sim.said.Store(name, int64(len(data)))
		h.puts.Go(func() { _ = h.simStore.Put(context.WithoutCancel(ctx), name, data) })
		return nil
	case h.waits:
		h.puts.Wait()
	}
	return h.simStore.Put(ctx, name, data)
}

func (h *hastyStore) Stat(ctx context.Context, name string) (remote.Info, error) {
	if size, ok := h.sim.said.Load(name); ok && h.believes {
		return remote.Info{Name: name, Size: size.(int64)}, nil
	}
	return h.simStore.Stat(ctx, name)
}

func (h *hastyStore) ReadAt(ctx context.Context, name string, offset int64, p []byte) error {
	if _, ok := h.sim.said.Load(name); ok && h.believes && len(p) == chunk.PackFooterSize {
		copy(p[copy(p, make([]byte, chunk.PackFooterSize-8)):], "snapfoot")
		return nil
	}
	return h.simStore.ReadAt(ctx, name, offset, p)
}

// abandon has the packs of a snapshot that was removed become old enough to be doomed,
// and gives a collector.
func (p *protocol) abandon() (collector *protocolActor) {
	p.perform(p.actors[0], create1, false)
	p.perform(p.actors[3], remove1, false)
	p.later(protocolGrace+time.Minute, false)
	return p.actors[4]
}

// sweepUnder has a collector doom packs and, a grace later, delete them; f comes before
// anything is deleted.
func (p *protocol) sweepUnder(collector *protocolActor, f func()) {
	p.perform(collector, collect1, false)
	p.later(protocolGrace+time.Minute, false)
	p.start(collector, collect1(p, collector))
	p.driveTo(collector, func(c *simCall) bool {
		return simKind(c.name) == "packs" && c.op == remote.OpDelete || simKind(c.name) == "index" && c.changes()
	})
	f()
	p.drive(collector, 1<<20, false)
}

// driveTo has calls of an actor done until all that wait are such as it is to stop at.
func (p *protocol) driveTo(a *protocolActor, stop func(*simCall) bool) {
	p.reap()
	for run := a.doing; run != nil && a.doing == run; {
		waiting := slices.DeleteFunc(p.calls(a.simActor), stop)
		if len(waiting) == 0 {
			return
		}
		p.step(waiting[0], fateDone)
	}
}

// plainly decides so that a course is what it looks like: the snapshots are all of the
// last directory and live for ever, and what was under way with a killed actor is lost.
func plainly(label string, n int) int {
	switch label {
	case "directory", "with a time to live", "unmount", "late":
		return n - 1
	case "fate of what it waits for":
		return 1
	}
	return 0
}

// TestProtocolFlaws: the model catches each way to break the protocol, in a course that
// leads to it, and finds nothing in the same course without it.
func TestProtocolFlaws(t *testing.T) {
	for i := range protocolFlaws {
		f := &protocolFlaws[i]
		t.Run(f.name, func(t *testing.T) {
			follow := func(p *protocol) error {
				return p.guarded(func() {
					f.course(p)
					p.finish()
				})
			}
			p, err := runProtocol(t, f, plainly, follow)
			if err == nil {
				t.Errorf("the model is blind to it\n%s", strings.Join(p.course, "\n"))
			}
			t.Log(err)
			if p, err := runProtocol(t, nil, plainly, follow); err != nil {
				t.Errorf("without it: %v\n%s", err, strings.Join(p.course, "\n"))
			}
		})
	}
}

// TestProtocolFinds: random courses come upon each way to break the protocol.
func TestProtocolFinds(t *testing.T) {
	if !*long {
		t.Skip("only with -long")
	}
	for i := range protocolFlaws {
		f := &protocolFlaws[i]
		t.Run(f.name, func(t *testing.T) {
			for seed := range uint64(1000) {
				p, err := runProtocol(t, f, seeded(seed), decisions(120))
				if err != nil {
					t.Logf("seed %d: %v\n%s", seed, err, strings.Join(p.course[max(0, len(p.course)-25):], "\n"))
					return
				}
			}
			t.Error("it was not found")
		})
	}
}

//go:build linux

package engine

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/snapctl/snapctl/remote"
)

// A flaw is a way to break the protocol. The engine is as it is: what a flawed actor
// does other than it should is that its store, its clock or its grace lies to it.
type flaw struct {
	name string
	// seed is one with which the model catches it.
	seed  uint64
	store func(a *protocolActor, s simStore) remote.Store // nil for the sim's
	repo  func(a *protocolActor, r *Repository)           // nil for nothing
	salt  io.Reader                                       // nil for what is random

	// What makes it show: how far the clock moves, and what mostly comes late; nil for
	// nothing in particular.
	jumps []time.Duration
	late  func(c *simCall) bool
}

var protocolFlaws = []flaw{
	{
		name: "a writer looks at tombstones when it begins, and not before it commits",
		seed: 43,
		store: func(a *protocolActor, s simStore) remote.Store {
			return lyingStore{simStore: s, hides: func(prefix string) bool {
				return a.writes && prefix == gcPrefix && a.readings.Add(1) > 1
			}}
		},
	},
	{
		name: "a writer ignores tombstones",
		seed: 7,
		store: func(a *protocolActor, s simStore) remote.Store {
			return lyingStore{simStore: s, hides: func(prefix string) bool { return a.writes && prefix == gcPrefix }}
		},
	},
	{
		name: "a writer's clock stands still while it is stopped",
		seed: 19,
		repo: func(a *protocolActor, r *Repository) {
			if a.writes {
				r.uptime = func() time.Duration { return 0 }
			}
		},
	},
	{
		name: "manifests before packs",
		seed: 0,
		store: func(a *protocolActor, s simStore) remote.Store {
			if !a.writes {
				return s
			}
			return &hastyStore{simStore: s}
		},
	},
	{
		name: "the index before packs, and nobody asks whether they are there",
		seed: 60,
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
		seed: 1,
		repo: func(a *protocolActor, r *Repository) {
			if a.collects {
				cfg := *r.cfg
				cfg.GCGrace = 30
				r.cfg = &cfg
			}
		},
	},
	{
		name: "collectors know no leases", jumps: []time.Duration{protocolGrace + time.Minute},
		seed: 59,
		store: func(a *protocolActor, s simStore) remote.Store {
			return lyingStore{simStore: s, hides: func(prefix string) bool { return a.collects && !a.free && prefix == "leases/" }}
		},
	},
	{
		name: "segments are not rewritten before packs are deleted",
		seed: 2,
		store: func(a *protocolActor, s simStore) remote.Store {
			if !a.collects {
				return s
			}
			return lyingStore{simStore: s, drops: func(name string) bool { return simKind(name) == "index" }}
		},
	},
	{
		name: "tombstones are deleted before what they name",
		seed: 48,
		store: func(a *protocolActor, s simStore) remote.Store {
			if !a.collects {
				return s
			}
			return lyingStore{simStore: s, before: func(name string) {
				if kind := simKind(name); kind == "index" || kind == "packs" {
					_ = s.Delete(context.Background(), s.sim.names(gcPrefix)...)
				}
			}}
		},
	},
	{
		name:  "packs without a salt",
		seed:  44,
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
	believes bool   // and that any pack is there

	puts sync.WaitGroup
}

func (h *hastyStore) Put(ctx context.Context, name string, data []byte) error {
	switch simKind(name) {
	case "packs":
		data = bytes.Clone(data)
		h.puts.Go(func() { _ = h.simStore.Put(context.WithoutCancel(ctx), name, data) })
		return nil
	case h.waits:
		h.puts.Wait()
	}
	return h.simStore.Put(ctx, name, data)
}

func (h *hastyStore) Stat(ctx context.Context, name string) (remote.Info, error) {
	if h.believes && simKind(name) == "packs" {
		return remote.Info{Name: name}, nil
	}
	return h.simStore.Stat(ctx, name)
}

// flawedDecisions is how many decisions there are in a run that is to catch a flaw, and
// flawedSeeds how many seeds are tried if the one that is known does not: what the
// engine asks of its store, and so the course of a run, changes with time.
const (
	flawedDecisions = 120
	flawedSeeds     = 100
)

// TestProtocolFlaws: the model catches each way to break the protocol.
func TestProtocolFlaws(t *testing.T) {
	for i := range protocolFlaws {
		f := &protocolFlaws[i]
		t.Run(f.name, func(t *testing.T) {
			for try := range uint64(flawedSeeds) {
				seed := f.seed
				if try > 0 {
					seed = try - 1
				}
				p, err := runProtocol(t, f, flawedDecisions, seeded(seed))
				if err != nil {
					t.Logf("seed %d: %v\n%s", seed, err, strings.Join(p.course[max(0, len(p.course)-25):], "\n"))
					return
				}
			}
			t.Errorf("the model is blind to it, tried %d seeds", flawedSeeds)
		})
	}
}

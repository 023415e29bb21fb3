//go:build linux

package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// TestParallel uses one Repository from many goroutines, and another beside it
// with the same cache folder.
func TestParallel(t *testing.T) {
	p, q := newPlace(t), newPlace(t)
	q.cache = p.cache
	var repos [2]*Repository
	var mu sync.Mutex
	wants := [2]map[manifest.ID]tree{{}, {}}
	var wg sync.WaitGroup
	for i, p := range []*place{p, q} {
		repos[i] = p.init()
		for g := range 4 {
			dir := p.files(fmt.Sprint("src-", g), map[string]string{"shared": string(random(1, 600_000)), "own": string(random(uint64(100+10*i+g), 600_000))})
			wg.Go(func() {
				for round := range 3 {
					if err := os.WriteFile(dir+"/round", []byte{byte(round)}, 0o644); err != nil {
						t.Error(err)
					}
					want := scan(t, dir)
					res, err := repos[i].Create(t.Context(), dir, &CreateOptions{Name: fmt.Sprint("g", g)})
					if err != nil || res.Incomplete {
						t.Error(err)
						return
					}
					mu.Lock()
					wants[i][res.ID] = want
					mu.Unlock()
					out := p.path(fmt.Sprint("out-", g))
					if _, err := repos[i].Restore(t.Context(), fmt.Sprint("g", g), out, &RestoreOptions{Delete: true}); err != nil {
						t.Error(err)
						return
					}
					if diff := differences(want, scan(t, out)); len(diff) > 0 {
						t.Error(diff)
					}
					if _, err := repos[i].List(t.Context(), nil); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	verifyAll(p, wants[0])
	verifyAll(q, wants[1])
}

// TestCloseTwice, and use what is closed as far as it goes.
func TestCloseTwice(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"f": "1"})
	complete(t, r, src, nil)
	must(t, r.Close())
	must(t, r.Close())
}

// goroutines waits until there are no more goroutines than before, and names them
// if that takes too long.
func goroutines(t testing.TB, before int) {
	t.Helper()
	for begun := time.Now(); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Since(begun) > tooLong {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}

// canceller is the hook of a store that cancels a context at one of its operations.
type canceller struct {
	mu     sync.Mutex
	left   int // operations until then
	cancel func()
}

func (c *canceller) set(left int, cancel func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left, c.cancel = left, cancel
}

func (c *canceller) hook(remote.Op, string) remotetest.Fault {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left--; c.left == 0 {
		c.cancel()
	}
	return remotetest.Fault{}
}

// TestCancel ends contexts at every operation on the store, and at random moments
// between.
func TestCancel(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := manyFiles(p, "src")
	first := complete(t, r, src, nil).ID.String()
	dst := p.files("dst", map[string]string{"old": "tree"})
	before := scan(t, dst)
	must(t, r.Close()) // the index has goroutines of its own
	rnd := rand.New(rand.NewPCG(7, 8))
	cancelled := map[string]int{}
	for n := range times(24, 200) {
		writeFile(t, src+"/new", random(uint64(n), 12<<20))
		running := runtime.NumGoroutine()
		r := p.open("cache")
		// Once: what was cancelled may ask for a moment still.
		var at canceller
		r.repo.Store = remotetest.NewFaulty(r.repo.Store, at.hook)
		snapshotsBefore, err := r.List(t.Context(), nil)
		must(t, err)
		try := func(what string, f func(context.Context) error) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			if n%2 == 0 {
				at.set(n/2+1, func() { cancel(errAway) })
			} else {
				timer := time.AfterFunc(time.Duration(rnd.Int64N(int64(60*time.Millisecond))), func() { cancel(errAway) })
				defer timer.Stop()
			}
			err := f(ctx)
			at.set(0, nil)
			switch {
			case err == nil:
			case !errors.Is(err, errAway) && !errors.Is(err, context.Canceled) || errors.Is(err, snapshot.ErrIntegrity):
				t.Errorf("%s %d: %v", what, n, err)
			default:
				cancelled[what]++
			}
		}
		var made bool
		try("create", func(ctx context.Context) error {
			_, err := r.Create(ctx, src, nil)
			made = err == nil
			return err
		})
		after, err := r.List(t.Context(), nil)
		must(t, err)
		if !made && len(after) != len(snapshotsBefore) {
			t.Errorf("create %d was cancelled, and there is a snapshot more", n)
		}
		try("restore", func(ctx context.Context) error {
			_, err := r.Restore(ctx, first, dst, &RestoreOptions{Delete: true})
			if err == nil {
				must(t, os.RemoveAll(dst))
				p.files("dst", map[string]string{"old": "tree"})
				before = scan(t, dst)
			}
			return err
		})
		compare(t, before, scan(t, dst))
		if left := leftovers(t, p.dir); len(left) > 0 {
			t.Errorf("%d: %s is left", n, left)
		}
		try("list", func(ctx context.Context) error { _, err := r.List(ctx, nil); return err })
		must(t, r.Close())
		goroutines(t, running)
	}
	t.Logf("cancelled: %v", cancelled)
	if cancelled["create"] == 0 || cancelled["restore"] == 0 {
		t.Error("nothing was cancelled")
	}
	last := complete(t, p.open("cache"), src, nil)
	p.check(last.ID, scan(t, src))
	for _, f := range filesBelow(t, p.cache) {
		if strings.Contains(f, "/.tmp-") {
			t.Errorf("%s is left", f)
		}
	}
}

// TestCancelKeepsUploads: what a cancelled create has uploaded is not uploaded
// again.
func TestCancelKeepsUploads(t *testing.T) {
	for _, why := range []string{"cancelled", "failed"}[:times(2, 2)] {
		t.Run(why, func(t *testing.T) {
			p := newPlace(t)
			r := p.init()
			src := p.files("src", map[string]string{})
			for i := range 5 {
				writeFile(t, fmt.Sprintf("%s/%d", src, i), random(uint64(i), 9<<20))
			}
			store := switchable(r)
			whole := store.get()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var mu sync.Mutex
			packs := 0
			store.set(&afterPut{remotetest.NewFaulty(whole, func(op remote.Op, name string) remotetest.Fault {
				mu.Lock()
				defer mu.Unlock()
				if why == "failed" && op == remote.OpPut && strings.HasPrefix(name, "packs/") && packs >= 3 {
					return remotetest.Fault{Err: errAway}
				}
				return remotetest.Fault{}
			}), func(name string) {
				mu.Lock()
				defer mu.Unlock()
				if strings.HasPrefix(name, "packs/") {
					if packs++; packs == 4 && why == "cancelled" {
						cancel()
					}
				}
			}})
			if _, err := r.Create(ctx, src, nil); err == nil {
				t.Fatal("it was not interrupted")
			}
			store.set(whole)
			var total int64
			for i := range 5 {
				total += int64(len(random(uint64(i), 9<<20)))
			}
			for _, cache := range []string{"cache", "another"} {
				r := p.open(cache)
				res := complete(t, r, src, nil)
				// Three packs of 8 MiB were there.
				if res.NewBytes > total-20<<20 {
					t.Errorf("%s: %d bytes of %d are stored again", cache, res.NewBytes, total)
				}
				p.check(res.ID, scan(t, src))
			}
		})
	}
}

//go:build linux

package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// The S3 server is started by the first test that needs it, and serves all.
var s3 struct {
	once   sync.Once
	server *remotetest.Server
	err    error
}

func stopS3() error {
	if s3.server == nil {
		return nil
	}
	return s3.server.Close()
}

// A bucket is a place whose repository is on an S3 server, behind a proxy that
// keeps R2's rules and makes trouble.
type bucket struct {
	*place
	*remotetest.StrictR2
	prefix string
}

func newBucket(t *testing.T) *bucket {
	t.Helper()
	s3.once.Do(func() { s3.server, s3.err = remotetest.StartServer(context.WithoutCancel(t.Context()), "") })
	if errors.Is(s3.err, remotetest.ErrNoTool) {
		t.Skipf("no S3 server to test with: %v", s3.err)
	}
	must(t, s3.err)
	p := newPlace(t)
	prefix := strings.ToLower(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, t.Name()))
	r2 := remotetest.StartStrictR2(t, s3.server, false)
	r2.WriteInterval = 20 * time.Millisecond                           // so that what is tried again need not wait long
	return &bucket{p, r2, fmt.Sprintf("%s-%x", prefix, rand.Uint64())} // it may run several times
}

// store opens the bucket as remote.Open does, but for the patience: tests do not
// wait. retries are counted.
func (b *bucket) store(retries *atomic.Int64) remote.Store {
	b.Helper()
	s, err := remote.OpenS3(b.Context(), b.Config(b.prefix))
	must(b, err)
	return remote.Retry(s, &remote.RetryOptions{Initial: time.Millisecond, Max: 5 * time.Millisecond, Total: tooLong,
		Notify: func(error, time.Duration) {
			if retries != nil {
				retries.Add(1)
			}
		}})
}

func (b *bucket) init() *Repository {
	b.Helper()
	r, err := Init(b.Context(), "", initOf(b), keyed(b, &Options{CacheDir: b.cache, Store: b.store(nil)}))
	must(b, err)
	b.Cleanup(func() { r.Close() })
	return r
}

func (b *bucket) open(cache string, retries *atomic.Int64) *Repository {
	b.Helper()
	r, err := Open(b.Context(), "", keyed(b, &Options{CacheDir: b.path(cache), Store: b.store(retries)}))
	must(b, err)
	b.Cleanup(func() { r.Close() })
	return r
}

// TestS3Troubles makes trouble with every few requests of a create and a restore.
func TestS3Troubles(t *testing.T) {
	plainOnly(t)
	for name, trouble := range map[string]remotetest.Trouble{
		"503":              {Status: http.StatusServiceUnavailable},
		"429":              {Status: http.StatusTooManyRequests, RetryAfter: "0"},
		"500":              {Status: http.StatusInternalServerError},
		"reset":            {Reset: true},
		"answer lost":      {LoseAnswer: true},
		"slow":             {Delay: 30 * time.Millisecond},
		"truncated":        {Truncate: 10},
		"body corrupted":   {Corrupt: true},
		"error with 200":   {Body: `<?xml version="1.0"?><Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>`},
		"garbage with 200": {Body: "<html>please log in</html>"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they wait most of the time
			if strings.HasSuffix(name, "with 200") {
				// Only a listing can tell that such an answer is none.
				testBadListing(t, trouble)
				return
			}
			b := newBucket(t)
			src := manyFiles(b.place, "src")
			want := scan(t, src) // some 3 MiB: a server that refuses a body lets it wait for 500 ms
			b.init()
			var n, retries atomic.Int64
			b.Hook(func(r *http.Request) remotetest.Trouble {
				// The first attempt of most, the second of some.
				if k := n.Add(1); k%3 == 1 || k%7 == 0 {
					return trouble
				}
				return remotetest.Trouble{}
			})
			r := b.open("second", &retries)
			res := complete(t, r, src, nil)
			writeFile(t, src+"/more", random(2, 100))
			second := complete(t, r, src, nil)
			if list, err := b.open("third", &retries).List(t.Context(), nil); len(list) != 2 || err != nil {
				t.Errorf("list: %v, %v", list, err)
			}
			r = b.open("fourth", &retries)
			out := b.path("out")
			restore(t, r, res.ID.String(), out, nil)
			compare(t, want, scan(t, out))
			restore(t, r, second.ID.String(), out, &RestoreOptions{Delete: true})
			compare(t, scan(t, src), scan(t, out))
			if retries.Load() == 0 && name != "slow" {
				t.Error("nothing was tried again")
			}
		})
	}
}

// testBadListing: an answer to a listing that is none is not an empty list.
func testBadListing(t *testing.T, trouble remotetest.Trouble) {
	b := newBucket(t)
	src := b.files("src", map[string]string{"f": string(random(1, 1<<20))})
	complete(t, b.init(), src, nil)
	s, err := remote.OpenS3(b.Context(), b.Config(b.prefix))
	must(t, err)
	b.Hook(func(r *http.Request) remotetest.Trouble {
		if r.Method == http.MethodGet && r.URL.Query().Has("list-type") {
			return trouble
		}
		return remotetest.Trouble{}
	})
	r, err := Open(t.Context(), "", keyed(t, &Options{CacheDir: b.path("empty"), Store: s}))
	must(t, err)
	defer r.Close()
	if all, err := r.List(t.Context(), nil); err == nil {
		t.Errorf("list gave %v", all)
	}
	writeFile(t, src+"/f", random(2, 1<<20))
	if res, err := r.Create(t.Context(), src, nil); err == nil {
		t.Errorf("create gave %+v", res)
	}
	b.Hook(nil)
	if all, err := r.List(t.Context(), nil); len(all) != 1 || err != nil {
		t.Errorf("list when all is well again: %v, %v", all, err)
	}
}

// TestS3Away: the server goes away in the middle and comes back.
func TestS3Away(t *testing.T) {
	b := newBucket(t)
	src := b.files("src", map[string]string{"large": string(random(1, 20<<20)), "small": "1"})
	b.init()
	var retries atomic.Int64
	r := b.open("second", &retries)
	away := func(when func(*http.Request) bool) {
		var gone, seen atomic.Int64
		b.Hook(func(req *http.Request) remotetest.Trouble {
			if when(req) && seen.Add(1) == 2 {
				gone.Store(1)
			}
			// It is back after forty requests.
			if gone.Load() > 0 && gone.Add(1) < 40 {
				return remotetest.Trouble{Reset: true}
			}
			return remotetest.Trouble{}
		})
	}
	away(func(req *http.Request) bool { return req.Method == http.MethodPut })
	res := complete(t, r, src, nil)
	away(func(req *http.Request) bool { return strings.Contains(req.URL.Path, "/packs/") })
	out := b.path("out")
	restore(t, b.open("third", &retries), res.ID.String(), out, nil)
	compare(t, scan(t, src), scan(t, out))
	if retries.Load() < 10 {
		t.Errorf("%d retries", retries.Load())
	}
}

// errAway is a failure for which there is no retry.
var errAway = errors.New("the test has this fail")

// TestFailAtEveryRequest lets one request fail for good, the first, the second
// and so on: no create that failed leaves a snapshot, no restore that failed
// changes the target, and both succeed afterwards.
func TestFailAtEveryRequest(t *testing.T) {
	for _, done := range []bool{false, true} {
		t.Run(fmt.Sprintf("done %v", done), func(t *testing.T) {
			p := newPlace(t)
			base := remotetest.NewMemory()
			init, err := Init(t.Context(), "", initOf(t), keyed(t, &Options{CacheDir: p.cache, Store: base}))
			must(t, err)
			src := p.files("src", map[string]string{"a": string(random(1, 1000)), "b/c": string(random(2, 200_000))})
			complete(t, init, src, nil)
			must(t, init.Close())
			dst := p.files("dst", map[string]string{"old": "tree"})

			failed := map[remote.Op]int{} // by who comes as the n-th, and no other
			for n := 1; ; n++ {
				if n > 60 {
					t.Fatal("a create and a restore of a small tree take more than 60 requests")
				}
				writeFile(t, src+"/new", random(uint64(n), 1<<20))
				mem := copyOf(t, base) // or there would be more requests every time
				var count atomic.Int64
				var armed atomic.Bool // what a read brings ahead goes on behind its end
				armed.Store(true)
				store := remotetest.NewFaulty(mem, func(op remote.Op, name string) remotetest.Fault {
					if armed.Load() && count.Add(1) == int64(n) {
						failed[op]++
						return remotetest.Fault{Err: errAway, Done: done}
					}
					return remotetest.Fault{}
				})
				cache := p.path(fmt.Sprintf("cache-%d", n))
				r, err := Open(t.Context(), "", keyed(t, &Options{CacheDir: cache, Store: store}))
				if n == 1 || err != nil {
					if !errors.Is(err, errAway) || n > 1 && (!onEncrypted(t) || n > 3) {
						t.Fatalf("open: %v", err)
					}
					continue
				}
				armed.Store(false)
				before, err := r.List(t.Context(), nil)
				must(t, err)
				armed.Store(true)
				_, err = r.Create(t.Context(), src, nil)
				armed.Store(false)
				// The last answer of all may be lost: then nobody can know.
				if after, lerr := r.List(t.Context(), nil); err != nil && len(after) != len(before) && !done || lerr != nil {
					t.Errorf("request %d failed, and so did create (%v), but there is a snapshot more (%v)", n, err, lerr)
				}
				if err != nil && !errors.Is(err, errAway) {
					t.Errorf("request %d: %v", n, err)
				}
				res := complete(t, r, src, nil)
				armed.Store(true)
				_, err = r.Restore(t.Context(), res.ID.String(), dst, &RestoreOptions{Delete: true})
				armed.Store(false)
				if err != nil {
					if !errors.Is(err, errAway) || errors.Is(err, snapshot.ErrIntegrity) {
						t.Errorf("request %d: restore: %v", n, err)
					}
					if n := scan(t, dst)["old"]; n.Size == 0 && n.Sum == "" && scan(t, dst)["new"].Size == 0 {
						t.Error("the target is gone")
					}
				}
				restore(t, r, res.ID.String(), dst, &RestoreOptions{Delete: true})
				compare(t, scan(t, src), scan(t, dst))
				must(t, r.Close())
				must(t, os.RemoveAll(cache))
				if left := leftovers(t, p.dir); len(left) > 0 {
					t.Fatalf("request %d: %s is left", n, left)
				}
				if count.Load() < int64(n) {
					t.Logf("%d requests: %v failed", n, failed)
					return
				}
			}
		})
	}
}

func copyOf(t testing.TB, from remote.Store) remote.Store {
	t.Helper()
	to := remotetest.NewMemory()
	must(t, from.List(t.Context(), "", func(o remote.Info) error {
		b, err := from.Get(t.Context(), o.Name)
		if err == nil {
			err = to.Put(t.Context(), o.Name, b)
		}
		return err
	}))
	return to
}

// TestSegmentNotWritten: the manifest arrives, the segment beside it does not.
func TestSegmentNotWritten(t *testing.T) {
	for _, which := range []string{repo.SegmentPrefix, "manifests/"} {
		p := newPlace(t)
		r := p.init()
		src := p.files("src", map[string]string{"f": string(random(1, 100_000))})
		store := switchable(r)
		whole := store.get()
		other := "manifests/"
		if which == other {
			other = repo.SegmentPrefix
		}
		arrived := make(chan struct{})
		var once sync.Once
		faulty := remotetest.NewFaulty(whole, func(op remote.Op, name string) remotetest.Fault {
			if op == remote.OpPut && strings.HasPrefix(name, which) {
				// The other first, if it does not wait for this one.
				select {
				case <-arrived:
				case <-time.After(200 * time.Millisecond):
				}
				return remotetest.Fault{Err: errAway}
			}
			return remotetest.Fault{}
		})
		store.set(&afterPut{faulty, func(name string) {
			if strings.HasPrefix(name, other) {
				once.Do(func() { close(arrived) })
			}
		}})
		res, err := r.Create(t.Context(), src, nil)
		store.set(whole)
		all, lerr := r.List(t.Context(), nil)
		must(t, lerr)
		switch {
		case err != nil && len(all) != 0:
			t.Errorf("without %s create fails (%v), and yet there is a snapshot", which, err)
		case err == nil && (len(all) != 1 || all[0].ID != res.ID):
			t.Errorf("without %s create succeeds, and there are the snapshots %v", which, all)
		}
		res = complete(t, r, src, nil)
		p.check(res.ID, scan(t, src))
	}
}

// afterPut tells of objects that were put.
type afterPut struct {
	remote.Store
	f func(name string)
}

func (a *afterPut) Put(ctx context.Context, name string, data []byte) error {
	err := a.Store.Put(ctx, name, data)
	if err == nil {
		a.f(name)
	}
	return err
}

// TestWrongBytes: what the store gives is not what was put. No byte of it gets
// into a file.
func TestWrongBytes(t *testing.T) {
	for name, fault := range map[string]remotetest.Fault{
		"flipped": {Corrupt: true}, "short": {Short: true}, "missing": {Err: remote.ErrNotExist},
	} {
		for _, prefix := range []string{"packs/", "manifests/"} {
			for _, op := range []remote.Op{remote.OpGet, remote.OpReadAt} {
				t.Run(fmt.Sprintf("%s %s %v", name, prefix, op), func(t *testing.T) {
					p := newPlace(t)
					r := p.init()
					store := switchable(r)
					if op == remote.OpGet { // both ways to read a tree pack
						r.repo.Dir = ""
					}
					src := manyFiles(p, "src")
					id := complete(t, r, src, nil).ID.String()
					must(t, os.RemoveAll(r.repo.Cache.Root+"/tree"))
					dst := p.files("dst", map[string]string{"old": "tree"})
					before := scan(t, dst)
					whole := store.get()
					var hit atomic.Int64
					store.set(remotetest.NewFaulty(whole, func(o remote.Op, n string) remotetest.Fault {
						if o == op && strings.HasPrefix(n, prefix) {
							hit.Add(1)
							return fault
						}
						return remotetest.Fault{}
					}))
					_, err := r.Restore(t.Context(), id, dst, &RestoreOptions{Delete: true})
					if hit.Load() == 0 {
						t.Skip("no such request")
					}
					switch {
					case err == nil && prefix == "manifests/" && op == remote.OpReadAt && name != "missing":
						return // what was hit of the head is not used, or was asked for again
					case name == "missing" && prefix == "manifests/":
						if !errors.Is(err, snapshot.ErrNotFound) {
							t.Error(err)
						}
					case !errors.Is(err, snapshot.ErrIntegrity):
						t.Errorf("error is %v", err)
					}
					compare(t, before, scan(t, dst))
					store.set(whole)
					restore(t, r, id, dst, &RestoreOptions{Delete: true})
					compare(t, scan(t, src), scan(t, dst))
				})
			}
		}
	}
}

// TestPutIsDamaged: a store that keeps other bytes than it was given. The
// snapshot is damaged, and says so.
func TestPutIsDamaged(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := manyFiles(p, "src")
	store := switchable(r)
	whole := store.get()
	store.set(remotetest.NewFaulty(whole, func(op remote.Op, name string) remotetest.Fault {
		return remotetest.Fault{Corrupt: op == remote.OpPut && strings.HasPrefix(name, "packs/")}
	}))
	id := complete(t, r, src, nil).ID.String()
	store.set(whole)
	if _, err := r.Restore(t.Context(), id, p.path("out"), nil); !errors.Is(err, snapshot.ErrIntegrity) {
		t.Error(err)
	}
	if _, err := os.Stat(p.path("out")); !errors.Is(err, os.ErrNotExist) {
		t.Error("there is a target", err)
	}
}

// TestRetriedPut: the answer of every put is lost, and the object is there.
func TestRetriedPut(t *testing.T) {
	b := newBucket(t)
	src := b.files("src", map[string]string{"f": string(random(1, 9<<20))})
	b.init()
	r := b.open("second", nil)
	lost := map[string]bool{}
	b.Hook(func(req *http.Request) remotetest.Trouble {
		if req.Method == http.MethodPut && !lost[req.URL.Path] {
			lost[req.URL.Path] = true
			return remotetest.Trouble{LoseAnswer: true}
		}
		return remotetest.Trouble{}
	})
	b.WriteInterval = 0
	res := complete(t, r, src, nil)
	if len(lost) < 3 {
		t.Errorf("only %d answers lost", len(lost))
	}
	if list, err := r.List(t.Context(), nil); len(list) != 1 || err != nil {
		t.Errorf("list: %v, %v", list, err)
	}
	out := b.path("out")
	restore(t, b.open("third", nil), res.ID.String(), out, nil)
	compare(t, scan(t, src), scan(t, out))
}

// TestForeignObjects: what else lies in the repository's folders is none of ours.
func TestForeignObjects(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"f": "1"})
	res := complete(t, r, src, nil)
	ctx := t.Context()
	id := res.ID.String()
	for _, name := range []string{
		"manifests/readme", "manifests/ttl-7d/" + id, "manifests/ttl-8d/" + id, "manifests/x/" + id, "manifests/" + id[:30],
		"index/readme", "index/00", "packs/readme", "packs/00/" + chunk.PackID{}.String(), "other/thing",
		"manifests/00000000-0000-7000-8000-0000000000ff",
		"notes/readme", "notes/" + id + "/readme", "notes/" + id + "/" + id + "/x", "notes/" + id[:30] + "/" + id,
	} {
		must(t, r.repo.Store.Put(ctx, name, []byte("not ours")))
	}
	for _, r := range []*Repository{r, p.open("empty")} {
		if all, err := r.List(ctx, nil); len(all) != 1 || err != nil {
			t.Errorf("list: %v, %v", all, err)
		}
		if s, err := r.Get(ctx, "latest"); err != nil || s.ID != res.ID {
			t.Errorf("latest: %v, %v", s, err)
		}
		writeFile(t, src+"/f", []byte("2"))
		p.check(complete(t, r, src, nil).ID, scan(t, src))
		_, err := retain.Remove(ctx, r.repo, "latest")
		must(t, err)
	}
}

// TestUnreadableRepository: errors of access are not taken for an empty place.
func TestUnreadableRepository(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	store := switchable(r)
	src := p.files("src", map[string]string{"f": "1"})
	complete(t, r, src, nil)
	whole := store.get()
	for _, op := range []remote.Op{remote.OpList, remote.OpGet, remote.OpReadAt} {
		var refused atomic.Int64
		store.set(remotetest.NewFaulty(whole, func(o remote.Op, name string) remotetest.Fault {
			if o == op {
				refused.Add(1)
				return remotetest.Fault{Err: remote.ErrAccess}
			}
			return remotetest.Fault{}
		}))
		must(t, os.RemoveAll(r.repo.Cache.Root))
		if all, err := r.List(t.Context(), nil); err == nil && refused.Load() > 0 {
			t.Errorf("%v fails: list gives %v", op, all)
		}
		refused.Store(0)
		if _, err := r.Get(t.Context(), "nothing"); errors.Is(err, snapshot.ErrNotFound) && refused.Load() > 0 {
			t.Errorf("%v fails: get says %v", op, err)
		}
		refused.Store(0)
		writeFile(t, src+"/f", []byte(op.String()))
		if res, err := r.Create(t.Context(), src, nil); err == nil && refused.Load() > 0 {
			t.Errorf("%v fails: create gives %v", op, res)
		}
	}
	store.set(remotetest.NewFaulty(whole, func(o remote.Op, name string) remotetest.Fault {
		if o == remote.OpList {
			return remotetest.Fault{Err: io.ErrUnexpectedEOF, Entries: 1}
		}
		return remotetest.Fault{}
	}))
	if all, err := r.List(t.Context(), nil); err == nil {
		t.Errorf("a list that breaks off gives %v", all)
	}
}

// TestInit: a place is made a repository once.
func TestInit(t *testing.T) {
	p := newPlace(t)
	ctx := t.Context()
	if _, err := Open(ctx, p.repo, nil); !errors.Is(err, snapshot.ErrNotInitialised) {
		t.Errorf("open before init: %v", err)
	}
	p.init()
	before, err := os.ReadFile(p.repo + "/config")
	must(t, err)
	if _, err := Init(ctx, p.repo, nil, nil); !errors.Is(err, snapshot.ErrExists) {
		t.Errorf("init again: %v", err)
	}
	if after, err := os.ReadFile(p.repo + "/config"); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the config has changed: %v", err)
	}
	if _, err := Init(ctx, p.path("other"), &snapshot.InitOptions{Compression: 23}, nil); !errors.Is(err, snapshot.ErrInvalid) {
		t.Errorf("compression 23: %v", err)
	}
	for _, url := range []string{"", "s3://", "ftp://x/y", "s3://bucket/?endpoint="} {
		if _, err := Open(ctx, url, nil); err == nil {
			t.Errorf("%q opens", url)
		}
	}
}

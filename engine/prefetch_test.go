//go:build linux

package engine

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/internal/access"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
	"github.com/zeebo/blake3"
)

// openWith opens the repository in memory for a test.
func (w *wobbly) openWith(opts *Options) *Repository {
	w.Helper()
	r, err := Open(w.Context(), "", keyed(w, opts))
	must(w, err)
	w.Cleanup(func() { r.Close() })
	return r
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(tooLong); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: it does not come to that", what)
		}
	}
}

func packReads(r *Repository) int64 { return r.Requests().Ops[remote.OpReadAt].Calls }

// TestHydration: in the end all is here, and neither a reader nor a restore nor
// another process's mount fetches anything.
func TestHydration(t *testing.T) {
	w := newWobbly(t)
	id, content := w.snapshot()
	opts := w.options()
	r := w.openWith(opts)
	m := mountAt(t, r, id, w.path("mnt"), nil)
	eventually(t, "hydration", func() bool { s := m.Stats(); return s.PacksHere == s.Packs })
	if s := m.Stats(); s.Packs < 1 || s.Hydrated < 8<<20 {
		t.Errorf("%+v", s)
	}
	w.fail(func(op remote.Op, name string) remotetest.Fault {
		if op == remote.OpReadAt {
			t.Errorf("asked for %s", name)
		}
		return remotetest.Fault{}
	})
	for name, want := range content {
		sameFile(t, m.Dir+"/"+name, want)
	}
	rec := restore(t, r, id.String(), w.path("out"), nil)
	if rec.Fetched != 0 {
		t.Errorf("restore fetched %d bytes", rec.Fetched)
	}
	other := mountAt(t, w.openWith(opts), id, w.path("mnt2"), nil)
	compare(t, scan(t, w.path("src")), scan(t, other.Dir))
	eventually(t, "hydration of the second", func() bool { s := other.Stats(); return s.PacksHere == s.Packs })
}

// TestHydrationLimit: what does not fit is not hydrated, and can be read.
func TestHydrationLimit(t *testing.T) {
	w := newWobbly(t)
	id, content := w.snapshot()
	opts := w.options()
	opts.CacheSize = 6 << 20
	m := mountAt(t, w.openWith(opts), id, w.path("mnt"), nil)
	// Nobody reads meanwhile: what readers fetch is kept while it is in use.
	eventually(t, "the end of hydration", func() bool { return m.ahead.full.Load() })
	if s := m.Stats(); s.PacksHere == s.Packs || s.Hydrated == 0 {
		t.Errorf("%+v", s)
	}
	for name, want := range content {
		sameFile(t, m.Dir+"/"+name, want)
	}
}

// TestHydrationTroubles: hydration outlives the store's being away.
func TestHydrationTroubles(t *testing.T) {
	w := newWobbly(t)
	id, _ := w.snapshot()
	r := w.open()
	var tried atomic.Int64
	w.fail(func(op remote.Op, _ string) remotetest.Fault {
		if op != remote.OpReadAt {
			return remotetest.Fault{}
		}
		tried.Add(1)
		return remotetest.Fault{Err: errors.New("away")}
	})
	m := mountAt(t, r, id, w.path("mnt"), nil)
	eventually(t, "an attempt", func() bool { return tried.Load() > 0 })
	w.heal()
	eventually(t, "hydration", func() bool { s := m.Stats(); return s.PacksHere == s.Packs })
}

// TestHydrationEnds: unmounting ends hydration at once, and nothing goes on.
func TestHydrationEnds(t *testing.T) {
	w := newWobbly(t)
	id, _ := w.snapshot()
	r := w.open()
	var asked atomic.Int64
	w.fail(func(op remote.Op, name string) remotetest.Fault {
		if op == remote.OpReadAt {
			asked.Add(1)
			return remotetest.Fault{Delay: time.Hour}
		}
		return remotetest.Fault{}
	})
	m := mountAt(t, r, id, w.path("mnt"), nil)
	eventually(t, "hydration", func() bool { return asked.Load() > 0 })
	start := time.Now()
	must(t, m.Unmount(false))
	must(t, r.Close())
	if d := time.Since(start); d > tooLong {
		t.Errorf("it took %s", d)
	}
}

// TestPrefetchNone: little is fetched that nobody asked for.
func TestPrefetchNone(t *testing.T) {
	plainOnly(t)
	w := newWobbly(t)
	id, content := w.snapshot()
	r := w.open()
	m := mountAt(t, r, id, w.path("mnt"), &MountOptions{Prefetch: PrefetchNone})
	sameFile(t, m.Dir+"/dir/3", content["dir/3"])
	// As long as another one takes to fetch everything.
	all := mountAt(t, w.open(), id, w.path("all"), nil)
	eventually(t, "hydration of the other", func() bool { s := all.Stats(); return s.PacksHere == s.Packs })
	if s := m.Stats(); s.Hydrated != 0 || s.Fetched > 5<<20 {
		t.Errorf("%+v", s)
	}
	if n := r.Requests().Ops[remote.OpList].Calls; n != 0 {
		t.Errorf("%d listings", n)
	}
}

// TestSharedCache: a mount, a restore and a second mount, all at once, by two
// processes' repositories, fetch everything about once.
func TestSharedCache(t *testing.T) {
	w := newWobbly(t)
	id, content := w.snapshot()
	// Who waits too long for the other's fetch fetches for itself: on a machine that was
	// paused, too.
	var fetched int64
	for try := range 5 {
		opts := w.options()
		one, two := w.openWith(opts), w.openWith(opts)
		a := mountAt(t, one, id, w.path(fmt.Sprint("a", try)), &MountOptions{Prefetch: PrefetchNone})
		b := mountAt(t, two, id, w.path(fmt.Sprint("b", try)), &MountOptions{Prefetch: PrefetchNone})
		var wg sync.WaitGroup
		for _, dir := range []string{a.Dir, b.Dir} {
			wg.Go(func() {
				for name, want := range content {
					sameFile(t, dir+"/"+name, want)
				}
			})
		}
		out := w.path(fmt.Sprint("out", try))
		wg.Go(func() { restore(t, two, id.String(), out, nil) })
		wg.Wait()
		compare(t, scan(t, w.path("src")), scan(t, out))
		if fetched = one.repo.DiskCache().Stats().FetchedBytes + two.repo.DiskCache().Stats().FetchedBytes; fetched <= 14<<20 {
			return
		}
	}
	t.Errorf("%d bytes were fetched of 8 MiB", fetched)
}

// hotIsHere waits until all has been fetched that profiles have a mount fetch.
func hotIsHere(t testing.TB, m *Mount) {
	t.Helper()
	frames, _, err := m.ahead.readProfiles(t.Context())
	must(t, err)
	if len(frames) == 0 {
		t.Fatal("no profile names a frame")
	}
	for _, f := range frames {
		eventually(t, "prefetch", func() bool {
			return m.ahead.store.Missing(repo.PackName(f.Pack), int64(f.Offset), int64(f.Stored)) == 0
		})
	}
}

func hotObjects(t testing.TB, r *Repository, id manifest.ID) (names []string) {
	t.Helper()
	must(t, r.repo.Store.List(t.Context(), access.Prefix(id), func(o remote.Info) error {
		names = append(names, o.Name)
		return nil
	}))
	return names
}

// TestProfile: what was read from one mount the next one fetches by itself, and
// nothing else.
func TestProfile(t *testing.T) {
	w := newWobbly(t)
	w.patience.Profile = tooLong
	id, content := w.snapshot()
	first := w.open()
	m := mountAt(t, first, id, w.path("mnt"), &MountOptions{Prefetch: PrefetchNone})
	sameFile(t, m.Dir+"/dir/6", content["dir/6"])
	must(t, m.Unmount(false))
	names := hotObjects(t, first, id)
	if len(names) != 1 {
		t.Fatalf("profiles: %q", names)
	}
	second := w.open()
	m = mountAt(t, second, id, w.path("mnt2"), &MountOptions{Prefetch: PrefetchHot})
	hotIsHere(t, m)
	before := m.Stats()
	sameFile(t, m.Dir+"/dir/6", content["dir/6"])
	if s := m.Stats(); s.Misses != before.Misses || s.Fetched > 3<<20 {
		t.Errorf("%+v, before %+v", s, before)
	}
	must(t, m.Unmount(false))
	if again := hotObjects(t, second, id); len(again) != 1 {
		t.Errorf("profiles: %q", again)
	}
	// More was read: another profile.
	m = mountAt(t, second, id, w.path("mnt3"), &MountOptions{Prefetch: PrefetchHot})
	sameFile(t, m.Dir+"/dir/0", content["dir/0"])
	must(t, m.Unmount(false))
	if again := hotObjects(t, second, id); len(again) != 2 {
		t.Errorf("profiles: %q", again)
	}
	// Who may not write, mounts all the same.
	w.fail(func(op remote.Op, name string) remotetest.Fault {
		if op == remote.OpPut {
			return remotetest.Fault{Err: remote.ErrAccess}
		}
		return remotetest.Fault{}
	})
	m = mountAt(t, w.open(), id, w.path("mnt4"), &MountOptions{Prefetch: PrefetchHot})
	sameFile(t, m.Dir+"/dir/3", content["dir/3"])
	must(t, m.Unmount(false))
}

// TestProfileOfAncestor: what was read of a snapshot is fetched for one that was
// made from it, also if there is another in between.
func TestProfileOfAncestor(t *testing.T) {
	w := newWobbly(t)
	w.patience.Profile = tooLong
	id, content := w.snapshot()
	first := w.open()
	m := mountAt(t, first, id, w.path("mnt"), &MountOptions{Prefetch: PrefetchNone})
	sameFile(t, m.Dir+"/dir/6", content["dir/6"])
	must(t, m.Unmount(false))
	for i := range 2 {
		writeFile(t, w.path("src", "more"), random(uint64(100+i), 1000))
		id = complete(t, first, w.path("src"), &CreateOptions{Parent: id.String()}).ID
	}
	m = mountAt(t, w.open(), id, w.path("mnt"), &MountOptions{Prefetch: PrefetchHot})
	hotIsHere(t, m)
	before := m.Stats()
	sameFile(t, m.Dir+"/dir/6", content["dir/6"])
	if s := m.Stats(); s.Misses != before.Misses {
		t.Errorf("%+v, before %+v", s, before)
	}
	must(t, m.Unmount(false))
}

// TestHostileProfile: a profile that is damaged, another's, or names what is not
// the snapshot's is left out with a word in the log.
func TestHostileProfile(t *testing.T) {
	plainOnly(t)
	w := newWobbly(t)
	id, content := w.snapshot()
	put := func(b []byte) {
		sum := blake3.Sum256(b)
		must(t, w.mem.Put(t.Context(), access.Prefix(id)+hex.EncodeToString(sum[:]), b))
	}
	put([]byte("no profile"))
	put(access.Encode(&repo.Repo{}, someProfile(manifest.NewID(0))))
	put(access.Encode(&repo.Repo{}, someProfile(id))) // of packs that there are not, with a bundle that is none
	must(t, w.mem.Put(t.Context(), access.Prefix(id)+"another-name", access.Encode(&repo.Repo{}, someProfile(id))))
	var log syncWriter
	opts := w.options()
	opts.Log = slog.New(slog.NewTextHandler(&log, nil))
	r := w.openWith(opts)
	m := mountAt(t, r, id, w.path("mnt"), &MountOptions{Prefetch: PrefetchHot})
	sameFile(t, m.Dir+"/dir/6", content["dir/6"])
	leftOut := func() int { return strings.Count(log.String(), "access profile left out") }
	eventually(t, "profiles", func() bool { return leftOut() >= 4 })
	must(t, m.Unmount(false))
	if n := leftOut(); n != 4 {
		t.Errorf("%d were left out:\n%s", n, log.String())
	}
}

// scattered makes a snapshot of small files that share frames, reads some of them in
// a mount, and gives their names.
func (w *wobbly) scattered() (r *Repository, id manifest.ID, names []string) {
	w.Helper()
	r, err := Init(w.Context(), "", nil, w.options())
	must(w, err)
	w.Cleanup(func() { r.Close() })
	for i := range 2000 {
		writeFile(w, fmt.Sprintf("%s/%d/some-file-%d", w.path("src"), i%50, i), random(uint64(i), 3000))
	}
	id = complete(w, r, w.path("src"), nil).ID
	for i := 0; i < 2000; i += 130 {
		names = append(names, fmt.Sprintf("%d/some-file-%d", i%50, i))
	}
	w.readInMount(w.open(), id, names, &MountOptions{Prefetch: PrefetchNone})
	return r, id, names
}

// readInMount reads files of a snapshot of w's src in a mount of its own.
func (w *wobbly) readInMount(r *Repository, id manifest.ID, names []string, opts *MountOptions) {
	w.Helper()
	m := mountAt(w, r, id, w.path("mnt"), opts)
	for _, name := range names {
		want, err := os.ReadFile(w.path("src", name))
		must(w, err)
		sameFile(w, m.Dir+"/"+name, want)
	}
	must(w, m.Unmount(false))
}

// TestBundle: what was read here and there the next mount has from the profile alone,
// without a look at any pack; so has a mount of a snapshot that was made of that one.
func TestBundle(t *testing.T) {
	needRoot(t)
	w := newWobbly(t)
	w.patience.Profile = tooLong
	r, id, names := w.scattered()
	objects := hotObjects(t, r, id)
	if len(objects) != 1 {
		t.Fatalf("profiles: %q", objects)
	}
	if info, err := r.repo.Store.Stat(t.Context(), objects[0]); err != nil || info.Size > 1<<20 {
		t.Errorf("a profile of %d bytes, %v", info.Size, err)
	}
	writeFile(t, w.path("src", "more"), random(1, 1000))
	child := complete(t, r, w.path("src"), &CreateOptions{Parent: id.String()}).ID
	for _, id := range []manifest.ID{id, child} {
		reads := w.countPackReads()
		r := w.open()
		w.readInMount(r, id, names, &MountOptions{Prefetch: PrefetchHot})
		// The child's tree has pages of its own.
		if n := reads.Load(); n > 0 && id != child {
			t.Errorf("%v: %d reads of packs", id, n)
		}
		w.heal()
		if again := hotObjects(t, r, id); id != child && len(again) != 1 {
			t.Errorf("profiles: %q", again)
		}
	}
}

// countPackReads counts requests for parts of packs.
func (w *wobbly) countPackReads() *atomic.Int64 {
	var n atomic.Int64
	w.fail(func(op remote.Op, name string) remotetest.Fault {
		if op == remote.OpReadAt && strings.HasPrefix(name, "packs/") {
			n.Add(1)
		}
		return remotetest.Fault{}
	})
	return &n
}

// TestBundleTroubles: a bundle whose chunks are not what they are called, one that
// does not come, and one that comes late: everything is read as it should be.
func TestBundleTroubles(t *testing.T) {
	needRoot(t)
	w := newWobbly(t)
	w.patience.Profile = tooLong
	r, id, names := w.scattered()
	// Another's contents under these ids, in a profile that is whole.
	b := access.NewBundler(r.repo.Codec)
	m := mountAt(t, w.open(), id, w.path("mnt"), &MountOptions{Prefetch: PrefetchNone})
	for _, name := range names {
		_, err := os.ReadFile(m.Dir + "/" + name)
		must(t, err)
	}
	m.ahead.rec.Mu.Lock()
	for _, x := range m.ahead.rec.Touched {
		b.Add(x.Id, random(7, int(x.Loc.Length)), x.Page)
	}
	m.ahead.rec.Mu.Unlock()
	must(t, m.Unmount(false))
	must(t, r.repo.Store.Delete(t.Context(), hotObjects(t, r, id)...))
	must(t, access.Put(t.Context(), r.repo, &access.Profile{Snapshot: id, Bundle: b.Finish()}))
	w.readInMount(w.open(), id, names, &MountOptions{Prefetch: PrefetchHot})
	w.patience.Hot = time.Millisecond
	for name, fault := range map[string]remotetest.Fault{"gone": {Err: remote.ErrNotExist}, "late": {Delay: time.Hour}} {
		w.fail(func(op remote.Op, object string) remotetest.Fault {
			if strings.HasPrefix(object, repo.ProfilePrefix) && op != remote.OpPut {
				return fault
			}
			return remotetest.Fault{}
		})
		t.Log(name)
		w.readInMount(w.open(), id, names, &MountOptions{Prefetch: PrefetchHot})
		w.heal()
	}
}

// syncWriter keeps what is written to it.
type syncWriter struct {
	mu sync.Mutex
	w  bytes.Buffer
}

func (s *syncWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

func (s *syncWriter) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.String()
}

// TestMountRequests pins what stands between a fresh process and a mount that can
// be used: the config and the manifest, side by side. A name takes the listings of
// manifests and notes instead, and then the manifest.
func TestMountRequests(t *testing.T) {
	plainOnly(t)
	needRoot(t)
	w := newWobbly(t)
	r, err := Init(t.Context(), "", initOf(t), keyed(t, w.options()))
	must(t, err)
	defer r.Close()
	for i := range 3000 {
		writeFile(t, fmt.Sprintf("%s/%d/%d", w.path("src"), i%50, i), []byte(fmt.Sprint("file ", i)))
	}
	id := complete(t, r, w.path("src"), &CreateOptions{Name: "app"}).ID
	for ref, want := range map[string]int64{id.String(): 2, "app": 4, "latest": 4} {
		var inFront, asked atomic.Int64
		w.fail(func(op remote.Op, name string) remotetest.Fault {
			asked.Add(1)
			if op == remote.OpReadAt || strings.HasPrefix(name, "leases/") || strings.HasPrefix(name, repo.ProfilePrefix) {
				return remotetest.Fault{Delay: time.Hour} // the mount does not wait for these
			}
			inFront.Add(1)
			return remotetest.Fault{}
		})
		opts := w.options()
		opts.Ref = ref
		r := w.openWith(opts)
		must(t, os.MkdirAll(w.path("mnt"), 0o755))
		ctx, cancel := context.WithTimeout(t.Context(), tooLong)
		m, err := r.Mount(ctx, ref, w.path("mnt"), &MountOptions{Prefetch: PrefetchNone})
		cancel()
		must(t, err)
		if n := inFront.Load(); n != want {
			t.Errorf("%s: %d requests, want %d", ref, n, want)
		}
		w.heal()
		must(t, m.Unmount(false))
	}
}

// TestTreePacks: a walk over a tree takes few requests, and what is made here is
// not fetched.
func TestTreePacks(t *testing.T) {
	w := newWobbly(t)
	r, err := Init(t.Context(), "", initOf(t), keyed(t, w.options()))
	must(t, err)
	defer r.Close()
	for i := range 20_000 {
		writeFile(t, fmt.Sprintf("%s/%d/some-file-%d", w.path("src"), i%500, i), nil)
	}
	id := complete(t, r, w.path("src"), nil).ID
	entriesOf(t, r, id)
	if n := packReads(r); n != 0 {
		t.Errorf("%d requests for what was made here", n)
	}
	other := w.open()
	entriesOf(t, other, id)
	must(t, other.Close())
	if n := packReads(other); n == 0 || n > 4 {
		t.Errorf("%d requests for a tree", n)
	}
}

// TestSharedCacheS3: through a real S3 server, a mount and two restores share one
// folder, each with a cache of its own on it, and a restore after that fetches
// nothing.
func TestSharedCacheS3(t *testing.T) {
	b := newBucket(t)
	r := b.init()
	src := b.path("src")
	for i := range 40 {
		writeFile(t, fmt.Sprintf("%s/%d/%d", src, i%7, i), random(uint64(i), 300_000))
	}
	id := complete(t, r, src, nil).ID
	want := scan(t, src)
	shared := b.open("shared", nil)
	m := mountAt(t, shared, id, b.path("mnt"), nil)
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() { restore(t, b.open("shared", nil), id.String(), b.path(fmt.Sprint("out", i)), nil) })
	}
	compare(t, want, scan(t, m.Dir))
	wg.Wait()
	for i := range 2 {
		compare(t, want, scan(t, b.path(fmt.Sprint("out", i))))
	}
	eventually(t, "hydration", func() bool { s := m.Stats(); return s.PacksHere == s.Packs })
	before := packReads(shared)
	rec := restore(t, shared, id.String(), b.path("out"), nil)
	if rec.Fetched != 0 || packReads(shared) != before {
		t.Errorf("a restore after the mount fetched %d bytes", rec.Fetched)
	}
}

// TestProfileOnCreate: when a fork is snapshotted, what was read through the mount below
// it so far is saved, whoever serves that.
func TestProfileOnCreate(t *testing.T) {
	needRoot(t)
	for _, own := range []bool{true, false} {
		t.Run(fmt.Sprintf("own %v", own), func(t *testing.T) {
			w := newWobbly(t)
			w.patience.Profile = tooLong
			id, content := w.snapshot()
			opts := w.options()
			opts.StateDir = w.path("state")
			server := w.openWith(opts)
			fork, err := server.Fork(t.Context(), id.String(), w.path("fork"), nil)
			must(t, err)
			defer func() {
				_, err := fork.Remove(context.Background(), nil)
				must(t, err)
			}()
			sameFile(t, fork.Dir+"/dir/6", content["dir/6"])
			if names := hotObjects(t, server, id); len(names) != 0 {
				t.Errorf("profiles: %q", names)
			}
			creator := server
			if !own {
				creator = w.openWith(&Options{CacheDir: w.path("other"), Store: opts.Store, StateDir: opts.StateDir})
			}
			writeFile(t, fork.Dir+"/new", []byte("new"))
			child := complete(t, creator, fork.Dir, nil)
			if child.Parent == nil || *child.Parent != id {
				t.Errorf("%+v", child)
			}
			eventually(t, "profile", func() bool {
				if len(hotObjects(t, server, id)) == 1 {
					return true
				}
				complete(t, creator, fork.Dir, nil) // which does not wait long for who serves
				return false
			})
		})
	}
}

// TestProfileOfTimes: the first snapshot of a directory has a profile of the files that
// were read since they were written, and the very first mount goes by it.
func TestProfileOfTimes(t *testing.T) {
	needRoot(t)
	w := newWobbly(t)
	w.patience.Profile = tooLong
	r, err := Init(t.Context(), "", nil, w.options())
	must(t, err)
	defer r.Close()
	var names []string
	for i := range 2000 {
		name := fmt.Sprintf("%d/some-file-%d", i%50, i)
		writeFile(t, w.path("src", name), random(uint64(i), 3000))
		if i%130 == 0 {
			names = append(names, name)
			// As reading it later would.
			must(t, os.Chtimes(w.path("src", name), time.Now().Add(time.Duration(3600-i)*time.Second), time.Now()))
		}
	}
	first := complete(t, r, w.path("src"), nil)
	if n := len(hotObjects(t, r, first.ID)); n != 1 {
		t.Fatalf("%d profiles", n)
	}
	reads := w.countPackReads()
	other := w.open()
	w.readInMount(other, first.ID, names, &MountOptions{Prefetch: PrefetchHot})
	if n := reads.Load(); n > 0 {
		t.Errorf("%d reads of packs", n)
	}
	// What has a parent goes by that one's mounts; a tree that was read as a whole tells
	// nothing.
	if second := complete(t, r, w.path("src"), nil); len(hotObjects(t, r, second.ID)) != 0 {
		t.Error("a profile of the second snapshot")
	}
	for i := range 2000 {
		name := w.path("src", fmt.Sprintf("%d/some-file-%d", i%50, i))
		must(t, os.Chtimes(name, time.Now().Add(time.Hour), time.Now()))
	}
	if third := complete(t, w.open(), w.path("src"), nil); len(hotObjects(t, r, third.ID)) != 0 {
		t.Error("a profile of what was all read")
	}
}

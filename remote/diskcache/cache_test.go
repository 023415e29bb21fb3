package diskcache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/diskcache"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// TestCachedStore runs the suite through the cache, which must change nothing:
// with much room, with next to none, and with no place to store anything.
func TestCachedStore(t *testing.T) {
	for name, limit := range map[string]int64{"room": 1 << 30, "little": mib, "none": 0} {
		t.Run(name, func(t *testing.T) {
			remotetest.Run(t, func(t *testing.T) remote.Store {
				c := openCache(t, t.TempDir(), limit, nil)
				return c.Wrap(remote.Retry(remotetest.NewMemory(), nil), "repo")
			})
		})
	}
}

// TestCacheRequests: what is asked of the store is whole windows, once each,
// and a later process asks for nothing.
func TestCacheRequests(t *testing.T) {
	const size = 5*mib + 7
	data := remotetest.Random(1, size)
	o := newOrigin(t, map[string][]byte{"packs/a": data, "packs/b": data, "other/a": data})
	dir := t.TempDir()
	c := openCache(t, dir, 1<<30, nil)
	s := c.Wrap(o, "repo")

	for _, step := range []struct {
		off, n int
		want   []string
	}{
		{100, 10, []string{"packs/a 0+1048576"}},
		{0, mib, nil},
		{mib - 10, 20, []string{"packs/a 1048576+1048576"}},
		{4*mib + 5, 100, []string{"packs/a 4194304+1048576"}},
		{mib, 4 * mib, []string{"packs/a 2097152+2097152"}}, // the gap, in one piece
		{size - 1, 1, []string{"packs/a 5242880+1048576"}},  // it is not known where the object ends
		{0, size, nil},
	} {
		read(t, s, "packs/a", data, step.off, step.n)
		expectAsked(t, o, step.want...)
	}
	// A read of everything: pieces of 4 MiB, and never beyond the window of the end.
	read(t, s, "packs/b", data, 0, size)
	expectAsked(t, o, "packs/b 0+4194304", "packs/b 4194304+2097152")
	// Not cached.
	read(t, s, "other/a", data, 10, 10)
	read(t, s, "other/a", data, 10, 10)
	expectAsked(t, o, "other/a 10+10", "other/a 10+10")
	want := diskcache.Stats{Misses: 6, Requests: 7, FetchedBytes: 2 * size, Limit: 1 << 30}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	got := c.Stats()
	// A read right after another may find that one's fetch still being stored.
	if got.Hits+got.Shared != 2 || got.Used < 2*size {
		t.Errorf("got %+v", got)
	}
	got.Hits, got.Shared, got.DiskBytes, got.Used = 0, 0, 0, 0
	if got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	again := openCache(t, dir, 1<<30, nil).Wrap(o, "repo")
	if got := again.Missing("packs/a", 0, size); got != 0 {
		t.Errorf("missing: %d", got)
	}
	read(t, again, "packs/a", data, 0, size)
	read(t, again, "packs/a", data, size-1, 1)
	expectAsked(t, o)
	// Another repository has other objects, even of the same name.
	read(t, openCache(t, dir, 1<<30, nil).Wrap(o, "repo-2"), "packs/a", data, 0, 1)
	expectAsked(t, o, "packs/a 0+1048576")
	// A cache that was closed goes on without.
	read(t, s, "packs/a", data, 7, 1)
	expectAsked(t, o, "packs/a 7+1")
}

// TestCacheEnd: the store is asked about what lies behind the end, and believed.
func TestCacheEnd(t *testing.T) {
	const size = 100 * kib
	data := remotetest.Random(1, size)
	o := newOrigin(t, map[string][]byte{"packs/a": data[:size-10]})
	s := openCache(t, t.TempDir(), 1<<30, nil).Wrap(o, "repo")
	short := func(offset int64, n int) {
		t.Helper()
		err := s.ReadAt(t.Context(), "packs/a", offset, make([]byte, n))
		if !errors.Is(err, remote.ErrShort) || strings.Count(err.Error(), "packs/a") != 1 {
			t.Errorf("%d bytes at %d: %v", n, offset, err)
		}
	}
	short(size-20, 20)
	read(t, s, "packs/a", data, size-20, 10)
	expectAsked(t, o, "packs/a 0+1048576", "packs/a 102380+20")
	short(size-20, 20)
	short(size, 1)
	short(mib+5, 1)
	expectAsked(t, o, "packs/a 102380+20", "packs/a 102400+1", "packs/a 1048581+1")
	// It was the store that was wrong: it had given a part only.
	if err := o.Replace(t.Context(), "packs/a", data); err != nil {
		t.Fatal(err)
	}
	read(t, s, "packs/a", data, size-20, 20)
	read(t, s, "packs/a", data, 0, size)
	read(t, s, "packs/a", data, size-20, 20)
	expectAsked(t, o, "packs/a 102380+20", "packs/a 98304+950272")
}

// TestCachePlainStore: a store that cannot tell where objects end.
func TestCachePlainStore(t *testing.T) {
	const size = 3*mib + 7
	data := remotetest.Random(1, size)
	m := remotetest.NewMemory()
	if err := m.Put(t.Context(), "packs/a", data); err != nil {
		t.Fatal(err)
	}
	s := openCache(t, t.TempDir(), 1<<30, nil).Wrap(remotetest.Plain{Store: m}, "repo")
	for range 2 {
		read(t, s, "packs/a", data, size-5, 5)
		read(t, s, "packs/a", data, 0, size)
	}
}

func TestCacheErrors(t *testing.T) {
	data := remotetest.Random(1, mib)
	o := newOrigin(t, nil)
	s := openCache(t, t.TempDir(), 1<<30, nil).Wrap(o, "repo")
	p := make([]byte, 100)
	if err := s.ReadAt(t.Context(), "packs/a", 0, p); !errors.Is(err, remote.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if err := s.Put(t.Context(), "packs/a", data); err != nil {
		t.Fatal(err)
	}
	read(t, s, "packs/a", data, 0, 100) // that there was none is not remembered
	if err := s.Delete(t.Context(), "packs/a"); err != nil {
		t.Fatal(err)
	}
	if err := s.ReadAt(t.Context(), "packs/a", 0, p); !errors.Is(err, remote.ErrNotExist) {
		t.Errorf("got %v", err)
	}

	// What arrived before a failure is good for those who wanted that, and kept.
	if err := s.Put(t.Context(), "packs/a", data); err != nil {
		t.Fatal(err)
	}
	o.asked()
	o.hook = func(_ context.Context, _ string, offset int64, p []byte, arrived func(int)) (int, error) {
		copy(p, data[offset:][:300*kib])
		arrived(200 * kib)
		return 300 * kib, errTest
	}
	read(t, s, "packs/a", data, 1000, 299*kib)
	if err := s.ReadAt(t.Context(), "packs/a", 600*kib, p); !errors.Is(err, errTest) {
		t.Errorf("got %v", err)
	}
	o.asked()
	o.hook = nil
	read(t, s, "packs/a", data, 0, 288*kib) // whole blocks of 16
	expectAsked(t, o)
	read(t, s, "packs/a", data, 0, mib)

	bad := openCache(t, t.TempDir(), 1<<30, nil).Wrap(o, "no/folder")
	read(t, bad, "packs/a", data, 0, 100)
}

// TestCacheTwo: two caches on one folder, as two processes have them, fetch
// once; and one that hangs does not hold up the other for long.
func TestCacheTwo(t *testing.T) {
	if !rangeLocks {
		t.Skip("there are no locks of ranges here")
	}
	data := remotetest.Random(1, 3*mib)
	o := newOrigin(t, map[string][]byte{"packs/a": data})
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		proceed := o.blocking()
		one, two := openCache(t, dir, 1<<30, nil), openCache(t, dir, 1<<30, nil)
		var wg sync.WaitGroup
		wg.Go(func() { read(t, one.Wrap(o, "repo"), "packs/a", data, 5, 10) })
		synctest.Wait()
		wg.Go(func() { read(t, two.Wrap(o, "repo"), "packs/a", data, 1000, 10) })
		time.Sleep(100 * time.Millisecond) // of the bubble's clock: two waits for one
		proceed <- struct{}{}
		wg.Wait()
		expectAsked(t, o, "packs/a 0+1048576")
		if got := two.Stats(); got.Requests != 0 || got.FetchedBytes != 0 {
			t.Errorf("%+v", got)
		}

		// A part is here, a part is being fetched by one, a part is missing.
		wg.Go(func() { read(t, one.Wrap(o, "repo"), "packs/a", data, mib, mib) })
		synctest.Wait()
		wg.Go(func() { read(t, two.Wrap(o, "repo"), "packs/a", data, 0, 3*mib) })
		time.Sleep(100 * time.Millisecond)
		proceed <- struct{}{}
		time.Sleep(100 * time.Millisecond)
		proceed <- struct{}{}
		wg.Wait()
		expectAsked(t, o, "packs/a 1048576+1048576", "packs/a 2097152+1048576")

		// One was stopped: two fetches for itself after its patience.
		one.Wrap(o, "repo").Invalidate("packs/a", 0, mib)
		wg.Go(func() { read(t, one.Wrap(o, "repo"), "packs/a", data, 5, 10) })
		synctest.Wait()
		start := time.Now()
		wg.Go(func() {
			read(t, two.Wrap(o, "repo"), "packs/a", data, 5, 10)
			if d := time.Since(start); d > 3*time.Second {
				t.Errorf("it waited %s", d)
			}
		})
		time.Sleep(3 * time.Second)
		proceed <- struct{}{}
		proceed <- struct{}{}
		wg.Wait()
		expectAsked(t, o, "packs/a 0+1048576", "packs/a 0+1048576")
		one.Close()
		two.Close()
	})
}

// TestInvalidate: bytes that the store gave wrong are fetched again, whether
// they are on the disk or still on their way.
func TestInvalidate(t *testing.T) {
	data := remotetest.Random(1, 2*mib)
	wrong := bytes.Clone(data)
	wrong[1000] ^= 1
	wrong[1500*kib] ^= 1
	o := newOrigin(t, map[string][]byte{"packs/a": wrong})
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := openCache(t, dir, 1<<30, nil)
		s := c.Wrap(o, "repo")
		read(t, s, "packs/a", wrong, 0, 2*mib)
		if err := o.Replace(t.Context(), "packs/a", data); err != nil {
			t.Fatal(err)
		}
		read(t, s, "packs/a", wrong, 0, 2*mib)
		synctest.Wait() // until it is stored
		o.asked()
		s.Invalidate("packs/a", 990, 20)
		read(t, s, "packs/a", data, 0, mib)
		expectAsked(t, o, "packs/a 0+16384")
		s.Invalidate("packs/a", 0, 2*mib)
		read(t, s, "packs/a", data, 0, 2*mib)

		// It arrives wrong, is found to be so, and must not be stored after that.
		s.Invalidate("packs/a", 0, 2*mib)
		proceed := make(chan struct{})
		o.hook = func(_ context.Context, _ string, offset int64, p []byte, arrived func(int)) (int, error) {
			n := copy(p, wrong[offset:])
			arrived(500 * kib)
			<-proceed
			return n, nil
		}
		read(t, s, "packs/a", wrong, 0, 400*kib)
		s.Invalidate("packs/a", 0, 400*kib)
		o.hook = nil
		o.asked()
		read(t, s, "packs/a", data, 0, mib) // it does not join the bad one
		close(proceed)
		synctest.Wait()
		read(t, s, "packs/a", data, 0, 2*mib)
		expectAsked(t, o, "packs/a 0+1048576", "packs/a 1048576+1048576")
		if got := c.Stats().Invalidated; got != 4 {
			t.Errorf("got %d", got)
		}
		c.Close()
	})
}

// TestCacheOpenFiles: few files are open at a time, and none after Close.
func TestCacheOpenFiles(t *testing.T) {
	data := remotetest.Random(1, 100*kib)
	o := newOrigin(t, nil)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	open := func() (n int) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		for _, fd := range fds {
			if path, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(path, dir) {
				n++
			}
		}
		return n
	}
	c := openCache(t, dir, 1<<30, &diskcache.Options{OpenFiles: 3})
	s := c.Wrap(o, "repo")
	for range 2 {
		for i := range 20 {
			name := fmt.Sprintf("packs/%d", i)
			if err := o.Put(t.Context(), name, data); err != nil {
				t.Fatal(err)
			}
			if err := s.Fill(t.Context(), name, 0, -1); err != nil {
				t.Fatal(err)
			}
			read(t, s, name, data, 5, 10_000)
		}
	}
	if n := open(); n < 1 || n > 4 {
		t.Errorf("%d files are open", n)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	read(t, s, "packs/1", data, 0, 10)
	if n := open(); n != 0 {
		t.Errorf("%d files are open", n)
	}
}

// TestCacheFolderDeleted: a cache whose folder is deleted makes a new one, and
// stores nothing in files that nobody can find.
func TestCacheFolderDeleted(t *testing.T) {
	data := remotetest.Random(1, 2*mib)
	o := newOrigin(t, map[string][]byte{"packs/a": data})
	dir := t.TempDir()
	s := openCache(t, dir, 1<<30, nil).Wrap(o, "repo")
	if err := s.Fill(t.Context(), "packs/a", 0, mib); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := s.Fill(t.Context(), "packs/a", mib, mib); err != nil {
		t.Fatal(err)
	}
	o.asked()
	read(t, openCache(t, dir, 1<<30, nil).Wrap(o, "repo"), "packs/a", data, mib, mib)
	expectAsked(t, o)
	read(t, s, "packs/a", data, 0, 2*mib)
}

func TestCacheHitAllocates(t *testing.T) {
	data := remotetest.Random(1, mib)
	o := newOrigin(t, map[string][]byte{"packs/a": data})
	s := openCache(t, t.TempDir(), 1<<30, nil).Wrap(o, "repo")
	if err := s.Fill(t.Context(), "packs/a", 0, -1); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 600_000)
	if n := testing.AllocsPerRun(100, func() { _ = s.ReadAt(t.Context(), "packs/a", 1234, p) }); n > 0 {
		t.Errorf("%g allocations", n)
	}
}

package diskcache_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/diskcache"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// TestFill: large requests, of what is missing only.
func TestFill(t *testing.T) {
	const size = 11*mib + 7
	data := remotetest.Random(1, size)
	o := newOrigin(t, map[string][]byte{"packs/a": data, "packs/b": data[:8*mib]})
	c := openCache(t, t.TempDir(), 1<<30, nil)
	s := c.Wrap(o, "repo")
	if err := s.Fill(t.Context(), "packs/a", 5*mib, mib); err != nil {
		t.Fatal(err)
	}
	o.asked()
	if got := s.Missing("packs/a", 4*mib, 2*mib); got != mib {
		t.Errorf("missing: %d", got)
	}
	if err := s.Fill(t.Context(), "packs/a", 100, 6*mib); err != nil {
		t.Fatal(err)
	}
	expectAsked(t, o, "packs/a 0+4194304", "packs/a 4194304+1048576", "packs/a 6291456+16384")
	for range 2 {
		if err := s.Fill(t.Context(), "packs/a", 0, -1); err != nil {
			t.Fatal(err)
		}
	}
	expectAsked(t, o, "packs/a 10502144+4194304", "packs/a 6307840+4194304")
	read(t, s, "packs/a", data, 0, size)
	if got := s.Missing("packs/a", 0, 1<<40); got != 0 {
		t.Errorf("missing: %d", got)
	}
	// The end is only found by a request behind it.
	if err := s.Fill(t.Context(), "packs/b", 0, -1); err != nil {
		t.Fatal(err)
	}
	read(t, s, "packs/b", data, 0, 8*mib)
	expectAsked(t, o, "packs/b 0+4194304", "packs/b 4194304+4194304", "packs/b 8388608+4194304")
	if got := c.Stats(); got.Damaged != 0 || got.Errors != 0 {
		t.Errorf("%+v", got)
	}

	if err := s.Fill(t.Context(), "packs/none", 0, 10); !errors.Is(err, remote.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if err := s.Fill(t.Context(), "packs/b", 100*mib, 10); !errors.Is(err, remote.ErrShort) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Fill(ctx, "packs/c", 0, 10); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	none := openCache(t, t.TempDir(), 0, nil).Wrap(o, "repo")
	if err := none.Fill(t.Context(), "packs/a", 0, 10); !errors.Is(err, diskcache.ErrNoCache) {
		t.Errorf("got %v", err)
	}
}

// TestPrefetchBehindReaders: prefetches take their own slots only, and a reader neither
// waits for a slot that they have, nor for a long fetch of theirs.
func TestPrefetchBehindReaders(t *testing.T) {
	const packs = 6
	data := remotetest.Random(1, 8*mib)
	o := newOrigin(t, nil)
	for i := range packs {
		if err := o.Put(t.Context(), fmt.Sprintf("packs/%d", i), data); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		fill, pass := make(chan struct{}), make(chan struct{})
		o.hook = func(ctx context.Context, name string, offset int64, p []byte, arrived func(int)) (int, error) {
			if len(p) == 4*mib { // a fill
				<-fill
			} else {
				<-pass
			}
			return o.Memory.ReadRange(ctx, name, offset, p, arrived)
		}
		c := openCache(t, dir, 1<<30, &diskcache.Options{Parallel: 4, Background: 2})
		s := c.Wrap(o, "repo")
		var wg sync.WaitGroup
		for i := range packs {
			wg.Go(func() {
				if err := s.Prefetch(t.Context(), fmt.Sprintf("packs/%d", i), 0, -1); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		started := o.asked()
		if len(started) != 2 || !strings.HasSuffix(started[0], " 0+4194304") {
			t.Fatalf("asked for %q", started)
		}
		busy := strings.Fields(started[0])[0]
		var idle string
		for i := range packs {
			if name := fmt.Sprintf("packs/%d", i); !slices.ContainsFunc(started, func(s string) bool { return strings.HasPrefix(s, name) }) {
				idle = name
			}
		}
		// None of these waits for a fill: one that has not begun, the end of one
		// that has just begun, and one that has a piece yet to come.
		close(pass)
		read(t, s, idle, data, 5, 10)
		read(t, s, busy, data, 3*mib, 10)
		read(t, s, busy, data, 7*mib, 10)
		expectAsked(t, o, idle+" 0+1048576", busy+" 3145728+1048576", busy+" 7340032+1048576")
		// But what is about to arrive is not fetched twice.
		joined := make(chan struct{})
		go func() {
			read(t, s, busy, data, 5, 10)
			close(joined)
		}()
		synctest.Wait()
		expectAsked(t, o)
		close(fill)
		<-joined
		wg.Wait()
		for i := range packs {
			read(t, s, fmt.Sprintf("packs/%d", i), data, 0, len(data))
		}
		c.Close()
	})
}

// TestReadersFirst: of those that wait for a slot, readers get it first.
func TestReadersFirst(t *testing.T) {
	data := remotetest.Random(1, mib)
	o := newOrigins(t, 10, data)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		proceed := o.blocking()
		c := openCache(t, dir, 1<<30, &diskcache.Options{Parallel: 2, Background: 1})
		s := c.Wrap(o, "repo")
		var wg sync.WaitGroup
		fill := func(i int) {
			wg.Go(func() {
				if err := s.Prefetch(t.Context(), fmt.Sprintf("packs/%d", i), 0, mib); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		reader := func(i int) {
			wg.Go(func() { read(t, s, fmt.Sprintf("packs/%d", i), data, 0, 10) })
			synctest.Wait()
		}
		reader(0)
		reader(1)
		fill(2)
		reader(3)
		reader(4)
		fill(5)
		expectAsked(t, o, "packs/0 0+1048576", "packs/1 0+1048576")
		proceed <- struct{}{}
		proceed <- struct{}{}
		synctest.Wait()
		expectAsked(t, o, "packs/3 0+1048576", "packs/4 0+1048576")
		proceed <- struct{}{}
		proceed <- struct{}{}
		synctest.Wait()
		expectAsked(t, o, "packs/2 0+1048576")
		proceed <- struct{}{}
		synctest.Wait()
		expectAsked(t, o, "packs/5 0+1048576")
		proceed <- struct{}{}
		wg.Wait()
		c.Close()
	})
}

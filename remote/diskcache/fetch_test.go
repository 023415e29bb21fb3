package diskcache_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/snapctl/snapctl/remote/diskcache"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// TestCacheEarly: a reader gets its bytes before the rest of the window is
// here, and the rest is kept.
func TestCacheEarly(t *testing.T) {
	data := remotetest.Random(1, 2*mib)
	o := newOrigin(t, nil)
	more := make(chan struct{})
	o.hook = func(_ context.Context, _ string, offset int64, p []byte, arrived func(int)) (int, error) {
		half := len(p) / 2
		copy(p[:half], data[offset:])
		arrived(half)
		<-more
		return half + copy(p[half:], data[offset+int64(half):]), nil
	}
	dir := t.TempDir()
	c := openCache(t, dir, 1<<30, nil)
	s := c.Wrap(o, "repo")
	read(t, s, "packs/a", data, 1000, 300*kib)
	read(t, s, "packs/a", data, 500*kib, 1) // from the same fetch
	close(more)
	read(t, s, "packs/a", data, 0, mib)
	expectAsked(t, o, "packs/a 0+1048576")
	if got := c.Stats(); got.Misses != 1 || got.Shared+got.Hits != 2 {
		t.Errorf("%+v", got)
	}
}

// blocking has the origin wait for a value before each answer.
func (o *origin) blocking() (proceed chan struct{}) {
	proceed = make(chan struct{})
	o.hook = func(ctx context.Context, name string, offset int64, p []byte, arrived func(int)) (int, error) {
		select {
		case <-proceed:
			return o.Memory.ReadRange(ctx, name, offset, p, arrived)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return proceed
}

// TestCacheOneFetch: readers of one range fetch it once, and the end of one's
// context is nothing to the others.
func TestCacheOneFetch(t *testing.T) {
	data := remotetest.Random(1, 2*mib)
	o := newOrigin(t, map[string][]byte{"packs/a": data})
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		proceed := o.blocking()
		c := openCache(t, dir, 1<<30, nil)
		s := c.Wrap(o, "repo")
		ctx, cancel := context.WithCancel(t.Context())
		first := make(chan error)
		go func() { first <- s.ReadAt(ctx, "packs/a", 5, make([]byte, 10)) }()
		synctest.Wait() // it fetches
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() { read(t, s, "packs/a", data, i*50_000, 40_000) })
		}
		synctest.Wait() // all others wait for it
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
		proceed <- struct{}{}
		wg.Wait()
		expectAsked(t, o, "packs/a 0+1048576")
		if got := c.Stats(); got.Shared != 20 || got.Misses != 1 {
			t.Errorf("%+v", got)
		}

		// When all have given up, the fetch does too, and a later one starts anew.
		ctx, cancel = context.WithCancel(t.Context())
		for range 2 {
			go func() { first <- s.ReadAt(ctx, "packs/a", mib, make([]byte, 10)) }()
		}
		synctest.Wait()
		cancel()
		for range 2 {
			if err := <-first; !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		}
		go func() { proceed <- struct{}{} }()
		read(t, s, "packs/a", data, mib, 10)
		expectAsked(t, o, "packs/a 1048576+1048576", "packs/a 1048576+1048576")
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestCacheClose: whoever waits for a fetch that Close ends is served by the store.
func TestCacheClose(t *testing.T) {
	data := remotetest.Random(1, mib)
	o := newOrigin(t, map[string][]byte{"packs/a": data})
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		o.blocking()
		c := openCache(t, dir, 1<<30, nil)
		s := c.Wrap(o, "repo")
		var wg sync.WaitGroup
		wg.Go(func() { read(t, s, "packs/a", data, 5, 10) })
		wg.Go(func() {
			if err := s.Fill(t.Context(), "packs/b", 0, 100); err == nil {
				t.Error("Fill has not failed")
			}
		})
		synctest.Wait()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if err := s.Fill(t.Context(), "packs/a", 0, 100); !errors.Is(err, diskcache.ErrNoCache) {
			t.Errorf("got %v", err)
		}
	})
}

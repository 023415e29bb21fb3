package diskcache_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapctl/snapctl/remote/diskcache"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// TestFillWaits: no fill begins while a reader waits, nor a moment later; and
// prefetches go before fills.
func TestFillWaits(t *testing.T) {
	data := remotetest.Random(1, mib)
	o := newOrigins(t, 10, data)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		proceed := o.blocking()
		c := openCache(t, dir, 1<<30, &diskcache.Options{Background: 1, Quiet: 50 * time.Millisecond})
		s := c.Wrap(o, "repo")
		var wg sync.WaitGroup
		start := func(f func(context.Context, string, int64, int64) error, i int) {
			wg.Go(func() {
				if err := f(t.Context(), fmt.Sprintf("packs/%d", i), 0, mib); err != nil {
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
		start(s.Fill, 1)
		expectAsked(t, o, "packs/0 0+1048576")
		proceed <- struct{}{}
		time.Sleep(40 * time.Millisecond)
		reader(2) // before the moment is over
		proceed <- struct{}{}
		time.Sleep(40 * time.Millisecond)
		expectAsked(t, o, "packs/2 0+1048576")
		time.Sleep(20 * time.Millisecond)
		synctest.Wait()
		expectAsked(t, o, "packs/1 0+1048576")
		// Behind it, in the only slot for the background.
		start(s.Fill, 3)
		start(s.Prefetch, 4)
		proceed <- struct{}{}
		synctest.Wait()
		expectAsked(t, o, "packs/4 0+1048576")
		proceed <- struct{}{}
		synctest.Wait()
		expectAsked(t, o, "packs/3 0+1048576")
		proceed <- struct{}{}
		wg.Wait()
		c.Close()
	})
}

// TestFillGivesWay: a fill that is under way ends when a reader comes, and goes
// on later where it was; one that a reader has joined does not end.
func TestFillGivesWay(t *testing.T) {
	data := remotetest.Random(1, 8*mib)
	o := newOrigin(t, map[string][]byte{"packs/a": data, "packs/b": data})
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		arrive := make(chan struct{})
		o.hook = func(ctx context.Context, name string, offset int64, p []byte, arrived func(int)) (int, error) {
			if len(p) < 4*mib { // a reader's
				return o.Memory.ReadRange(ctx, name, offset, p, arrived)
			}
			n := copy(p, data[offset:])
			arrived(2 * mib)
			select {
			case <-arrive:
				return n, nil
			case <-ctx.Done():
				return 2 * mib, ctx.Err()
			}
		}
		c := openCache(t, dir, 1<<30, &diskcache.Options{Quiet: 50 * time.Millisecond})
		s := c.Wrap(o, "repo")
		done := make(chan error, 1)
		go func() { done <- s.Fill(t.Context(), "packs/a", 0, 8*mib) }()
		synctest.Wait()
		read(t, s, "packs/a", data, 2*mib-10, 5) // it has arrived
		joined := make(chan struct{})
		go func() {
			read(t, s, "packs/a", data, 2*mib+10, 5) // it is about to
			close(joined)
		}()
		synctest.Wait()
		read(t, s, "packs/b", data, 5, 10)
		time.Sleep(time.Second)
		expectAsked(t, o, "packs/a 0+4194304", "packs/b 0+1048576")
		arrive <- struct{}{}
		<-joined
		time.Sleep(time.Second)
		expectAsked(t, o, "packs/a 4194304+4194304")
		// Now nobody has joined it.
		read(t, s, "packs/b", data, 3*mib, 10)
		synctest.Wait()
		expectAsked(t, o, "packs/b 3145728+1048576")
		time.Sleep(time.Second)
		expectAsked(t, o, "packs/a 6291456+2097152")
		if err := <-done; err != nil {
			t.Error(err)
		}
		o.hook = nil
		read(t, s, "packs/a", data, 0, 8*mib)
		expectAsked(t, o)
		c.Close()
	})
}

// TestFillFull: fills stop before they would evict what is in use, and evict what
// was not for long.
func TestFillFull(t *testing.T) {
	const packs = 12
	o := newOrigin(t, nil)
	for i := range packs {
		if err := o.Put(t.Context(), fmt.Sprintf("packs/%02d", i), remotetest.Random(uint64(i), mib)); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	fill := func(s *diskcache.Store) (n int) {
		for i := range packs {
			err := s.Fill(t.Context(), fmt.Sprintf("packs/%02d", i), 0, mib)
			if errors.Is(err, diskcache.ErrFull) {
				return n
			}
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n
	}
	c := openCache(t, dir, 8*mib, nil)
	if n := fill(c.Wrap(o, "one")); n < 5 || n > 7 {
		t.Errorf("%d went in", n)
	}
	if n := fill(c.Wrap(o, "two")); n > 1 {
		t.Errorf("%d more went in", n)
	}
	if s := c.Stats(); s.Evicted != 0 || s.Used > s.Limit {
		t.Errorf("%+v", s)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-2 * time.Hour)
	names, err := filepath.Glob(dir + "/one/packs/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := os.Chtimes(name, old, old); err != nil {
			t.Fatal(err)
		}
	}
	c = openCache(t, dir, 8*mib, nil)
	if n := fill(c.Wrap(o, "two")); n < 5 {
		t.Errorf("%d went in", n)
	}
	if s := c.Stats(); s.Evicted == 0 || s.Used > s.Limit {
		t.Errorf("%+v", s)
	}
}

// TestKeep: what was put and kept takes no request.
func TestKeep(t *testing.T) {
	data := remotetest.Random(1, 3*mib+5)
	o := newOrigin(t, map[string][]byte{"packs/a": data})
	dir := t.TempDir()
	openCache(t, dir, 1<<30, nil).Wrap(o, "repo").Keep("packs/a", data)
	s := openCache(t, dir, 1<<30, nil).Wrap(o, "repo")
	read(t, s, "packs/a", data, 0, len(data))
	if err := s.Fill(t.Context(), "packs/a", 0, -1); err != nil {
		t.Error(err)
	}
	expectAsked(t, o)
}

// TestOnMiss: a read that begins a fetch tells of it, before it has its bytes;
// one that joins a fetch or finds all on the disk does not.
func TestOnMiss(t *testing.T) {
	data := remotetest.Random(1, 8*mib)
	o := newOrigin(t, map[string][]byte{"packs/a": data})
	var missed []string
	s := openCache(t, t.TempDir(), 1<<30, nil).Wrap(o, "repo").OnMiss(func(name string, offset, length int64) {
		missed = append(missed, fmt.Sprintf("%s %d+%d", name, offset, length))
	})
	read(t, s, "packs/a", data, 5, 10)
	read(t, s, "packs/a", data, 100, 1000)
	read(t, s, "packs/a", data, 3*mib, 2*mib)
	if want := "[packs/a 0+1048576 packs/a 3145728+2097152]"; fmt.Sprint(missed) != want {
		t.Errorf("%v, want %s", missed, want)
	}
}

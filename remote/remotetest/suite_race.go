package remotetest

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/snapctl/snapctl/remote"
)

// testOneWins has 32 writers of one name: the object is one writer's, whole,
// and only that writer is told so.
func testOneWins(t *testing.T, s remote.Store) {
	for round := range 3 {
		name := fmt.Sprintf("contended/%d", round)
		var won atomic.Int32
		winner := -1
		var wg sync.WaitGroup
		for i := range 32 {
			wg.Go(func() {
				err := s.Put(t.Context(), name, Random(uint64(i), 64<<10))
				switch {
				case err == nil:
					won.Add(1)
					winner = i
				case !errors.Is(err, remote.ErrExist):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d writers won", won.Load())
		}
		expect(t, s, name, Random(uint64(winner), 64<<10))
	}
}

func testSameContentAtOnce(t *testing.T, s remote.Store) {
	data := Random(1, 300<<10)
	var g errgroup.Group
	for range 16 {
		g.Go(func() error { return s.Put(t.Context(), "packs/00/same", data) })
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	expect(t, s, "packs/00/same", data)
}

// testWholeOrNot reads an object while it is being written.
func testWholeOrNot(t *testing.T, s remote.Store) {
	data := Random(7, 4<<20)
	stop := make(chan struct{})
	var g errgroup.Group
	g.Go(func() error {
		for {
			got, err := s.Get(t.Context(), "packs/00/appears")
			switch {
			case err == nil && !bytes.Equal(got, data):
				return fmt.Errorf("a part of the object could be seen: %d bytes", len(got))
			case err != nil && !errors.Is(err, remote.ErrNotExist):
				return err
			}
			select {
			case <-stop:
				return nil
			default:
			}
		}
	})
	err := s.Put(t.Context(), "packs/00/appears", data)
	close(stop)
	if err := errors.Join(err, g.Wait()); err != nil {
		t.Error(err)
	}
}

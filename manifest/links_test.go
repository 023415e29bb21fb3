package manifest

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

// Links gives what a walk of the whole tree finds, and reads the pages alone that
// have some.
func TestLinks(t *testing.T) {
	for _, n := range []int{3, 500, 30_000} {
		entries := smallFiles(n)
		var first Key
		var want []Key
		for i := range entries {
			e := &entries[i]
			switch {
			case e.Type != File:
			case first == Key{}:
				first = e.Key()
			case i > n/2 && i < n/2+50: // neighbours, mostly of one page
				*e = Entry{Dir: e.Dir, Name: e.Name, Type: Link, First: first}
				want = append(want, e.Key())
			}
		}
		s := newPageStore()
		root, _ := build(t, s, entries)
		tree := newTree(t, root, s)
		s.reads.Store(0)
		var got []Key
		err := tree.Links(t.Context(), func(e *Entry) error {
			if e.First != first {
				return fmt.Errorf("%q is a link to %q", e.Path(), e.First.Path())
			}
			got = append(got, e.Key())
			return nil
		})
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%d entries: %v; %d links, want %d", n, err, len(got), len(want))
		}
		if reads := s.reads.Load(); reads > 4 {
			t.Errorf("%d entries: %d pages were read", n, reads)
		}
		stop := errors.New("stop")
		if err := tree.Links(t.Context(), func(*Entry) error { return stop }); len(want) > 0 && err != stop {
			t.Errorf("%d entries: %v, want the callback's error", n, err)
		}
	}
}

package manifest

import (
	"context"
	"errors"
	"testing"

	"github.com/snapctl/snapctl/chunk"
)

// TestCancelled: what goes through a tree stops when its context ends, although all of
// its pages are in the cache.
func TestCancelled(t *testing.T) {
	s := newPageStore()
	entries := smallFiles(20_000)
	root, _ := build(t, s, entries)
	tree := newTree(t, root, s)
	other, _ := build(t, s, entries[:len(entries)-1])
	b := newTree(t, other, s)
	walk := func(ctx context.Context, each func()) error {
		c, err := tree.Seek(ctx, Key{})
		var e Entry
		for more := true; more && err == nil; each() {
			more, err = c.Next(ctx, &e)
		}
		return err
	}
	for name, f := range map[string]func(ctx context.Context, each func()) error{
		"cursor": walk,
		"uses": func(ctx context.Context, each func()) error {
			return tree.Uses(ctx, func(chunk.ID) bool { each(); return true }, func(chunk.ID, *chunk.Location) {})
		},
		"diff": func(ctx context.Context, each func()) error {
			each()
			return Diff(ctx, tree, b, "", func(*Difference) error { return nil })
		},
	} {
		if err := walk(t.Context(), func() {}); err != nil { // fills the cache
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		seen := 0
		err := f(ctx, func() { seen++; cancel() })
		if !errors.Is(err, context.Canceled) || seen == 0 {
			t.Errorf("%s: %v, after %d", name, err, seen)
		}
		cancel()
	}
}

package diskcache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/diskcache"
	"github.com/snapctl/snapctl/remote/remotetest"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

var errTest = errors.New("trouble made by the test")

// openCache is a cache for a test, which ends with it.
func openCache(t testing.TB, dir string, limit int64, o *diskcache.Options) *diskcache.Cache {
	t.Helper()
	c := diskcache.Open(dir, limit, o)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// origin is a store that notes what is asked of it, and answers as a test wants.
type origin struct {
	*remotetest.Memory

	mu       sync.Mutex
	requests []string // "name offset+length"
	// hook, if not nil, is called instead of Memory.ReadRange.
	hook func(ctx context.Context, name string, offset int64, p []byte, arrived func(int)) (int, error)
}

func newOrigin(t testing.TB, objects map[string][]byte) *origin {
	t.Helper()
	o := &origin{Memory: remotetest.NewMemory()}
	for name, data := range objects {
		if err := o.Put(t.Context(), name, data); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// newOrigins has n packs of the same content: packs/0 and so on.
func newOrigins(t testing.TB, n int, data []byte) *origin {
	t.Helper()
	objects := map[string][]byte{}
	for i := range n {
		objects[fmt.Sprintf("packs/%d", i)] = data
	}
	return newOrigin(t, objects)
}

func (o *origin) note(name string, offset int64, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.requests = append(o.requests, fmt.Sprintf("%s %d+%d", name, offset, n))
}

// asked gives the requests since the last call, sorted.
func (o *origin) asked() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.requests
	o.requests = nil
	slices.Sort(r)
	return r
}

func (o *origin) ReadAt(ctx context.Context, name string, offset int64, p []byte) error {
	o.note(name, offset, len(p))
	return o.Memory.ReadAt(ctx, name, offset, p)
}

func (o *origin) ReadRange(ctx context.Context, name string, offset int64, p []byte, arrived func(int)) (int, error) {
	o.note(name, offset, len(p))
	if o.hook != nil {
		return o.hook(ctx, name, offset, p, arrived)
	}
	return o.Memory.ReadRange(ctx, name, offset, p, arrived)
}

func expectAsked(t testing.TB, o *origin, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := o.asked(); !slices.Equal(got, want) {
		t.Errorf("asked for %q, want %q", got, want)
	}
}

// read reads a range of object data, and fails the test if that is not what it is.
func read(t testing.TB, s remote.Store, name string, data []byte, offset, n int) {
	t.Helper()
	p := make([]byte, n)
	if err := s.ReadAt(t.Context(), name, int64(offset), p); err != nil {
		t.Errorf("%d bytes at %d of %s: %v", n, offset, name, err)
	} else if !bytes.Equal(p, data[offset:offset+n]) {
		t.Errorf("%d bytes at %d of %s are wrong", n, offset, name)
	}
}

//go:build linux

package engine

import (
	"context"
	"errors"
	"testing"

	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// careless is a store that replaces objects, like a server that passes over the
// condition of a put.
type careless struct{ *remotetest.Memory }

func (s careless) Put(ctx context.Context, name string, data []byte) error {
	return s.Replace(ctx, name, data)
}

// TestInitReplaces: no repository is made where objects can be replaced, and nothing
// is left of having tried.
func TestInitReplaces(t *testing.T) {
	store := remotetest.NewMemory()
	_, err := Init(t.Context(), "", nil, &Options{CacheDir: t.TempDir(), Store: careless{store}})
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("made there: %v", err)
	}
	objects := func() (names []string) {
		must(t, store.List(t.Context(), "", func(i remote.Info) error {
			names = append(names, i.Name)
			return nil
		}))
		return names
	}
	if left := objects(); len(left) > 0 {
		t.Errorf("left there: %v", left)
	}
	r, err := Init(t.Context(), "", nil, &Options{CacheDir: t.TempDir(), Store: store})
	must(t, err)
	must(t, r.Close())
	if all := objects(); len(all) != 1 || all[0] != repo.ConfigName {
		t.Errorf("a new repository holds %v", all)
	}
}

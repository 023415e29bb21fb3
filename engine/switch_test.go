//go:build linux

package engine

import (
	"context"
	"sync/atomic"

	"github.com/snapctl/snapctl/remote"
)

// A switched store is another one from one moment to the next. That may be while a
// request is under way which an operation has given up: so a test must not change
// Repository.store once anything was asked.
type switched struct {
	now atomic.Pointer[remote.Store]
}

var (
	_ remote.Store    = (*switched)(nil)
	_ remote.Replacer = (*switched)(nil)
	_ remote.Resumer  = (*switched)(nil)
)

// switchable puts one beneath a repository of which nothing was asked yet.
func switchable(r *Repository) *switched {
	s := &switched{}
	s.set(r.repo.Store)
	r.repo.Store = s
	return s
}

func (s *switched) get() remote.Store { return *s.now.Load() }

func (s *switched) set(to remote.Store) { s.now.Store(&to) }

func (s *switched) Put(ctx context.Context, name string, data []byte) error {
	return s.get().Put(ctx, name, data)
}

func (s *switched) Replace(ctx context.Context, name string, data []byte) error {
	return s.get().(remote.Replacer).Replace(ctx, name, data)
}

func (s *switched) Get(ctx context.Context, name string) ([]byte, error) {
	return s.get().Get(ctx, name)
}

func (s *switched) ReadAt(ctx context.Context, name string, offset int64, p []byte) error {
	return s.get().ReadAt(ctx, name, offset, p)
}

func (s *switched) List(ctx context.Context, prefix string, yield func(remote.Info) error) error {
	return s.get().List(ctx, prefix, yield)
}

func (s *switched) ListAfter(ctx context.Context, prefix, after string, yield func(remote.Info) error) error {
	return remote.ListAfter(ctx, s.get(), prefix, after, yield)
}

func (s *switched) Stat(ctx context.Context, name string) (remote.Info, error) {
	return s.get().Stat(ctx, name)
}

func (s *switched) Delete(ctx context.Context, names ...string) error {
	return s.get().Delete(ctx, names...)
}

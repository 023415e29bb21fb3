package remotetest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/snapctl/snapctl/remote"
)

// Memory is a [remote.Store] in memory, for tests and examples. The zero value is
// empty and ready to use; it must not be copied.
type Memory struct {
	// Now, if not nil, is the clock that objects get their times from. It is set
	// before the store is used, and called by several goroutines at once.
	Now func() time.Time

	mu      sync.RWMutex
	objects map[string]memoryObject
}

type memoryObject struct {
	data []byte // never changed once it is here
	time time.Time
}

var (
	_ remote.Store       = (*Memory)(nil)
	_ remote.Replacer    = (*Memory)(nil)
	_ remote.Resumer     = (*Memory)(nil)
	_ remote.RangeReader = (*Memory)(nil)
	_ remote.Clock       = (*Memory)(nil)
)

// NewMemory returns an empty store.
func NewMemory() *Memory { return new(Memory) }

// begin is what every operation on one object does first.
func begin(ctx context.Context, name string) error {
	return errors.Join(ctx.Err(), remote.CheckName(name))
}

var errNegative = errors.New("negative offset")

// Put is [remote.Store.Put].
func (m *Memory) Put(ctx context.Context, name string, data []byte) error {
	return remote.OpPut.Wrap(name, m.put(ctx, name, data, false))
}

// Replace is [remote.Replacer.Replace].
func (m *Memory) Replace(ctx context.Context, name string, data []byte) error {
	return remote.OpReplace.Wrap(name, m.put(ctx, name, data, true))
}

func (m *Memory) put(ctx context.Context, name string, data []byte, replace bool) error {
	if err := begin(ctx, name); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.objects[name]; ok && !replace {
		if bytes.Equal(old.data, data) {
			return nil
		}
		return remote.ErrExist
	}
	if m.objects == nil {
		m.objects = make(map[string]memoryObject)
	}
	m.objects[name] = memoryObject{bytes.Clone(data), m.now()}
	return nil
}

func (m *Memory) now() time.Time {
	if m.Now != nil {
		return m.Now()
	}
	return time.Now()
}

func (m *Memory) get(ctx context.Context, name string) (memoryObject, error) {
	if err := begin(ctx, name); err != nil {
		return memoryObject{}, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	o, ok := m.objects[name]
	if !ok {
		return o, remote.ErrNotExist
	}
	return o, nil
}

// Get is [remote.Store.Get].
func (m *Memory) Get(ctx context.Context, name string) ([]byte, error) {
	o, err := m.get(ctx, name)
	if err != nil {
		return nil, remote.OpGet.Wrap(name, err)
	}
	return append([]byte{}, o.data...), nil
}

// ReadAt is [remote.Store.ReadAt].
func (m *Memory) ReadAt(ctx context.Context, name string, offset int64, p []byte) error {
	return remote.OpReadAt.Wrap(name, m.readAt(ctx, name, offset, p))
}

func (m *Memory) readAt(ctx context.Context, name string, offset int64, p []byte) error {
	if err := begin(ctx, name); err != nil {
		return err
	}
	if offset < 0 {
		return errNegative
	}
	if len(p) == 0 {
		return nil
	}
	o, err := m.get(ctx, name)
	if err != nil {
		return err
	}
	if offset > int64(len(o.data)) || int64(len(o.data))-offset < int64(len(p)) {
		return remote.ErrShort
	}
	copy(p, o.data[offset:])
	return nil
}

// ReadRange is [remote.RangeReader.ReadRange].
func (m *Memory) ReadRange(ctx context.Context, name string, offset int64, p []byte, _ func(n int)) (int, error) {
	n, err := m.readRange(ctx, name, offset, p)
	return n, remote.OpReadAt.Wrap(name, err)
}

func (m *Memory) readRange(ctx context.Context, name string, offset int64, p []byte) (int, error) {
	o, err := m.get(ctx, name)
	switch {
	case err != nil:
		return 0, err
	case offset < 0:
		return 0, errNegative
	case len(p) == 0:
		return 0, nil
	case offset >= int64(len(o.data)):
		return 0, remote.ErrShort
	}
	return copy(p, o.data[offset:]), nil
}

// List is [remote.Store.List]. It lists what there is when it is called; yield may
// use the store.
func (m *Memory) List(ctx context.Context, prefix string, yield func(remote.Info) error) error {
	return m.ListAfter(ctx, prefix, "", yield)
}

// ListAfter is [remote.Resumer.ListAfter].
func (m *Memory) ListAfter(ctx context.Context, prefix, after string, yield func(remote.Info) error) error {
	if err := errors.Join(ctx.Err(), remote.CheckPrefix(prefix)); err != nil {
		return remote.OpList.Wrap(prefix, err)
	}
	var infos []remote.Info
	m.mu.RLock()
	for name, o := range m.objects {
		if strings.HasPrefix(name, prefix) && name > after {
			infos = append(infos, remote.Info{Name: name, Size: int64(len(o.data)), ModTime: o.time})
		}
	}
	m.mu.RUnlock()
	slices.SortFunc(infos, func(a, b remote.Info) int { return strings.Compare(a.Name, b.Name) })
	for _, info := range infos {
		if err := ctx.Err(); err != nil {
			return remote.OpList.Wrap(prefix, err)
		}
		if err := yield(info); err != nil {
			return err
		}
	}
	return nil
}

// Stat is [remote.Store.Stat].
func (m *Memory) Stat(ctx context.Context, name string) (remote.Info, error) {
	o, err := m.get(ctx, name)
	if err != nil {
		return remote.Info{}, remote.OpStat.Wrap(name, err)
	}
	return remote.Info{Name: name, Size: int64(len(o.data)), ModTime: o.time}, nil
}

// Delete is [remote.Store.Delete].
func (m *Memory) Delete(ctx context.Context, names ...string) error {
	var errs []error
	for _, name := range names {
		if err := begin(ctx, name); err != nil {
			errs = append(errs, remote.OpDelete.Wrap(name, err))
			continue
		}
		m.mu.Lock()
		delete(m.objects, name)
		m.mu.Unlock()
	}
	return errors.Join(errs...)
}

// Time is [remote.Clock.Time].
func (m *Memory) Time(ctx context.Context) (time.Time, error) {
	if err := ctx.Err(); err != nil {
		return time.Time{}, err
	}
	return m.now(), nil
}

// Plain is a store without the optional interfaces of the one that it wraps.
type Plain struct{ remote.Store }

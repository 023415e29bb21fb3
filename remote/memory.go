package remote

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"
)

// Memory is a [Store] in memory, for tests and examples. The zero value is
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
	_ Store    = (*Memory)(nil)
	_ Replacer = (*Memory)(nil)
	_ Clock    = (*Memory)(nil)
)

// NewMemory returns an empty store.
func NewMemory() *Memory { return new(Memory) }

// Put is [Store.Put].
func (m *Memory) Put(ctx context.Context, name string, data []byte) error {
	return OpPut.Wrap(name, m.put(ctx, name, data, false))
}

// Replace is [Replacer.Replace].
func (m *Memory) Replace(ctx context.Context, name string, data []byte) error {
	return OpReplace.Wrap(name, m.put(ctx, name, data, true))
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
		return ErrExist
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
		return o, ErrNotExist
	}
	return o, nil
}

// Get is [Store.Get].
func (m *Memory) Get(ctx context.Context, name string) ([]byte, error) {
	o, err := m.get(ctx, name)
	if err != nil {
		return nil, OpGet.Wrap(name, err)
	}
	return append([]byte{}, o.data...), nil
}

// ReadAt is [Store.ReadAt].
func (m *Memory) ReadAt(ctx context.Context, name string, offset int64, p []byte) error {
	return OpReadAt.Wrap(name, m.readAt(ctx, name, offset, p))
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
		return ErrShort
	}
	copy(p, o.data[offset:])
	return nil
}

// List is [Store.List]. It lists what there is when it is called; yield may
// use the store.
func (m *Memory) List(ctx context.Context, prefix string, yield func(Info) error) error {
	return m.ListAfter(ctx, prefix, "", yield)
}

// ListAfter is [Resumer.ListAfter].
func (m *Memory) ListAfter(ctx context.Context, prefix, after string, yield func(Info) error) error {
	if err := errors.Join(ctx.Err(), CheckPrefix(prefix)); err != nil {
		return OpList.Wrap(prefix, err)
	}
	var infos []Info
	m.mu.RLock()
	for name, o := range m.objects {
		if strings.HasPrefix(name, prefix) && name > after {
			infos = append(infos, Info{Name: name, Size: int64(len(o.data)), ModTime: o.time})
		}
	}
	m.mu.RUnlock()
	slices.SortFunc(infos, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	for _, info := range infos {
		if err := ctx.Err(); err != nil {
			return OpList.Wrap(prefix, err)
		}
		if err := yield(info); err != nil {
			return err
		}
	}
	return nil
}

// Stat is [Store.Stat].
func (m *Memory) Stat(ctx context.Context, name string) (Info, error) {
	o, err := m.get(ctx, name)
	if err != nil {
		return Info{}, OpStat.Wrap(name, err)
	}
	return Info{Name: name, Size: int64(len(o.data)), ModTime: o.time}, nil
}

// Delete is [Store.Delete].
func (m *Memory) Delete(ctx context.Context, names ...string) error {
	var errs []error
	for _, name := range names {
		if err := begin(ctx, name); err != nil {
			errs = append(errs, OpDelete.Wrap(name, err))
			continue
		}
		m.mu.Lock()
		delete(m.objects, name)
		m.mu.Unlock()
	}
	return errors.Join(errs...)
}

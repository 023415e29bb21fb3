package remotetest

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/snapctl/snapctl/remote"
)

// A Fault is what goes wrong with one operation. The zero Fault is none.
// Several fields may be set at once.
type Fault struct {
	// Delay is waited first, or until the context ends.
	Delay time.Duration
	// Err is returned instead of doing the operation. [remote.Retry] takes it for final
	// unless it is a [remote.TransientError].
	Err error
	// Done has the operation done nevertheless, and only then Err returned: the
	// answer was lost.
	Done bool
	// Entries, with Err, is how many entries a list gives before it breaks off.
	Entries int
	// Corrupt turns over a bit in the middle of the content that Get and ReadAt
	// give, and that Put and Replace store.
	Corrupt bool
	// Short drops the second half of the content that Get gives and that Put
	// and Replace store; ReadAt then fails with [remote.ErrShort].
	Short bool
}

// Faulty is a [remote.Store] whose operations fail as a test wants it. Make one with
// [NewFaulty].
type Faulty struct {
	store remote.Store
	hook  func(op remote.Op, name string) Fault
}

var (
	_ remote.Store       = (*Faulty)(nil)
	_ remote.Replacer    = (*Faulty)(nil)
	_ remote.Resumer     = (*Faulty)(nil)
	_ remote.RangeReader = (*Faulty)(nil)
	_ remote.Clock       = (*Faulty)(nil)
)

// NewFaulty returns a store that asks hook before every operation on s what is
// to go wrong. name is the object's, or the list's prefix; a Delete asks for
// each of its names, and goes on with the others. The hook is called by
// several goroutines at once if the store is.
func NewFaulty(s remote.Store, hook func(op remote.Op, name string) Fault) *Faulty {
	return &Faulty{s, hook}
}

// do runs an operation as the hook wants it.
func (f *Faulty) do(ctx context.Context, op remote.Op, name string, g func(Fault) error) error {
	fault := f.hook(op, name)
	if fault.Delay > 0 {
		select {
		case <-ctx.Done():
			return op.Wrap(name, ctx.Err())
		case <-time.After(fault.Delay):
		}
	}
	if fault.Err == nil {
		return g(fault)
	}
	if fault.Done || fault.Entries > 0 {
		if err := g(fault); err != nil {
			return err
		}
	}
	return op.Wrap(name, fault.Err)
}

// spoil gives data as the fault leaves it, a copy if it is changed.
func (fault Fault) spoil(data []byte) []byte {
	if fault.Short {
		data = data[:len(data)/2]
	}
	if fault.Corrupt && len(data) > 0 {
		data = bytes.Clone(data)
		data[len(data)/2] ^= 1
	}
	return data
}

// Put is [remote.Store.Put].
func (f *Faulty) Put(ctx context.Context, name string, data []byte) error {
	return f.do(ctx, remote.OpPut, name, func(fault Fault) error {
		return f.store.Put(ctx, name, fault.spoil(data))
	})
}

// Replace is [remote.Replacer.Replace].
func (f *Faulty) Replace(ctx context.Context, name string, data []byte) error {
	return f.do(ctx, remote.OpReplace, name, func(fault Fault) error {
		return remote.Replace(ctx, f.store, name, fault.spoil(data))
	})
}

// Get is [remote.Store.Get].
func (f *Faulty) Get(ctx context.Context, name string) ([]byte, error) {
	var data []byte
	err := f.do(ctx, remote.OpGet, name, func(fault Fault) (err error) {
		data, err = f.store.Get(ctx, name)
		data = fault.spoil(data)
		return err
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

// ReadAt is [remote.Store.ReadAt].
func (f *Faulty) ReadAt(ctx context.Context, name string, offset int64, p []byte) error {
	return f.do(ctx, remote.OpReadAt, name, func(fault Fault) error {
		if fault.Short {
			return remote.OpReadAt.Wrap(name, remote.ErrShort)
		}
		err := f.store.ReadAt(ctx, name, offset, p)
		if err == nil {
			copy(p, fault.spoil(p))
		}
		return err
	})
}

// ReadRange is [remote.RangeReader.ReadRange]; the hook is asked for [remote.OpReadAt].
func (f *Faulty) ReadRange(ctx context.Context, name string, offset int64, p []byte, arrived func(n int)) (n int, err error) {
	err = f.do(ctx, remote.OpReadAt, name, func(fault Fault) (err error) {
		if fault.Short {
			return remote.OpReadAt.Wrap(name, remote.ErrShort)
		}
		if fault.Corrupt {
			arrived = nil // not before it is spoilt
		}
		n, err = remote.ReadRange(ctx, f.store, name, offset, p, arrived)
		copy(p[:n], fault.spoil(p[:n]))
		return err
	})
	return n, err
}

// List is [remote.Store.List].
func (f *Faulty) List(ctx context.Context, prefix string, yield func(remote.Info) error) error {
	return f.ListAfter(ctx, prefix, "", yield)
}

var errEnough = errors.New("enough entries")

// ListAfter is [remote.Resumer.ListAfter].
func (f *Faulty) ListAfter(ctx context.Context, prefix, after string, yield func(remote.Info) error) error {
	return f.do(ctx, remote.OpList, prefix, func(fault Fault) error {
		n := 0
		err := remote.ListAfter(ctx, f.store, prefix, after, func(info remote.Info) error {
			if fault.Err != nil && fault.Entries > 0 && n == fault.Entries {
				return errEnough
			}
			n++
			return yield(info)
		})
		if errors.Is(err, errEnough) {
			return nil
		}
		return err
	})
}

// Stat is [remote.Store.Stat].
func (f *Faulty) Stat(ctx context.Context, name string) (info remote.Info, err error) {
	err = f.do(ctx, remote.OpStat, name, func(Fault) (err error) {
		info, err = f.store.Stat(ctx, name)
		return err
	})
	if err != nil {
		return remote.Info{}, err
	}
	return info, nil
}

// Delete is [remote.Store.Delete].
func (f *Faulty) Delete(ctx context.Context, names ...string) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, f.do(ctx, remote.OpDelete, name, func(Fault) error {
			return f.store.Delete(ctx, name)
		}))
	}
	return errors.Join(errs...)
}

// Time is [remote.Clock.Time], and the hook is not asked.
func (f *Faulty) Time(ctx context.Context) (time.Time, error) { return remote.Time(ctx, f.store) }

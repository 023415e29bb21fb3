package remote

import (
	"context"
	"errors"
)

// A Resumer is a [Store] whose list can begin in the middle. [Retry] uses it
// to go on where a listing broke off, instead of listing everything again.
type Resumer interface {
	// ListAfter is [Store.List] of the names that are greater than after.
	ListAfter(ctx context.Context, prefix, after string, yield func(Info) error) error
}

var errNegative = errors.New("negative offset")

// ListAfter lists the objects of s whose names begin with prefix and are
// greater than after, as [Store.List] does. A store that is no [Resumer]
// lists everything, and what comes before is dropped here.
func ListAfter(ctx context.Context, s Store, prefix, after string, yield func(Info) error) error {
	if after == "" {
		return s.List(ctx, prefix, yield)
	}
	if r, ok := s.(Resumer); ok {
		return r.ListAfter(ctx, prefix, after, yield)
	}
	return s.List(ctx, prefix, func(info Info) error {
		if info.Name <= after {
			return nil
		}
		return yield(info)
	})
}

// Replace is [Replacer.Replace] of a store, and fails with [errors.ErrUnsupported] where
// it is no Replacer: for decorators, which have the method whether or not the store
// beneath them does.
func Replace(ctx context.Context, s Store, name string, data []byte) error {
	if r, ok := s.(Replacer); ok {
		return r.Replace(ctx, name, data)
	}
	return OpReplace.Wrap(name, errors.ErrUnsupported)
}

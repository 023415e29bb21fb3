package remote

import (
	"context"
	"errors"
)

// counted is a store whose operations are counted.
type counted struct {
	store Store
	count *Counter
}

var (
	_ Store       = (*counted)(nil)
	_ Replacer    = (*counted)(nil)
	_ Resumer     = (*counted)(nil)
	_ RangeReader = (*counted)(nil)
	_ Lifecycler  = (*counted)(nil)
	_ Clock       = (*counted)(nil)
)

// Wrap returns a store that passes everything on to s, and has c count each call, however
// many requests or names that is. Bytes count if the call succeeded. Beneath [Retry], it
// counts every attempt.
func (c *Counter) Wrap(s Store) Store { return &counted{s, c} }

// done ends a call.
func (k *call) done(sent, received int, err error) {
	if err == nil {
		k.moved(sent, received)
	}
	k.end(err != nil)
}

// Put is [Store.Put].
func (c *counted) Put(ctx context.Context, name string, data []byte) error {
	k := c.count.begin(OpPut)
	err := c.store.Put(ctx, name, data)
	k.done(len(data), 0, err)
	return err
}

// Replace is [Replacer.Replace]; without it beneath, [errors.ErrUnsupported].
func (c *counted) Replace(ctx context.Context, name string, data []byte) error {
	k := c.count.begin(OpReplace)
	err := Replace(ctx, c.store, name, data)
	k.done(len(data), 0, err)
	return err
}

// Get is [Store.Get].
func (c *counted) Get(ctx context.Context, name string) ([]byte, error) {
	k := c.count.begin(OpGet)
	data, err := c.store.Get(ctx, name)
	k.done(0, len(data), err)
	return data, err
}

// ReadAt is [Store.ReadAt].
func (c *counted) ReadAt(ctx context.Context, name string, offset int64, p []byte) error {
	k := c.count.begin(OpReadAt)
	err := c.store.ReadAt(ctx, name, offset, p)
	k.done(0, len(p), err)
	return err
}

// ReadRange is [RangeReader.ReadRange]; it counts as [OpReadAt].
func (c *counted) ReadRange(ctx context.Context, name string, offset int64, p []byte, arrived func(n int)) (int, error) {
	k := c.count.begin(OpReadAt)
	n, err := ReadRange(ctx, c.store, name, offset, p, arrived)
	k.done(0, n, err)
	return n, err
}

// List is [Store.List].
func (c *counted) List(ctx context.Context, prefix string, yield func(Info) error) error {
	return c.ListAfter(ctx, prefix, "", yield)
}

// ListAfter is [Resumer.ListAfter].
func (c *counted) ListAfter(ctx context.Context, prefix, after string, yield func(Info) error) error {
	k := c.count.begin(OpList)
	var yielded error // yield's own error is no failure of the store
	err := ListAfter(ctx, c.store, prefix, after, func(info Info) error {
		yielded = yield(info)
		return yielded
	})
	k.end(err != nil && (yielded == nil || !errors.Is(err, yielded)))
	return err
}

// Stat is [Store.Stat].
func (c *counted) Stat(ctx context.Context, name string) (Info, error) {
	k := c.count.begin(OpStat)
	info, err := c.store.Stat(ctx, name)
	k.end(err != nil)
	return info, err
}

// Delete is [Store.Delete].
func (c *counted) Delete(ctx context.Context, names ...string) error {
	k := c.count.begin(OpDelete)
	err := c.store.Delete(ctx, names...)
	k.end(err != nil)
	return err
}

// Lifecycle is [Lifecycler.Lifecycle].
func (c *counted) Lifecycle(ctx context.Context, owner string) (rules []LifecycleRule, others int, err error) {
	l, err := lifecycler(c.store)
	if err != nil {
		return nil, 0, err
	}
	k := c.count.begin(OpLifecycle)
	rules, others, err = l.Lifecycle(ctx, owner)
	k.end(err != nil)
	return rules, others, err
}

// SetLifecycle is [Lifecycler.SetLifecycle].
func (c *counted) SetLifecycle(ctx context.Context, owner string, rules []LifecycleRule) error {
	l, err := lifecycler(c.store)
	if err != nil {
		return err
	}
	k := c.count.begin(OpLifecycle)
	err = l.SetLifecycle(ctx, owner, rules)
	k.end(err != nil)
	return err
}

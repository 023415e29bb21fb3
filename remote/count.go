package remote

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
)

// A Counter is a [Store] that counts what is asked of the one beneath it.
// Beneath [Retry], it counts every attempt. Make one with [Count].
type Counter struct {
	store  Store
	counts [numOps]struct{ calls, failed, bytes atomic.Int64 }
}

var (
	_ Store    = (*Counter)(nil)
	_ Replacer = (*Counter)(nil)
	_ Resumer  = (*Counter)(nil)
)

// Count returns a store that passes everything on to s, and counts it.
func Count(s Store) *Counter { return &Counter{store: s} }

// OpCount is what was asked by one method.
type OpCount struct {
	Calls  int64 // that have ended, the failed ones included
	Failed int64 // ended with an error, an object that does not exist included
	Bytes  int64 // content moved by calls that succeeded; for OpList and OpStat, 0
}

// Counts is indexed by [Op].
type Counts [numOps]OpCount

// Counts gives the counts of this moment. It may be called at any time.
func (c *Counter) Counts() Counts {
	var n Counts
	for op := range n {
		p := &c.counts[op]
		n[op] = OpCount{p.calls.Load(), p.failed.Load(), p.bytes.Load()}
	}
	return n
}

// Sub gives what was counted since before.
func (n Counts) Sub(before Counts) Counts {
	for op := range n {
		n[op].Calls -= before[op].Calls
		n[op].Failed -= before[op].Failed
		n[op].Bytes -= before[op].Bytes
	}
	return n
}

// Total adds up all operations.
func (n Counts) Total() OpCount {
	var t OpCount
	for _, c := range n {
		t.Calls += c.Calls
		t.Failed += c.Failed
		t.Bytes += c.Bytes
	}
	return t
}

// String gives a line such as "put 3 (1048576 bytes), get 1 (270 bytes, 1
// failed)", of the operations that were used at all.
func (n Counts) String() string {
	var parts []string
	for op, c := range n {
		if c.Calls == 0 {
			continue
		}
		var more []string
		if c.Bytes > 0 {
			more = append(more, fmt.Sprintf("%d bytes", c.Bytes))
		}
		if c.Failed > 0 {
			more = append(more, fmt.Sprintf("%d failed", c.Failed))
		}
		s := fmt.Sprintf("%s %d", Op(op), c.Calls)
		if more != nil {
			s += " (" + strings.Join(more, ", ") + ")"
		}
		parts = append(parts, s)
	}
	if parts == nil {
		return "no requests"
	}
	return strings.Join(parts, ", ")
}

// count is called when a call ends. It counts nothing for content that did
// not arrive.
func (c *Counter) count(op Op, bytes int, err error) {
	p := &c.counts[op]
	p.calls.Add(1)
	if err != nil {
		p.failed.Add(1)
	} else {
		p.bytes.Add(int64(bytes))
	}
}

// Put is [Store.Put].
func (c *Counter) Put(ctx context.Context, name string, data []byte) error {
	err := c.store.Put(ctx, name, data)
	c.count(OpPut, len(data), err)
	return err
}

// Replace is [Replacer.Replace]; without it beneath, [errors.ErrUnsupported].
func (c *Counter) Replace(ctx context.Context, name string, data []byte) error {
	err := replace(ctx, c.store, name, data)
	c.count(OpReplace, len(data), err)
	return err
}

// Get is [Store.Get].
func (c *Counter) Get(ctx context.Context, name string) ([]byte, error) {
	data, err := c.store.Get(ctx, name)
	c.count(OpGet, len(data), err)
	return data, err
}

// ReadAt is [Store.ReadAt].
func (c *Counter) ReadAt(ctx context.Context, name string, offset int64, p []byte) error {
	err := c.store.ReadAt(ctx, name, offset, p)
	c.count(OpReadAt, len(p), err)
	return err
}

// List is [Store.List]. It counts one call, whatever the number of requests.
func (c *Counter) List(ctx context.Context, prefix string, yield func(Info) error) error {
	return c.ListAfter(ctx, prefix, "", yield)
}

// ListAfter is [Resumer.ListAfter].
func (c *Counter) ListAfter(ctx context.Context, prefix, after string, yield func(Info) error) error {
	var yielded error // yield's own error is no failure of the store
	err := ListAfter(ctx, c.store, prefix, after, func(info Info) error {
		yielded = yield(info)
		return yielded
	})
	if yielded != nil && errors.Is(err, yielded) {
		c.count(OpList, 0, nil)
	} else {
		c.count(OpList, 0, err)
	}
	return err
}

// Stat is [Store.Stat].
func (c *Counter) Stat(ctx context.Context, name string) (Info, error) {
	info, err := c.store.Stat(ctx, name)
	c.count(OpStat, 0, err)
	return info, err
}

// Delete is [Store.Delete]. It counts one call, whatever the number of names.
func (c *Counter) Delete(ctx context.Context, names ...string) error {
	err := c.store.Delete(ctx, names...)
	c.count(OpDelete, 0, err)
	return err
}

package remote

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// RetryOptions say how patient [Retry] is; nil and zero values give the
// defaults. A negative Total means one attempt only.
type RetryOptions struct {
	// Initial is the mean delay after the first failure; it doubles with every
	// further one. Default 400 ms.
	Initial time.Duration
	// Max bounds the delay. Default 15 s.
	Max time.Duration
	// Total is how long failures go on before the last of them is returned:
	// delays and attempts together. Default 2 minutes, which outlasts a
	// restart of a server or a network.
	Total time.Duration
	// Notify, if not nil, is told of each failure that is going to be tried
	// again, and when. It may be called from several goroutines at once.
	Notify func(err error, delay time.Duration)
	// Sleep, if not nil, is what is called to wait; it returns ctx's error when
	// that ends first. Tests that do not want to wait set it.
	Sleep func(ctx context.Context, d time.Duration) error
}

const (
	retryInitial = 400 * time.Millisecond
	retryMax     = 15 * time.Second
	retryTotal   = 2 * time.Minute

	// An attempt may take attemptBase, and a second for every attemptRate
	// bytes. It is what ends an attempt on a server that answers a byte now
	// and then; that it has gone silent is noticed sooner, by the transport.
	attemptBase = time.Minute
	attemptRate = 64 << 10

	// unknownSize is what Get, which learns the size from the answer, allows
	// time for.
	unknownSize = 32 << 20

	// stallTime is how long a list may go without an entry; it has no other
	// deadline, since it may have millions of them.
	stallTime = 2 * attemptBase
)

// Retry returns a store that tries an operation of s again when it failed
// with a [TransientError], after a growing, random delay that is at least
// what the server asked for. All other errors are returned at once. An attempt
// that takes a minute, and a second more for every 64 KiB, is given up and
// counts as such a failure.
//
// Every operation of a [Store] can be repeated without harm, a Put whose
// answer was lost included. A list goes on behind the last name that it gave.
func Retry(s Store, o *RetryOptions) Store {
	r := &retrier{store: s}
	if o != nil {
		r.opts = *o
	}
	if r.opts.Initial == 0 {
		r.opts.Initial = retryInitial
	}
	if r.opts.Max == 0 {
		r.opts.Max = retryMax
	}
	if r.opts.Total == 0 {
		r.opts.Total = retryTotal
	}
	if r.opts.Sleep == nil {
		r.opts.Sleep = sleep
	}
	return r
}

type retrier struct {
	store Store
	opts  RetryOptions
}

var (
	_ Replacer = (*retrier)(nil)
	_ Resumer  = (*retrier)(nil)
	_ Clock    = (*retrier)(nil)
)

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// retries is the state of one operation between its attempts.
type retries struct {
	opts     *RetryOptions
	failures int
	delay    time.Duration // mean of the next
	spent    time.Duration
}

// next waits and returns nil when err is worth another attempt; else it
// returns what the operation ends with. took is the failed attempt's duration.
func (r *retries) next(ctx context.Context, err error, took time.Duration) error {
	var t *TransientError
	if !errors.As(err, &t) || ctx.Err() != nil {
		return err
	}
	r.failures++
	r.spent += took
	if r.delay == 0 {
		r.delay = r.opts.Initial
	}
	// Many workers fail at once; spread them, or they all come back at once.
	delay := r.delay/2 + rand.N(r.delay)
	r.delay = min(2*r.delay, r.opts.Max)
	delay = min(max(delay, t.After), r.opts.Total-r.spent) // the last attempt is at the very end
	if delay <= 0 {
		if r.failures > 1 {
			err = fmt.Errorf("%w (tried %d times in %s)", err, r.failures, r.spent.Round(time.Second))
		}
		return err
	}
	if r.opts.Notify != nil {
		r.opts.Notify(err, delay)
	}
	if serr := r.opts.Sleep(ctx, delay); serr != nil {
		return fmt.Errorf("%w while waiting to try again after: %v", serr, err)
	}
	r.spent += delay
	return nil
}

// errSlow is the cause of an attempt's context that ran out of time.
var errSlow = errors.New("the server is too slow or has stopped answering")

// attempt calls f with a deadline. If that is what ended it, the error is transient.
func attempt(ctx context.Context, op Op, name string, d time.Duration, f func(context.Context) error) error {
	actx, cancel := context.WithTimeoutCause(ctx, d, errSlow)
	defer cancel()
	return slow(ctx, actx, op, name, f(actx))
}

func slow(ctx, actx context.Context, op Op, name string, err error) error {
	if err == nil || ctx.Err() != nil || context.Cause(actx) != errSlow || !isContext(err) {
		return err
	}
	return op.Wrap(name, &TransientError{Err: errSlow})
}

func isContext(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

func (r *retrier) do(ctx context.Context, op Op, name string, size int, f func(context.Context) error) error {
	state := retries{opts: &r.opts}
	deadline := attemptBase + time.Duration(size)*time.Second/attemptRate
	for {
		start := time.Now()
		err := attempt(ctx, op, name, deadline, f)
		if err == nil {
			return nil
		}
		if err := state.next(ctx, err, time.Since(start)); err != nil {
			return err
		}
	}
}

// Put is [Store.Put].
func (r *retrier) Put(ctx context.Context, name string, data []byte) error {
	return r.do(ctx, OpPut, name, len(data), func(ctx context.Context) error {
		return r.store.Put(ctx, name, data)
	})
}

// Replace is [Replacer.Replace].
func (r *retrier) Replace(ctx context.Context, name string, data []byte) error {
	return r.do(ctx, OpReplace, name, len(data), func(ctx context.Context) error {
		return Replace(ctx, r.store, name, data)
	})
}

// Get is [Store.Get].
func (r *retrier) Get(ctx context.Context, name string) (data []byte, err error) {
	err = r.do(ctx, OpGet, name, unknownSize, func(ctx context.Context) (err error) {
		data, err = r.store.Get(ctx, name)
		return err
	})
	return data, err
}

// ReadAt is [Store.ReadAt].
func (r *retrier) ReadAt(ctx context.Context, name string, offset int64, p []byte) error {
	return r.do(ctx, OpReadAt, name, len(p), func(ctx context.Context) error {
		return r.store.ReadAt(ctx, name, offset, p)
	})
}

// Stat is [Store.Stat].
func (r *retrier) Stat(ctx context.Context, name string) (info Info, err error) {
	err = r.do(ctx, OpStat, name, 0, func(ctx context.Context) (err error) {
		info, err = r.store.Stat(ctx, name)
		return err
	})
	return info, err
}

// List is [Store.List].
func (r *retrier) List(ctx context.Context, prefix string, yield func(Info) error) error {
	return r.ListAfter(ctx, prefix, "", yield)
}

// ListAfter is [Resumer.ListAfter].
func (r *retrier) ListAfter(ctx context.Context, prefix, after string, yield func(Info) error) error {
	state := retries{opts: &r.opts}
	for {
		start := time.Now()
		began := after
		var yielded error
		err := watched(ctx, prefix, func(ctx context.Context, alive func()) error {
			return ListAfter(ctx, r.store, prefix, after, func(info Info) error {
				if yielded = yield(info); yielded == nil {
					after = info.Name
				}
				alive()
				return yielded
			})
		})
		if err == nil || yielded != nil {
			return err
		}
		if after != began {
			state = retries{opts: &r.opts} // it gets on; patience is for when it does not
			start = time.Now()
		}
		if err := state.next(ctx, err, time.Since(start)); err != nil {
			return err
		}
	}
}

// watched is attempt for a list: f's context ends when alive was not called
// for stallTime.
func watched(ctx context.Context, prefix string, f func(ctx context.Context, alive func()) error) error {
	actx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t := time.AfterFunc(stallTime, func() { cancel(errSlow) })
	defer t.Stop()
	return slow(ctx, actx, OpList, prefix, f(actx, func() { t.Reset(stallTime) }))
}

// Delete is [Store.Delete]. It tries again only the names that failed: another
// may have been written anew in the meantime.
func (r *retrier) Delete(ctx context.Context, names ...string) error {
	state := retries{opts: &r.opts}
	var permanent []error
	for {
		start := time.Now()
		deadline := attemptBase + time.Duration(len(names))*(time.Second/10)
		err := attempt(ctx, OpDelete, "objects", deadline, func(ctx context.Context) error {
			return r.store.Delete(ctx, names...)
		})
		again, final, transient := splitDelete(names, err)
		permanent = append(permanent, final...)
		if len(again) == 0 {
			return errors.Join(permanent...)
		}
		names = again
		if err := state.next(ctx, transient, time.Since(start)); err != nil {
			return errors.Join(append(permanent, err)...)
		}
	}
}

// splitDelete takes the joined errors of a Delete apart: the names that are
// worth another attempt, the errors that are not, and why the names are. All
// names are if a transient error does not tell which one it is of.
func splitDelete(names []string, err error) (again []string, permanent []error, transient error) {
	errs := []error{err}
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		errs = j.Unwrap()
	}
	var passing []error
	for _, err := range errs {
		var o *OpError
		switch {
		case err == nil:
		case !Transient(err):
			permanent = append(permanent, err)
		case errors.As(err, &o) && slices.Contains(names, o.Name):
			again = append(again, o.Name)
			passing = append(passing, err)
		default:
			return names, nil, err
		}
	}
	return again, permanent, errors.Join(passing...)
}

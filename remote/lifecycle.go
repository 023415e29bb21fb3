package remote

import (
	"context"
	"errors"
)

// A Lifecycler is a [Store] in a bucket that deletes objects by itself when they are
// old. Where the server cannot do that, its methods fail with [errors.ErrUnsupported].
type Lifecycler interface {
	// Lifecycle gives the bucket's rules whose ids begin with owner, and how many
	// others it has.
	Lifecycle(ctx context.Context, owner string) (rules []LifecycleRule, others int, err error)
	// SetLifecycle has the bucket have these rules, and none beside them whose ids
	// begin with owner. All others stay as they are. S3 keeps the rules of a bucket in
	// one piece and knows no condition for it: what somebody else changes at the same
	// moment may be lost.
	SetLifecycle(ctx context.Context, owner string, rules []LifecycleRule) error
}

// A LifecycleRule deletes the objects whose names begin with Prefix some time after
// they are Days old: mostly within a day.
type LifecycleRule struct {
	ID     string
	Prefix string // of the store's names
	Days   int    // since the object was written, 1 or more
	// Altered is set for a rule that was found in the bucket and is none that
	// SetLifecycle makes: switched off, for other objects, or saying more.
	Altered bool
}

func lifecycler(s Store) (Lifecycler, error) {
	if l, ok := s.(Lifecycler); ok {
		return l, nil
	}
	return nil, OpLifecycle.Wrap("rules", errors.ErrUnsupported)
}

// Lifecycle is [Lifecycler.Lifecycle].
func (r *retrier) Lifecycle(ctx context.Context, owner string) (rules []LifecycleRule, others int, err error) {
	l, err := lifecycler(r.store)
	if err != nil {
		return nil, 0, err
	}
	err = r.do(ctx, OpLifecycle, "rules", 0, func(ctx context.Context) (err error) {
		rules, others, err = l.Lifecycle(ctx, owner)
		return err
	})
	return rules, others, err
}

// SetLifecycle is [Lifecycler.SetLifecycle]. Each attempt begins with the rules that
// there are.
func (r *retrier) SetLifecycle(ctx context.Context, owner string, rules []LifecycleRule) error {
	l, err := lifecycler(r.store)
	if err != nil {
		return err
	}
	return r.do(ctx, OpLifecycle, "rules", 0, func(ctx context.Context) error {
		return l.SetLifecycle(ctx, owner, rules)
	})
}

package retain

import (
	"context"
	"errors"
	"fmt"

	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
)

// lifecycleMargin is how many days more than a class promises its rule waits: the
// bucket counts from its own clock's time of the object, and a TTL from the time of the
// machine that made the snapshot.
const lifecycleMargin = 1

// lifecycleOwner begins the ids of this repository's rules.
func lifecycleOwner(r *repo.Repo) string { return "snapctl-" + r.Cfg.ID.String() + "-" }

// lifecycleRules are the rules that the bucket should have.
func lifecycleRules(r *repo.Repo) []remote.LifecycleRule {
	var all []remote.LifecycleRule
	for _, c := range manifest.Classes() {
		all = append(all, remote.LifecycleRule{
			ID:     fmt.Sprintf("%sttl-%dd", lifecycleOwner(r), c.Days()),
			Prefix: c.Prefix(), Days: c.Days() + lifecycleMargin,
		})
	}
	return all
}

func lifecycler(r *repo.Repo) (remote.Lifecycler, error) {
	if l, ok := r.Store.(remote.Lifecycler); ok && !r.Local() {
		return l, nil
	}
	return nil, fmt.Errorf("%w: only a bucket has lifecycle rules", errors.ErrUnsupported)
}

// lifecycleError says what an error is about.
func lifecycleError(r *repo.Repo, err error) error {
	return fmt.Errorf("lifecycle rules of %s: %w", r.URL(), err)
}

// Lifecycle is engine.Repository.Lifecycle.
func Lifecycle(ctx context.Context, r *repo.Repo) (*snapshot.Lifecycle, error) {
	l, err := lifecycler(r)
	if err != nil {
		return nil, lifecycleError(r, err)
	}
	found, others, err := l.Lifecycle(ctx, lifecycleOwner(r))
	if err != nil {
		return nil, lifecycleError(r, err)
	}
	there := map[string]remote.LifecycleRule{}
	for _, rule := range found {
		there[rule.ID] = rule
	}
	c := &snapshot.Lifecycle{Others: others}
	for _, want := range lifecycleRules(r) {
		rule := snapshot.LifecycleRule{ID: want.ID, Prefix: want.Prefix, Days: want.Days, State: snapshot.LifecycleApplied}
		got, ok := there[want.ID]
		switch {
		case !ok:
			rule.State = snapshot.LifecycleMissing
		case got != want:
			rule.State = snapshot.LifecycleAltered
		}
		c.Rules = append(c.Rules, rule)
	}
	return c, nil
}

// ApplyLifecycle is engine.Repository.ApplyLifecycle.
func ApplyLifecycle(ctx context.Context, r *repo.Repo) (*snapshot.Lifecycle, error) {
	return setLifecycle(ctx, r, lifecycleRules(r))
}

// RemoveLifecycle is engine.Repository.RemoveLifecycle.
func RemoveLifecycle(ctx context.Context, r *repo.Repo) (*snapshot.Lifecycle, error) {
	return setLifecycle(ctx, r, nil)
}

// setLifecycle sets the rules, and tells what the bucket has then.
func setLifecycle(ctx context.Context, r *repo.Repo, rules []remote.LifecycleRule) (*snapshot.Lifecycle, error) {
	l, err := lifecycler(r)
	if err == nil {
		err = l.SetLifecycle(ctx, lifecycleOwner(r), rules)
	}
	if err != nil {
		return nil, lifecycleError(r, err)
	}
	return Lifecycle(ctx, r)
}

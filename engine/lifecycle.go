package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
)

// A Lifecycle is what a bucket does about old snapshots by itself: a rule for each
// lifetime class, which deletes the manifests of that class when the longest TTL in it
// has passed, even if nothing of ours ever runs again. Only manifests: what no snapshot
// needs any more is found by garbage collection alone.
type Lifecycle struct {
	Rules  []LifecycleRule `json:"rules"`  // of this repository, one for each class
	Others int             `json:"others"` // rules in the bucket that are not ours
}

// A LifecycleRule is the rule of one lifetime class.
type LifecycleRule struct {
	ID     string         `json:"id"`
	Prefix string         `json:"prefix"` // of the objects in the repository
	Days   int            `json:"days"`   // of age at which they are deleted
	State  LifecycleState `json:"state"`
}

// LifecycleState is how the bucket has a rule.
type LifecycleState string

// The states of a rule.
const (
	LifecycleApplied LifecycleState = "applied"
	LifecycleMissing LifecycleState = "missing"
	LifecycleAltered LifecycleState = "altered" // somebody changed it
)

// lifecycleMargin is how many days more than a class promises its rule waits: the
// bucket counts from its own clock's time of the object, and a TTL from the time of the
// machine that made the snapshot.
const lifecycleMargin = 1

// lifecycleOwner begins the ids of this repository's rules.
func (r *Repository) lifecycleOwner() string { return "snapctl-" + r.repo.Cfg.ID.String() + "-" }

// lifecycleRules are the rules that the bucket should have.
func (r *Repository) lifecycleRules() []remote.LifecycleRule {
	var all []remote.LifecycleRule
	for _, c := range manifest.Classes() {
		all = append(all, remote.LifecycleRule{
			ID:     fmt.Sprintf("%sttl-%dd", r.lifecycleOwner(), c.Days()),
			Prefix: c.Prefix(), Days: c.Days() + lifecycleMargin,
		})
	}
	return all
}

func (r *Repository) lifecycler() (remote.Lifecycler, error) {
	if l, ok := r.repo.Store.(remote.Lifecycler); ok && !r.repo.Local() {
		return l, nil
	}
	return nil, fmt.Errorf("%w: only a bucket has lifecycle rules", errors.ErrUnsupported)
}

// lifecycleError says what an error is about.
func (r *Repository) lifecycleError(err error) error {
	return fmt.Errorf("lifecycle rules of %s: %w", r.repo.URL(), err)
}

// Lifecycle tells which rules the bucket has. It fails with errors.ErrUnsupported for a
// folder, and where the server has no such rules.
func (r *Repository) Lifecycle(ctx context.Context) (*Lifecycle, error) {
	l, err := r.lifecycler()
	if err != nil {
		return nil, r.lifecycleError(err)
	}
	found, others, err := l.Lifecycle(ctx, r.lifecycleOwner())
	if err != nil {
		return nil, r.lifecycleError(err)
	}
	there := map[string]remote.LifecycleRule{}
	for _, rule := range found {
		there[rule.ID] = rule
	}
	c := &Lifecycle{Others: others}
	for _, want := range r.lifecycleRules() {
		rule := LifecycleRule{want.ID, want.Prefix, want.Days, LifecycleApplied}
		got, ok := there[want.ID]
		switch {
		case !ok:
			rule.State = LifecycleMissing
		case got != want:
			rule.State = LifecycleAltered
		}
		c.Rules = append(c.Rules, rule)
	}
	return c, nil
}

// ApplyLifecycle has the bucket have the rules of this repository. Other rules stay as
// they are.
func (r *Repository) ApplyLifecycle(ctx context.Context) (*Lifecycle, error) {
	return r.setLifecycle(ctx, r.lifecycleRules())
}

// RemoveLifecycle removes the rules of this repository from the bucket. Other rules
// stay as they are.
func (r *Repository) RemoveLifecycle(ctx context.Context) (*Lifecycle, error) {
	return r.setLifecycle(ctx, nil)
}

// setLifecycle sets the rules, and tells what the bucket has then.
func (r *Repository) setLifecycle(ctx context.Context, rules []remote.LifecycleRule) (*Lifecycle, error) {
	l, err := r.lifecycler()
	if err == nil {
		err = l.SetLifecycle(ctx, r.lifecycleOwner(), rules)
	}
	if err != nil {
		return nil, r.lifecycleError(err)
	}
	return r.Lifecycle(ctx)
}

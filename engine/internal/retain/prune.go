package retain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"golang.org/x/sync/errgroup"
)

// clocksApart is how far the clocks of two machines may differ by which snapshots are made,
// or looked at, without either being said to be off.
const clocksApart = time.Minute

// fromFuture reports whether a snapshot says that it was made later than it is now.
func fromFuture(s *snapshot.Snapshot, now time.Time) bool { return s.CreatedAt.Sub(now) > clocksApart }

// periods are the rules that count, and what a snapshot is the newest of.
var periods = []struct {
	name  string
	count func(*snapshot.PruneOptions) int
	of    func(t time.Time, nth int) string
}{
	{"last", func(o *snapshot.PruneOptions) int { return o.KeepLast }, func(_ time.Time, nth int) string { return fmt.Sprint(nth) }},
	{"hourly", func(o *snapshot.PruneOptions) int { return o.KeepHourly }, func(t time.Time, _ int) string { return t.Format("2006-01-02 15 -0700") }},
	{"daily", func(o *snapshot.PruneOptions) int { return o.KeepDaily }, func(t time.Time, _ int) string { return t.Format("2006-01-02") }},
	{"weekly", func(o *snapshot.PruneOptions) int { return o.KeepWeekly }, func(t time.Time, _ int) string {
		year, week := t.ISOWeek()
		return fmt.Sprint(year, " ", week)
	}},
	{"monthly", func(o *snapshot.PruneOptions) int { return o.KeepMonthly }, func(t time.Time, _ int) string { return t.Format("2006-01") }},
	{"yearly", func(o *snapshot.PruneOptions) int { return o.KeepYearly }, func(t time.Time, _ int) string { return t.Format("2006") }},
}

func checkPrune(o *snapshot.PruneOptions) error {
	any := len(o.KeepTags) > 0 || o.KeepWithin > 0
	for _, p := range periods {
		n := p.count(o)
		if n < snapshot.KeepAll {
			return fmt.Errorf("%w: to keep %d %s snapshots", snapshot.ErrInvalid, n, p.name)
		}
		any = any || n != 0
	}
	switch {
	case o.KeepWithin < 0:
		return fmt.Errorf("%w: to keep what is within %v", snapshot.ErrInvalid, o.KeepWithin)
	case !any:
		return fmt.Errorf("%w: no rule says what to keep", snapshot.ErrInvalid)
	case slices.Contains(o.Names, ""):
		return fmt.Errorf("%w: an empty name", snapshot.ErrInvalid)
	}
	for _, t := range o.KeepTags {
		if err := repo.CheckTag(t.Key, t.Value); err != nil {
			return err
		}
	}
	for _, g := range o.GroupBy {
		switch g {
		case snapshot.GroupName, snapshot.GroupDir, snapshot.GroupHost:
		case snapshot.GroupAll:
			if len(o.GroupBy) > 1 {
				return fmt.Errorf("%w: to group by all and by something else", snapshot.ErrInvalid)
			}
		default:
			return fmt.Errorf("%w: to group by %q", snapshot.ErrInvalid, g)
		}
	}
	return nil
}

// Prune is engine.Repository.Prune.
func Prune(ctx context.Context, r *repo.Repo, opts *snapshot.PruneOptions) ([]snapshot.PruneGroup, error) {
	if opts == nil {
		opts = &snapshot.PruneOptions{}
	}
	if err := checkPrune(opts); err != nil {
		return nil, fmt.Errorf("prune: %w", err)
	}
	r.AskTime(ctx)
	all, err := r.List(ctx, nil)
	if err != nil {
		return nil, err
	}
	now := r.Time()
	groups := groupsOf(opts, all)
	var gone []*snapshot.Snapshot
	for i := range groups {
		DecideGroup(opts, groups[i].Snapshots, now)
		for _, d := range groups[i].Snapshots {
			if !d.Keep {
				gone = append(gone, d.Snapshot)
			}
		}
	}
	if len(gone) == 0 {
		return groups, nil
	}
	if err := keptAreWhole(ctx, r, groups); err != nil {
		return nil, fmt.Errorf("nothing is removed: %w", err)
	}
	if opts.DryRun {
		return groups, nil
	}
	// As they were listed: another prune may remove the same ones at this moment.
	return groups, removeAll(ctx, r, gone)
}

// keptAreWhole reads the manifests of what stays of groups of which something is to go.
// A listing believes what this machine remembers of a manifest, and reads no further than
// its head: so what a rule keeps might be lost, and what it has removed for that not.
func keptAreWhole(ctx context.Context, r *repo.Repo, groups []snapshot.PruneGroup) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(write.AsksAtOnce)
	for _, group := range groups {
		if !slices.ContainsFunc(group.Snapshots, func(d snapshot.PruneDecision) bool { return !d.Keep }) {
			continue
		}
		for _, d := range group.Snapshots {
			if !d.Keep {
				continue
			}
			g.Go(func() error {
				switch _, _, err := r.EncodedManifest(ctx, d.Snapshot.ID); {
				case errors.Is(err, snapshot.ErrNotFound):
					return fmt.Errorf("snapshot %v, which was to stay, has been removed meanwhile: prune again", d.Snapshot.ID)
				case err != nil:
					return fmt.Errorf("snapshot %v, which is to stay: %w", d.Snapshot.ID, err)
				}
				return nil
			})
		}
	}
	return g.Wait()
}

// groups sorts snapshots, newest first, into groups.
func groupsOf(o *snapshot.PruneOptions, all []*snapshot.Snapshot) []snapshot.PruneGroup {
	by := o.GroupBy
	if len(by) == 0 {
		by = []snapshot.GroupBy{snapshot.GroupName}
	}
	type key struct{ name, dir, host string }
	at := map[key]int{}
	var groups []snapshot.PruneGroup
	for _, s := range all {
		if len(o.Names) > 0 && !slices.Contains(o.Names, s.Name) {
			continue
		}
		var k key
		for _, g := range by {
			switch g {
			case snapshot.GroupName:
				if k.name = s.Name; s.Name == "" {
					k.dir = s.Dir
				}
			case snapshot.GroupDir:
				k.dir = s.Dir
			case snapshot.GroupHost:
				k.host = s.Host
			}
		}
		i, ok := at[k]
		if !ok {
			i = len(groups)
			at[k] = i
			groups = append(groups, snapshot.PruneGroup{Name: k.name, Dir: k.dir, Host: k.host})
		}
		groups[i].Snapshots = append(groups[i].Snapshots, snapshot.PruneDecision{Snapshot: s})
	}
	slices.SortFunc(groups, func(a, b snapshot.PruneGroup) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Dir, b.Dir), strings.Compare(a.Host, b.Host))
	})
	return groups
}

// decide says of the snapshots of a group which are kept, and why.
func DecideGroup(o *snapshot.PruneOptions, group []snapshot.PruneDecision, now time.Time) {
	// By when they were made: ids are of the clocks of their makers, as is this, but
	// what is shown is what counts.
	slices.SortStableFunc(group, func(a, b snapshot.PruneDecision) int { return b.Snapshot.CreatedAt.Compare(a.Snapshot.CreatedAt) })
	for ; len(group) > 0 && fromFuture(group[0].Snapshot, now); group = group[1:] {
		group[0].Keep, group[0].Reasons = true, []string{snapshot.Future}
	}
	location := o.Location
	if location == nil {
		location = time.Local
	}
	left := make([]int, len(periods))
	last := make([]string, len(periods))
	for i, p := range periods {
		left[i] = p.count(o)
	}
	for nth := range group {
		d := &group[nth]
		s := d.Snapshot
		keep := func(reason string) { d.Keep, d.Reasons = true, append(d.Reasons, reason) }
		if s.Pinned {
			keep("pinned")
		}
		for _, t := range o.KeepTags {
			if v, ok := s.Tags[t.Key]; ok && v == t.Value {
				keep("tag " + t.Key + "=" + t.Value)
			}
		}
		if o.KeepWithin > 0 && (nth == 0 || s.CreatedAt.After(now.Add(-o.KeepWithin))) {
			keep("within")
		}
		for i, p := range periods {
			if left[i] == 0 {
				continue
			}
			of := p.of(s.CreatedAt.In(location), nth)
			oldest := nth == len(group)-1
			if of == last[i] && !oldest {
				continue
			}
			if of == last[i] {
				keep("oldest " + p.name)
			} else {
				keep(p.name)
			}
			last[i] = of
			if left[i] != snapshot.KeepAll {
				left[i]--
			}
		}
	}
}

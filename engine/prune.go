package engine

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

// KeepAll as a number of PruneOptions keeps one of every hour, day, and so on, however
// many there are.
const KeepAll = -1

// PruneOptions say which snapshots are kept. At least one Keep must be set.
//
// The rules are those of restic's forget. They look at the snapshots of a group from
// the newest to the oldest, each rule by itself, and a snapshot stays if any rule keeps
// it. An hour, day, week (from Monday, ISO 8601), month or year is one of Location's
// calendar, and of it the newest snapshot is kept; those without a snapshot do not count.
// A rule that has not kept as many as it may keeps the oldest snapshot of the group too.
//
// What time it is the store's clock says. A snapshot from the future, of a machine whose
// clock was ahead, is kept until its time has come, and until then no rule counts it.
type PruneOptions struct {
	KeepLast    int
	KeepHourly  int
	KeepDaily   int
	KeepWeekly  int
	KeepMonthly int
	KeepYearly  int
	// KeepWithin keeps what was made less than this ago, and the newest of the group in
	// any case.
	KeepWithin time.Duration
	// KeepTags keeps those that have one of the tags.
	KeepTags []Tag

	// Names has only snapshots of these names be looked at; none is all.
	Names []string
	// GroupBy says which snapshots are counted together: those that are alike in all of
	// it. None is GroupName.
	GroupBy []GroupBy
	// Location is what day it is. The default is time.Local.
	Location *time.Location
	DryRun   bool // nothing is removed
}

// A Tag is a key and its value.
type Tag struct{ Key, Value string }

// GroupBy is what the snapshots of a group have in common.
type GroupBy string

// What there is to group by.
const (
	GroupName GroupBy = "name" // those without a name: by directory
	GroupDir  GroupBy = "dir"
	GroupHost GroupBy = "host"
	GroupAll  GroupBy = "all" // one group of everything
)

// A PruneGroup is what Prune decided of snapshots that are counted together.
type PruneGroup struct {
	// What they have in common, "" where that does not matter.
	Name string `json:"name,omitempty"`
	Dir  string `json:"dir,omitempty"`
	Host string `json:"host,omitempty"`

	Snapshots []PruneDecision `json:"snapshots"` // newest first
}

// A PruneDecision is whether a snapshot stays.
type PruneDecision struct {
	Snapshot *snapshot.Snapshot `json:"snapshot"`
	Keep     bool               `json:"keep"`
	Reasons  []string           `json:"reasons,omitempty"` // to keep it, such as "daily", "pinned", or Future
}

// Future is the only reason to keep a snapshot that was made later than it is now.
const Future = "future"

// clocksApart is how far the clocks of two machines may differ by which snapshots are made,
// or looked at, without either being said to be off.
const clocksApart = time.Minute

// fromFuture reports whether a snapshot says that it was made later than it is now.
func fromFuture(s *snapshot.Snapshot, now time.Time) bool { return s.CreatedAt.Sub(now) > clocksApart }

// periods are the rules that count, and what a snapshot is the newest of.
var periods = []struct {
	name  string
	count func(*PruneOptions) int
	of    func(t time.Time, nth int) string
}{
	{"last", func(o *PruneOptions) int { return o.KeepLast }, func(_ time.Time, nth int) string { return fmt.Sprint(nth) }},
	{"hourly", func(o *PruneOptions) int { return o.KeepHourly }, func(t time.Time, _ int) string { return t.Format("2006-01-02 15 -0700") }},
	{"daily", func(o *PruneOptions) int { return o.KeepDaily }, func(t time.Time, _ int) string { return t.Format("2006-01-02") }},
	{"weekly", func(o *PruneOptions) int { return o.KeepWeekly }, func(t time.Time, _ int) string {
		year, week := t.ISOWeek()
		return fmt.Sprint(year, " ", week)
	}},
	{"monthly", func(o *PruneOptions) int { return o.KeepMonthly }, func(t time.Time, _ int) string { return t.Format("2006-01") }},
	{"yearly", func(o *PruneOptions) int { return o.KeepYearly }, func(t time.Time, _ int) string { return t.Format("2006") }},
}

func (o *PruneOptions) check() error {
	any := len(o.KeepTags) > 0 || o.KeepWithin > 0
	for _, p := range periods {
		n := p.count(o)
		if n < KeepAll {
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
		case GroupName, GroupDir, GroupHost:
		case GroupAll:
			if len(o.GroupBy) > 1 {
				return fmt.Errorf("%w: to group by all and by something else", snapshot.ErrInvalid)
			}
		default:
			return fmt.Errorf("%w: to group by %q", snapshot.ErrInvalid, g)
		}
	}
	return nil
}

// Prune removes the snapshots that no rule keeps, and tells of all that it looked at,
// sorted by what the groups have in common. Pinned snapshots are always kept, and those
// that have expired are left to garbage collection. If a manifest or note is damaged,
// so that it is not known what there is, or what stays could not be read, nothing is
// removed. When removing fails, the
// decisions are given together with the error.
func (r *Repository) Prune(ctx context.Context, opts *PruneOptions) ([]PruneGroup, error) {
	if opts == nil {
		opts = &PruneOptions{}
	}
	if err := opts.check(); err != nil {
		return nil, fmt.Errorf("prune: %w", err)
	}
	r.repo.AskTime(ctx)
	all, err := r.List(ctx, nil)
	if err != nil {
		return nil, err
	}
	now := r.repo.Time()
	groups := opts.groups(all)
	var gone []*snapshot.Snapshot
	for i := range groups {
		opts.decide(groups[i].Snapshots, now)
		for _, d := range groups[i].Snapshots {
			if !d.Keep {
				gone = append(gone, d.Snapshot)
			}
		}
	}
	if len(gone) == 0 {
		return groups, nil
	}
	if err := r.keptAreWhole(ctx, groups); err != nil {
		return nil, fmt.Errorf("nothing is removed: %w", err)
	}
	if opts.DryRun {
		return groups, nil
	}
	// As they were listed: another prune may remove the same ones at this moment.
	return groups, r.remove(ctx, gone)
}

// keptAreWhole reads the manifests of what stays of groups of which something is to go.
// A listing believes what this machine remembers of a manifest, and reads no further than
// its head: so what a rule keeps might be lost, and what it has removed for that not.
func (r *Repository) keptAreWhole(ctx context.Context, groups []PruneGroup) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(write.AsksAtOnce)
	for _, group := range groups {
		if !slices.ContainsFunc(group.Snapshots, func(d PruneDecision) bool { return !d.Keep }) {
			continue
		}
		for _, d := range group.Snapshots {
			if !d.Keep {
				continue
			}
			g.Go(func() error {
				switch _, _, err := r.repo.EncodedManifest(ctx, d.Snapshot.ID); {
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
func (o *PruneOptions) groups(all []*snapshot.Snapshot) []PruneGroup {
	by := o.GroupBy
	if len(by) == 0 {
		by = []GroupBy{GroupName}
	}
	type key struct{ name, dir, host string }
	at := map[key]int{}
	var groups []PruneGroup
	for _, s := range all {
		if len(o.Names) > 0 && !slices.Contains(o.Names, s.Name) {
			continue
		}
		var k key
		for _, g := range by {
			switch g {
			case GroupName:
				if k.name = s.Name; s.Name == "" {
					k.dir = s.Dir
				}
			case GroupDir:
				k.dir = s.Dir
			case GroupHost:
				k.host = s.Host
			}
		}
		i, ok := at[k]
		if !ok {
			i = len(groups)
			at[k] = i
			groups = append(groups, PruneGroup{Name: k.name, Dir: k.dir, Host: k.host})
		}
		groups[i].Snapshots = append(groups[i].Snapshots, PruneDecision{Snapshot: s})
	}
	slices.SortFunc(groups, func(a, b PruneGroup) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Dir, b.Dir), strings.Compare(a.Host, b.Host))
	})
	return groups
}

// decide says of the snapshots of a group which are kept, and why.
func (o *PruneOptions) decide(group []PruneDecision, now time.Time) {
	// By when they were made: ids are of the clocks of their makers, as is this, but
	// what is shown is what counts.
	slices.SortStableFunc(group, func(a, b PruneDecision) int { return b.Snapshot.CreatedAt.Compare(a.Snapshot.CreatedAt) })
	for ; len(group) > 0 && fromFuture(group[0].Snapshot, now); group = group[1:] {
		group[0].Keep, group[0].Reasons = true, []string{Future}
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
			if left[i] != KeepAll {
				left[i]--
			}
		}
	}
}

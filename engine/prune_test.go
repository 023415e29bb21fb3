//go:build linux

package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// decided is which snapshots a policy keeps of those made at these times, as in
// "2 daily, last; 1 daily": from the newest on, by their place in times.
func decided(o *snapshot.PruneOptions, times ...string) string {
	o.Location = time.UTC
	var group []snapshot.PruneDecision
	for i, text := range slices.Backward(times) {
		at, err := time.Parse("2006-01-02 15:04", text)
		if err != nil {
			panic(err)
		}
		group = append(group, snapshot.PruneDecision{Snapshot: &snapshot.Snapshot{ID: manifest.NewID(0), CreatedAt: at, Name: fmt.Sprint(i)}})
	}
	var now time.Time
	if len(group) > 0 {
		now = group[0].Snapshot.CreatedAt
	}
	retain.DecideGroup(o, group, now)
	var all []string
	for _, d := range group {
		if d.Keep != (len(d.Reasons) > 0) {
			panic(d)
		}
		if d.Keep {
			all = append(all, d.Snapshot.Name+" "+strings.Join(d.Reasons, ", "))
		}
	}
	return strings.Join(all, "; ")
}

func TestPruneRules(t *testing.T) {
	hours := []string{"2026-03-01 08:00", "2026-03-01 08:59", "2026-03-01 09:00", "2026-03-02 09:30", "2026-03-02 23:59", "2026-03-03 00:00"}
	// 2024-12-30 is in the first week of 2025, as is 2025-01-05; 2027-01-01 is in the last of 2026.
	weeks := []string{"2024-12-29 12:00", "2024-12-30 12:00", "2025-01-05 12:00", "2025-01-06 12:00", "2026-12-28 12:00", "2027-01-03 12:00"}
	for _, c := range []struct {
		o     snapshot.PruneOptions
		times []string
		want  string
	}{
		{snapshot.PruneOptions{KeepLast: 1}, nil, ""},
		{snapshot.PruneOptions{KeepLast: 2}, hours, "5 last; 4 last"},
		{snapshot.PruneOptions{KeepLast: 100}, hours[:2], "1 last; 0 last"},
		{snapshot.PruneOptions{KeepLast: snapshot.KeepAll}, hours[:3], "2 last; 1 last; 0 last"},
		{snapshot.PruneOptions{KeepHourly: 3}, hours, "5 hourly; 4 hourly; 3 hourly"},
		// The oldest too, while the count is not used up: in the same hour as the one before.
		{snapshot.PruneOptions{KeepHourly: 9}, hours, "5 hourly; 4 hourly; 3 hourly; 2 hourly; 1 hourly; 0 oldest hourly"},
		{snapshot.PruneOptions{KeepHourly: snapshot.KeepAll}, hours, "5 hourly; 4 hourly; 3 hourly; 2 hourly; 1 hourly; 0 oldest hourly"},
		{snapshot.PruneOptions{KeepHourly: 5}, hours, "5 hourly; 4 hourly; 3 hourly; 2 hourly; 1 hourly"},
		{snapshot.PruneOptions{KeepDaily: 2}, hours, "5 daily; 4 daily"},
		{snapshot.PruneOptions{KeepDaily: 3}, hours, "5 daily; 4 daily; 2 daily"},
		{snapshot.PruneOptions{KeepDaily: 4}, hours, "5 daily; 4 daily; 2 daily; 0 oldest daily"},
		{snapshot.PruneOptions{KeepWeekly: 2}, weeks, "5 weekly; 3 weekly"},
		{snapshot.PruneOptions{KeepWeekly: 3}, weeks, "5 weekly; 3 weekly; 2 weekly"},
		{snapshot.PruneOptions{KeepMonthly: 3}, weeks, "5 monthly; 4 monthly; 3 monthly"},
		{snapshot.PruneOptions{KeepMonthly: 4}, weeks, "5 monthly; 4 monthly; 3 monthly; 1 monthly"},
		{snapshot.PruneOptions{KeepYearly: 2}, weeks, "5 yearly; 4 yearly"},
		{snapshot.PruneOptions{KeepYearly: 9}, weeks, "5 yearly; 4 yearly; 3 yearly; 1 yearly; 0 oldest yearly"},
		// Each rule by itself: what one keeps uses up the others' counts too.
		{snapshot.PruneOptions{KeepLast: 1, KeepDaily: 2}, hours, "5 last, daily; 4 daily"},
		{snapshot.PruneOptions{KeepLast: 3, KeepYearly: 1}, hours, "5 last, yearly; 4 last; 3 last"},
		// Within: it is now when the newest was made; the very edge is out.
		{snapshot.PruneOptions{KeepWithin: time.Minute}, hours, "5 within"},
		{snapshot.PruneOptions{KeepWithin: 61 * time.Second}, hours, "5 within; 4 within"},
		{snapshot.PruneOptions{KeepWithin: 15 * time.Hour, KeepLast: 1}, hours, "5 within, last; 4 within; 3 within"},
	} {
		if got := decided(&c.o, c.times...); got != c.want {
			t.Errorf("%+v of %v:\n %s, want\n %s", c.o, c.times, got, c.want)
		}
	}
}

// Days are those of the place, and an hour that comes twice is two.
func TestPruneLocation(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	must(t, err)
	at := func(s string) snapshot.PruneDecision {
		utc, err := time.Parse("2006-01-02 15:04", s)
		must(t, err)
		return snapshot.PruneDecision{Snapshot: &snapshot.Snapshot{CreatedAt: utc}}
	}
	kept := func(o *snapshot.PruneOptions, group ...snapshot.PruneDecision) (n int) {
		retain.DecideGroup(o, group, group[0].Snapshot.CreatedAt)
		for _, d := range group {
			if d.Keep {
				n++
			}
		}
		return n
	}
	// 23:30 and 00:30 in Berlin, one day in UTC; the third keeps the rule of the oldest out.
	days := func() []snapshot.PruneDecision {
		return []snapshot.PruneDecision{at("2026-06-01 22:30"), at("2026-06-01 21:30"), at("2026-06-01 21:00")}
	}
	if n := kept(&snapshot.PruneOptions{KeepDaily: 2, Location: berlin}, days()...); n != 2 {
		t.Errorf("%d days in Berlin", n)
	}
	if n := kept(&snapshot.PruneOptions{KeepDaily: 1, Location: time.UTC}, days()...); n != 1 {
		t.Errorf("%d days in UTC", n)
	}
	// 02:15 summer time and 02:15 winter time.
	if n := kept(&snapshot.PruneOptions{KeepHourly: 2, Location: berlin}, at("2026-10-25 01:15"), at("2026-10-25 00:15"), at("2026-10-24 00:15")); n != 2 {
		t.Errorf("%d hours", n)
	}
}

func TestPrune(t *testing.T) {
	p, r, now := clocked(t)
	src, other := p.path("src"), p.files("other", map[string]string{"f": "1"})
	made := map[string]manifest.ID{}
	make := func(what, dir string, o *CreateOptions) {
		t.Helper()
		made[what] = complete(t, r, dir, o).ID
		*now = now.Add(time.Minute)
	}
	for i := range 3 {
		make(fmt.Sprint("app", i), src, &CreateOptions{Name: "app", Tags: map[string]string{"n": fmt.Sprint(i)}})
	}
	for i := range 2 {
		make(fmt.Sprint("src", i), src, nil)
		make(fmt.Sprint("other", i), other, nil)
	}
	make("short", src, &CreateOptions{Name: "app", TTL: time.Second})
	ids := func(groups []snapshot.PruneGroup, kept bool) (all []string) {
		for what, id := range made {
			for _, g := range groups {
				for _, d := range g.Snapshots {
					if d.Snapshot.ID == id && d.Keep == kept {
						all = append(all, what)
					}
				}
			}
		}
		slices.Sort(all)
		return all
	}
	dry := func(o snapshot.PruneOptions, want ...string) {
		t.Helper()
		o.DryRun = true
		groups, err := retain.Prune(t.Context(), r.repo, &o)
		if got := ids(groups, true); err != nil || !slices.Equal(got, want) {
			t.Errorf("%+v keeps %q, %v; want %q", o, got, err, want)
		}
	}
	changed(t, r, made["app0"].String(), &snapshot.Changes{Pin: true})
	dry(snapshot.PruneOptions{KeepLast: 1}, "app0", "app2", "other1", "src1")
	dry(snapshot.PruneOptions{KeepLast: 1, Names: []string{"app"}}, "app0", "app2")
	dry(snapshot.PruneOptions{KeepLast: 1, GroupBy: []snapshot.GroupBy{snapshot.GroupDir}}, "app0", "other1", "src1")
	dry(snapshot.PruneOptions{KeepLast: 1, GroupBy: []snapshot.GroupBy{snapshot.GroupAll}}, "app0", "other1")
	dry(snapshot.PruneOptions{KeepLast: 1, GroupBy: []snapshot.GroupBy{snapshot.GroupHost}}, "app0", "other1")
	dry(snapshot.PruneOptions{KeepLast: 1, GroupBy: []snapshot.GroupBy{snapshot.GroupName, snapshot.GroupDir, snapshot.GroupHost}}, "app0", "app2", "other1", "src1")
	dry(snapshot.PruneOptions{KeepTags: []snapshot.Tag{{Key: "n", Value: "1"}, {Key: "n", Value: "2"}}}, "app0", "app1", "app2")
	dry(snapshot.PruneOptions{KeepTags: []snapshot.Tag{{Key: "n", Value: ""}}}, "app0")

	before := len(objects(t, r.repo.Store, manifest.Prefix))
	if before != 8 {
		t.Fatalf("a dry run left %d snapshots", before)
	}
	groups, err := retain.Prune(t.Context(), r.repo, &snapshot.PruneOptions{KeepLast: 1})
	must(t, err)
	if len(groups) != 3 || groups[2].Name != "app" || groups[0].Dir != other || groups[1].Dir != src {
		t.Errorf("%+v", groups)
	}
	all, err := r.List(t.Context(), &snapshot.ListOptions{Expired: true})
	must(t, err)
	if got := ids(groups, false); len(all) != 5 || !slices.Equal(got, []string{"app1", "other0", "src0"}) {
		t.Errorf("removed %q, left %v", got, all)
	}
	for _, what := range []string{"app1", "other0", "src0"} {
		if _, err := r.Get(t.Context(), made[what].String()); !errors.Is(err, snapshot.ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}

	// Of what cannot be read nobody knows what it is.
	must(t, damages["zeroed"](p.repo+"/"+made["src1"].ObjectName()))
	fresh := p.openAt("fresh", now)
	if groups, err := retain.Prune(t.Context(), fresh.repo, &snapshot.PruneOptions{KeepTags: []snapshot.Tag{{Key: "none", Value: ""}}}); !errors.Is(err, snapshot.ErrIntegrity) {
		t.Errorf("%v, %v", groups, err)
	}
	if n := len(objects(t, r.repo.Store, manifest.Prefix)); n != 5 {
		t.Errorf("%d left", n)
	}
}

// TestPruneKeepsWhole: what this machine remembers of a snapshot does not count: one that
// is lost is not kept in the place of others.
func TestPruneKeepsWhole(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"f": "1"})
	var newest manifest.ID
	for range 3 {
		newest = complete(t, r, src, &CreateOptions{Name: "app"}).ID
	}
	path := p.repo + "/" + newest.ObjectName()
	whole, err := os.ReadFile(path)
	must(t, err)
	for name, damage := range damages {
		if name == "deleted" { // which a listing sees
			continue
		}
		must(t, damage(path))
		if all, err := r.List(t.Context(), nil); err != nil || len(all) != 3 {
			t.Errorf("%s: the list is %v, %v", name, all, err)
		}
		for _, dry := range []bool{true, false} {
			if groups, err := retain.Prune(t.Context(), r.repo, &snapshot.PruneOptions{KeepLast: 1, DryRun: dry}); !errors.Is(err, snapshot.ErrIntegrity) {
				t.Errorf("%s: %v, %v", name, groups, err)
			}
		}
		if n := len(objects(t, r.repo.Store, manifest.Prefix)); n != 3 {
			t.Errorf("%s: %d are left", name, n)
		}
		must(t, change(path, func([]byte) []byte { return whole }))
	}
	_, err = retain.Prune(t.Context(), r.repo, &snapshot.PruneOptions{KeepLast: 1})
	must(t, err)
	if n := len(objects(t, r.repo.Store, manifest.Prefix)); n != 1 {
		t.Errorf("%d are left", n)
	}
}

func TestPruneInvalid(t *testing.T) {
	_, r, _ := clocked(t)
	for what, o := range map[string]*snapshot.PruneOptions{
		"nothing":     nil,
		"no rule":     {Names: []string{"app"}, DryRun: true},
		"minus two":   {KeepLast: 1, KeepDaily: -2},
		"within":      {KeepLast: 1, KeepWithin: -time.Hour},
		"no name":     {KeepLast: 1, Names: []string{""}},
		"a tag":       {KeepTags: []snapshot.Tag{{Key: "", Value: "v"}}},
		"a group":     {KeepLast: 1, GroupBy: []snapshot.GroupBy{"color"}},
		"two of them": {KeepLast: 1, GroupBy: []snapshot.GroupBy{snapshot.GroupAll, snapshot.GroupDir}},
	} {
		if groups, err := retain.Prune(t.Context(), r.repo, o); !errors.Is(err, snapshot.ErrInvalid) {
			t.Errorf("%s: %v, %v", what, groups, err)
		}
	}
}

// TestPruneTwice: of two that decide the same at once, neither fails.
func TestPruneTwice(t *testing.T) {
	p := newPlace(t)
	mem := remotetest.NewMemory()
	r, err := Init(t.Context(), "", nil, &Options{CacheDir: p.cache, Store: mem})
	must(t, err)
	defer r.Close()
	src := p.files("src", map[string]string{"f": "1"})
	for range 3 {
		complete(t, r, src, &CreateOptions{Name: "app"})
	}
	prune := func(r *Repository) {
		groups, err := retain.Prune(context.Background(), r.repo, &snapshot.PruneOptions{KeepLast: 1})
		if err != nil || len(groups) != 1 || len(groups[0].Snapshots) != 3 {
			t.Errorf("%+v, %v", groups, err)
		}
	}
	var once sync.Once
	first, err := Open(t.Context(), "", &Options{CacheDir: p.path("first"), Store: remotetest.NewFaulty(mem, func(op remote.Op, _ string) remotetest.Fault {
		if op == remote.OpDelete {
			once.Do(func() { prune(r) })
		}
		return remotetest.Fault{}
	})})
	must(t, err)
	defer first.Close()
	prune(first)
	if all, err := r.List(t.Context(), nil); err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
}

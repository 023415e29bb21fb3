//go:build linux

package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
)

// clocked is a repository with a clock that a test sets: this machine's and the store's.
func clocked(t *testing.T) (p *place, r *Repository, now *time.Time) {
	t.Helper()
	p = newPlace(t)
	at := time.Now()
	r, err := Init(t.Context(), p.repo, initOf(t), keyed(t, &Options{CacheDir: p.cache, Now: func() time.Time { return at }}))
	must(t, err)
	setClocks(r, r.repo.Now)
	t.Cleanup(func() { r.Close() })
	p.files("src", map[string]string{"f": "1"})
	return p, r, &at
}

// setClocks sets this machine's clock and the store's, which are one.
func setClocks(r *Repository, now func() time.Time) {
	r.repo.Now = now
	r.repo.Uptime = func() time.Duration { return now().Sub(time.Unix(0, 0)) }
	r.repo.StoreTime = func(context.Context) (time.Time, error) { return now(), nil }
	r.repo.Clock.Heard = false
}

// setUptime has a test be the one that says how time goes by.
func (r *Repository) setUptime(uptime func() time.Duration) {
	r.repo.Uptime, r.repo.Clock.Heard = uptime, false
	if !r.repo.Local() {
		r.repo.AskTime(context.Background())
	}
}

func TestGet(t *testing.T) {
	p, r, now := clocked(t)
	src := p.path("src")
	var all []*CreateResult
	make := func(name string, ttl time.Duration) *CreateResult {
		t.Helper()
		res := complete(t, r, src, &CreateOptions{Name: name, TTL: ttl})
		all = append(all, res)
		return res
	}
	a0, a1, a2 := make("app", 0), make("app", 0), make("app", 0)
	short := make("short", time.Hour)
	make("gone", time.Hour)
	app4 := make("app", time.Hour) // newest of the name, until it expires
	id := a0.ID.String()
	clash := make(id[:8], 0) // a name that is the beginning of ids
	odd := make("a name, with \"odd\" things: ü ~ {}", 0)
	last := make("dead-beef", 0) // hex and a hyphen, but no beginning of an id

	handle := func(s string) string { return fmt.Sprintf(`{"id":%q,"dir":"/elsewhere","more":1}`, s) }
	cases := []struct {
		ref  string
		want *CreateResult
		err  error
		text []string // in the error
	}{
		{ref: id, want: a0},
		{ref: handle(id), want: a0},
		{ref: " " + handle(id) + "\n", want: a0},
		{ref: a1.Handle(), want: a1},
		{ref: id[:35], want: a0},
		{ref: "app", want: app4},
		{ref: "app~0", want: app4},
		{ref: "app~1", want: a2},
		{ref: "app~3", want: a0},
		{ref: "app~4", err: snapshot.ErrNotFound, text: []string{"4"}},
		{ref: "latest", want: last},
		{ref: "latest~1", want: odd},
		{ref: "latest~8", want: a0},
		{ref: "latest~9", err: snapshot.ErrNotFound},
		{ref: "short", want: short},
		{ref: odd.Name, want: odd},
		{ref: "dead-beef", want: last},
		{ref: id[:8], err: snapshot.ErrAmbiguous, text: []string{clash.ID.String(), "name", "beginning"}},
		{ref: clash.ID.String(), want: clash},
		{ref: clash.Handle(), want: clash},
		{ref: id[:4], err: snapshot.ErrAmbiguous, text: []string{"more"}},
		{ref: id[:3], err: snapshot.ErrNotFound, text: []string{"none has that name", "4 digits"}},
		{ref: "c", err: snapshot.ErrNotFound, text: []string{"none has that name", "4 digits"}},
		{ref: "", err: snapshot.ErrInvalid},
		{ref: "~1", err: snapshot.ErrNotFound},
		{ref: "nothing", err: snapshot.ErrNotFound},
		{ref: "nothing~1", err: snapshot.ErrNotFound},
		{ref: "APP", err: snapshot.ErrNotFound},
		{ref: strings.ToUpper(id), err: snapshot.ErrNotFound},
		{ref: "{", err: snapshot.ErrInvalid},
		{ref: "{}", err: snapshot.ErrInvalid},
		{ref: `{"id":"x"}`, err: snapshot.ErrInvalid},
		{ref: handle(id) + handle(id), err: snapshot.ErrInvalid},
		{ref: manifest.NewID(0).String(), err: snapshot.ErrNotFound},
		{ref: handle(manifest.NewID(0).String()), err: snapshot.ErrNotFound},
		{ref: "line\nfeed", err: snapshot.ErrNotFound, text: []string{`line\nfeed`}},
		{ref: "app~99999999999999999999", err: snapshot.ErrNotFound},
	}
	holds := func(r *Repository) {
		t.Helper()
		for _, c := range cases {
			s, err := r.Get(t.Context(), c.ref)
			if c.err != nil {
				if !errors.Is(err, c.err) {
					t.Errorf("%q: %v, %v; want %v", c.ref, s, err, c.err)
					continue
				}
				for _, text := range c.text {
					if !strings.Contains(err.Error(), text) {
						t.Errorf("%q: %q does not say %q", c.ref, err, text)
					}
				}
				continue
			}
			if err != nil || s.ID != c.want.ID {
				t.Errorf("%q: %v, %v; want %v", c.ref, s, err, c.want.ID)
			}
		}
	}
	holds(r)
	holds(r) // from the cache

	*now = now.Add(time.Hour)
	for ref, want := range map[string]*CreateResult{"app": a2, "app~2": a0, "latest": last, id: a0} {
		if s, err := r.Get(t.Context(), ref); err != nil || s.ID != want.ID {
			t.Errorf("%q after an hour: %v, %v", ref, s, err)
		}
	}
	for _, ref := range []string{"short", "gone", short.ID.String(), short.Handle(), app4.ID.String()} {
		if s, err := r.Get(t.Context(), ref); !errors.Is(err, snapshot.ErrExpired) {
			t.Errorf("%q after an hour: %v, %v", ref, s, err)
		}
		if _, err := r.Restore(t.Context(), ref, p.path("out"), nil); !errors.Is(err, snapshot.ErrExpired) {
			t.Errorf("restore of %q after an hour: %v", ref, err)
		}
		if _, err := r.Create(t.Context(), src, &CreateOptions{Parent: ref}); !errors.Is(err, snapshot.ErrExpired) {
			t.Errorf("create from %q after an hour: %v", ref, err)
		}
	}
}

func TestNames(t *testing.T) {
	p, r, _ := clocked(t)
	src := p.path("src")
	id := manifest.NewID(0).String()
	for _, name := range []string{
		"latest", "-", "{", "{}", " {x", "\t{x", "a~1", "a~0", "a~1~2", "latest~1", id, "a\nb", "a\x00", "\x7f", "a\u0085b", "\xff",
		" ", " a", "a ", " a ", "a\u00a0",
		strings.Repeat("x", 257),
	} {
		if res, err := r.Create(t.Context(), src, &CreateOptions{Name: name}); !errors.Is(err, snapshot.ErrInvalid) {
			t.Errorf("name %q: %+v, %v", name, res, err)
		}
		tag := map[string]string{name: "v"}
		if manifest.CheckLabel(name) != nil {
			if res, err := r.Create(t.Context(), src, &CreateOptions{Tags: tag}); !errors.Is(err, snapshot.ErrInvalid) {
				t.Errorf("tag %q: %+v, %v", name, res, err)
			}
		}
	}
	if all, err := r.List(t.Context(), nil); len(all) != 0 || err != nil {
		t.Errorf("list: %v, %v", all, err)
	}
	for _, name := range []string{
		"a", "~", "a~", "~1", "a~b", "a~1234567", "a b", "/a/b", "Latest", "x{", "--name", "日本語", id[:35], strings.Repeat("x", 256), "a:b=c",
	} {
		res, err := r.Create(t.Context(), src, &CreateOptions{Name: name})
		if errors.Is(err, snapshot.ErrInvalid) {
			t.Logf("name %q is refused: %v", name, err)
			continue
		}
		must(t, err)
		// What is allowed can be named.
		if s, err := r.Get(t.Context(), name); err != nil || s.ID != res.ID {
			t.Errorf("name %q: %v, %v", name, s, err)
		}
	}
	// A snapshot of before may have a name that none gets any more.
	last, err := r.Get(t.Context(), "a")
	must(t, err)
	m, err := r.repo.Manifest(t.Context(), last.ID)
	must(t, err)
	m.ID, m.Name = manifest.NewID(0), " old "
	object, err := m.Encode(r.repo.Codec)
	must(t, err)
	must(t, r.repo.Store.Put(t.Context(), m.ID.ObjectName(), object))
	if s, err := r.Get(t.Context(), " old "); err != nil || s.ID != m.ID {
		t.Errorf("an old name: %+v, %v", s, err)
	}
	if _, err := retain.Change(t.Context(), r.repo, &snapshot.Changes{Name: new("new")}, " old "); err != nil {
		t.Errorf("renaming it: %v", err)
	}
	if _, err := r.Create(t.Context(), src, &CreateOptions{TTL: -1}); !errors.Is(err, snapshot.ErrInvalid) {
		t.Errorf("TTL of -1: %v", err)
	}
	if _, err := r.Create(t.Context(), src, &CreateOptions{Tags: map[string]string{"": "v"}}); !errors.Is(err, snapshot.ErrInvalid) {
		t.Errorf("tag without a name: %v", err)
	}
	if _, err := r.Create(t.Context(), src, &CreateOptions{Parent: "nothing"}); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("unknown parent: %v", err)
	}
	if _, err := r.Create(t.Context(), src, &CreateOptions{Excludes: []string{"[a"}}); !errors.Is(err, snapshot.ErrInvalid) {
		t.Errorf("malformed pattern: %v", err)
	}
}

func TestListFilters(t *testing.T) {
	p, r, now := clocked(t)
	src := p.path("src")
	var ids []manifest.ID
	for i, o := range []CreateOptions{
		{Name: "a", Tags: map[string]string{"k": "1", "l": ""}},
		{Name: "a", Tags: map[string]string{"k": "2"}},
		{Name: "b", Tags: map[string]string{"k": "1"}},
		{TTL: time.Hour},
	} {
		res := complete(t, r, src, &o)
		ids = append(ids, res.ID)
		if i > 0 && res.ID.Compare(ids[i-1]) <= 0 {
			t.Error("ids do not ascend")
		}
	}
	holds := func(want []int, o *snapshot.ListOptions) {
		t.Helper()
		for _, r := range []*Repository{r, p.openAt("other", now)} {
			all, err := r.List(t.Context(), o)
			must(t, err)
			var got []int
			for _, s := range all {
				got = append(got, slices.Index(ids, s.ID))
			}
			if !slices.Equal(want, got) {
				t.Errorf("%+v: %v, want %v", o, got, want)
			}
		}
	}
	holds([]int{3, 2, 1, 0}, nil)
	holds([]int{1, 0}, &snapshot.ListOptions{Name: "a"})
	holds([]int{1}, &snapshot.ListOptions{Name: "a", Limit: 1})
	holds([]int{2, 0}, &snapshot.ListOptions{Tags: map[string]string{"k": "1"}})
	holds([]int{0}, &snapshot.ListOptions{Tags: map[string]string{"k": "1", "l": ""}})
	holds(nil, &snapshot.ListOptions{Tags: map[string]string{"l": "1"}})
	holds(nil, &snapshot.ListOptions{Name: "c"})
	holds([]int{3, 2}, &snapshot.ListOptions{Limit: 2})
	holds([]int{3, 2, 1, 0}, &snapshot.ListOptions{Limit: 9})
	*now = now.Add(2 * time.Hour)
	holds([]int{2, 1, 0}, nil)
	holds([]int{2}, &snapshot.ListOptions{Limit: 1})
	holds([]int{3, 2, 1, 0}, &snapshot.ListOptions{Expired: true})
}

// openAt opens the place's repository with a cache and a clock.
func (p *place) openAt(cache string, now *time.Time) *Repository {
	p.Helper()
	r, err := Open(p.Context(), p.repo, keyed(p, &Options{CacheDir: p.path(cache), Now: func() time.Time { return *now }}))
	must(p, err)
	setClocks(r, r.repo.Now)
	p.Cleanup(func() { r.Close() })
	return r
}

// TestLifetimeClasses: a snapshot lies under the prefix of the shortest class
// that outlives it.
func TestLifetimeClasses(t *testing.T) {
	p, r, _ := clocked(t)
	const day = 24 * time.Hour
	for ttl, class := range map[time.Duration]string{
		0: "", time.Nanosecond: "ttl-1d/", time.Hour: "ttl-1d/", day: "ttl-1d/", day + 1: "ttl-2d/", 5 * day: "ttl-7d/",
		90 * day: "ttl-90d/", 365 * day: "ttl-365d/", 366 * day: "", 40_000 * day: "",
	} {
		res := complete(t, r, p.path("src"), &CreateOptions{TTL: ttl})
		if _, err := os.Stat(p.repo + "/manifests/" + class + res.ID.String()); err != nil {
			t.Errorf("%v: %v", ttl, err)
		}
		if (ttl > 0) != (res.ExpiresAt != nil) || ttl > 0 && !res.ExpiresAt.Equal(res.CreatedAt.Add(ttl)) {
			t.Errorf("%v: expires at %v, made at %v", ttl, res.ExpiresAt, res.CreatedAt)
		}
		if ttl == time.Nanosecond {
			continue
		}
		if s, err := r.Get(t.Context(), res.ID.String()); err != nil || !s.CreatedAt.Equal(res.CreatedAt) {
			t.Errorf("%v: %v, %v", ttl, s, err)
		}
	}
}

func TestRemove(t *testing.T) {
	p, r, now := clocked(t)
	src := p.path("src")
	ctx := t.Context()
	a := complete(t, r, src, &CreateOptions{Name: "a"})
	b := complete(t, r, src, &CreateOptions{Name: "b", TTL: time.Hour})
	c := complete(t, r, src, nil)
	other := p.open("other")
	if _, err := other.List(ctx, nil); err != nil {
		t.Fatal(err)
	}
	for _, refs := range [][]string{{"a", "nothing"}, {"a", ""}, {"a", c.ID.String()[:4]}} {
		if gone, err := retain.Remove(ctx, r.repo, refs...); err == nil || len(gone) > 0 {
			t.Errorf("%q: %v, %v", refs, gone, err)
		}
	}
	if all, err := r.List(ctx, nil); len(all) != 3 || err != nil {
		t.Fatalf("after removals that failed: %v, %v", all, err)
	}
	if gone, err := retain.Remove(ctx, r.repo); len(gone) > 0 || err != nil {
		t.Errorf("removing nothing: %v, %v", gone, err)
	}
	*now = now.Add(2 * time.Hour)
	// The expired too, and one that is named twice once.
	gone, err := retain.Remove(ctx, r.repo, "a", "b", a.ID.String(), a.Handle())
	if err != nil || len(gone) != 2 || gone[0].ID != a.ID || gone[1].ID != b.ID {
		t.Errorf("removed %v, %v", gone, err)
	}
	for _, r := range []*Repository{r, other} {
		for _, ref := range []string{"a", "b", a.ID.String(), b.ID.String()} {
			if s, err := r.Get(ctx, ref); !errors.Is(err, snapshot.ErrNotFound) {
				t.Errorf("%q: %v, %v", ref, s, err)
			}
		}
		if all, err := r.List(ctx, nil); len(all) != 1 || all[0].ID != c.ID || err != nil {
			t.Errorf("list: %v, %v", all, err)
		}
	}
	if _, err := retain.Remove(ctx, r.repo, "a"); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("again: %v", err)
	}
	// The parent has gone, and its files are found by the index.
	if res := complete(t, r, src, nil); res.NewBytes != 0 || res.Parent != nil && *res.Parent != c.ID {
		t.Errorf("%+v", res)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := retain.Remove(cancelled, r.repo, "latest"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestParentByName: the caller says which snapshot unchanged files are taken from.
func TestParentByName(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := manyFiles(p, "src")
	first := complete(t, r, src, &CreateOptions{Name: "first"})
	writeFile(t, src+"/new", []byte("1"))
	must(t, os.Chmod(src+"/large", 0o600))
	second := complete(t, p.open("empty"), src, &CreateOptions{Parent: "first"})
	if second.Parent == nil || *second.Parent != first.ID || second.NewBytes != 1 {
		t.Errorf("%+v", second.Snapshot)
	}
	p.check(second.ID, scan(t, src))
}

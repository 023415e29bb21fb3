//go:build linux

package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/engine/view"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// changed is Repository.Change that must succeed, of one snapshot.
func changed(t testing.TB, r *Repository, ref string, c *snapshot.Changes) *snapshot.Snapshot {
	t.Helper()
	all, err := retain.Change(t.Context(), r.repo, c, ref)
	must(t, err)
	if len(all) != 1 {
		t.Fatalf("changed %v", all)
	}
	return all[0]
}

func renamed(s string) *snapshot.Changes { return &snapshot.Changes{Name: &s} }

// objects lists a store's names below a prefix.
func objects(t testing.TB, s remote.Store, prefix string) (all []string) {
	t.Helper()
	must(t, s.List(context.Background(), prefix, func(i remote.Info) error {
		all = append(all, i.Name)
		return nil
	}))
	return all
}

func TestChange(t *testing.T) {
	p, r, now := clocked(t)
	src := p.path("src")
	first := complete(t, r, src, &CreateOptions{Name: "app", Tags: map[string]string{"a": "1", "b": "2"}})
	second := complete(t, r, src, &CreateOptions{Name: "app", TTL: time.Hour})
	id := second.ID.String()
	holds := func(what, ref string, want func(*snapshot.Snapshot) bool) {
		t.Helper()
		for _, r := range []*Repository{r, p.openAt("other", now), p.openAt(t.Name()+fmt.Sprint(now.UnixNano()), now)} {
			s, err := r.Get(t.Context(), ref)
			if err != nil || !want(s) {
				t.Errorf("%s: %+v, %v", what, s, err)
				continue
			}
			all, err := r.List(t.Context(), nil)
			must(t, err)
			for _, l := range all {
				if l.ID == s.ID && !want(l) {
					t.Errorf("%s: listed as %+v", what, l)
				}
			}
		}
	}

	if s := changed(t, r, id, renamed("web")); s.Name != "web" {
		t.Errorf("%+v", s)
	}
	holds("renamed", id, func(s *snapshot.Snapshot) bool { return s.Name == "web" && s.ExpiresAt != nil })
	holds("by the new name", "web", func(s *snapshot.Snapshot) bool { return s.ID == second.ID })
	holds("the old name", "app", func(s *snapshot.Snapshot) bool { return s.ID == first.ID })
	changed(t, r, "web", renamed(""))
	if _, err := r.Get(t.Context(), "web"); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("a name that was taken away: %v", err)
	}

	changed(t, r, "app", &snapshot.Changes{SetTags: map[string]string{"b": "3", "c": ""}, RemoveTags: []string{"a", "none"}})
	holds("tags", "app", func(s *snapshot.Snapshot) bool { return maps.Equal(s.Tags, map[string]string{"b": "3", "c": ""}) })
	if all, err := r.List(t.Context(), &snapshot.ListOptions{Tags: map[string]string{"b": "3"}}); err != nil || len(all) != 1 {
		t.Errorf("list by a new tag: %v, %v", all, err)
	}

	// Longer than the hour, but not than the class.
	changed(t, r, id, &snapshot.Changes{Until: now.Add(20 * time.Hour)})
	*now = now.Add(2 * time.Hour)
	holds("extended", id, func(s *snapshot.Snapshot) bool { return s.ExpiresAt.Equal(now.Add(18 * time.Hour)) })
	restore(t, r, id, p.path("extended"), nil)
	if got := objects(t, r.repo.Store, manifest.Prefix); len(got) != 2 {
		t.Errorf("%q, though no class is left", got)
	}
	// Shorter again.
	changed(t, r, id, &snapshot.Changes{Until: now.Add(time.Hour)})
	holds("shortened", id, func(s *snapshot.Snapshot) bool { return s.ExpiresAt.Equal(now.Add(time.Hour)) })

	changed(t, r, id, &snapshot.Changes{Pin: true})
	changed(t, r, id, &snapshot.Changes{Pin: true})
	holds("pinned", id, func(s *snapshot.Snapshot) bool { return s.Pinned && s.ExpiresAt == nil })
	*now = now.Add(10_000 * time.Hour)
	holds("pinned, a year later", id, func(s *snapshot.Snapshot) bool { return s.Pinned })
	changed(t, r, id, &snapshot.Changes{Unpin: true})
	holds("not pinned", id, func(s *snapshot.Snapshot) bool { return !s.Pinned && s.ExpiresAt == nil })
	changed(t, r, id, &snapshot.Changes{Pin: true})
	changed(t, r, id, &snapshot.Changes{Until: now.Add(time.Hour), SetTags: map[string]string{"k": "v"}})
	holds("no longer pinned", id, func(s *snapshot.Snapshot) bool { return !s.Pinned && s.ExpiresAt != nil && s.Tags["k"] == "v" })
	// To unpin what is not pinned takes no time to live away.
	changed(t, r, id, &snapshot.Changes{Unpin: true})
	holds("unpinned", id, func(s *snapshot.Snapshot) bool { return s.ExpiresAt != nil })

	// Notes of which nothing counts any more are gone: a name, and a lifetime with a tag.
	if got := objects(t, r.repo.Store, second.ID.NotesOf()); len(got) != 2 {
		t.Errorf("notes: %q", got)
	}

	// Expired by a note.
	*now = now.Add(time.Hour)
	for _, ref := range []string{id, second.Handle(), id[:35]} {
		if s, err := r.Get(t.Context(), ref); !errors.Is(err, snapshot.ErrExpired) {
			t.Errorf("%s: %v, %v", ref, s, err)
		}
		for _, c := range []*snapshot.Changes{{Until: now.Add(time.Hour)}, {Pin: true}, renamed("x")} {
			if all, err := retain.Change(t.Context(), r.repo, c, ref); !errors.Is(err, snapshot.ErrExpired) || len(all) > 0 {
				t.Errorf("changing what has expired: %v, %v", all, err)
			}
		}
	}
	// All of it goes.
	if _, err := retain.Remove(t.Context(), r.repo, id, "app"); err != nil {
		t.Error(err)
	}
	if got := append(objects(t, r.repo.Store, manifest.Prefix), objects(t, r.repo.Store, manifest.NotePrefix)...); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
}

func TestChangeInvalid(t *testing.T) {
	p, r, now := clocked(t)
	id := complete(t, r, p.path("src"), &CreateOptions{Name: "app", Tags: map[string]string{"k": "v"}}).ID.String()
	many := map[string]string{}
	for i := range manifest.MaxTags {
		many[fmt.Sprint(i)] = ""
	}
	latest := "latest"
	for what, c := range map[string]*snapshot.Changes{
		"nothing":        nil,
		"no change":      {},
		"a bad name":     {Name: &latest},
		"a tag":          {SetTags: map[string]string{"": "v"}},
		"a value":        {SetTags: map[string]string{"k": "a\nb"}},
		"a tag to go":    {RemoveTags: []string{""}},
		"both":           {SetTags: map[string]string{"k": ""}, RemoveTags: []string{"k"}},
		"now":            {Until: *now},
		"pin and unpin":  {Pin: true, Unpin: true},
		"pin and expire": {Pin: true, Until: now.Add(time.Hour)},
		"too many tags":  {SetTags: many},
	} {
		if all, err := retain.Change(t.Context(), r.repo, c, id); !errors.Is(err, snapshot.ErrInvalid) || len(all) > 0 {
			t.Errorf("%s: %v, %v", what, all, err)
		}
	}
	// Unless all references name one, nothing is changed.
	if all, err := retain.Change(t.Context(), r.repo, &snapshot.Changes{Pin: true}, id, "nothing"); !errors.Is(err, snapshot.ErrNotFound) || len(all) > 0 {
		t.Errorf("%v, %v", all, err)
	}
	if got := objects(t, r.repo.Store, manifest.NotePrefix); len(got) > 0 {
		t.Errorf("notes: %q", got)
	}
	// One that is named twice is changed once.
	if all, err := retain.Change(t.Context(), r.repo, &snapshot.Changes{Pin: true}, id, "app", "latest"); err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
}

// TestOutlivesClass: a snapshot that is kept longer than its class survives the
// bucket's lifecycle rule, whatever reads it, and counts once.
func TestOutlivesClass(t *testing.T) {
	p, r, now := clocked(t)
	src := p.path("src")
	for what, c := range map[string]*snapshot.Changes{"extended": {Until: now.Add(72 * time.Hour)}, "pinned": {Pin: true}} {
		t.Run(what, func(t *testing.T) {
			res := complete(t, r, src, &CreateOptions{Name: what, TTL: time.Hour})
			id := res.ID.String()
			changed(t, r, id, c)
			if s, err := r.Get(t.Context(), what); err != nil || s.ID != res.ID {
				t.Fatalf("both there: %v, %v", s, err)
			}
			if _, err := r.Get(t.Context(), what+"~1"); !errors.Is(err, snapshot.ErrNotFound) {
				t.Errorf("counted twice: %v", err)
			}
			must(t, r.repo.Store.Delete(t.Context(), res.ID.ObjectName())) // as the rule does
			*now = now.Add(48 * time.Hour)
			fresh := p.openAt("fresh-"+what, now)
			for _, ref := range []string{id, what, id[:35]} {
				if s, err := fresh.Get(t.Context(), ref); err != nil || s.ID != res.ID {
					t.Errorf("%s: %v, %v", ref, s, err)
				}
				restore(t, fresh, ref, p.path(what, ref), nil)
				fsys, err := view.Open(t.Context(), fresh.repo, ref)
				must(t, err)
				if b, err := fsys.ReadFile("f"); err != nil || string(b) != "1" {
					t.Errorf("%q, %v", b, err)
				}
			}
			// It is a parent.
			if next := complete(t, fresh, src, &CreateOptions{Parent: id}); next.Parent == nil || *next.Parent != res.ID {
				t.Errorf("%+v", next)
			}
			// It can be changed on, and removed.
			changed(t, fresh, id, &snapshot.Changes{Until: now.Add(1000 * time.Hour)})
			_, err := retain.Remove(t.Context(), fresh.repo, id)
			must(t, err)
			if _, err := r.Get(t.Context(), id); !errors.Is(err, snapshot.ErrNotFound) {
				t.Errorf("removed: %v", err)
			}
			if got := objects(t, r.repo.Store, res.ID.NotesOf()); len(got) > 0 {
				t.Errorf("left: %q", got)
			}
			*now = now.Add(-48 * time.Hour)
		})
	}
}

// storeClock gives the objects below a prefix times of another clock.
type storeClock struct {
	remote.Store
	prefix string
	ahead  time.Duration
}

func (s *storeClock) List(ctx context.Context, prefix string, yield func(remote.Info) error) error {
	return s.Store.List(ctx, prefix, func(i remote.Info) error {
		if strings.HasPrefix(i.Name, s.prefix) {
			i.ModTime = i.ModTime.Add(s.ahead)
		}
		return yield(i)
	})
}

// TestExtendTooLate: a change that the store had only after the slack says so, whatever
// this machine's clock says, and is taken back.
func TestExtendTooLate(t *testing.T) {
	p := newPlace(t)
	var up, stopped atomic.Int64 // time.Duration
	clock := &storeClock{prefix: manifest.NotePrefix, Store: remotetest.NewFaulty(remotetest.NewMemory(), func(op remote.Op, name string) remotetest.Fault {
		if op == remote.OpPut && strings.HasPrefix(name, manifest.NotePrefix) {
			up.Add(stopped.Load())
		}
		return remotetest.Fault{}
	})}
	r, err := Init(t.Context(), "", nil, &Options{patience: calm(), CacheDir: p.cache, Store: clock})
	must(t, err)
	defer r.Close()
	r.setUptime(func() time.Duration { return time.Duration(up.Load()) })
	src := p.files("src", map[string]string{"f": "1"})
	for _, c := range []struct {
		ahead   time.Duration
		stopped time.Duration // while it put the note, whose time is that of the beginning
		late    bool
	}{
		{0, 0, false}, {70 * time.Minute, 0, false}, {76 * time.Minute, 0, true},
		{0, 70 * time.Minute, false}, {0, 76 * time.Minute, true}, {40 * time.Minute, 36 * time.Minute, true},
	} {
		clock.ahead = c.ahead
		stopped.Store(int64(c.stopped))
		res := complete(t, r, src, &CreateOptions{TTL: time.Hour})
		all, err := retain.Change(t.Context(), r.repo, &snapshot.Changes{Until: time.Now().Add(100 * time.Hour)}, res.ID.String())
		notes := objects(t, r.repo.Store, res.ID.NotesOf())
		if c.late != errors.Is(err, snapshot.ErrExpired) || c.late != (len(all) == 0) || c.late != (len(notes) == 0) {
			t.Errorf("%v ahead, stopped for %v: %v, %v, notes %q", c.ahead, c.stopped, all, err, notes)
		}
	}
}

// TestExtendWhileRemoved: what is removed while it is extended stays removed, and the
// one who extends it learns that.
func TestExtendWhileRemoved(t *testing.T) {
	p := newPlace(t)
	mem := remotetest.NewMemory()
	r, err := Init(t.Context(), "", nil, &Options{patience: calm(), CacheDir: p.cache, Store: mem})
	must(t, err)
	must(t, r.Close())
	src := p.files("src", map[string]string{"f": "1"})
	for _, prefix := range []string{manifest.NotePrefix, manifest.Prefix} {
		var id manifest.ID
		var once sync.Once
		faulty := remotetest.NewFaulty(mem, func(op remote.Op, name string) remotetest.Fault {
			if op == remote.OpPut && strings.HasPrefix(name, prefix) && !id.IsZero() {
				once.Do(func() {
					other, err := Open(context.Background(), "", &Options{patience: calm(), CacheDir: p.path("other"), Store: mem})
					must(t, err)
					_, err = retain.Remove(context.Background(), other.repo, id.String())
					must(t, err)
					must(t, other.Close())
				})
			}
			return remotetest.Fault{}
		})
		r, err := Open(t.Context(), "", &Options{patience: calm(), CacheDir: p.cache, Store: faulty})
		must(t, err)
		id = complete(t, r, src, &CreateOptions{TTL: time.Hour}).ID
		if all, err := retain.Change(t.Context(), r.repo, &snapshot.Changes{Pin: true}, id.String()); !errors.Is(err, snapshot.ErrNotFound) || len(all) > 0 {
			t.Errorf("%s: %v, %v", prefix, all, err)
		}
		if got := append(objects(t, mem, manifest.Prefix), objects(t, mem, manifest.NotePrefix)...); len(got) > 0 {
			t.Errorf("%s: left %q", prefix, got)
		}
		must(t, r.Close())
	}
}

// TestNotePutLost: a change that is reported to have failed does not happen.
func TestNotePutLost(t *testing.T) {
	p := newPlace(t)
	mem := remotetest.NewMemory()
	r, err := Init(t.Context(), "", nil, &Options{patience: calm(), CacheDir: p.cache, Store: remotetest.NewFaulty(mem, func(op remote.Op, name string) remotetest.Fault {
		if op == remote.OpPut && strings.HasPrefix(name, manifest.NotePrefix) {
			return remotetest.Fault{Err: errors.New("lost"), Done: true}
		}
		return remotetest.Fault{}
	})})
	must(t, err)
	defer r.Close()
	res := complete(t, r, p.files("src", map[string]string{"f": "1"}), &CreateOptions{Name: "a"})
	if _, err := retain.Change(t.Context(), r.repo, renamed("b"), "a"); err == nil || !strings.Contains(err.Error(), "lost") {
		t.Error(err)
	}
	if s, err := r.Get(t.Context(), res.ID.String()); err != nil || s.Name != "a" {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestManyChangers: writers change one snapshot at once, while others read it. Nobody
// ever sees a change undone that was made before, and in the end all of them count.
func TestManyChangers(t *testing.T) {
	p := newPlace(t)
	mem := remotetest.NewMemory()
	open := func(cache string) *Repository {
		r, err := Open(t.Context(), "", &Options{patience: calm(), CacheDir: p.path(cache), Store: mem})
		must(t, err)
		t.Cleanup(func() { r.Close() })
		return r
	}
	r, err := Init(t.Context(), "", nil, &Options{patience: calm(), CacheDir: p.cache, Store: mem})
	must(t, err)
	defer r.Close()
	res := complete(t, r, p.files("src", map[string]string{"f": "1"}), &CreateOptions{TTL: time.Hour})
	id := res.ID.String()
	const writers = 3
	rounds := times(12, 200)
	var wg sync.WaitGroup
	for w := range writers {
		r := open(fmt.Sprint("writer", w))
		wg.Go(func() {
			for i := range rounds {
				key := fmt.Sprint("w", w)
				all, err := retain.Change(t.Context(), r.repo, &snapshot.Changes{SetTags: map[string]string{key: fmt.Sprint(i), "who": key}, Until: res.ExpiresAt.Add(time.Duration(i) * time.Minute)}, id)
				if err != nil || all[0].Tags[key] != fmt.Sprint(i) {
					t.Errorf("writer %d: %v, %v", w, all, err)
					return
				}
			}
		})
	}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	reader := open("reader")
	readers.Go(func() {
		seen := map[string]int{}
		for {
			select {
			case <-stop:
				return
			default:
			}
			s, err := reader.Get(t.Context(), id)
			if err != nil {
				t.Error(err)
				return
			}
			for w := range writers {
				key := fmt.Sprint("w", w)
				n := -1
				fmt.Sscan(s.Tags[key], &n)
				if was, ok := seen[key]; ok && n < was {
					t.Errorf("writer %d: %d after %d", w, n, was)
					return
				}
				seen[key] = n
			}
		}
	})
	wg.Wait()
	close(stop)
	readers.Wait()
	s, err := reader.Get(t.Context(), id)
	must(t, err)
	for w := range writers {
		if got := s.Tags[fmt.Sprint("w", w)]; got != fmt.Sprint(rounds-1) {
			t.Errorf("writer %d: %s", w, got)
		}
	}
}

// TestDamagedNote: a note that is not what was written hides its snapshot, and no other.
func TestDamagedNote(t *testing.T) {
	p, r, now := clocked(t)
	src := p.path("src")
	other := complete(t, r, src, &CreateOptions{Name: "other"})
	res := complete(t, r, src, &CreateOptions{Name: "app", TTL: time.Hour})
	changed(t, r, "app", &snapshot.Changes{Pin: true})
	changed(t, r, "other", renamed("another"))
	bad := objects(t, r.repo.Store, res.ID.NotesOf())[0]
	good := objects(t, r.repo.Store, other.ID.NotesOf())[0]
	for kind, damage := range damages {
		if kind == "deleted" {
			continue // nobody can know
		}
		before, err := r.repo.Store.Get(t.Context(), bad)
		must(t, err)
		must(t, damage(p.repo+"/"+bad))
		fresh := p.openAt("fresh"+kind, now)
		all, err := fresh.List(t.Context(), nil)
		if !errors.Is(err, snapshot.ErrIntegrity) || !strings.Contains(err.Error(), bad) || len(all) != 1 || all[0].Name != "another" {
			t.Errorf("%s: list: %v, %v", kind, all, err)
		}
		if s, err := fresh.Get(t.Context(), res.ID.String()); !errors.Is(err, snapshot.ErrIntegrity) || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: get: %v, %v", kind, s, err)
		}
		*now = now.Add(2 * time.Hour) // only the note says that it has not expired
		if _, err := fresh.Restore(t.Context(), res.ID.String(), p.path("out"), nil); !errors.Is(err, snapshot.ErrIntegrity) {
			t.Errorf("%s: restore: %v", kind, err)
		}
		*now = now.Add(-2 * time.Hour)
		must(t, r.repo.Store.Delete(t.Context(), bad))
		must(t, r.repo.Store.Put(t.Context(), bad, before))
	}
	// The note of another snapshot.
	b, err := r.repo.Store.Get(t.Context(), good)
	must(t, err)
	must(t, r.repo.Store.Delete(t.Context(), bad))
	must(t, r.repo.Store.Put(t.Context(), bad, b))
	fresh := p.openAt("swapped", now)
	if _, err := fresh.Get(t.Context(), res.ID.String()); !errors.Is(err, snapshot.ErrIntegrity) {
		t.Errorf("swapped: %v", err)
	}
	if _, err := retain.Remove(t.Context(), fresh.repo, res.ID.String()); err != nil {
		t.Errorf("removing what is damaged: %v", err)
	}
	if got := objects(t, r.repo.Store, res.ID.NotesOf()); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
}

// TestClockAhead: a change counts though the one before it was made by a machine whose
// clock is ahead.
func TestClockAhead(t *testing.T) {
	p, r, _ := clocked(t)
	res := complete(t, r, p.path("src"), nil)
	n := &manifest.Note{Snapshot: res.ID, ID: manifest.NewNoteID(manifest.NoteID{}), Name: renamed("ahead").Name}
	n.ID[1]++ // a third of a year
	b, err := n.Encode()
	must(t, err)
	must(t, r.repo.Store.Put(t.Context(), n.ObjectName(), b))
	changed(t, r, "ahead", renamed("after"))
	if s, err := r.Get(t.Context(), "after"); err != nil || s.ID != res.ID {
		t.Errorf("%v, %v", s, err)
	}
}

// TestManyRefs: many references cost one listing, and are what each alone is.
func TestManyRefs(t *testing.T) {
	p, r, _ := clocked(t)
	src := p.path("src")
	var refs []string
	for range repo.ManyRefs + 4 {
		refs = append(refs, complete(t, r, src, nil).ID.String())
	}
	before := r.Requests().Ops
	all, err := retain.Change(t.Context(), r.repo, &snapshot.Changes{SetTags: map[string]string{"k": "v"}}, refs...)
	must(t, err)
	for i, s := range all {
		if s.ID.String() != refs[i] || s.Tags["k"] != "v" {
			t.Errorf("%d: %+v", i, s)
		}
	}
	if n := r.Requests().Ops.Sub(before); n[remote.OpList].Calls != 2 || n[remote.OpGet].Calls != 0 || n[remote.OpPut].Calls != int64(len(refs)) {
		t.Errorf("%v", n)
	}
	if _, err := retain.Remove(t.Context(), r.repo, append(refs, manifest.NewID(0).String())...); !errors.Is(err, snapshot.ErrNotFound) {
		t.Error(err)
	}
	must(t, damages["zeroed"](p.repo+"/manifests/"+refs[3]))
	r.repo.Cache.Remove("heads", refs[3])
	gone, err := retain.Remove(t.Context(), r.repo, refs...)
	if err != nil || len(gone) != len(refs) {
		t.Errorf("%d, %v", len(gone), err)
	}
	if got := append(objects(t, r.repo.Store, manifest.Prefix), objects(t, r.repo.Store, manifest.NotePrefix)...); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
}

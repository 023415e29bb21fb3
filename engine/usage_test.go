//go:build linux

package engine

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/check"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// TestUsage: what removing a snapshot and collecting garbage frees is what Usage says
// before.
func TestUsage(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	if u, err := check.Usage(t.Context(), r.repo); err != nil || u.Snapshots != 0 || u.Total() == 0 {
		t.Errorf("of an empty repository: %+v, %v", u, err)
	}
	src := p.files("src", map[string]string{"shared": string(random(1, 500_000)), "mine": string(random(2, 300_000))})
	first := complete(t, r, src, &CreateOptions{Name: "one"})
	writeFile(t, src+"/mine", random(3, 200_000))
	second := complete(t, r, src, &CreateOptions{Name: "two"})
	writeFile(t, src+"/more", random(4, 100_000))
	third := complete(t, r, src, nil)
	changed(t, r, second.ID.String(), renamed("2"))
	changed(t, r, "2", renamed("two"))
	changed(t, r, third.ID.String(), renamed("three"))

	u, err := check.Usage(t.Context(), r.repo)
	must(t, err)
	if u.Snapshots != 3 || u.Logical != first.Bytes+second.Bytes+third.Bytes || u.Unique != 1_100_000 || u.Unused != 0 ||
		u.Stored < u.Unique || u.Stored > u.Unique+10_000 || len(u.Of) != 3 {
		t.Errorf("%+v", u)
	}
	if u.Of[0].ID != third.ID || u.Of[2].Name != "one" || u.Of[0].Name != "three" || u.Of[2].Only >= 100_000 || u.Of[1].Only >= 100_000 || u.Of[0].Only < 100_000 || u.Of[0].Only > 110_000 {
		t.Errorf("%+v", u.Of) // what the second needs the third does too, and what is shared lies with the first one's
	}
	two, err := check.Usage(t.Context(), r.repo, "two", third.ID.String())
	must(t, err)
	if len(two.Of) != 2 || two.Together < 300_000 || two.Together > 320_000 || two.Unique != u.Unique {
		t.Errorf("%+v", two)
	}
	total := func() int64 {
		u, err := check.Usage(t.Context(), r.repo)
		must(t, err)
		return u.Total()
	}
	// The two of them go, and what no other needs with them.
	before := total()
	_, err = retain.Remove(t.Context(), r.repo, "two", third.ID.String())
	must(t, err)
	left, err := check.Usage(t.Context(), r.repo)
	must(t, err)
	if freed := left.Unused + before - left.Total(); freed != two.Together {
		t.Errorf("%d bytes are of no use now, and not %d", freed, two.Together)
	}
	if _, err := check.Usage(t.Context(), r.repo, "two"); !errors.Is(err, snapshot.ErrNotFound) {
		t.Error(err)
	}
}

// TestUsageReads: no pack is read but the end of those that no segment lists, and a
// manifest that is damaged does not hide the rest.
func TestUsageReads(t *testing.T) {
	w := newWobbly(t)
	_, _ = w.snapshot()
	r := w.open()
	segments, err := r.repo.ListSegments(t.Context())
	must(t, err)
	for _, id := range segments {
		must(t, r.repo.Store.Delete(t.Context(), repo.SegmentPrefix+id.String()))
	}
	second := complete(t, w.open(), w.path("src"), nil)
	alter(t, r, second.ID.ObjectName(), flipAt(60))
	var read atomic.Int64
	w.fail(func(op remote.Op, name string) remotetest.Fault {
		if id, err := repo.ParsePackName(name); err == nil {
			if read.Add(1); op != remote.OpReadAt || id == (chunk.PackID{}) {
				t.Errorf("%v %s", op, name)
			}
		}
		return remotetest.Fault{}
	})
	u, err := check.Usage(t.Context(), r.repo)
	if !errors.Is(err, snapshot.ErrIntegrity) || u == nil || u.Snapshots != 1 || u.Unique != 8<<20 || len(u.Of) != 1 {
		t.Errorf("%+v, %v", u, err)
	}
	if n := read.Load(); n == 0 || n > 4 {
		t.Errorf("%d requests for packs", n)
	}
}

// TestUsageRepacked: of a pack that was repacked what it was moved to is in use, also
// before it goes.
func TestUsageRepacked(t *testing.T) {
	y, r, _, id, pack := thinned(t)
	old, err := r.repo.Store.Stat(t.Context(), pack)
	must(t, err)
	holds := func(unused int64) {
		t.Helper()
		u, err := check.Usage(t.Context(), y.enter().repo)
		must(t, err)
		if len(u.Of) != 1 || u.Of[0].ID != id || u.Unique != 1<<20 || u.Stored < 1<<20 || u.Stored > 5<<18 || u.Unused != unused || u.Of[0].Referred != u.Stored+u.Trees {
			t.Errorf("%+v", u)
		}
	}
	y.gc(r, nil)
	holds(old.Size)
	y.pass(yardGrace + time.Second)
	y.gc(r, nil)
	if y.has(pack) {
		t.Fatal("that is no test")
	}
	holds(0)
	for _, name := range y.objects(repo.GcPrefix) {
		if n, ok := repo.ParseGCName(name); ok && n.Id != "" && n.Kind == "" {
			alter(t, r, name, func(b []byte) []byte { return b[:len(b)-1] })
		}
	}
	if u, err := check.Usage(t.Context(), y.enter().repo); !errors.Is(err, snapshot.ErrIntegrity) || u == nil || len(u.Of) != 1 {
		t.Errorf("%+v, %v", u, err)
	}
}

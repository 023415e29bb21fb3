//go:build linux

package engine

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/internal/gc"
	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// TestGCExpiredIsNotSwept: packs that were doomed a grace ago, and that only a snapshot
// needs which this run removes, are for the next run: it may have come to be needed for
// longer since it was looked at.
func TestGCExpiredIsNotSwept(t *testing.T) {
	y, dir, packs := abandoned(t)
	r, other := y.enter(), y.enter()
	y.at(remote.OpPut, manifest.Prefix, func() { y.gc(other, nil) })
	id := complete(t, r, dir, &CreateOptions{TTL: 2 * yardGrace}).ID
	if !y.shares(r, id, packs) {
		t.Fatal("it does not refer to them")
	}
	y.pass(2*yardGrace + 16*time.Minute)
	if rep := y.gc(other, nil); len(rep.Removed) != 1 || rep.Freed.Packs != 0 {
		t.Errorf("%+v", rep)
	}
	for pack := range packs {
		if !y.has(pack) {
			t.Errorf("%s was deleted with the snapshot that needed it", pack)
		}
	}
	if rep := y.gc(other, nil); rep.Freed.Packs != len(packs) {
		t.Errorf("the next run: %+v", rep)
	}
}

// TestGCKeepsTheChanged: a snapshot that lacks a pack is withdrawn only if nobody was told
// of it. Whoever has had it outlive its class knows it: then it is damage.
func TestGCKeepsTheChanged(t *testing.T) {
	y, _, other := putTooLate(t, &CreateOptions{TTL: 100 * yardGrace})
	names := y.objects(manifest.Prefix)
	if len(names) != 1 {
		t.Fatal(names)
	}
	id, err := manifest.ParseObjectName(names[0])
	must(t, err)
	_, err = retain.Change(t.Context(), other.repo, &snapshot.Changes{Pin: true}, id.String())
	must(t, err)
	must(t, y.mem.Delete(t.Context(), names[0])) // by its class's lifecycle rule
	if rep, err := gc.Run(t.Context(), other.repo, nil); !errors.Is(err, snapshot.ErrIntegrity) || !strings.Contains(err.Error(), "missing") {
		t.Errorf("%+v, %v", rep, err)
	}
	if left := y.objects(manifest.Prefix); len(left) != 1 || left[0] != id.KeptName() {
		t.Errorf("manifests: %v", left)
	}
}

// TestGCKeepsNotesOfTheNew: a snapshot that was made and renamed after manifests were
// listed, and before notes were, keeps its name.
func TestGCKeepsNotesOfTheNew(t *testing.T) {
	y, dir, _ := abandoned(t)
	r, other := y.enter(), y.enter()
	var id manifest.ID
	listed := make(chan struct{}) // manifests are: packs come after them
	var manifests, notes sync.Once
	y.fail(func(op remote.Op, name string) remotetest.Fault {
		switch {
		case op == remote.OpList && name == gc.PacksPrefix:
			manifests.Do(func() { close(listed) })
		case op == remote.OpList && name == manifest.NotePrefix:
			notes.Do(func() {
				<-listed
				id = complete(t, other, dir, nil).ID
				changed(t, other, id.String(), renamed("new"))
			})
		}
		return remotetest.Fault{}
	})
	if rep := y.gc(r, nil); rep.Leftovers != 0 {
		t.Errorf("%+v", rep)
	}
	if s, err := y.enter().Get(t.Context(), "new"); err != nil || s.ID != id {
		t.Errorf("%+v, %v", s, err)
	}
}

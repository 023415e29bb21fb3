//go:build linux

package engine

import (
	"errors"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// TestChangeS3: through a real S3 server which loses the answer of every other write. A
// snapshot outlives its class, and is then removed whole.
func TestChangeS3(t *testing.T) {
	b := newBucket(t)
	r := b.init()
	src := b.files("src", map[string]string{"f": "1"})
	res := complete(t, r, src, &CreateOptions{Name: "app", TTL: time.Hour})
	id := res.ID.String()
	var writes atomic.Int64
	b.WriteInterval = 0
	b.Hook(func(q *http.Request) remotetest.Trouble {
		if (q.Method == http.MethodPut || q.Method == http.MethodPost) && writes.Add(1)%2 == 1 {
			return remotetest.Trouble{LoseAnswer: true}
		}
		return remotetest.Trouble{}
	})
	other := b.open("other", nil)
	changed(t, other, "app", renamed("web"))
	changed(t, other, id, &snapshot.Changes{Until: time.Now().Add(72 * time.Hour), SetTags: map[string]string{"k": "v"}})
	changed(t, other, "web", &snapshot.Changes{Pin: true})
	if writes.Load() < 4 {
		t.Errorf("%d writes", writes.Load())
	}
	must(t, r.repo.Store.Delete(t.Context(), res.ID.ObjectName())) // as a lifecycle rule does
	for _, r := range []*Repository{r, b.open("fresh", nil)} {
		s, err := r.Get(t.Context(), "web")
		if err != nil || s.ID != res.ID || !s.Pinned || s.Tags["k"] != "v" {
			t.Errorf("%+v, %v", s, err)
		}
		restore(t, r, id, b.path("out"), &RestoreOptions{Delete: true})
	}
	// Side by side with the config, as ever, and the second name after the first.
	opts := keyed(t, &Options{CacheDir: b.path("ahead"), Store: b.store(nil), Ref: id})
	ahead, err := Open(t.Context(), "", opts)
	must(t, err)
	defer ahead.Close()
	restore(t, ahead, id, b.path("out"), &RestoreOptions{Delete: true})
	gets, lists := int64(3), int64(0)
	if onEncrypted(t) { // the key too
		gets, lists = 4, 1
	}
	if n := ahead.Requests().Ops; n[remote.OpGet].Calls != gets || n[remote.OpList].Calls != lists {
		t.Errorf("%v", n)
	}
	if _, err := retain.Remove(t.Context(), other.repo, id); err != nil {
		t.Error(err)
	}
	if got := append(objects(t, r.repo.Store, manifest.Prefix), objects(t, r.repo.Store, manifest.NotePrefix)...); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
}

// TestMountExtended: who serves a snapshot knows of the time that it was given since.
func TestMountExtended(t *testing.T) {
	p, r, now := clocked(t)
	id := complete(t, r, p.path("src"), &CreateOptions{TTL: time.Hour}).ID
	m := mountAt(t, r, id, p.path("first"), nil)
	changed(t, p.openAt("other", now), id.String(), &snapshot.Changes{Until: now.Add(3 * time.Hour)})
	*now = now.Add(2 * time.Hour)
	again := mountAt(t, r, id, p.path("second"), nil)
	compare(t, scan(t, m.Dir), scan(t, again.Dir))
	*now = now.Add(2 * time.Hour)
	must(t, os.Mkdir(p.path("third"), 0o755))
	if _, err := r.Mount(t.Context(), id.String(), p.path("third"), nil); !errors.Is(err, snapshot.ErrExpired) {
		t.Errorf("mounted though it has expired: %v", err)
	}
}

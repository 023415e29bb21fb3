//go:build linux

package engine

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// leases gives the leases of a snapshot by name.
func leases(t testing.TB, s remote.Store, id manifest.ID) map[string]*manifest.Lease {
	t.Helper()
	all := map[string]*manifest.Lease{}
	must(t, s.List(context.Background(), "leases/"+id.String()+"/", func(i remote.Info) error {
		b, err := s.Get(context.Background(), i.Name)
		if err == nil {
			all[i.Name], err = manifest.DecodeLease(b)
		}
		return err
	}))
	return all
}

// leased is a place whose store tells of every write of a lease, and whose clock
// the test has.
type leased struct {
	*wobbly
	repo    *Repository
	id      manifest.ID
	content map[string][]byte
	tick    chan time.Time
	wrote   chan error // what the write of a lease is to end with
}

func newLeased(t *testing.T) *leased {
	needRoot(t)
	l := &leased{wobbly: newWobbly(t), tick: make(chan time.Time), wrote: make(chan error)}
	l.id, l.content = l.snapshot()
	l.repo = l.open()
	l.repo.repo.LeaseTicks = l.tick
	l.fail(func(op remote.Op, name string) remotetest.Fault {
		if op != remote.OpReplace || !strings.HasPrefix(name, "leases/") {
			return remotetest.Fault{}
		}
		return remotetest.Fault{Err: <-l.wrote}
	})
	return l
}

// write waits until a lease is being written, and has that end with err.
func (l *leased) write(err error) {
	l.Helper()
	select {
	case l.wrote <- err:
	case <-time.After(tooLong):
		l.Fatal("no lease is written")
	}
}

// refresh waits until the lease that was being written is, and asks for the next one.
func (l *leased) refresh() {
	l.Helper()
	select {
	case l.tick <- time.Time{}:
	case <-time.After(tooLong):
		l.Fatal("nobody waits for the time of the next lease")
	}
}

// one gives the name of the only lease.
func (l *leased) one() string {
	l.Helper()
	all := leases(l, l.mem, l.id)
	for name, lease := range all {
		want, err := l.mem.Get(context.Background(), l.id.ObjectName())
		if err == nil && string(want) != string(lease.Manifest) {
			l.Error("the lease holds another manifest")
		}
		if len(all) == 1 {
			return name
		}
	}
	l.Fatalf("%d leases", len(all))
	return ""
}

// TestLease: a lease is there while a snapshot is mounted, one for all its mount
// points, and is refreshed whatever became of it.
func TestLease(t *testing.T) {
	l := newLeased(t)
	m := mountAt(t, l.repo, l.id, l.path("mnt"), nil) // which does not wait for the lease
	if n := len(leases(t, l.mem, l.id)); n != 0 {
		t.Errorf("%d leases", n)
	}
	l.write(nil)
	l.refresh() // so the first is there
	name := l.one()
	before, err := l.mem.Stat(t.Context(), name)
	must(t, err)
	l.write(nil)
	l.refresh()
	l.write(nil)
	after, err := l.mem.Stat(t.Context(), l.one())
	must(t, err)
	if l.one() != name || !after.ModTime.After(before.ModTime) {
		t.Errorf("refreshed: %v, %v", before, after)
	}
	// Another mount point, which ends.
	other := mountAt(t, l.repo, l.id, l.path("other"), nil)
	must(t, other.Unmount(false))
	// Deleted by somebody.
	must(t, l.mem.Delete(t.Context(), name))
	l.refresh()
	l.write(nil)
	l.refresh()
	if l.one() != name {
		t.Error("another name")
	}
	l.write(nil)
	// The snapshot is removed: what it needs is known still.
	if _, err := retain.Remove(t.Context(), l.repo.repo, l.id.String()); err != nil {
		t.Fatal(err)
	}
	lease := leases(t, l.mem, l.id)[l.one()]
	decoded, err := manifest.Decode(l.repo.repo.Codec, lease.Manifest)
	if err != nil || decoded.ID != l.id || len(decoded.Packs) == 0 || lease.Hold != write.LeaseHold {
		t.Errorf("%+v, %v", lease, err)
	}
	for name, want := range l.content {
		sameFile(t, m.Dir+"/"+name, want)
	}
	again := mountAt(t, l.repo, l.id, l.path("other"), nil) // by the server that there is
	sameFile(t, again.Dir+"/dir/0", l.content["dir/0"])
	must(t, again.Unmount(false))
	must(t, m.Unmount(false))
	if n := len(leases(t, l.mem, l.id)); n != 0 {
		t.Errorf("%d leases are left", n)
	}
}

// TestLeaseTrouble: what cannot be written is a warning, once, and is written when
// it can be.
func TestLeaseTrouble(t *testing.T) {
	l := newLeased(t)
	warned := make(chan error, 10)
	m := mountAt(t, l.repo, l.id, l.path("mnt"), &MountOptions{Warn: func(err error) { warned <- err }})
	for range 3 {
		l.write(remote.ErrAccess)
		l.refresh()
	}
	if len(warned) != 1 || !errors.Is(<-warned, remote.ErrAccess) {
		t.Errorf("%d warnings more", len(warned))
	}
	sameFile(t, m.Dir+"/dir/1", l.content["dir/1"])
	l.write(nil)
	l.refresh()
	l.one()
	l.write(remote.ErrAccess)
	l.refresh()
	if len(warned) != 1 {
		t.Errorf("%d warnings", len(warned))
	}
	l.write(nil)
	must(t, m.Unmount(false))
}

// TestLeaseLate: a mount that ends while its lease is being written leaves none.
func TestLeaseLate(t *testing.T) {
	l := newLeased(t)
	l.fail(func(op remote.Op, name string) remotetest.Fault {
		if op != remote.OpReplace {
			return remotetest.Fault{}
		}
		return remotetest.Fault{Delay: time.Hour}
	})
	m := mountAt(t, l.repo, l.id, l.path("mnt"), &MountOptions{Warn: func(err error) { t.Error(err) }})
	must(t, m.Unmount(false))
	if n := len(leases(t, l.mem, l.id)); n != 0 {
		t.Errorf("%d leases are left", n)
	}
}

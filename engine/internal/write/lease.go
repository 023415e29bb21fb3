package write

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
)

// How long a lease counts after it was written, and how often it is: five
// refreshes in a row may fail. A server that was killed holds a snapshot no
// longer than this.
const (
	LeaseHold  = time.Hour
	leaseEvery = 10 * time.Minute
)

// LeasePrefix is where leases lie.
const LeasePrefix = "leases/"

// ParseLeaseName tells which snapshot the object is a lease of that has the name.
func ParseLeaseName(name string) (manifest.ID, bool) {
	rest, ok := strings.CutPrefix(name, LeasePrefix)
	dir, own, _ := strings.Cut(rest, "/")
	id, err := manifest.ParseID(dir)
	return id, ok && err == nil && repo.ValidUUID(own)
}

// A Lease keeps what a snapshot needs from garbage collection, also when the
// snapshot is removed, as long as it is held. See manifest.Lease.
type Lease struct {
	Repo     *repo.Repo
	Name     string
	Manifest []byte // object
	Object   []byte
	warn     func(error)
	Cancel   context.CancelFunc
	Ended    chan struct{}
}

// HoldLease writes a lease in the background, and again and again until it is
// released. encoded is the snapshot's manifest object. warn is told when it cannot
// be written, once until it can again.
func HoldLease(r *repo.Repo, id manifest.ID, encoded []byte, warn func(error)) *Lease {
	return HoldLeaseAs(r, LeasePrefix+id.String()+"/"+uuid.NewString(), encoded, warn)
}

// HoldLeaseAs is HoldLease for a lease that another process has held.
func HoldLeaseAs(r *repo.Repo, name string, encoded []byte, warn func(error)) *Lease {
	object, err := (&manifest.Lease{Hold: LeaseHold, Manifest: encoded}).Encode()
	if err != nil {
		panic(err) // the manifest was decoded
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &Lease{
		Repo: r, Name: name, Manifest: encoded, Object: object, warn: warn,
		Cancel: cancel, Ended: make(chan struct{}),
	}
	go l.hold(ctx)
	return l
}

func (l *Lease) hold(ctx context.Context) {
	defer close(l.Ended)
	ticks := l.Repo.LeaseTicks // of a test
	if ticks == nil {
		t := time.NewTicker(leaseEvery)
		defer t.Stop()
		ticks = t.C
	}
	for warned := false; ; {
		err := l.Write(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			warned = false
		case !warned:
			warned = true
			l.Repo.Logger.Warn("lease", "err", err)
			l.warn(fmt.Errorf("the snapshot is not kept from garbage collection: lease: %w", err))
		}
		select {
		case <-ctx.Done():
			return
		case <-ticks:
		}
	}
}

// Write writes the lease, whether or not it is there: somebody may have deleted it.
func (l *Lease) Write(ctx context.Context) error {
	// What takes longer is for the next time.
	ctx, cancel := context.WithTimeout(ctx, leaseEvery)
	defer cancel()
	store, ok := l.Repo.Store.(remote.Replacer)
	if !ok {
		return errors.ErrUnsupported
	}
	return store.Replace(ctx, l.Name, l.Object)
}

// Release ends the lease.
func (l *Lease) Release() {
	l.Cancel()
	<-l.Ended
	ctx, cancel := context.WithTimeout(context.Background(), l.Repo.Patience.Goodbye)
	defer cancel()
	if err := l.Repo.Store.Delete(ctx, l.Name); err != nil {
		l.Repo.Logger.Info("deleting a lease", "err", err)
	}
}

package engine

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
	leaseHold  = time.Hour
	leaseEvery = 10 * time.Minute
)

// leasePrefix is where leases lie.
const leasePrefix = "leases/"

// parseLeaseName tells which snapshot the object is a lease of that has the name.
func parseLeaseName(name string) (manifest.ID, bool) {
	rest, ok := strings.CutPrefix(name, leasePrefix)
	dir, own, _ := strings.Cut(rest, "/")
	id, err := manifest.ParseID(dir)
	return id, ok && err == nil && repo.ValidUUID(own)
}

// A lease keeps what a snapshot needs from garbage collection, also when the
// snapshot is removed, as long as it is held. See manifest.Lease.
type lease struct {
	repo     *Repository
	name     string
	manifest []byte // object
	object   []byte
	warn     func(error)
	cancel   context.CancelFunc
	ended    chan struct{}
}

// holdLease writes a lease in the background, and again and again until it is
// released. encoded is the snapshot's manifest object. warn is told when it cannot
// be written, once until it can again.
func (r *Repository) holdLease(id manifest.ID, encoded []byte, warn func(error)) *lease {
	return r.holdLeaseAs(leasePrefix+id.String()+"/"+uuid.NewString(), encoded, warn)
}

// holdLeaseAs is holdLease for a lease that another process has held.
func (r *Repository) holdLeaseAs(name string, encoded []byte, warn func(error)) *lease {
	object, err := (&manifest.Lease{Hold: leaseHold, Manifest: encoded}).Encode()
	if err != nil {
		panic(err) // the manifest was decoded
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &lease{
		repo: r, name: name, manifest: encoded, object: object, warn: warn,
		cancel: cancel, ended: make(chan struct{}),
	}
	go l.hold(ctx)
	return l
}

func (l *lease) hold(ctx context.Context) {
	defer close(l.ended)
	ticks := l.repo.repo.LeaseTicks // of a test
	if ticks == nil {
		t := time.NewTicker(leaseEvery)
		defer t.Stop()
		ticks = t.C
	}
	for warned := false; ; {
		err := l.write(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			warned = false
		case !warned:
			warned = true
			l.repo.repo.Logger.Warn("lease", "err", err)
			l.warn(fmt.Errorf("the snapshot is not kept from garbage collection: lease: %w", err))
		}
		select {
		case <-ctx.Done():
			return
		case <-ticks:
		}
	}
}

// write writes the lease, whether or not it is there: somebody may have deleted it.
func (l *lease) write(ctx context.Context) error {
	// What takes longer is for the next time.
	ctx, cancel := context.WithTimeout(ctx, leaseEvery)
	defer cancel()
	store, ok := l.repo.repo.Store.(remote.Replacer)
	if !ok {
		return errors.ErrUnsupported
	}
	return store.Replace(ctx, l.name, l.object)
}

// release ends the lease.
func (l *lease) release() {
	l.cancel()
	<-l.ended
	ctx, cancel := context.WithTimeout(context.Background(), l.repo.repo.Patience.Goodbye)
	defer cancel()
	if err := l.repo.repo.Store.Delete(ctx, l.name); err != nil {
		l.repo.repo.Logger.Info("deleting a lease", "err", err)
	}
}

package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/access"
	"github.com/snapctl/snapctl/engine/internal/crypt"
	"github.com/snapctl/snapctl/engine/internal/gc"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
)

// readRest reads what no snapshot consists of: the config as the store has it now,
// leases, access profiles, notes, tombstones and keys. It tells of objects that are none of ours.
func (v *checkup) readRest(ctx context.Context) error {
	b, err := v.repo.Store.Get(ctx, repo.ConfigName)
	switch {
	case err == nil && !bytes.Equal(b, v.repo.Cfg.Encode()):
		v.found(snapshot.Finding{Object: repo.ConfigName, Problem: fmt.Errorf("%w: it is not what it was when the repository was opened", snapshot.ErrIntegrity)})
	case err != nil && repo.Damaged(ctx, err):
		v.found(snapshot.Finding{Object: repo.ConfigName, Problem: err})
	case err != nil:
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(repo.HeadsAtOnce)
	for _, s := range v.snapshots {
		if s.copied {
			g.Go(func() error { return v.readObject(gctx, s.id.KeptName(), checkCopy) })
		}
	}
	err = v.repo.Store.List(ctx, "", func(o remote.Info) error {
		check := checkOf(v.repo, o.Name)
		switch {
		case check == nil:
			v.note(o.Name, errors.New("it is no object of a repository"))
		case check.read == nil: // read before
		case o.Size > check.limit:
			v.found(snapshot.Finding{Object: o.Name, Problem: fmt.Errorf("%w: %d bytes", snapshot.ErrIntegrity, o.Size)})
		default:
			g.Go(func() error { return v.readObject(gctx, o.Name, check.read) })
		}
		return gctx.Err()
	})
	if werr := g.Wait(); werr != nil {
		err = werr
	}
	return err
}

func (v *checkup) readObject(ctx context.Context, name string, check func(*repo.Repo, string, []byte) error) error {
	b, err := v.repo.Store.Get(ctx, name)
	if errors.Is(err, remote.ErrNotExist) {
		return nil // deleted since it was listed
	}
	if err == nil {
		err = check(v.repo, name, b)
	}
	if err != nil && repo.Damaged(ctx, err) {
		v.found(snapshot.Finding{Object: name, Problem: err})
		return nil
	}
	return err
}

// objectCheck is how an object of a kind is checked.
type objectCheck struct {
	limit int64                                           // of its size in bytes
	read  func(r *repo.Repo, name string, b []byte) error // nil if it is read elsewhere
}

// checkOf tells how an object is checked: nil for one that is none of a repository.
func checkOf(r *repo.Repo, name string) *objectCheck {
	kind, rest, _ := strings.Cut(name, "/")
	switch kind + "/" {
	case manifest.Prefix, gc.PacksPrefix:
		return &objectCheck{}
	case manifest.NotePrefix:
		if _, _, err := manifest.ParseNoteName(name); err == nil {
			return &objectCheck{limit: manifest.MaxNote + chunk.MaxOverhead, read: checkNote}
		}
	case repo.SegmentPrefix:
		if _, err := index.ParseSegmentID(rest); err == nil {
			return &objectCheck{}
		}
	case repo.GcPrefix:
		if n, ok := repo.ParseGCName(name); ok {
			if n.Id == "" || n.Kind != "" {
				return &objectCheck{limit: repo.MaxTombstone, read: checkEmpty}
			}
			return &objectCheck{limit: repo.MaxTombstone, read: checkTombstone}
		}
	case write.LeasePrefix:
		if _, ok := write.ParseLeaseName(name); ok {
			return &objectCheck{limit: manifest.MaxLease, read: checkLease}
		}
	case repo.ProfilePrefix:
		if _, ok := access.ParseName(name); ok {
			return &objectCheck{limit: access.MaxProfile, read: checkProfile}
		}
	case crypt.KeyPrefix:
		if r.Encrypted() && crypt.IsName(name) {
			return &objectCheck{limit: crypt.MaxKeyObject, read: checkKey}
		}
	}
	if name == repo.ConfigName {
		return &objectCheck{}
	}
	return nil
}

// checkEmpty checks an object whose name says all.
func checkEmpty(_ *repo.Repo, _ string, b []byte) error {
	if len(b) > 0 {
		return fmt.Errorf("%w: %d bytes, none expected", snapshot.ErrIntegrity, len(b))
	}
	return nil
}

// checkTombstone checks a tombstone.
func checkTombstone(_ *repo.Repo, _ string, b []byte) error {
	_, err := repo.DecodeTombstone(b)
	if err != nil {
		err = fmt.Errorf("%w: %w; no create or gc goes on without it; delete it while no snapctl gc runs", snapshot.ErrIntegrity, err)
	}
	return err
}

// checkLease checks a lease and the manifest that it holds.
func checkLease(r *repo.Repo, name string, b []byte) error {
	l, err := manifest.DecodeLease(b)
	if err != nil {
		return err
	}
	m, err := manifest.Decode(r.Codec, l.Manifest)
	if err != nil {
		return fmt.Errorf("its manifest: %w", err)
	}
	if id, _ := write.ParseLeaseName(name); id != m.ID {
		return fmt.Errorf("%w: it is a lease of snapshot %v", snapshot.ErrIntegrity, m.ID)
	}
	return nil
}

// checkKey checks a key object, as far as that can be done without what opens it: that
// whoever made it had the master key.
func checkKey(r *repo.Repo, name string, b []byte) error {
	k, err := crypt.DecodeAt(name, b)
	if err == nil {
		_, err = k.Details(r.Key())
	}
	return err
}

// checkCopy checks the manifest of a snapshot that is to outlive its class, where it
// lies for later.
func checkCopy(r *repo.Repo, name string, b []byte) error {
	m, err := manifest.Decode(r.Codec, b)
	if err == nil && m.ID.KeptName() != name {
		err = fmt.Errorf("%w: it is the manifest of %v", snapshot.ErrIntegrity, m.ID)
	}
	if err != nil {
		err = fmt.Errorf("%w; delete it, and extend or pin the snapshot again", err)
	}
	return err
}

// checkNote checks a note.
func checkNote(r *repo.Repo, name string, b []byte) error {
	id, at, err := manifest.ParseNoteName(name)
	if err == nil {
		_, err = r.DecodeNote(b, id, at)
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", snapshot.ErrIntegrity, err)
	}
	return err
}

// checkProfile checks an access profile, but for the contents of its bundle, which
// are checked when they are used.
func checkProfile(r *repo.Repo, name string, b []byte) error {
	if !strings.HasSuffix(name, "/"+crypt.SumHex(b)) {
		return fmt.Errorf("%w: %w: it is not what its name says", snapshot.ErrIntegrity, access.ErrDamaged)
	}
	id, _ := access.ParseName(name)
	p, err := access.Decode(r, id, b)
	if err == nil && len(p.Bundle) > 0 {
		_, err = access.OpenBundle(r.Codec, name, 0, p.Bundle)
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", snapshot.ErrIntegrity, err)
	}
	return err
}

package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
)

// List is engine.Repository.List.
func (r *Repo) List(ctx context.Context, opts *snapshot.ListOptions) ([]*snapshot.Snapshot, error) {
	if opts == nil {
		opts = &snapshot.ListOptions{}
	}
	all, damaged, err := r.snapshots(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing snapshots of %s: %w", r.url, err)
	}
	if len(damaged) > 0 {
		err = fmt.Errorf("listing snapshots of %s: %w", r.url, damaged[0].err)
		for _, d := range damaged[1:] {
			err = errors.Join(err, d.err)
		}
	}
	var chosen []*snapshot.Snapshot
	for _, s := range all {
		if opts.Limit > 0 && len(chosen) == opts.Limit {
			break
		}
		if listMatches(opts, s) && (opts.Expired || !r.expired(ctx, s)) {
			chosen = append(chosen, s)
		}
	}
	return chosen, err
}

func listMatches(o *snapshot.ListOptions, s *snapshot.Snapshot) bool {
	if o.Name != "" && s.Name != o.Name {
		return false
	}
	for k, v := range o.Tags {
		if got, ok := s.Tags[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Ids lists the snapshots' ids, newest first and each once: one listing.
func (r *Repo) Ids(ctx context.Context) ([]SizedID, error) {
	var all []SizedID
	err := r.list(ctx, manifest.Prefix, func(o remote.Info) error {
		id, err := manifest.ParseObjectName(o.Name)
		if err != nil {
			r.Logger.Warn("not a manifest", "object", o.Name, "err", err)
			return nil
		}
		all = append(all, SizedID{id, o.Size})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing manifests: %w", err)
	}
	slices.SortFunc(all, func(a, b SizedID) int { return b.ID.Compare(a.ID) })
	// One that is kept longer than its class lies under two names.
	return slices.CompactFunc(all, func(a, b SizedID) bool { return a.ID == b.ID }), nil
}

// SizedID is a snapshot as a listing shows it.
type SizedID struct {
	manifest.ID
	size int64 // of its manifest in bytes
}

// HeadsAtOnce is how many manifest heads are fetched in parallel.
const HeadsAtOnce = 32

// damagedHead is a manifest that cannot be read.
type damagedHead struct {
	id  manifest.ID
	err error
}

// snapshots gives all snapshots, newest first, as their notes have them, expired ones
// too, and, apart, those whose manifests or notes are damaged. Manifests and notes are
// listed side by side; what the cache has of them costs no request.
func (r *Repo) snapshots(ctx context.Context) ([]*snapshot.Snapshot, []damagedHead, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	listed := Begin(func() (map[manifest.ID][]manifest.NoteID, error) { return r.ListNotes(ctx, manifest.NotePrefix) })
	ids, err := r.Ids(ctx)
	if err != nil {
		return nil, nil, err
	}
	noted, err := listed(ctx)
	if err != nil {
		return nil, nil, err
	}
	all := make([]*snapshot.Snapshot, len(ids))
	notes := make([][]*manifest.Note, len(ids))
	headErr, noteErr := make([]error, len(ids)), make([]error, len(ids))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(HeadsAtOnce)
	for i, id := range ids {
		if names := noted[id.ID]; len(names) > 0 {
			if notes[i] = r.cachedNotes(id.ID, names); notes[i] == nil {
				g.Go(func() (err error) {
					notes[i], err = r.ReadNotes(gctx, id.ID, names)
					return UnlessDamaged(err, &noteErr[i])
				})
			}
		}
		if all[i] = r.CachedHead(id.ID); all[i] != nil {
			continue
		}
		g.Go(func() (err error) {
			all[i], err = r.Head(gctx, id.ID, id.size)
			if errors.Is(err, remote.ErrNotExist) {
				return nil // removed since it was listed
			}
			return UnlessDamaged(err, &headErr[i])
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	r.forgetHeads(ids)
	r.forgetNotes(noted)
	var damaged []damagedHead
	for i, s := range all {
		if err := errors.Join(headErr[i], noteErr[i]); err != nil {
			damaged = append(damaged, damagedHead{ids[i].ID, err})
			all[i] = nil
		} else if s != nil {
			Annotate(s, notes[i])
		}
	}
	return slices.DeleteFunc(all, func(s *snapshot.Snapshot) bool { return s == nil }), damaged, nil
}

// UnlessDamaged puts an error that is about one snapshot alone aside.
func UnlessDamaged(err error, aside *error) error {
	if errors.Is(err, snapshot.ErrIntegrity) {
		*aside = err
		return nil
	}
	return err
}

// CachedHead gives a snapshot that the cache knows, nil for none.
func (r *Repo) CachedHead(id manifest.ID) *snapshot.Snapshot {
	b := r.Cache.Read("heads", id.String())
	if b == nil {
		return nil
	}
	info, err := manifest.DecodeHead(r.Codec, b)
	if err != nil || info.ID != id {
		r.Cache.Remove("heads", id.String())
		return nil
	}
	return SnapshotOf(info)
}

// Head reads a snapshot's head from the repository. size is the manifest's, 0
// where that is not known.
func (r *Repo) Head(ctx context.Context, id manifest.ID, size int64) (*snapshot.Snapshot, error) {
	name, b, err := r.readHead(ctx, id, size)
	if err != nil {
		return nil, err
	}
	info, err := manifest.DecodeHead(r.Codec, b)
	if err == nil && info.ID != id {
		err = fmt.Errorf("%w: it is the manifest of %v", snapshot.ErrIntegrity, info.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: object %s: %w", snapshot.ErrIntegrity, name, err)
	}
	r.CacheHead(id, b)
	return SnapshotOf(info), nil
}

// maxWholeHead is the size in bytes up to which a manifest is read whole where its
// head is wanted: less would not come sooner.
const maxWholeHead = 64 << 10

// readHead reads as much of a manifest as its head takes, mostly in one request, and
// tells the object's name.
func (r *Repo) readHead(ctx context.Context, id manifest.ID, size int64) (string, []byte, error) {
	if size <= maxWholeHead {
		name, b, err := r.getManifest(ctx, id)
		if err == nil && len(b) <= maxWholeHead {
			r.keepWhole(id, b)
		}
		if err == nil {
			// The rest is here too, and may be what is damaged.
			if err = manifest.CheckObject(b); err != nil {
				err = fmt.Errorf("%w: object %s: %w", snapshot.ErrIntegrity, name, err)
			}
		}
		return name, b, err
	}
	name := id.ObjectName()
	b := make([]byte, manifest.HeadSize)
	err := r.Store.ReadAt(ctx, name, 0, b)
	if errors.Is(err, remote.ErrNotExist) && name != id.KeptName() {
		name = id.KeptName()
		err = r.Store.ReadAt(ctx, name, 0, b)
	}
	if err != nil {
		return name, nil, err
	}
	n, err := manifest.HeadLen(b)
	if err != nil {
		return name, nil, fmt.Errorf("%w: object %s: %w", snapshot.ErrIntegrity, name, err)
	}
	if n > len(b) {
		b = make([]byte, n)
		err = r.Store.ReadAt(ctx, name, 0, b)
	}
	return name, b, err
}

// CacheHead keeps the head of a manifest.
func (r *Repo) CacheHead(id manifest.ID, b []byte) {
	n, err := manifest.HeadLen(b)
	if err == nil && n <= len(b) {
		err = r.Cache.Write("heads", id.String(), b[:n])
	}
	if err != nil {
		r.Logger.Info("caching the head of a manifest", "err", err)
	}
}

// forgetHeads drops what the cache has of snapshots that are gone.
func (r *Repo) forgetHeads(ids []SizedID) {
	names := r.Cache.Names("heads")
	if len(names) <= len(ids) {
		return
	}
	live := make(map[string]bool, len(ids))
	for _, id := range ids {
		live[id.String()] = true
	}
	for _, name := range names {
		if _, err := manifest.ParseID(name); err == nil && !live[name] {
			r.Cache.Remove("heads", name)
		}
	}
}

// Manifest reads a whole manifest: one request.
func (r *Repo) Manifest(ctx context.Context, id manifest.ID) (*manifest.Manifest, error) {
	m, _, err := r.EncodedManifest(ctx, id)
	return m, err
}

// EncodedManifest is manifest that gives the object's bytes too.
func (r *Repo) EncodedManifest(ctx context.Context, id manifest.ID) (m *manifest.Manifest, b []byte, err error) {
	name, b, err := r.getManifest(ctx, id)
	if errors.Is(err, remote.ErrNotExist) {
		return nil, nil, snapshot.ErrNotFound // callers say of which snapshot
	}
	if err != nil {
		return nil, nil, err
	}
	m, err = manifest.Decode(r.Codec, b)
	if err == nil && m.ID != id {
		err = fmt.Errorf("it is the manifest of %v", m.ID)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: object %s: %w", snapshot.ErrIntegrity, name, err)
	}
	return m, b, nil
}

// SnapshotOf is what users are shown of a manifest.
func SnapshotOf(i *manifest.Info) *snapshot.Snapshot {
	s := &snapshot.Snapshot{
		ID: i.ID, Dir: i.Dir, Name: i.Name, Tags: i.Tags, CreatedAt: i.Created,
		Host: i.Host, User: i.User, Version: i.Version,
		Files: int64(i.Files), Dirs: int64(i.Entries - i.Files), Bytes: int64(i.Bytes),
		NewBytes: int64(i.NewBytes), StoredBytes: int64(i.StoredBytes),
		Skipped: int64(i.Skipped), Unreadable: int64(i.Unreadable), Incomplete: i.Incomplete(),
	}
	if !i.Parent.IsZero() {
		s.Parent = &i.Parent
	}
	if !i.Expires.IsZero() {
		s.ExpiresAt = &i.Expires
	}
	return s
}

// Package retain changes what is kept, and for how long: names, tags and lifetimes, rules of
// prune, removal, and the rules of a bucket.
package retain

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
)

// lifetime reports whether they say when snapshots expire.
func changesLifetime(c *snapshot.Changes) bool {
	return !c.Until.IsZero() || c.TTL != 0 || c.Pin || c.Unpin
}

func checkChanges(c *snapshot.Changes, now time.Time) error {
	if c.Name != nil && *c.Name != "" {
		if err := repo.CheckName(*c.Name); err != nil {
			return err
		}
	}
	for k, v := range c.SetTags {
		if err := repo.CheckTag(k, v); err != nil {
			return err
		}
		if slices.Contains(c.RemoveTags, k) {
			return fmt.Errorf("%w: tag %q is to be set and to be removed", snapshot.ErrInvalid, k)
		}
	}
	for _, k := range c.RemoveTags {
		if err := repo.CheckTag(k, ""); err != nil {
			return err
		}
	}
	lifetimes := 0
	for _, asked := range []bool{!c.Until.IsZero(), c.TTL != 0, c.Pin, c.Unpin} {
		if asked {
			lifetimes++
		}
	}
	switch {
	case lifetimes > 1:
		return fmt.Errorf("%w: more than one of a time to expire, a pin, and none", snapshot.ErrInvalid)
	case c.TTL < 0:
		return fmt.Errorf("%w: time to live of %v", snapshot.ErrInvalid, c.TTL)
	case !c.Until.IsZero() && !c.Until.After(now):
		return errPast(c.Until, now)
	case lifetimes == 0 && c.Name == nil && len(c.SetTags)+len(c.RemoveTags) == 0:
		return fmt.Errorf("%w: nothing to change", snapshot.ErrInvalid)
	}
	return nil
}

// errPast says that a time at which something is to expire is none.
func errPast(until, now time.Time) error {
	return fmt.Errorf("%w: %s is not in the future: it is %s by the clock of the repository", snapshot.ErrInvalid, until.Format(repo.TimeFormat), now.Format(repo.TimeFormat))
}

// note is what must be written for a snapshot to be as asked; nil for nothing.
func noteFor(c *snapshot.Changes, s *snapshot.Snapshot) (*manifest.Note, error) {
	n := &manifest.Note{Snapshot: s.ID, ID: manifest.NewNoteID(repo.LastNote(s)), Name: c.Name, SetTags: c.SetTags}
	n.RemoveTags = slices.Compact(slices.Sorted(slices.Values(c.RemoveTags)))
	tags := maps.Clone(s.Tags)
	if tags == nil {
		tags = map[string]string{}
	}
	maps.Copy(tags, c.SetTags)
	for _, k := range c.RemoveTags {
		delete(tags, k)
	}
	if len(tags) > manifest.MaxTags {
		return nil, fmt.Errorf("%w: %d tags, the most is %d", snapshot.ErrInvalid, len(tags), manifest.MaxTags)
	}
	switch {
	case !c.Until.IsZero():
		n.Lifetime = &manifest.Lifetime{Expires: c.Until}
	case c.Pin && !s.Pinned:
		n.Lifetime = &manifest.Lifetime{Pinned: true}
	case c.Unpin && s.Pinned:
		n.Lifetime = &manifest.Lifetime{}
	}
	if n.Name == nil && len(n.SetTags)+len(n.RemoveTags) == 0 && n.Lifetime == nil {
		return nil, nil
	}
	return n, nil
}

// changesAtOnce is how many snapshots are changed in parallel.
const changesAtOnce = 8

// Change is engine.Repository.Change.
func Change(ctx context.Context, r *repo.Repo, c *snapshot.Changes, refs ...string) ([]*snapshot.Snapshot, error) {
	if c == nil {
		c = &snapshot.Changes{}
	}
	if changesLifetime(c) {
		r.AskTime(ctx)
	}
	now := r.Time()
	if err := checkChanges(c, now); err != nil {
		return nil, err
	}
	if c.TTL > 0 {
		until := *c
		until.Until, until.TTL = now.Add(c.TTL), 0
		c = &until
	}
	var all []*snapshot.Snapshot
	x := r.NewResolver(ctx, len(refs))
	for _, ref := range refs {
		s, err := x.Get(ref)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(all, func(o *snapshot.Snapshot) bool { return o.ID == s.ID }) {
			all = append(all, s)
		}
	}
	errs := make([]error, len(all))
	g := errgroup.Group{}
	g.SetLimit(changesAtOnce)
	for i, s := range all {
		g.Go(func() error {
			if err := changeOne(ctx, r, s, c); err != nil {
				errs[i] = fmt.Errorf("snapshot %v: %w", s.ID, repo.Integrity(err))
				all[i] = nil
			}
			return nil
		})
	}
	_ = g.Wait() // errs has them
	return slices.DeleteFunc(all, func(s *snapshot.Snapshot) bool { return s == nil }), errors.Join(errs...)
}

// change writes the note, and has the snapshot be as it says.
func changeOne(ctx context.Context, r *repo.Repo, s *snapshot.Snapshot, c *snapshot.Changes) error {
	n, err := noteFor(c, s)
	if n == nil || err != nil {
		return err
	}
	object, err := r.EncodeNote(n)
	if err != nil {
		return err
	}
	copied := false
	if n.Lifetime != nil {
		if copied, err = KeepLonger(ctx, r, s, n.Lifetime); err != nil {
			return err
		}
		if err := r.CheckExpiry(ctx, s); err != nil { // that may have taken a while
			return err
		}
	}
	began := r.Uptime()
	if err = r.Store.Put(ctx, n.ObjectName(), object); err != nil {
		err = fmt.Errorf("writing a note: %w", err)
	} else if n.Lifetime != nil {
		err = confirm(ctx, r, n, copied, began)
	}
	if err != nil {
		withdrawNote(ctx, r, n, copied && errors.Is(err, snapshot.ErrNotFound))
		return err
	}
	r.CacheNote(n, object)
	dropSuperseded(ctx, r, s, n)
	repo.Annotate(s, []*manifest.Note{n})
	return nil
}

// KeepLonger puts the manifest once more, where no lifecycle rule of the bucket is
// about it, if the snapshot is to outlive its class. It reports whether it has.
func KeepLonger(ctx context.Context, r *repo.Repo, s *snapshot.Snapshot, l *manifest.Lifetime) (copied bool, err error) {
	id := s.ID
	class := time.Duration(id.Class().Days()) * 24 * time.Hour
	// A rule of the bucket counts from its own clock, which that of the maker may have been
	// ahead of.
	known := !fromFuture(s, r.Time())
	if class == 0 || known && !l.Expires.IsZero() && !l.Expires.After(s.CreatedAt.Add(class)) {
		return false, nil
	}
	if _, err := r.Store.Stat(ctx, id.KeptName()); !errors.Is(err, remote.ErrNotExist) {
		return false, err
	}
	_, b, err := r.EncodedManifest(ctx, id)
	if err == nil {
		err = r.Store.Put(ctx, id.KeptName(), b)
	}
	if errors.Is(err, remote.ErrExist) {
		err = fmt.Errorf("%w: object %s: it is not the manifest of %v", snapshot.ErrIntegrity, id.KeptName(), id)
	}
	return err == nil, err
}

// coarse is how far the store's times may be rounded down.
const coarse = time.Second

// confirm makes sure that garbage collection sees a note about the lifetime before it
// would remove the snapshot: the manifest is still there, and the note was durable no
// later than the slack after the expiry that it takes the place of. The latter is known
// by the store's clock alone: the note's time, and what has passed since its writing
// began. copied is set if the manifest was just put under its second name.
func confirm(ctx context.Context, r *repo.Repo, n *manifest.Note, copied bool, began time.Duration) error {
	took := r.Uptime() - began
	id := n.Snapshot
	there := repo.Begin(func() (remote.Info, error) {
		info, err := r.Store.Stat(ctx, id.ObjectName())
		if errors.Is(err, remote.ErrNotExist) && !copied {
			info, err = r.Store.Stat(ctx, id.KeptName())
		}
		return info, err
	})
	var before []manifest.NoteID
	var written time.Time
	err := r.Store.List(ctx, id.NotesOf(), func(o remote.Info) error {
		_, note, err := manifest.ParseNoteName(o.Name)
		switch {
		case err != nil:
		case note == n.ID:
			written = o.ModTime
		case note.Compare(n.ID) < 0:
			before = append(before, note)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("listing notes: %w", err)
	}
	_, err = there(ctx)
	switch {
	case errors.Is(err, remote.ErrNotExist):
		return fmt.Errorf("%w: it was removed meanwhile", snapshot.ErrNotFound)
	case err != nil:
		return err
	case written.IsZero():
		return nil // another change has taken its place already, and was confirmed
	}
	if at := n.Lifetime.Expires; !at.IsZero() && !at.After(written) {
		return errPast(at, written)
	}
	old, err := noteBefore(ctx, r, n, before)
	if err != nil || old.ExpiresAt == nil {
		return err
	}
	if done := written.Add(took + coarse); done.After(old.ExpiresAt.Add(r.ExpirySlack())) {
		return fmt.Errorf("%w on %s; the change came too late, at %s by the clock of the repository", snapshot.ErrExpired, old.ExpiresAt.Format(repo.TimeFormat), done.Format(repo.TimeFormat))
	}
	return nil
}

// before is a snapshot as it was before a note, with those notes of the listed ones
// that come before it.
func noteBefore(ctx context.Context, r *repo.Repo, n *manifest.Note, listed []manifest.NoteID) (*snapshot.Snapshot, error) {
	s := r.CachedHead(n.Snapshot)
	if s == nil {
		var err error
		if s, err = r.Head(ctx, n.Snapshot, 0); err != nil {
			return nil, err
		}
	}
	notes, err := r.ReadNotes(ctx, n.Snapshot, listed)
	if err != nil {
		return nil, err
	}
	repo.Annotate(s, slices.DeleteFunc(notes, func(o *manifest.Note) bool { return o.ID.Compare(n.ID) >= 0 }))
	return s, nil
}

// withdrawNote takes a note back that was not confirmed, or whose Put failed but may
// have come through, and, if the snapshot was removed, the manifest put for it.
func withdrawNote(ctx context.Context, r *repo.Repo, n *manifest.Note, manifest bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.Patience.Rescue)
	defer cancel()
	names := []string{n.ObjectName()}
	if manifest {
		names = append(names, n.Snapshot.KeptName())
	}
	if err := r.Store.Delete(ctx, names...); err != nil {
		r.Logger.Warn("withdrawing a note", "snapshot", n.Snapshot, "err", err)
	}
}

// dropSuperseded deletes notes of which nothing counts any more. Whatever else is
// written meanwhile, they change nothing: for each thing that they say there is a later
// note. Which there are is known from s, and what they say from the cache.
func dropSuperseded(ctx context.Context, r *repo.Repo, s *snapshot.Snapshot, n *manifest.Note) {
	var names []string
	for _, id := range s.Notes {
		if old := r.CachedNote(s.ID, id); old != nil && n.Supersedes(old) {
			names = append(names, old.ObjectName())
		}
	}
	if len(names) == 0 {
		return
	}
	if err := r.Store.Delete(ctx, names...); err != nil {
		r.Logger.Info("deleting superseded notes", "snapshot", s.ID, "err", err)
		return
	}
	for _, name := range names {
		_, id, err := manifest.ParseNoteName(name)
		if err != nil {
			panic(err) // it is the name of a note
		}
		r.Cache.Remove("notes", id.String())
		s.Notes = slices.DeleteFunc(s.Notes, func(o manifest.NoteID) bool { return o == id })
	}
}

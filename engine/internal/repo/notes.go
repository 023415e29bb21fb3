package repo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/snapctl/snapctl/engine/internal/crypt"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
)

// How notes are read and written:
//
// - snapshots lists notes beside manifests, and Get by id beside the manifest; what the
//   cache has of them is not fetched. What opens a snapshot by its id asks for the manifest
//   alone, and for notes only if that says that it has expired (CheckLive): a mount by id
//   stays at one round trip. The price: a TTL that was made shorter is not seen that way,
//   until garbage collection has removed the snapshot.
// - The id says which lifetime class, and so which name, a manifest has. To outlive its
//   class it is put once more, byte for byte, as manifests/<id> before the note is
//   (keepLonger), and readers who find the first one gone ask for that (getManifest).
// - Garbage collection removes a snapshot only expirySlack after its expiry, by the
//   store's clock. A change of the expiry succeeds only if the note was durable by then
//   (confirm): the store's time of it, and CLOCK_BOOTTIME since its writing began, which
//   counts what a stopped process does not notice. Else the note is taken back and the
//   change has failed. Then it also makes sure that the manifest is there still: what is
//   removed meanwhile stays removed.

// ListNotes lists the ids of notes below a prefix, in their order, by snapshot.
func (r *Repo) ListNotes(ctx context.Context, prefix string) (map[manifest.ID][]manifest.NoteID, error) {
	all := map[manifest.ID][]manifest.NoteID{}
	err := r.list(ctx, prefix, func(o remote.Info) error {
		id, note, err := manifest.ParseNoteName(o.Name)
		if err != nil {
			r.Logger.Warn("not a note", "object", o.Name, "err", err)
			return nil
		}
		all[id] = append(all[id], note)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing notes: %w", err)
	}
	return all, nil
}

// NotesOf reads the notes of a snapshot, in the order in which they apply.
func (r *Repo) NotesOf(ctx context.Context, id manifest.ID) ([]*manifest.Note, error) {
	listed, err := r.ListNotes(ctx, id.NotesOf())
	if err != nil {
		return nil, err
	}
	return r.ReadNotes(ctx, id, listed[id])
}

const (
	notesAtOnce = 4 // of one snapshot

	// noteRounds bounds how often notes are listed again that were superseded while
	// they were read.
	noteRounds = 10
)

// ReadNotes reads notes that were listed. A note goes when later ones say all that it
// said, or with its snapshot: so if one is gone, what was listed is not the whole of
// it, and is listed again.
func (r *Repo) ReadNotes(ctx context.Context, id manifest.ID, listed []manifest.NoteID) ([]*manifest.Note, error) {
	for range noteRounds {
		all := make([]*manifest.Note, len(listed))
		var gone atomic.Bool
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(notesAtOnce)
		for i, note := range listed {
			if all[i] = r.CachedNote(id, note); all[i] != nil {
				continue
			}
			g.Go(func() (err error) {
				all[i], err = r.readNote(gctx, id, note)
				if errors.Is(err, remote.ErrNotExist) {
					gone.Store(true)
					return nil
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
		if !gone.Load() {
			return all, nil
		}
		again, err := r.ListNotes(ctx, id.NotesOf())
		if err != nil {
			return nil, err
		}
		listed = again[id]
	}
	return nil, fmt.Errorf("notes of %v: they change faster than they can be read", id)
}

func (r *Repo) readNote(ctx context.Context, id manifest.ID, note manifest.NoteID) (*manifest.Note, error) {
	name := id.NotesOf() + note.String()
	b, err := r.Store.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	n, err := r.DecodeNote(b, id, note)
	if err != nil {
		return nil, fmt.Errorf("%w: object %s: %w; delete it and say again what it said, or remove the snapshot by its id", snapshot.ErrIntegrity, name, err)
	}
	r.CacheNote(n, b)
	return n, nil
}

// EncodeNote gives the object of a note.
func (r *Repo) EncodeNote(n *manifest.Note) ([]byte, error) {
	b, err := n.Encode()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", snapshot.ErrInvalid, err)
	}
	return r.SealObject(crypt.UseNote, n.ObjectName(), b), nil
}

// DecodeNote decodes the object of a note.
func (r *Repo) DecodeNote(b []byte, id manifest.ID, note manifest.NoteID) (*manifest.Note, error) {
	b, err := r.OpenObject(crypt.UseNote, id.NotesOf()+note.String(), b)
	if err != nil {
		return nil, err
	}
	n, err := manifest.DecodeNote(b)
	if err == nil && (n.Snapshot != id || n.ID != note) {
		err = fmt.Errorf("it is the note %v of %v", n.ID, n.Snapshot)
	}
	return n, err
}

// CachedNote gives a note that the cache knows, nil for none.
func (r *Repo) CachedNote(id manifest.ID, note manifest.NoteID) *manifest.Note {
	b := r.Cache.Read("notes", note.String())
	if b == nil {
		return nil
	}
	n, err := r.DecodeNote(b, id, note)
	if err != nil {
		r.Cache.Remove("notes", note.String())
		return nil
	}
	return n
}

// cachedNotes gives notes if the cache knows all of them, else nil.
func (r *Repo) cachedNotes(id manifest.ID, listed []manifest.NoteID) []*manifest.Note {
	all := make([]*manifest.Note, len(listed))
	for i, note := range listed {
		if all[i] = r.CachedNote(id, note); all[i] == nil {
			return nil
		}
	}
	return all
}

// CacheNote has this machine keep a note, whose bytes are b.
func (r *Repo) CacheNote(n *manifest.Note, b []byte) {
	if err := r.Cache.Write("notes", n.ID.String(), b); err != nil {
		r.Logger.Info("caching a note", "err", err)
	}
}

// forgetNotes drops what the cache has of notes that are gone.
func (r *Repo) forgetNotes(listed map[manifest.ID][]manifest.NoteID) {
	live := map[string]bool{}
	for _, notes := range listed {
		for _, note := range notes {
			live[note.String()] = true
		}
	}
	names := r.Cache.Names("notes")
	if len(names) <= len(live) {
		return
	}
	for _, name := range names {
		if _, err := manifest.ParseNoteID(name); err == nil && !live[name] {
			r.Cache.Remove("notes", name)
		}
	}
}

// Annotate applies notes to a snapshot that is as its manifest has it.
func Annotate(s *snapshot.Snapshot, notes []*manifest.Note) {
	if len(notes) > 0 {
		s.Tags = maps.Clone(s.Tags)
	}
	for _, n := range notes {
		s.Notes = append(s.Notes, n.ID)
		if n.Name != nil {
			s.Name = *n.Name
		}
		for _, key := range n.RemoveTags {
			delete(s.Tags, key)
		}
		if len(n.SetTags) > 0 && s.Tags == nil {
			s.Tags = map[string]string{}
		}
		maps.Copy(s.Tags, n.SetTags)
		if l := n.Lifetime; l != nil {
			s.Pinned, s.ExpiresAt = l.Pinned, nil
			if !l.Expires.IsZero() {
				s.ExpiresAt = &l.Expires
			}
		}
	}
}

// CheckLive is ErrExpired for a snapshot that has expired. s may be as its manifest
// has it: only where that says so are its notes asked, so that what is opened by its
// id takes one request.
func (r *Repo) CheckLive(ctx context.Context, s *snapshot.Snapshot) error {
	if !r.expired(ctx, s) {
		return nil
	}
	notes, err := r.NotesOf(ctx, s.ID)
	if err != nil {
		return err
	}
	now := *s
	Annotate(&now, notes)
	return r.CheckExpiry(ctx, &now)
}

// LastNote is the last of a snapshot's notes, the zero id for none.
func LastNote(s *snapshot.Snapshot) manifest.NoteID {
	if len(s.Notes) == 0 {
		return manifest.NoteID{}
	}
	return slices.MaxFunc(s.Notes, manifest.NoteID.Compare)
}

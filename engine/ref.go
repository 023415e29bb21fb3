package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
)

// latest refers to the newest snapshot of all.
const latest = "latest"

// minPrefix is the shortest prefix of an id that is a reference.
const minPrefix = 4

var (
	nthPattern    = regexp.MustCompile(`^(.+)~([0-9]{1,6})$`)
	prefixPattern = regexp.MustCompile(`^[0-9a-f]{1,8}(-[0-9a-f]{0,4}){0,3}(-[0-9a-f]{0,12})?$`)
)

// checkName reports a name that a snapshot cannot have: one that no reference
// could name.
func checkName(name string) error {
	if err := manifest.CheckLabel(name); err != nil {
		return fmt.Errorf("%w: name %q %w", ErrInvalid, name, err)
	}
	_, idErr := manifest.ParseID(name)
	switch {
	case name == latest || name == "-" || isHandle(name) || nthPattern.MatchString(name) || idErr == nil:
		return fmt.Errorf("%w: name %q has a meaning of its own as a reference", ErrInvalid, name)
	}
	return nil
}

// Get finds the snapshot that a reference names. A reference is
//
//   - an id, or a prefix of one, of at least four digits, that no other has;
//   - a handle: a JSON object with an "id";
//   - a name: the newest snapshot of that name;
//   - name~N: the Nth before that;
//   - latest, latest~N: the same among all snapshots.
//
// It fails with ErrNotFound, ErrAmbiguous, or ErrExpired.
func (r *Repository) Get(ctx context.Context, ref string) (*Snapshot, error) {
	s, err := r.resolve(ctx, ref)
	if err == nil {
		err = r.checkExpiry(s)
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", printable(ref), integrity(err))
	}
	return s, nil
}

func (r *Repository) checkExpiry(s *Snapshot) error {
	if s.Expired(r.now()) {
		return fmt.Errorf("%w on %s", ErrExpired, s.ExpiresAt.Format("2006-01-02 15:04:05 MST"))
	}
	return nil
}

// idOf is the id that a reference names without a look at the repository.
func idOf(ref string) (manifest.ID, bool) {
	if isHandle(ref) {
		id, err := parseHandle(ref)
		return id, err == nil
	}
	id, err := manifest.ParseID(ref)
	return id, err == nil
}

// isHandle reports whether a reference is the JSON of a handle.
func isHandle(ref string) bool { return strings.HasPrefix(strings.TrimSpace(ref), "{") }

func parseHandle(ref string) (manifest.ID, error) {
	var h struct {
		ID manifest.ID `json:"id"`
	}
	if err := json.Unmarshal([]byte(ref), &h); err != nil || h.ID.IsZero() {
		return h.ID, fmt.Errorf("%w: not the JSON of a handle", ErrInvalid)
	}
	return h.ID, nil
}

// printable quotes a reference that could hide in a message or break it.
func printable(ref string) string {
	if q := strconv.Quote(ref); q[1:len(q)-1] != ref || strings.ContainsAny(ref, " ") {
		return q
	}
	return ref
}

func (r *Repository) resolve(ctx context.Context, ref string) (*Snapshot, error) {
	if isHandle(ref) {
		id, err := parseHandle(ref)
		if err != nil {
			return nil, err
		}
		return r.byID(ctx, id)
	}
	if id, err := manifest.ParseID(ref); err == nil {
		return r.byID(ctx, id)
	}
	name, n := ref, 0
	if m := nthPattern.FindStringSubmatch(ref); m != nil {
		var err error
		if n, err = strconv.Atoi(m[2]); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		name = m[1]
	}
	if name == "" {
		return nil, fmt.Errorf("%w: an empty reference", ErrInvalid)
	}
	all, damaged, err := r.snapshots(ctx)
	if err != nil {
		return nil, err
	}
	s, err := choose(all, ref, name, n, func(s *Snapshot) bool { return s.Expired(r.now()) })
	for _, d := range damaged {
		// It may be the one that is meant: better no answer than an older one.
		if err != nil || d.id.Compare(s.ID) > 0 {
			return nil, fmt.Errorf("%w; it may be the one that is meant (remove it, or name another by its id)", d.err)
		}
	}
	return s, err
}

// choose picks among all snapshots, newest first.
func choose(all []*Snapshot, ref, name string, n int, expired func(*Snapshot) bool) (*Snapshot, error) {
	var named, prefixed []*Snapshot
	for _, s := range all {
		// What has expired is no answer to a name: the name goes on to others.
		if (name == latest || s.Name == name) && !expired(s) {
			named = append(named, s)
		}
		if len(ref) >= minPrefix && strings.HasPrefix(s.ID.String(), ref) {
			prefixed = append(prefixed, s)
		}
	}
	switch {
	case len(named) > 0 && len(prefixed) > 0:
		return nil, fmt.Errorf("%w: it is the name of %s and the beginning of %s", ErrAmbiguous, describe(named[:1]), describe(prefixed))
	case len(prefixed) > 1:
		return nil, fmt.Errorf("%w: it is the beginning of %s", ErrAmbiguous, describe(prefixed))
	case len(prefixed) == 1:
		return prefixed[0], nil
	case n < len(named):
		return named[n], nil
	case len(named) > 0:
		return nil, fmt.Errorf("%w: there are %d of that name", ErrNotFound, len(named))
	}
	for _, s := range all {
		if s.Name == name {
			return s, nil // expired, which the caller says
		}
	}
	if prefixPattern.MatchString(ref) && len(ref) < minPrefix {
		return nil, fmt.Errorf("%w: of an id at least %d digits are needed", ErrNotFound, minPrefix)
	}
	return nil, ErrNotFound
}

// describe lists snapshots in a message, a few of them.
func describe(all []*Snapshot) string {
	var b strings.Builder
	for i, s := range all {
		if i == 3 {
			fmt.Fprintf(&b, " and %d more", len(all)-i)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%v (%s, %s)", s.ID, s.CreatedAt.Format("2006-01-02 15:04"), strconv.Quote(s.Dir))
	}
	return b.String()
}

func (r *Repository) byID(ctx context.Context, id manifest.ID) (*Snapshot, error) {
	s, err := r.head(ctx, id, 0)
	if errors.Is(err, remote.ErrNotExist) {
		r.cache.remove("heads", id.String())
		return nil, ErrNotFound
	}
	return s, err
}

// Remove removes snapshots, and tells which. All references are resolved before
// anything is removed; expired snapshots can be removed too. What only they
// held is freed by garbage collection.
func (r *Repository) Remove(ctx context.Context, refs ...string) ([]*Snapshot, error) {
	var all []*Snapshot
	var names []string
	seen := map[manifest.ID]bool{}
	for _, ref := range refs {
		s, err := r.resolve(ctx, ref)
		if id, ok := idOf(ref); ok && errors.Is(err, ErrIntegrity) {
			s, err = &Snapshot{ID: id}, nil // what is damaged can be removed by its id
		}
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", printable(ref), integrity(err))
		}
		if !seen[s.ID] {
			seen[s.ID] = true
			all, names = append(all, s), append(names, s.ID.ObjectName())
		}
	}
	if err := r.store.Delete(ctx, names...); err != nil {
		return nil, fmt.Errorf("removing snapshots: %w", err)
	}
	for _, s := range all {
		r.cache.remove("heads", s.ID.String())
	}
	return all, nil
}

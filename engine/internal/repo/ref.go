package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/snapctl/snapctl/engine/snapshot"
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

// CheckName reports a name that a snapshot cannot have: one that no reference
// could name.
func CheckName(name string) error {
	if err := manifest.CheckLabel(name); err != nil {
		return fmt.Errorf("%w: name %q %w", snapshot.ErrInvalid, name, err)
	}
	_, idErr := manifest.ParseID(name)
	switch {
	case strings.TrimSpace(name) != name: // which snapshots of before may have
		return fmt.Errorf("%w: name %q begins or ends with a space", snapshot.ErrInvalid, name)
	case name == latest || name == "-" || isHandle(name) || nthPattern.MatchString(name) || idErr == nil:
		return fmt.Errorf("%w: name %q has a meaning of its own as a reference", snapshot.ErrInvalid, name)
	}
	return nil
}

// CheckTag reports a tag that a snapshot cannot have. A value may be empty.
func CheckTag(key, value string) error {
	if err := manifest.CheckLabel(key); err != nil {
		return fmt.Errorf("%w: tag %q %w", snapshot.ErrInvalid, key, err)
	}
	if err := manifest.CheckLabel(value); value != "" && err != nil {
		return fmt.Errorf("%w: value %q of tag %q %w", snapshot.ErrInvalid, value, key, err)
	}
	return nil
}

// Get is engine.Repository.Get.
func (r *Repo) Get(ctx context.Context, ref string) (*snapshot.Snapshot, error) {
	return r.NewResolver(ctx, 1).Get(ref)
}

// TimeFormat is how messages show a time.
const TimeFormat = "2006-01-02 15:04:05 MST"

// CheckExpiry fails with ErrExpired if a snapshot has expired.
func (r *Repo) CheckExpiry(ctx context.Context, s *snapshot.Snapshot) error {
	if r.expired(ctx, s) {
		return fmt.Errorf("%w on %s", snapshot.ErrExpired, s.ExpiresAt.Format(TimeFormat))
	}
	return nil
}

// IdOf is the id that a reference names without a look at the repository.
func IdOf(ref string) (manifest.ID, bool) {
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
		return h.ID, fmt.Errorf("%w: not the JSON of a handle", snapshot.ErrInvalid)
	}
	return h.ID, nil
}

// Printable quotes a reference that could hide in a message or break it.
func Printable(ref string) string {
	if q := strconv.Quote(ref); q[1:len(q)-1] != ref || strings.ContainsAny(ref, " ") {
		return q
	}
	return ref
}

// A resolver finds the snapshots that several references name, and lists them once.
type resolver struct {
	repo *Repo
	ctx  context.Context
	many bool // a listing costs less than to ask for each id
	list func() *listing
}

type listing struct {
	all     []*snapshot.Snapshot
	damaged []damagedHead
	err     error
}

// ManyRefs is how many ids are asked for one by one.
const ManyRefs = 16

// NewResolver looks references up, about as many as refs: from ManyRefs on a listing is cheaper
// than to ask for each. One listing serves all.
func (r *Repo) NewResolver(ctx context.Context, refs int) *resolver {
	return &resolver{r, ctx, refs > ManyRefs, sync.OnceValue(func() *listing {
		l := &listing{}
		l.all, l.damaged, l.err = r.snapshots(ctx)
		return l
	})}
}

// Get is resolve for what has not expired, with errors that name the reference.
func (x *resolver) Get(ref string) (*snapshot.Snapshot, error) {
	s, err := x.Resolve(ref)
	if err == nil {
		err = x.repo.CheckExpiry(x.ctx, s)
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", Printable(ref), Integrity(err))
	}
	return s, nil
}

// Resolve finds the snapshot that a reference names, expired or not.
func (x *resolver) Resolve(ref string) (*snapshot.Snapshot, error) {
	if isHandle(ref) {
		id, err := parseHandle(ref)
		if err != nil {
			return nil, err
		}
		return x.byID(id)
	}
	if id, err := manifest.ParseID(ref); err == nil {
		return x.byID(id)
	}
	name, n := ref, 0
	if m := nthPattern.FindStringSubmatch(ref); m != nil {
		var err error
		if n, err = strconv.Atoi(m[2]); err != nil {
			return nil, fmt.Errorf("%w: %w", snapshot.ErrInvalid, err)
		}
		name = m[1]
	}
	if name == "" {
		return nil, fmt.Errorf("%w: an empty reference", snapshot.ErrInvalid)
	}
	l := x.list()
	if l.err != nil {
		return nil, l.err
	}
	s, err := choose(l.all, ref, name, n, func(s *snapshot.Snapshot) bool { return x.repo.expired(x.ctx, s) })
	for _, d := range l.damaged {
		// It may be the one that is meant: better no answer than an older one.
		if err != nil || d.id.Compare(s.ID) > 0 {
			return nil, fmt.Errorf("%w; it may be the one that is meant (remove it, or name another by its id)", d.err)
		}
	}
	return s, err
}

func (x *resolver) byID(id manifest.ID) (*snapshot.Snapshot, error) {
	if !x.many {
		return x.repo.byID(x.ctx, id)
	}
	l := x.list()
	if l.err != nil {
		return nil, l.err
	}
	for _, d := range l.damaged {
		if d.id == id {
			return nil, d.err
		}
	}
	at, ok := slices.BinarySearchFunc(l.all, id, func(s *snapshot.Snapshot, id manifest.ID) int { return id.Compare(s.ID) })
	if !ok {
		return nil, snapshot.ErrNotFound
	}
	return l.all[at], nil
}

// choose picks among all snapshots, newest first.
func choose(all []*snapshot.Snapshot, ref, name string, n int, expired func(*snapshot.Snapshot) bool) (*snapshot.Snapshot, error) {
	var named, prefixed []*snapshot.Snapshot
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
		return nil, fmt.Errorf("%w: it is the name of %s and the beginning of %s", snapshot.ErrAmbiguous, describe(named[:1]), describe(prefixed))
	case len(prefixed) > 1:
		return nil, fmt.Errorf("%w: it is the beginning of %s", snapshot.ErrAmbiguous, describe(prefixed))
	case len(prefixed) == 1:
		return prefixed[0], nil
	case n < len(named):
		return named[n], nil
	case len(named) > 0:
		return nil, fmt.Errorf("%w: there are %d of that name", snapshot.ErrNotFound, len(named))
	}
	for _, s := range all {
		if s.Name == name {
			return s, nil // expired, which the caller says
		}
	}
	if prefixPattern.MatchString(ref) && len(ref) < minPrefix {
		return nil, fmt.Errorf("%w: none has that name, and of an id at least %d digits are needed", snapshot.ErrNotFound, minPrefix)
	}
	return nil, snapshot.ErrNotFound
}

// describe lists snapshots in a message, a few of them.
func describe(all []*snapshot.Snapshot) string {
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

// byID finds a snapshot, and its notes side by side.
func (r *Repo) byID(ctx context.Context, id manifest.ID) (*snapshot.Snapshot, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	noted := Begin(func() ([]*manifest.Note, error) { return r.NotesOf(ctx, id) })
	s, err := r.Head(ctx, id, 0)
	if errors.Is(err, remote.ErrNotExist) {
		r.Cache.Remove("heads", id.String())
		return nil, snapshot.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	notes, err := noted(ctx)
	if err != nil {
		return nil, err
	}
	Annotate(s, notes)
	return s, nil
}

// LiveTree opens a snapshot that must be in the repository: only then are its packs
// sure to be. What has expired may be collected at any moment.
func (r *Repo) LiveTree(ctx context.Context, id manifest.ID) (*manifest.Manifest, *manifest.Tree, error) {
	m, err := r.Manifest(ctx, id)
	if err == nil {
		err = r.CheckLive(ctx, SnapshotOf(&m.Info))
	}
	if err != nil {
		return nil, nil, err
	}
	tree, err := m.Tree(r)
	return m, tree, err
}

// ManifestOf reads the manifest that a reference names: in one request, if it is an id.
func (r *Repo) ManifestOf(ctx context.Context, ref string) (*manifest.Manifest, error) {
	return r.NewResolver(ctx, 1).Open(ref)
}

// Open reads the manifest that a reference names.
func (x *resolver) Open(ref string) (*manifest.Manifest, error) {
	id, ok := IdOf(ref)
	if !ok {
		s, err := x.Get(ref)
		if err != nil {
			return nil, err
		}
		id = s.ID
	}
	m, err := x.repo.Manifest(x.ctx, id)
	if err == nil {
		err = x.repo.CheckLive(x.ctx, SnapshotOf(&m.Info))
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", Printable(ref), err)
	}
	return m, nil
}

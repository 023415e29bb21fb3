package repo

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/crypt"
	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/remote"
	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
)

// Keys is engine.Repository.Keys.
func (r *Repo) Keys(ctx context.Context) ([]*snapshot.KeyInfo, error) {
	keys, err := r.keys(ctx)
	if err != nil {
		err = fmt.Errorf("keys of %s: %w", r.url, err)
	}
	return keys, err
}

func (r *Repo) keys(ctx context.Context) ([]*snapshot.KeyInfo, error) {
	if r.key == nil {
		return nil, snapshot.ErrNotEncrypted
	}
	objects, errs := r.keyObjects(ctx)
	var all []*snapshot.KeyInfo
	for _, k := range objects {
		d, err := k.Details(r.key)
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("object %s%s: %w", crypt.KeyPrefix, k.Id, err))
			continue
		}
		all = append(all, k.Info(d))
	}
	slices.SortStableFunc(all, func(a, b *snapshot.KeyInfo) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return all, errs
}

// AddKey is engine.Repository.AddKey.
func (r *Repo) AddKey(ctx context.Context, key *snapshot.NewKey) (*snapshot.KeyInfo, error) {
	if r.key == nil {
		return nil, fmt.Errorf("adding a key to %s: %w", r.url, snapshot.ErrNotEncrypted)
	}
	info, err := r.putKey(ctx, r.key, key)
	if err != nil {
		return nil, fmt.Errorf("adding a key to %s: %w", r.url, err)
	}
	return info, nil
}

func (r *Repo) putKey(ctx context.Context, master *chunk.Key, key *snapshot.NewKey) (*snapshot.KeyInfo, error) {
	k, err := crypt.Wrap(key, master, r.Time())
	if err != nil {
		return nil, err
	}
	d, err := k.Details(master)
	if err != nil {
		return nil, err
	}
	return k.Info(d), r.Store.Put(ctx, crypt.KeyPrefix+k.Id, k.Encode())
}

// RemoveKey is engine.Repository.RemoveKey.
func (r *Repo) RemoveKey(ctx context.Context, id string) (*snapshot.KeyInfo, error) {
	k, err := r.removeKey(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("removing key %s from %s: %w", id, r.url, err)
	}
	return k, nil
}

func (r *Repo) removeKey(ctx context.Context, id string) (*snapshot.KeyInfo, error) {
	all, err := r.keys(ctx)
	if err != nil && len(all) == 0 {
		return nil, err
	}
	var found []*snapshot.KeyInfo
	for _, k := range all {
		if len(id) >= minKeyPrefix && strings.HasPrefix(k.ID, id) {
			found = append(found, k)
		}
	}
	switch {
	case len(id) < minKeyPrefix:
		return nil, fmt.Errorf("%w: at least %d digits of the id are needed", snapshot.ErrInvalid, minKeyPrefix)
	case len(found) == 0:
		return nil, fmt.Errorf("%w that begins like this", snapshot.ErrNoKey)
	case len(found) > 1:
		return nil, fmt.Errorf("%w: %d keys begin like this", snapshot.ErrAmbiguous, len(found))
	case len(all) == 1:
		return nil, snapshot.ErrLastKey
	}
	name := crypt.KeyPrefix + found[0].ID
	object, err := r.Store.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := r.Store.Delete(ctx, name); err != nil {
		return nil, err
	}
	// Somebody else may have removed the others meanwhile. What follows is not to be
	// interrupted: without any key all is lost.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keyPatience)
	defer cancel()
	if left, err := r.keys(ctx); len(left) == 0 {
		return nil, errors.Join(snapshot.ErrLastKey, err, r.Store.Put(ctx, name, object))
	}
	return found[0], nil
}

// keyPatience is how long it may take to put right what went wrong with keys.
const keyPatience = 30 * time.Second

// minKeyPrefix is how many digits of a key's id must be given.
const minKeyPrefix = 4

// makeKeys puts the key objects of a new repository, which come before its config. If
// there is a repository already, or it fails, undo takes them away again.
func (r *Repo) makeKeys(ctx context.Context, master *chunk.Key, keys []*snapshot.NewKey) (undo func(), err error) {
	var names []string
	undo = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keyPatience)
		defer cancel()
		if err := r.Store.Delete(ctx, names...); err != nil {
			r.Logger.Warn("withdrawing keys", "err", err)
		}
	}
	for _, n := range keys {
		k, err := crypt.Wrap(n, master, r.Time())
		if err == nil {
			names = append(names, crypt.KeyPrefix+k.Id)
			err = r.Store.Put(ctx, crypt.KeyPrefix+k.Id, k.Encode())
		}
		if err != nil {
			undo()
			return nil, err
		}
	}
	return undo, nil
}

func countKeys(keys []*crypt.Object, kind crypt.Kind) (n int) {
	for _, k := range keys {
		if k.Kind == kind {
			n++
		}
	}
	return n
}

// keyObjects gives the repository's key objects, in the order of their names. If some
// cannot be read, it gives the others together with an error.
func (r *Repo) keyObjects(ctx context.Context) ([]*crypt.Object, error) {
	names, err := r.keyNames(ctx)
	if err != nil {
		return nil, err
	}
	keys := make([]*crypt.Object, len(names))
	var mu sync.Mutex
	var errs error
	var g errgroup.Group
	g.SetLimit(crypt.KeysAtOnce)
	for i, name := range names {
		g.Go(func() error {
			k, err := r.keyObject(ctx, name)
			if err == nil {
				keys[i] = k
			} else if !errors.Is(err, remote.ErrNotExist) { // removed since it was listed
				mu.Lock()
				errs = errors.Join(errs, err)
				mu.Unlock()
			}
			return nil
		})
	}
	_ = g.Wait()
	all := keys[:0]
	for _, k := range keys {
		if k != nil {
			all = append(all, k)
		}
	}
	return all, errs
}

func (r *Repo) keyObject(ctx context.Context, name string) (*crypt.Object, error) {
	b, err := r.Store.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	k, err := crypt.DecodeAt(name, b)
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", name, err)
	}
	return k, nil
}

// keyNames lists key objects.
func (r *Repo) keyNames(ctx context.Context) ([]string, error) {
	if wait := r.Ahead.takeKeys(); wait != nil {
		if names, err := wait(ctx); !errors.Is(err, context.Canceled) || ctx.Err() != nil {
			return names, err
		}
	}
	return r.listKeys(ctx)
}

func (r *Repo) listKeys(ctx context.Context) (names []string, err error) {
	err = r.Store.List(ctx, crypt.KeyPrefix, func(o remote.Info) error {
		if !crypt.IsName(o.Name) || len(names) == crypt.MaxKeyObjects || o.Size > crypt.MaxKeyObject {
			r.Logger.Warn("not a key", "object", o.Name)
			return nil
		}
		names = append(names, o.Name)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing keys: %w", err)
	}
	return names, nil
}

func (r *Repo) pin(opts *Options) crypt.Pin {
	if r.url == "" {
		return crypt.Pin{}
	}
	base := opts.CacheDir
	if base == "" {
		base = defaultCacheDir()
	}
	sum := blake3.Sum256([]byte(r.url))
	return crypt.Pin{Path: filepath.Join(base, local.Pins, fmt.Sprintf("%x", sum[:16]))}
}

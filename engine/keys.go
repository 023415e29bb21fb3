package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
)

// NewKey says who can open an encrypted repository: whoever knows Passphrase, or has
// the identity of Recipient. One of them is set.
type NewKey struct {
	Passphrase string
	// Recipient is an age recipient, such as *age.X25519Recipient. A String method
	// gives what Keys shows of it. It must be of one identity: not a scrypt one.
	Recipient age.Recipient
	// Label tells the key from others: up to 256 bytes without control characters.
	Label string
	// WorkFactor is the logarithm of scrypt's N for a passphrase, 1 to 20. 0 is the
	// default, 17; a smaller one makes it easier to guess the passphrase.
	WorkFactor int
}

// KeyInfo tells of a key. Nobody can see any of it who has not opened the repository.
type KeyInfo struct {
	ID        string    `json:"id"`   // 64 hex digits
	Kind      string    `json:"kind"` // "passphrase" or "recipient"
	Label     string    `json:"label,omitempty"`
	Recipient string    `json:"recipient,omitempty"`
	CreatedAt time.Time `json:"createdAt"`
}

func (n *NewKey) wrap(key *chunk.Key, now time.Time) (*keyObject, error) {
	if n.Label != "" {
		if err := manifest.CheckLabel(n.Label); err != nil {
			return nil, fmt.Errorf("%w: label %q %w", snapshot.ErrInvalid, n.Label, err)
		}
	}
	details := &keyDetails{created: now.UTC().Truncate(time.Second), label: n.Label}
	if _, ok := n.Recipient.(*age.ScryptRecipient); ok || (n.Recipient == nil) == (n.Passphrase == "") {
		return nil, fmt.Errorf("%w: a key takes a passphrase that is not empty, or a recipient", snapshot.ErrInvalid)
	}
	if n.Recipient != nil {
		if s, ok := n.Recipient.(fmt.Stringer); ok && len(s.String()) <= maxRecipient {
			details.recipient = s.String()
		}
		return wrapKey(key, recipientKey, n.Recipient, details)
	}
	recipient, err := age.NewScryptRecipient(n.Passphrase)
	if err != nil {
		return nil, err
	}
	work := n.WorkFactor
	if work == 0 {
		work = defaultWorkFactor
	}
	if work < 1 || work > maxWorkFactor {
		return nil, fmt.Errorf("%w: work factor %d is not within 1 to %d", snapshot.ErrInvalid, work, maxWorkFactor)
	}
	recipient.SetWorkFactor(work)
	return wrapKey(key, passphraseKey, recipient, details)
}

func (k *keyObject) info(d *keyDetails) *KeyInfo {
	kind := "passphrase"
	if k.kind == recipientKey {
		kind = "recipient"
	}
	return &KeyInfo{ID: k.id, Kind: kind, Label: d.label, Recipient: d.recipient, CreatedAt: d.created}
}

// Keys gives the keys of an encrypted repository, the oldest first. If some are damaged
// or of another repository, it gives the others together with an error that is
// ErrIntegrity.
func (r *Repository) Keys(ctx context.Context) ([]*KeyInfo, error) {
	keys, err := r.keys(ctx)
	if err != nil {
		err = fmt.Errorf("keys of %s: %w", r.url, err)
	}
	return keys, err
}

func (r *Repository) keys(ctx context.Context) ([]*KeyInfo, error) {
	if r.key == nil {
		return nil, snapshot.ErrNotEncrypted
	}
	objects, errs := r.keyObjects(ctx)
	var all []*KeyInfo
	for _, k := range objects {
		d, err := k.details(r.key)
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("object %s%s: %w", keyPrefix, k.id, err))
			continue
		}
		all = append(all, k.info(d))
	}
	slices.SortStableFunc(all, func(a, b *KeyInfo) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return all, errs
}

// AddKey lets somebody else open the repository, or the same in another way.
func (r *Repository) AddKey(ctx context.Context, key *NewKey) (*KeyInfo, error) {
	if r.key == nil {
		return nil, fmt.Errorf("adding a key to %s: %w", r.url, snapshot.ErrNotEncrypted)
	}
	info, err := r.putKey(ctx, r.key, key)
	if err != nil {
		return nil, fmt.Errorf("adding a key to %s: %w", r.url, err)
	}
	return info, nil
}

func (r *Repository) putKey(ctx context.Context, master *chunk.Key, key *NewKey) (*KeyInfo, error) {
	k, err := key.wrap(master, r.time())
	if err != nil {
		return nil, err
	}
	d, err := k.details(master)
	if err != nil {
		return nil, err
	}
	return k.info(d), r.store.Put(ctx, keyPrefix+k.id, k.encode())
}

// RemoveKey takes a key away, by its ID or the beginning of it. It refuses to take the
// last one, with ErrLastKey. The master key stays what it is: who has had a key, and
// kept what was in it, is shut out of a new repository only.
func (r *Repository) RemoveKey(ctx context.Context, id string) (*KeyInfo, error) {
	k, err := r.removeKey(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("removing key %s from %s: %w", id, r.url, err)
	}
	return k, nil
}

func (r *Repository) removeKey(ctx context.Context, id string) (*KeyInfo, error) {
	all, err := r.keys(ctx)
	if err != nil && len(all) == 0 {
		return nil, err
	}
	var found []*KeyInfo
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
	name := keyPrefix + found[0].ID
	object, err := r.store.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := r.store.Delete(ctx, name); err != nil {
		return nil, err
	}
	// Somebody else may have removed the others meanwhile. What follows is not to be
	// interrupted: without any key all is lost.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keyPatience)
	defer cancel()
	if left, err := r.keys(ctx); len(left) == 0 {
		return nil, errors.Join(snapshot.ErrLastKey, err, r.store.Put(ctx, name, object))
	}
	return found[0], nil
}

// keyPatience is how long it may take to put right what went wrong with keys.
const keyPatience = 30 * time.Second

// minKeyPrefix is how many digits of a key's id must be given.
const minKeyPrefix = 4

// makeKeys puts the key objects of a new repository, which come before its config. If
// there is a repository already, or it fails, undo takes them away again.
func (r *Repository) makeKeys(ctx context.Context, master *chunk.Key, keys []*NewKey) (undo func(), err error) {
	var names []string
	undo = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keyPatience)
		defer cancel()
		if err := r.store.Delete(ctx, names...); err != nil {
			r.log.Warn("withdrawing keys", "err", err)
		}
	}
	for _, n := range keys {
		k, err := n.wrap(master, r.time())
		if err == nil {
			names = append(names, keyPrefix+k.id)
			err = r.store.Put(ctx, keyPrefix+k.id, k.encode())
		}
		if err != nil {
			undo()
			return nil, err
		}
	}
	return undo, nil
}

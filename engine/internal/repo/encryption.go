package repo

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"filippo.io/age"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/crypt"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/zeebo/blake3"
)

// Encrypt makes the config that of a repository with this master key. It is done
// last, as what is changed after it no longer matches.
func (c *Config) Encrypt(key *chunk.Key) {
	c.Encryption = &crypt.Config{Algorithm: crypt.SealAlgorithm, KeyCheck: crypt.Check(key)}
	c.Encryption.MAC = c.mac(key)
}

func (c Config) mac(key *chunk.Key) string {
	enc := *c.Encryption
	c.Checksum, c.Encryption, enc.MAC = "", &enc, ""
	derived := key.Derive(crypt.UseConfig)
	h, err := blake3.NewKeyed(derived[:])
	if err != nil {
		panic(err) // only a key of another length is refused
	}
	h.Write(c.json())
	return hex.EncodeToString(h.Sum(nil))
}

// fits reports whether it is the master key of the config's repository.
func (c *Config) fits(key *chunk.Key) bool {
	return crypt.Same(crypt.Check(key), c.Encryption.KeyCheck)
}

// wantsEncryption reports whether who opens the repository relies on its being
// encrypted.
func (o *Options) wantsEncryption() bool {
	return o.Encrypted || o.Key != nil || len(o.Identities) > 0
}

// unlock gets the master key of the repository that cfg describes, and sees to it
// that cfg is what it was when it was written. It does nothing for one without
// encryption, unless that is not what was expected.
func (r *Repo) unlock(ctx context.Context, cfg *Config, opts *Options) error {
	if opts == nil {
		opts = &Options{}
	}
	pin := r.pin(opts)
	if cfg.Encryption == nil {
		if opts.wantsEncryption() {
			return snapshot.ErrNotEncrypted
		}
		return pin.Check("")
	}
	key, err := r.masterKey(ctx, cfg, opts)
	if err != nil {
		return err
	}
	if !crypt.Same(cfg.mac(key), cfg.Encryption.MAC) {
		return fmt.Errorf("%w: config: it was changed by somebody without the key", snapshot.ErrIntegrity)
	}
	if err := pin.Check(cfg.Encryption.KeyCheck); err != nil {
		return err
	}
	r.key = key
	return nil
}

// masterKey finds the master key with what opts hold.
func (r *Repo) masterKey(ctx context.Context, cfg *Config, opts *Options) (*chunk.Key, error) {
	if opts.Key != nil {
		if !cfg.fits(opts.Key) {
			return nil, fmt.Errorf("%w: the key is that of another one", snapshot.ErrLocked)
		}
		return opts.Key, nil
	}
	if len(opts.Identities) == 0 && opts.Passphrase == nil {
		return nil, fmt.Errorf("%w: it is encrypted, and neither a passphrase nor an identity was given", snapshot.ErrLocked)
	}
	keys, damaged := r.keyObjects(ctx)
	if len(keys) == 0 {
		if damaged == nil {
			damaged = fmt.Errorf("%w: it has no keys", snapshot.ErrIntegrity)
		}
		return nil, damaged
	}
	u := &unlocking{cfg: cfg}
	if len(opts.Identities) > 0 {
		for _, k := range keys {
			if k.Kind == crypt.RecipientKey {
				if key := u.try(k, opts.Identities...); key != nil {
					return key, nil
				}
			}
		}
	}
	if opts.Passphrase != nil && countKeys(keys, crypt.PassphraseKey) > 0 {
		asked := r.Uptime()
		passphrase, err := opts.Passphrase(ctx, r.url)
		switch {
		case err != nil && u.other != nil:
			return nil, u.failed(keys, opts, damaged)
		case err != nil && len(opts.Identities) > 0:
			return nil, fmt.Errorf("%w: %w; passphrase: %w", snapshot.ErrLocked, snapshot.ErrNoIdentity, err)
		case err != nil:
			return nil, fmt.Errorf("%w: passphrase: %w", snapshot.ErrLocked, err)
		}
		if r.Uptime()-asked > r.Patience.Ahead { // somebody had to type it
			r.Ahead.Forget()
		}
		id, err := age.NewScryptIdentity(passphrase)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", snapshot.ErrLocked, err)
		}
		id.SetMaxWorkFactor(crypt.MaxWorkFactor)
		for _, k := range keys {
			if k.Kind == crypt.PassphraseKey && ctx.Err() == nil {
				if key := u.try(k, id); key != nil {
					return key, nil
				}
			}
		}
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
	}
	if damaged != nil && !errors.Is(damaged, snapshot.ErrIntegrity) {
		return nil, damaged // it may have been the one
	}
	return nil, u.failed(keys, opts, damaged)
}

// unlocking is one search for the master key among key objects.
type unlocking struct {
	cfg   *Config
	tried map[crypt.Kind]int
	other *crypt.Object // one that holds another master key
	errs  []error       // of objects that are no good
}

// try gives the master key, if the object holds it and the identities open it.
func (u *unlocking) try(k *crypt.Object, identities ...age.Identity) *chunk.Key {
	if u.tried == nil {
		u.tried = map[crypt.Kind]int{}
	}
	u.tried[k.Kind]++
	key, err := k.Unwrap(identities)
	switch {
	case err != nil:
		var noMatch *age.NoIdentityMatchError
		if !errors.As(err, &noMatch) {
			u.errs = append(u.errs, fmt.Errorf("key %s: %w", k.Id, err))
		}
	case u.cfg.fits(key):
		return key
	default:
		u.other = k
	}
	return nil
}

// failed tells why no object gave the key.
func (u *unlocking) failed(keys []*crypt.Object, opts *Options, damaged error) error {
	var err error
	switch {
	case u.other != nil:
		return fmt.Errorf("%w: key %s is not of the repository that the config is of: one of them was replaced", snapshot.ErrIntegrity, u.other.Id)
	case u.tried[crypt.PassphraseKey] > 0 && u.tried[crypt.RecipientKey] > 0:
		err = fmt.Errorf("%w: wrong passphrase, and %w", snapshot.ErrLocked, snapshot.ErrNoIdentity)
	case u.tried[crypt.PassphraseKey] > 0:
		err = fmt.Errorf("%w: wrong passphrase", snapshot.ErrLocked)
	case u.tried[crypt.RecipientKey] > 0:
		err = fmt.Errorf("%w: %w", snapshot.ErrLocked, snapshot.ErrNoIdentity)
	case opts.Passphrase != nil && len(opts.Identities) == 0:
		err = fmt.Errorf("%w: its keys take an identity, and there is no passphrase", snapshot.ErrLocked)
	default:
		err = fmt.Errorf("%w: its keys take a passphrase, and no identity", snapshot.ErrLocked)
	}
	for _, e := range append(u.errs, damaged) {
		if e != nil {
			err = fmt.Errorf("%w; %w", err, e)
		}
	}
	return err
}

// Key is engine.Repository.Key.
func (r *Repo) Key() *chunk.Key {
	if r.key == nil {
		return nil
	}
	key := *r.key
	return &key
}

// Encrypted is engine.Repository.Encrypted.
func (r *Repo) Encrypted() bool { return r.key != nil }

// SealObject gives what is stored of a small object, where the repository is encrypted:
// authenticated with about, which names its place.
func (r *Repo) SealObject(use chunk.Use, about string, object []byte) []byte {
	if r.key == nil {
		return object
	}
	return r.Codec.For(use, []byte(about)).Seal(nil, object)
}

// OpenObject is the inverse of SealObject. Errors are ErrIntegrity.
func (r *Repo) OpenObject(use chunk.Use, about string, stored []byte) ([]byte, error) {
	if r.key == nil {
		return stored, nil
	}
	b, err := r.Codec.For(use, []byte(about)).Open(nil, stored)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", snapshot.ErrIntegrity, err)
	}
	return b, nil
}

package engine

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/remote"
)

// A Repository holds snapshots. It is safe for parallel use.
type Repository struct {
	repo *repo.Repo

	servers  servers   // of mounts, in this process
	registry *registry // of those of all processes; nil for none

	// forkOf tells of the fork that is mounted at a path without symbolic links; nil
	// asks the kernel. For tests.
	forkOf func(path string) (*overlayInfo, bool)
}

// Init makes a repository at the URL and opens it. It fails with ErrExists
// where there is one, with ErrIntegrity where there is what is left of one that a
// new config would not help, and with errors.ErrUnsupported where the store replaces
// objects.
func Init(ctx context.Context, url string, init *InitOptions, opts *Options) (*Repository, error) {
	r, err := repo.Init(ctx, url, init, opts.forRepo())
	if err != nil {
		return nil, err
	}
	return with(r, "making")
}

// Open opens the repository at a URL: a path, file:///path,
// s3://bucket/prefix or r2://ACCOUNT/bucket/prefix. It fails with
// ErrNotInitialised where there is none, and ErrGone too if Options.StateDir knows that
// there was one, with ErrIntegrity where its config is damaged or
// missing, and with ErrLocked where there is an encrypted one that opts do not open.
func Open(ctx context.Context, url string, opts *Options) (*Repository, error) {
	r, err := repo.Open(ctx, url, opts.forRepo())
	if err != nil {
		return nil, err
	}
	return with(r, "opening")
}

// with adds what is mounted on this machine to a repository.
func with(r *repo.Repo, doing string) (*Repository, error) {
	reg, err := newRegistry(r.State)
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("%s repository %s: %w", doing, r.URL(), err)
	}
	r.NoteUse()
	return &Repository{repo: r, registry: reg}, nil
}

// Close releases what the repository holds, and ends what it fetches in the
// background.
func (r *Repository) Close() error { return r.repo.Close() }

// URL is where the repository is, in its canonical form.
func (r *Repository) URL() string { return r.repo.URL() }

// ID identifies the repository, wherever it is moved to.
func (r *Repository) ID() uuid.UUID { return r.repo.ID() }

// CacheDir is where this machine keeps what makes the next operation fast, of
// this repository and others.
func (r *Repository) CacheDir() string { return r.repo.CacheDir() }

// Requests tells what was asked of the object store, from the first request of Open or
// Init on: of S3 and R2 every request that was sent, else every operation, retries
// included.
func (r *Repository) Requests() remote.Requests { return r.repo.Requests() }

// List gives snapshots, newest first. If some manifests are damaged, it gives the
// other snapshots together with an error that is ErrIntegrity and names them.
func (r *Repository) List(ctx context.Context, opts *ListOptions) ([]*Snapshot, error) {
	return r.repo.List(ctx, opts)
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
	return r.repo.Get(ctx, ref)
}

// Log gives a snapshot and its ancestors, newest first. It takes a listing and
// the heads of manifests that the cache does not have. If an ancestor's manifest
// is damaged, it gives those before it together with an error that is ErrIntegrity.
func (r *Repository) Log(ctx context.Context, ref string) (*History, error) {
	return r.repo.Log(ctx, ref)
}

// Encrypted reports whether the repository is encrypted.
func (r *Repository) Encrypted() bool { return r.repo.Encrypted() }

// Key is the master key of an encrypted repository that this process has opened:
// for Options.Key of another process of the same user. It is nil for a repository
// without encryption. Whoever has it can read, and forge, all that is in the
// repository, for ever.
func (r *Repository) Key() *chunk.Key { return r.repo.Key() }

// Keys gives the keys of an encrypted repository, the oldest first. If some are damaged
// or of another repository, it gives the others together with an error that is
// ErrIntegrity.
func (r *Repository) Keys(ctx context.Context) ([]*KeyInfo, error) { return r.repo.Keys(ctx) }

// AddKey lets somebody else open the repository, or the same in another way.
func (r *Repository) AddKey(ctx context.Context, key *NewKey) (*KeyInfo, error) {
	return r.repo.AddKey(ctx, key)
}

// RemoveKey takes a key away, by its ID or the beginning of it. It refuses to take the
// last one, with ErrLastKey. The master key stays what it is: who has had a key, and
// kept what was in it, is shut out of a new repository only.
func (r *Repository) RemoveKey(ctx context.Context, id string) (*KeyInfo, error) {
	return r.repo.RemoveKey(ctx, id)
}

// forRepo gives the options that concern the repository itself.
func (o *Options) forRepo() *repo.Options {
	if o == nil {
		return &repo.Options{}
	}
	return &repo.Options{
		CacheDir: o.CacheDir, CacheSize: o.CacheSize, StateDir: o.StateDir,
		Ref: o.Ref, List: o.List,
		Passphrase: o.Passphrase, Identities: o.Identities, Key: o.Key, Encrypted: o.Encrypted,
		Store: o.Store, Requests: o.Requests,
		Log: o.Log, OnRetry: o.OnRetry, OnClock: o.OnClock, Version: o.Version, Now: o.Now,
		Patience: o.patience,
	}
}

package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/google/uuid"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/crypt"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
)

// Options are how a repository is opened. The zero value, and nil, will do.
type Options struct {
	// CacheDir holds what makes the next operation fast, and can be deleted at
	// any time. The default is snapctl under os.UserCacheDir.
	CacheDir string
	// CacheSize is how many bytes of fetched packs CacheDir may hold, of all
	// repositories and processes together. The default is DefaultCacheSize,
	// 10 GiB. A repository in a local folder needs none.
	CacheSize int64
	// Ref, if not "", is the reference of the snapshot that will be asked for: what
	// it names is looked up while the repository is opened, which saves a round
	// trip or two, and is then as it was at that moment; it is looked up again if a
	// passphrase took long.
	Ref string
	// List does the same for all snapshots, for who will ask for List or Prune.
	List bool
	// StateDir holds what must outlive a process: which snapshots are mounted
	// where. Processes with the same one share servers of mounts, and Mounts lists
	// them. It must not be deleted while something is mounted. The default is none;
	// that of the command is DefaultStateDir.
	StateDir string
	// Passphrase is asked for the passphrase of the repository at a URL, if that is
	// encrypted and has a key that takes one. It is not asked again when it was wrong.
	Passphrase func(ctx context.Context, url string) (string, error)
	// Identities are tried on the keys of an encrypted repository first.
	Identities []age.Identity
	// Key opens an encrypted repository as another process has: see Repository.Key.
	Key *chunk.Key
	// Encrypted refuses a repository that is not encrypted, with ErrNotEncrypted: so
	// that nobody can put one in its place. Identities and Key do too.
	Encrypted bool
	// Store is used instead of what the URL names, if it is not nil. One that has a method
	// Dir() string, as remote.File, is a folder of this machine.
	Store remote.Store
	// Requests, if not nil, counts what is asked of the store, as Repository.Requests
	// tells: for who wants to know that of an Open that fails too.
	Requests *remote.Counter
	// Log is told what a developer wants to know. The default is silence.
	Log *slog.Logger
	// OnRetry is told of every request that failed and will be sent again.
	OnRetry func(err error, wait time.Duration)
	// OnClock is told, once, by how much this machine's clock is ahead of the store's if
	// that is more than a few seconds; negative if it is behind. What counts for
	// lifetimes is the store's.
	OnClock func(ahead time.Duration)
	// Version of the program that uses the engine: snapshots and requests carry
	// it. The default is that of the main module.
	Version string
	// Now is this machine's clock. The default is time.Now.
	Now func() time.Time

	patience patience // of tests; the zero value is the usual
}

// InitOptions are how a repository is made. nil will do.
type InitOptions struct {
	// Compression is a zstd level, 1 to 22; 0 is the default, 1.
	Compression int
	// GCGrace is how long garbage collection waits before it deletes what nothing
	// needs any more, in whole seconds, at least ten; 0 is the default, a day. Whoever
	// writes to the repository has to commit within half of it, or begins anew.
	GCGrace time.Duration
	// Keys, if there are any, have all that is stored encrypted, and say who can
	// open it. More can be added later; but a repository is encrypted from the
	// beginning, or never.
	Keys []*snapshot.NewKey
}

// A Repository holds snapshots. It is safe for parallel use.
type Repository struct {
	url   string // for messages
	dir   string // of the store, if it is a folder of this machine; else ""
	ver   string // of the program
	store remote.Store
	count *remote.Counter
	cfg   *config
	key   *chunk.Key // nil without encryption
	cache local.Dir
	log   *slog.Logger
	now   func() time.Time // by this machine's clock; time is by the store's

	clock     heardClock
	storeTime func(context.Context) (time.Time, error) // what clock goes by, for tests; nil asks the store
	onClock   func(ahead time.Duration)                // or nil

	codec    *chunk.Codec
	hasher   *chunk.Hasher
	splitter chunk.Splitter

	index repoIndex
	moved movedPacks
	packs *packCache
	ahead *lookahead // nil for none

	// forkOf tells of the fork that is mounted at a path without symbolic links; nil
	// asks the kernel.
	forkOf func(path string) (*overlayInfo, bool)

	servers    servers          // of mounts, in this process
	registry   *registry        // of those of all processes; nil for none
	state      string           // Options.StateDir, absolute; "" for none
	leaseTicks <-chan time.Time // when leases are refreshed, for tests; nil for leaseEvery
	guardTicks <-chan time.Time // when writers read tombstones, for tests; nil for a quarter of the grace

	uptime   func() time.Duration // a clock that goes on whatever becomes of this process
	patience patience
}

// Init makes a repository at the URL and opens it. It fails with ErrExists
// where there is one, with ErrIntegrity where there is what is left of one that a
// new config would not help, and with errors.ErrUnsupported where the store replaces
// objects.
func Init(ctx context.Context, url string, init *InitOptions, opts *Options) (*Repository, error) {
	cfg, err := newConfig(init)
	if err != nil {
		return nil, fmt.Errorf("making a repository: %w", err)
	}
	r, err := connect(ctx, url, opts, true)
	if err != nil {
		return nil, fmt.Errorf("making repository%s: %w", r.where(), err)
	}
	if err = r.make(ctx, cfg, init, opts); err == nil {
		err = r.use(cfg, opts)
	}
	if err != nil {
		return nil, fmt.Errorf("making repository %s: %w", r.url, err)
	}
	return r, nil
}

// make puts the objects that make a repository.
func (r *Repository) make(ctx context.Context, cfg *config, init *InitOptions, opts *Options) error {
	if opts == nil {
		opts = &Options{}
	}
	check, undo := "", func() {}
	if err := r.mayMake(ctx, init); err != nil {
		return err
	}
	if err := r.neverReplaces(ctx); err != nil {
		return err
	}
	r.askTime(ctx)
	cfg.CreatedAt = r.time().UTC().Truncate(time.Second)
	if init != nil && len(init.Keys) > 0 {
		r.key = chunk.NewKey()
		cfg.encrypt(r.key)
		check = cfg.Encryption.KeyCheck
		var err error
		if undo, err = r.makeKeys(ctx, r.key, init.Keys); err != nil {
			return err
		}
	} else if opts.wantsEncryption() {
		return fmt.Errorf("%w: it is to be, but no keys were given", snapshot.ErrNotEncrypted)
	}
	err := r.store.Put(ctx, configName, cfg.encode())
	if errors.Is(err, remote.ErrExist) {
		err = snapshot.ErrExists
	}
	if err != nil {
		// If it came through nevertheless the keys are its own, and must stay.
		if errors.Is(err, snapshot.ErrExists) {
			undo()
		}
		return err
	}
	return r.pin(opts).Set(check)
}

// mayMake says why no repository can be made here. One that lost its config may get a new
// one, which does as well, but not if what is in it could then not be read: all
// that encrypted ones hold.
func (r *Repository) mayMake(ctx context.Context, init *InitOptions) error {
	if _, err := r.store.Stat(ctx, configName); err == nil {
		return snapshot.ErrExists
	} else if !errors.Is(err, remote.ErrNotExist) {
		return err
	}
	lost, err := r.holds(ctx, manifest.Prefix)
	if err != nil || !lost {
		return err
	}
	sealed := init != nil && len(init.Keys) > 0
	if !sealed {
		sealed, err = r.holds(ctx, crypt.KeyPrefix)
	}
	if err == nil && sealed {
		err = fmt.Errorf("%w: there are snapshots of a repository whose config is missing, and with a new one they could not be read", snapshot.ErrIntegrity)
	}
	return err
}

// neverReplaces makes sure that the store keeps an object when another of its name is
// put, as everything here counts on: there are servers that pass over the condition of a
// put (If-None-Match). What it cannot delete again the first gc does.
func (r *Repository) neverReplaces(ctx context.Context) error {
	name := clockPrefix + uuid.NewString()
	if err := r.store.Put(ctx, name, []byte("first")); err != nil {
		return fmt.Errorf("trying a conditional write (If-None-Match: *): %w", err)
	}
	err := r.store.Put(ctx, name, []byte("second"))
	switch {
	case err == nil:
		err = fmt.Errorf("%w: it replaces objects that are there: conditional writes (If-None-Match: *) are needed", errors.ErrUnsupported)
	case errors.Is(err, remote.ErrExist):
		err = nil
	default:
		err = fmt.Errorf("trying a conditional write (If-None-Match: *): %w", err)
	}
	if derr := r.store.Delete(ctx, name); derr != nil {
		r.log.Info("deleting what a store was tried with", "err", derr)
	}
	return err
}

// Open opens the repository at a URL: a path, file:///path,
// s3://bucket/prefix or r2://ACCOUNT/bucket/prefix. It fails with
// ErrNotInitialised where there is none, and ErrGone too if Options.StateDir knows that
// there was one, with ErrIntegrity where its config is damaged or
// missing, and with ErrLocked where there is an encrypted one that opts do not open.
func Open(ctx context.Context, url string, opts *Options) (*Repository, error) {
	r, err := connect(ctx, url, opts, false)
	if errors.Is(err, remote.ErrNoBucket) {
		err = r.notHere(opts)
	}
	if err != nil {
		return nil, fmt.Errorf("opening repository%s: %w", r.where(), err)
	}
	if opts != nil {
		r.lookAhead(ctx, opts)
	}
	var cfg *config
	b, err := r.store.Get(ctx, configName)
	if !r.local() {
		r.askTime(ctx)
	}
	switch {
	case errors.Is(err, remote.ErrNotExist):
		err = r.withoutConfig(ctx)
	case err == nil:
		cfg, err = decodeConfig(b)
	}
	if err == nil {
		err = r.unlock(ctx, cfg, opts)
	}
	if err == nil {
		err = r.use(cfg, opts)
	}
	if errors.Is(err, snapshot.ErrNotInitialised) {
		err = r.notHere(opts)
	}
	if err != nil {
		r.ahead.close()
		return nil, fmt.Errorf("opening repository %s: %w", r.url, err)
	}
	return r, nil
}

// notHere is the error where there is no repository: another one if this machine has used
// one there.
func (r *Repository) notHere(opts *Options) error {
	if r == nil || opts == nil {
		return snapshot.ErrNotInitialised
	}
	if u := usedHere(opts.StateDir, r.url); u != nil {
		return fmt.Errorf("%w: %w (%v)%s; snapctl init begins an empty one", snapshot.ErrNotInitialised, snapshot.ErrGone, u.ID, whyGone(string(u.Dir)))
	}
	return snapshot.ErrNotInitialised
}

// withoutConfig is what is wrong where there is no config: there is no repository, or
// one that lost it.
func (r *Repository) withoutConfig(ctx context.Context) error {
	lost, err := r.holds(ctx, manifest.Prefix)
	if err != nil {
		return fmt.Errorf("config: it is missing; looking for snapshots: %w", err)
	}
	if !lost {
		return snapshot.ErrNotInitialised
	}
	sealed, err := r.holds(ctx, crypt.KeyPrefix)
	switch {
	case err != nil:
		return err
	case sealed:
		return fmt.Errorf("%w: config: it is missing, and there are snapshots, which nothing opens without it: put it back from a copy", snapshot.ErrIntegrity)
	}
	return fmt.Errorf("%w: config: it is missing, and there are snapshots: put it back from a copy, or make it anew with snapctl init", snapshot.ErrIntegrity)
}

// holds reports whether there is any object whose name begins with prefix.
func (r *Repository) holds(ctx context.Context, prefix string) (bool, error) {
	err := r.store.List(ctx, prefix, func(remote.Info) error { return errFound })
	if errors.Is(err, errFound) {
		return true, nil
	}
	return false, err
}

// where names the repository in a message; not a URL that could not be parsed,
// which may hold secrets.
func (r *Repository) where() string {
	if r == nil {
		return ""
	}
	return " " + r.url
}

// connect opens the store without looking at what it holds.
func connect(ctx context.Context, url string, opts *Options, mkdir bool) (*Repository, error) {
	if opts == nil {
		opts = &Options{}
	}
	r := &Repository{
		url: url, log: opts.Log, now: opts.Now, ver: label(opts.Version, nil), hasher: &chunk.Hasher{},
		uptime: fsys.Uptime, patience: opts.patience, count: opts.Requests, onClock: opts.OnClock,
	}
	if r.patience == (patience{}) {
		r.patience = usualPatience()
	}
	if r.count == nil {
		r.count = new(remote.Counter)
	}
	if r.ver == "" {
		r.ver = moduleVersion()
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.now == nil {
		r.now = time.Now
	}
	if opts.Store != nil {
		r.store = r.count.Wrap(opts.Store)
		if folder, ok := opts.Store.(interface{ Dir() string }); ok {
			r.dir = folder.Dir()
		}
		return r, nil
	}
	loc, err := remote.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", snapshot.ErrInvalid, err)
	}
	r.url, r.dir = loc.String(), loc.Dir
	if r.local() && mkdir {
		if err := remote.MakeDir(loc.Dir); err != nil {
			return r, err
		}
	}
	ro := &remote.Options{UserAgent: strings.TrimSuffix("snapctl/"+r.ver, "/"), Count: r.count}
	ro.Retry.Notify = func(err error, wait time.Duration) {
		r.log.Warn("request failed, trying again", "err", err, "wait", wait)
		if opts.OnRetry != nil {
			opts.OnRetry(err, wait)
		}
	}
	r.store, err = loc.Open(ctx, ro)
	return r, err
}

// use makes r the repository that cfg describes.
func (r *Repository) use(cfg *config, opts *Options) (err error) {
	r.cfg = cfg
	if r.splitter, err = chunk.NewSplitter(cfg.Chunker); err != nil {
		return fmt.Errorf("%w: config: %w", snapshot.ErrIntegrity, err)
	}
	if r.key == nil {
		r.codec, err = chunk.NewCodec(cfg.Compression.Level)
	} else {
		r.hasher = chunk.NewKeyedHasher(r.key.Derive(chunk.UseChunkID))
		r.codec, err = chunk.NewSealingCodec(cfg.Compression.Level, r.key)
	}
	if err != nil {
		return fmt.Errorf("%w: config: %w", snapshot.ErrIntegrity, err)
	}
	if opts == nil {
		opts = &Options{}
	}
	base := opts.CacheDir
	if base == "" {
		base = defaultCacheDir()
	}
	// What is remembered there of files decides whether they are read.
	if err := local.CheckPrivate(base, cfg.ID.String(), local.Packs, local.Logs); err != nil {
		return fmt.Errorf("cache directory: %w", err)
	}
	r.cache = local.ForRepository(base, cfg.ID)
	r.packs = newPackCache(opts.CacheSize)
	if opts.StateDir != "" {
		if r.state, err = remote.Abs(opts.StateDir); err != nil { // a process may leave the directory that it is in
			return fmt.Errorf("%w: state folder: %w", snapshot.ErrInvalid, err)
		}
	}
	if r.registry, err = newRegistry(r.state); err != nil {
		return err
	}
	r.noteUse()
	return nil
}

func defaultCacheDir() string {
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "snapctl")
	}
	// Without a home there is still a place, and of this user alone.
	return filepath.Join(os.TempDir(), fmt.Sprintf("snapctl-cache-%d", os.Getuid()))
}

// Close releases what the repository holds, and ends what it fetches in the
// background.
func (r *Repository) Close() error {
	if err := r.index.close(); err != nil {
		// The index is a cache: what it could not keep is read again.
		r.log.Info("closing the index", "err", err)
	}
	r.ahead.close()
	if err := r.packs.close(); err != nil {
		r.log.Info("closing the cache of packs", "err", err)
	}
	return nil
}

// local reports whether the store is a folder of this machine.
func (r *Repository) local() bool { return r.dir != "" }

// URL is where the repository is, in its canonical form.
func (r *Repository) URL() string { return r.url }

// ID identifies the repository, wherever it is moved to.
func (r *Repository) ID() uuid.UUID { return r.cfg.ID }

// Requests tells what was asked of the object store, from the first request of Open or
// Init on: of S3 and R2 every request that was sent, else every operation, retries
// included.
func (r *Repository) Requests() remote.Requests { return r.count.Requests() }

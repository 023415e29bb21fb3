package repo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
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

// A Repository holds snapshots. It is safe for parallel use.
type Repo struct {
	url    string // for messages
	Dir    string // of the store, if it is a folder of this machine; else ""
	Ver    string // of the program
	Store  remote.Store
	count  *remote.Counter
	Cfg    *Config
	key    *chunk.Key // nil without encryption
	Cache  local.Dir
	Logger *slog.Logger
	Now    func() time.Time // by this machine's clock; time is by the store's

	Clock     heardClock
	StoreTime func(context.Context) (time.Time, error) // what clock goes by, for tests; nil asks the store
	onClock   func(ahead time.Duration)                // or nil

	Codec    *chunk.Codec
	Hasher   *chunk.Hasher
	Splitter chunk.Splitter

	index repoIndex
	Moved movedPacks
	packs *packCache
	Ahead *lookahead // nil for none

	State      string           // Options.StateDir, absolute; "" for none
	LeaseTicks <-chan time.Time // when leases are refreshed, for tests; nil for leaseEvery
	GuardTicks <-chan time.Time // when writers read tombstones, for tests; nil for a quarter of the grace

	Uptime   func() time.Duration // a clock that goes on whatever becomes of this process
	Patience Patience
}

// Init is engine.Init.
func Init(ctx context.Context, url string, init *snapshot.InitOptions, opts *Options) (*Repo, error) {
	cfg, err := NewConfig(init)
	if err != nil {
		return nil, fmt.Errorf("making a repository: %w", err)
	}
	r, err := connect(ctx, url, opts, true)
	if err != nil {
		return nil, fmt.Errorf("making repository%s: %w", r.Where(), err)
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
func (r *Repo) make(ctx context.Context, cfg *Config, init *snapshot.InitOptions, opts *Options) error {
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
	r.AskTime(ctx)
	cfg.CreatedAt = r.Time().UTC().Truncate(time.Second)
	if init != nil && len(init.Keys) > 0 {
		r.key = chunk.NewKey()
		cfg.Encrypt(r.key)
		check = cfg.Encryption.KeyCheck
		var err error
		if undo, err = r.makeKeys(ctx, r.key, init.Keys); err != nil {
			return err
		}
	} else if opts.wantsEncryption() {
		return fmt.Errorf("%w: it is to be, but no keys were given", snapshot.ErrNotEncrypted)
	}
	err := r.Store.Put(ctx, ConfigName, cfg.Encode())
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
func (r *Repo) mayMake(ctx context.Context, init *snapshot.InitOptions) error {
	if _, err := r.Store.Stat(ctx, ConfigName); err == nil {
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
func (r *Repo) neverReplaces(ctx context.Context) error {
	name := ClockPrefix + uuid.NewString()
	if err := r.Store.Put(ctx, name, []byte("first")); err != nil {
		return fmt.Errorf("trying a conditional write (If-None-Match: *): %w", err)
	}
	err := r.Store.Put(ctx, name, []byte("second"))
	switch {
	case err == nil:
		err = fmt.Errorf("%w: it replaces objects that are there: conditional writes (If-None-Match: *) are needed", errors.ErrUnsupported)
	case errors.Is(err, remote.ErrExist):
		err = nil
	default:
		err = fmt.Errorf("trying a conditional write (If-None-Match: *): %w", err)
	}
	if derr := r.Store.Delete(ctx, name); derr != nil {
		r.Logger.Info("deleting what a store was tried with", "err", derr)
	}
	return err
}

// Open is engine.Open.
func Open(ctx context.Context, url string, opts *Options) (*Repo, error) {
	r, err := connect(ctx, url, opts, false)
	if errors.Is(err, remote.ErrNoBucket) {
		err = r.notHere(opts)
	}
	if err != nil {
		return nil, fmt.Errorf("opening repository%s: %w", r.Where(), err)
	}
	if opts != nil {
		r.lookAhead(ctx, opts)
	}
	var cfg *Config
	b, err := r.Store.Get(ctx, ConfigName)
	if !r.Local() {
		r.AskTime(ctx)
	}
	switch {
	case errors.Is(err, remote.ErrNotExist):
		err = r.withoutConfig(ctx)
	case err == nil:
		cfg, err = DecodeConfig(b)
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
		r.Ahead.close()
		return nil, fmt.Errorf("opening repository %s: %w", r.url, err)
	}
	return r, nil
}

// notHere is the error where there is no repository: another one if this machine has used
// one there.
func (r *Repo) notHere(opts *Options) error {
	if r == nil || opts == nil {
		return snapshot.ErrNotInitialised
	}
	if u := UsedHere(opts.StateDir, r.url); u != nil {
		return fmt.Errorf("%w: %w (%v)%s; snapctl init begins an empty one", snapshot.ErrNotInitialised, snapshot.ErrGone, u.ID, whyGone(string(u.Dir)))
	}
	return snapshot.ErrNotInitialised
}

// withoutConfig is what is wrong where there is no config: there is no repository, or
// one that lost it.
func (r *Repo) withoutConfig(ctx context.Context) error {
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
func (r *Repo) holds(ctx context.Context, prefix string) (bool, error) {
	err := r.Store.List(ctx, prefix, func(remote.Info) error { return ErrFound })
	if errors.Is(err, ErrFound) {
		return true, nil
	}
	return false, err
}

// Where names the repository in a message; not a URL that could not be parsed,
// which may hold secrets.
func (r *Repo) Where() string {
	if r == nil {
		return ""
	}
	return " " + r.url
}

// connect opens the store without looking at what it holds.
func connect(ctx context.Context, url string, opts *Options, mkdir bool) (*Repo, error) {
	if opts == nil {
		opts = &Options{}
	}
	r := &Repo{
		url: url, Logger: opts.Log, Now: opts.Now, Ver: Label(opts.Version, nil), Hasher: &chunk.Hasher{},
		Uptime: fsys.Uptime, Patience: opts.Patience, count: opts.Requests, onClock: opts.OnClock,
	}
	if r.Patience == (Patience{}) {
		r.Patience = UsualPatience()
	}
	if r.count == nil {
		r.count = new(remote.Counter)
	}
	if r.Ver == "" {
		r.Ver = moduleVersion()
	}
	if r.Logger == nil {
		r.Logger = slog.New(slog.DiscardHandler)
	}
	if r.Now == nil {
		r.Now = time.Now
	}
	if opts.Store != nil {
		r.Store = r.count.Wrap(opts.Store)
		if folder, ok := opts.Store.(interface{ Dir() string }); ok {
			r.Dir = folder.Dir()
		}
		return r, nil
	}
	loc, err := remote.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", snapshot.ErrInvalid, err)
	}
	r.url, r.Dir = loc.String(), loc.Dir
	if r.Local() && mkdir {
		if err := remote.MakeDir(loc.Dir); err != nil {
			return r, err
		}
	}
	ro := &remote.Options{UserAgent: strings.TrimSuffix("snapctl/"+r.Ver, "/"), Count: r.count}
	ro.Retry.Notify = func(err error, wait time.Duration) {
		r.Logger.Warn("request failed, trying again", "err", err, "wait", wait)
		if opts.OnRetry != nil {
			opts.OnRetry(err, wait)
		}
	}
	r.Store, err = loc.Open(ctx, ro)
	return r, err
}

// use makes r the repository that cfg describes.
func (r *Repo) use(cfg *Config, opts *Options) (err error) {
	r.Cfg = cfg
	if r.Splitter, err = chunk.NewSplitter(cfg.Chunker); err != nil {
		return fmt.Errorf("%w: config: %w", snapshot.ErrIntegrity, err)
	}
	if r.key == nil {
		r.Codec, err = chunk.NewCodec(cfg.Compression.Level)
	} else {
		r.Hasher = chunk.NewKeyedHasher(r.key.Derive(chunk.UseChunkID))
		r.Codec, err = chunk.NewSealingCodec(cfg.Compression.Level, r.key)
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
	r.Cache = local.ForRepository(base, cfg.ID)
	r.packs = newPackCache(opts.CacheSize)
	if opts.StateDir != "" {
		if r.State, err = remote.Abs(opts.StateDir); err != nil { // a process may leave the directory that it is in
			return fmt.Errorf("%w: state folder: %w", snapshot.ErrInvalid, err)
		}
	}
	return nil
}

func defaultCacheDir() string {
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "snapctl")
	}
	// Without a home there is still a place, and of this user alone.
	return filepath.Join(os.TempDir(), fmt.Sprintf("snapctl-cache-%d", os.Getuid()))
}

// Close is engine.Repository.Close.
func (r *Repo) Close() error {
	if err := r.index.close(); err != nil {
		// The index is a cache: what it could not keep is read again.
		r.Logger.Info("closing the index", "err", err)
	}
	r.Ahead.close()
	if err := r.packs.close(); err != nil {
		r.Logger.Info("closing the cache of packs", "err", err)
	}
	return nil
}

// Local reports whether the store is a folder of this machine.
func (r *Repo) Local() bool { return r.Dir != "" }

// URL is engine.Repository.URL.
func (r *Repo) URL() string { return r.url }

// ID is engine.Repository.ID.
func (r *Repo) ID() uuid.UUID { return r.Cfg.ID }

// Requests is engine.Repository.Requests.
func (r *Repo) Requests() remote.Requests { return r.count.Requests() }

// Label drops what a manifest cannot keep.
func Label(s string, err error) string {
	if err != nil || manifest.CheckLabel(s) != nil {
		return ""
	}
	return s
}

// moduleVersion is the version of the main module of this program.
func moduleVersion() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return Label(b.Main.Version, nil)
	}
	return ""
}

// ErrFound ends a search.
var ErrFound = errors.New("found")

// Options are how a repository is opened: those of engine.Options that concern it.
type Options struct {
	CacheDir   string
	CacheSize  int64
	StateDir   string
	Ref        string
	List       bool
	Passphrase func(ctx context.Context, url string) (string, error)
	Identities []age.Identity
	Key        *chunk.Key
	Encrypted  bool
	Store      remote.Store
	Requests   *remote.Counter
	Log        *slog.Logger
	OnRetry    func(err error, wait time.Duration)
	OnClock    func(ahead time.Duration)
	Version    string
	Now        func() time.Time
	Patience   Patience // for tests; the zero value is the usual
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/secret"
	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
	"github.com/snapctl/snapctl/remote"
)

// Repositories is how a command opens them: the global flags that say which and with what,
// and what was asked of each.
type repositories struct {
	env     *env
	ui      *ui.Streams
	secrets *secret.Secrets

	url       string // of --repo; "" if it is not given
	cacheDir  string
	cacheSize int64
	stateDir  string
	verbose   int // how much is logged

	asked []*askedOf // since -v tells
	log   *slog.Logger
}

// location is the repository's URL, and whether the user chose it. It holds no
// secret: a URL with credentials is refused, in words that do not repeat them.
func (r *repositories) location() (repo string, chosen bool, err error) {
	repo = r.url
	if repo == "" {
		repo = r.env.getenv("SNAPCTL_REPO")
	}
	if repo != "" {
		if _, err := remote.ParseURL(repo); err != nil {
			return "", true, &hintError{err: &usageError{err: err}, hint: "see: snapctl help repositories"}
		}
		return repo, true, nil
	}
	data := r.env.getenv("XDG_DATA_HOME")
	if !filepath.IsAbs(data) { // the XDG specification: ignore a relative one
		home := r.env.getenv("HOME")
		if !filepath.IsAbs(home) {
			return "", false, errors.New("no repository: neither --repo nor SNAPCTL_REPO is given, and $HOME is not set")
		}
		data = filepath.Join(home, ".local", "share")
	}
	return filepath.Join(data, "snapctl"), false, nil
}

// errNothingYet is what open returns for a default repository that no create
// has made yet. It behaves as an empty one.
var errNothingYet = fmt.Errorf("%w: there are none yet", engine.ErrNotFound)

// open opens the repository. The caller closes it with close.
func (r *repositories) open(ctx context.Context) (*engine.Repository, error) {
	return r.openFor(ctx, "")
}

// openFor is open for a command that will ask for the snapshot of that reference
// first.
func (r *repositories) openFor(ctx context.Context, ref string) (*engine.Repository, error) {
	return r.openWith(ctx, func(opts *engine.Options) { opts.Ref = ref })
}

// openToList is open for a command that will ask for all snapshots.
func (r *repositories) openToList(ctx context.Context) (*engine.Repository, error) {
	return r.openWith(ctx, func(opts *engine.Options) { opts.List = true })
}

func (r *repositories) openWith(ctx context.Context, set func(*engine.Options)) (*engine.Repository, error) {
	location, chosen, err := r.location()
	if err == nil && !chosen {
		err = privateRepository(location)
	}
	if err != nil {
		return nil, err
	}
	opts := r.optionsFor(location)
	set(opts)
	repo, err := engine.Open(ctx, location, opts)
	if errors.Is(err, engine.ErrGone) {
		begin := "snapctl init"
		if chosen {
			begin += " --repo " + ui.ShellQuote(location)
		}
		return nil, &hintError{err: err, hint: "put it back from a copy, or begin an empty one: " + begin}
	}
	if errors.Is(err, engine.ErrNotInitialised) {
		if !chosen {
			return nil, fmt.Errorf("%w in the default repository %s", errNothingYet, location)
		}
		return nil, &hintError{err: err, hint: "make one with: snapctl init --repo " + ui.ShellQuote(location)}
	}
	return repo, err
}

// privateRepository refuses a default repository into which others may write: that of
// somebody who shares one with others has a name.
func privateRepository(dir string) error {
	if err := engine.CheckPrivate(dir); err != nil {
		err = fmt.Errorf("default repository: %w", err)
		return &hintError{err: err, hint: "if it is to be shared, name it: --repo " + ui.ShellQuote(dir)}
	}
	return nil
}

// openOrMake is open for create, which makes the default repository when it is
// first used.
func (r *repositories) openOrMake(ctx context.Context) (*engine.Repository, error) {
	repo, err := r.open(ctx)
	if !errors.Is(err, errNothingYet) {
		return repo, err
	}
	location, _, err := r.location()
	if err != nil {
		return nil, err
	}
	repo, err = engine.Init(ctx, location, nil, r.optionsFor(location))
	if errors.Is(err, engine.ErrExists) { // another create was faster
		return r.open(ctx)
	}
	if err == nil {
		r.ui.Say("made the default repository " + location)
	}
	return repo, err
}

// close closes a repository. By then the work is done, and safe.
func (r *repositories) close(repo *engine.Repository) {
	if err := repo.Close(); err != nil {
		r.ui.Warn(err)
	}
}

// state is the folder that says what is mounted.
func (r *repositories) state() string {
	switch {
	case r.stateDir != "":
		return r.stateDir
	case r.env.getenv("SNAPCTL_STATE_DIR") != "":
		return r.env.getenv("SNAPCTL_STATE_DIR")
	}
	return engine.DefaultStateDir()
}

func (r *repositories) options() *engine.Options {
	opts := r.env.engine
	opts.CacheDir = r.cacheDir
	if opts.CacheDir == "" {
		opts.CacheDir = r.env.getenv("SNAPCTL_CACHE_DIR")
	}
	opts.CacheSize = r.cacheSize
	opts.StateDir = r.state()
	r.secrets.Give(&opts)
	opts.Log = r.logger()
	opts.Version = readVersion().Version
	if r.verbose == 0 { // the log has it
		opts.OnClock = r.tellClock
	}
	if !r.ui.Quiet && r.verbose == 0 { // the log has them
		retries := &ui.Seldom{Console: r.ui.Console, Now: r.env.now}
		opts.OnRetry = func(err error, wait time.Duration) {
			retries.Tell(func(int64) string { return fmt.Sprintf("retrying in %s: %v", ui.Round(wait), err) })
		}
	}
	return &opts
}

// tellClock warns that this machine's clock is off.
func (r *repositories) tellClock(ahead time.Duration) {
	at := time.Unix(0, 0)
	r.ui.Console.Warn("the clock of this machine is " + humanize.RelTime(at, at.Add(ahead), "ahead of", "behind") +
		" that of the repository, which says what has expired")
}

// logger is where -v sends what a developer wants to know.
func (r *repositories) logger() *slog.Logger {
	if r.log == nil {
		var w io.Writer = r.ui.Console
		level := slog.LevelDebug
		switch r.verbose {
		case 0:
			w, level = io.Discard, slog.LevelError+1
		case 1:
			level = slog.LevelInfo
		}
		r.log = slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
	}
	return r.log
}

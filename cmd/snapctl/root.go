package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/background"
	"github.com/snapctl/snapctl/cmd/snapctl/internal/secret"
	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
	"github.com/snapctl/snapctl/remote"
)

// An app is one run of the command: its world and its global flags.
type app struct {
	*env
	args    []string // of the command line
	ui      *ui.Streams
	secrets *secret.Secrets
	started bool // the command line was understood

	repo       string
	cacheDir   string
	cacheSize  int64
	stateDir   string
	verbose    int
	cpuProfile string
	memProfile string

	asked        []*askedOf // repositories, since -v tells
	log          *slog.Logger
	stopProfiles func() error
}

func newApp(e *env) *app {
	streams := ui.New(e.stdout, e.stderr, e.now, e.getenv("TERM") == "dumb")
	a := &app{
		env:          e,
		ui:           streams,
		secrets:      secret.New(streams, e.getenv, e.terminal),
		stopProfiles: func() error { return nil },
	}
	a.secrets.Warned = background.MayAsk(e.getenv)
	return a
}

// newRootCommand is the whole tree of commands, for running it and for
// generating documentation from it.
func newRootCommand(e *env) *cobra.Command { return newApp(e).command() }

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "snapctl",
		Short: "Snapshots of directories, deduplicated, in a folder or a bucket",
		Long: `snapctl takes snapshots of directories, such as a checkout and its node_modules,
and brings them back. What two snapshots share is stored once. The repository
is a local folder, or a bucket of S3 or Cloudflare R2. Mounts and forks need
Linux.

Exit codes: 0 done, 1 failed, 2 usage, 3 done but incomplete, 4 no such
snapshot, 5 expired, 6 damaged repository, 7 locked repository, 130
interrupted. Data goes to standard output, everything else to standard error.`,
		Example: `  snapctl create .                       # into ~/.local/share/snapctl
  snapctl restore latest /tmp/copy

  export SNAPCTL_REPO='r2://ACCOUNT/bucket/prefix'
  snapctl init
  snapctl create --name app --ttl 7d ~/work/app
  snapctl restore app ~/work/app-again`,
		Version:       readVersion().Version,
		SilenceErrors: true, // report prints them
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			a.started = true
			if size := a.getenv("SNAPCTL_CACHE_SIZE"); size != "" && a.cacheSize == 0 {
				if err := (*sizeFlag)(&a.cacheSize).Set(size); err != nil {
					return usagef(cmd, "SNAPCTL_CACHE_SIZE: %w", err)
				}
			}
			if !background.KeyComes(a.getenv) && !takesOver(a.getenv) {
				if err := a.secrets.ReadIdentities(); err != nil {
					return &hintError{err: &usageError{err: err}, hint: encryptionHint}
				}
			}
			return a.startProfiles()
		},
		Args: a.rootArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SetOut(a.stderr)
			if err := cmd.Help(); err != nil {
				return err
			}
			return usagef(cmd, "no command given")
		},
	}
	root.SetIn(a.stdin)
	root.SetOut(a.ui.Out)
	root.SetErr(a.stderr)
	root.SetVersionTemplate("snapctl {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		// "snapctl crate --name x" is about crate, not about --name.
		if cmd == root && len(a.args) > 0 && !strings.HasPrefix(a.args[0], "-") {
			return a.rootArgs(root, a.args[:1])
		}
		err = flagError(err)
		if cmd == root {
			return err
		}
		return fmt.Errorf("%s: %w", cmd.Name(), err)
	})

	flags := root.PersistentFlags()
	flags.StringVar(&a.repo, "repo", "", "use the repository at `URL`: a path, s3://bucket/prefix, r2://ACCOUNT/bucket/prefix\n(default $SNAPCTL_REPO, else snapctl under $XDG_DATA_HOME or ~/.local/share)")
	flags.StringVar(&a.cacheDir, "cache-dir", "", "keep in `DIR` what makes the next run fast; it may be deleted at any time\n(default $SNAPCTL_CACHE_DIR, else snapctl under $XDG_CACHE_HOME or ~/.cache)")
	flags.Var((*sizeFlag)(&a.cacheSize), "cache-size", "of what was fetched from a bucket keep at most `SIZE` there, such as 500MB\n(default $SNAPCTL_CACHE_SIZE, else 10GiB)")
	flags.StringVar(&a.stateDir, "state-dir", "", "keep in `DIR` what is mounted; it must not be deleted while something is\n(default $SNAPCTL_STATE_DIR, else snapctl under $XDG_STATE_HOME or ~/.local/state)")
	flags.BoolVar(&a.ui.JSON, "json", false, "print JSON on standard output")
	flags.BoolVarP(&a.ui.Quiet, "quiet", "q", false, "no progress and no summary; warnings and errors only")
	flags.CountVarP(&a.verbose, "verbose", "v", "log to standard error what is done, and what requests it took; -vv logs more")

	// For developers, hence hidden: profiles of one command, to be read with
	// go tool pprof.
	flags.StringVar(&a.cpuProfile, "cpuprofile", "", "write a CPU profile to `FILE`")
	flags.StringVar(&a.memProfile, "memprofile", "", "write a heap profile to `FILE` at the end")
	for _, name := range []string{"cpuprofile", "memprofile"} {
		flags.Lookup(name).Hidden = true
	}

	for _, group := range []struct {
		title    string
		commands []*cobra.Command
	}{
		{"Snapshots", []*cobra.Command{
			a.createCommand(), a.restoreCommand(), a.listCommand(), a.showCommand(), a.diffCommand(), a.logCommand(),
			a.copyCommand(), a.tagCommand(), a.renameCommand(), a.rmCommand(),
		}},
		{"Looking into a snapshot", []*cobra.Command{a.lsCommand(), a.catCommand(), a.findCommand(), a.dumpCommand()}},
		{"Mounts and forks", []*cobra.Command{
			a.mountCommand(), a.umountCommand(), a.mountsCommand(), a.forkCommand(), a.unforkCommand(), a.forksCommand(),
			a.resumeCommand(), a.doctorCommand(),
		}},
		{"Keeping and freeing", []*cobra.Command{
			a.extendCommand(), a.pinCommand(), a.unpinCommand(), a.pruneCommand(), a.lifecycleCommand(), a.gcCommand(),
		}},
		{"Repositories", []*cobra.Command{
			a.initCommand(), a.verifyCommand(), a.repairCommand(), a.statsCommand(), a.keyCommand(),
		}},
	} {
		root.AddGroup(&cobra.Group{ID: group.title, Title: group.title + ":"})
		for _, cmd := range group.commands {
			cmd.GroupID = group.title
			root.AddCommand(cmd)
		}
	}
	root.AddCommand(a.manCommand(), a.versionCommand())
	root.AddCommand(helpTopics()...)
	root.SetHelpCommand(helpCommand())
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" { // without these, an unknown shell is help and exit code 0
			cmd.Args = takes("SHELL")
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				return usagef(cmd, "completion: no such shell: %q", args[0])
			}
		}
	}
	return root
}

func (a *app) rootArgs(root *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("no such command: %q", args[0])
	if root.SuggestionsMinimumDistance <= 0 {
		root.SuggestionsMinimumDistance = 2
	}
	if near := root.SuggestionsFor(args[0]); len(near) > 0 {
		return &hintError{err: err, hint: "did you mean: snapctl " + strings.Join(near, ", snapctl ")}
	}
	return err
}

// takes says which arguments a command takes, in the words of its usage line:
// "REF", "[DIR]" for one that may be missing, "REF..." for one or more.
func takes(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		for i, name := range names {
			if i >= len(args) && !strings.HasPrefix(name, "[") {
				return fmt.Errorf("%s: %s is missing", cmd.Name(), strings.TrimSuffix(name, "..."))
			}
			if strings.HasSuffix(name, "...") {
				return nil
			}
		}
		if len(args) > len(names) {
			return fmt.Errorf("%s: unexpected argument %q", cmd.Name(), args[len(names)])
		}
		return nil
	}
}

// location is the repository's URL, and whether the user chose it. It holds no
// secret: a URL with credentials is refused, in words that do not repeat them.
func (a *app) location() (repo string, chosen bool, err error) {
	repo = a.repo
	if repo == "" {
		repo = a.getenv("SNAPCTL_REPO")
	}
	if repo != "" {
		if _, err := remote.ParseURL(repo); err != nil {
			return "", true, &hintError{err: &usageError{err: err}, hint: "see: snapctl help repositories"}
		}
		return repo, true, nil
	}
	data := a.getenv("XDG_DATA_HOME")
	if !filepath.IsAbs(data) { // the XDG specification: ignore a relative one
		home := a.getenv("HOME")
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

// open opens the repository. The caller closes it with closeRepo.
func (a *app) open(ctx context.Context) (*engine.Repository, error) { return a.openFor(ctx, "") }

// openFor is open for a command that will ask for the snapshot of that reference
// first.
func (a *app) openFor(ctx context.Context, ref string) (*engine.Repository, error) {
	return a.openWith(ctx, func(opts *engine.Options) { opts.Ref = ref })
}

// openToList is open for a command that will ask for all snapshots.
func (a *app) openToList(ctx context.Context) (*engine.Repository, error) {
	return a.openWith(ctx, func(opts *engine.Options) { opts.List = true })
}

func (a *app) openWith(ctx context.Context, set func(*engine.Options)) (*engine.Repository, error) {
	location, chosen, err := a.location()
	if err == nil && !chosen {
		err = privateRepository(location)
	}
	if err != nil {
		return nil, err
	}
	opts := a.optionsFor(location)
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
func (a *app) openOrMake(ctx context.Context) (*engine.Repository, error) {
	repo, err := a.open(ctx)
	if !errors.Is(err, errNothingYet) {
		return repo, err
	}
	location, _, err := a.location()
	if err != nil {
		return nil, err
	}
	repo, err = engine.Init(ctx, location, nil, a.optionsFor(location))
	if errors.Is(err, engine.ErrExists) { // another create was faster
		return a.open(ctx)
	}
	if err == nil {
		a.ui.Say("made the default repository " + location)
	}
	return repo, err
}

// closeRepo closes a repository. By then the work is done, and safe.
func (a *app) closeRepo(repo *engine.Repository) {
	if err := repo.Close(); err != nil {
		a.ui.Warn(err)
	}
}

// state is the folder that says what is mounted.
func (a *app) state() string {
	switch {
	case a.stateDir != "":
		return a.stateDir
	case a.getenv("SNAPCTL_STATE_DIR") != "":
		return a.getenv("SNAPCTL_STATE_DIR")
	}
	return engine.DefaultStateDir()
}

func (a *app) engineOptions() *engine.Options {
	opts := a.env.engine
	opts.CacheDir = a.cacheDir
	if opts.CacheDir == "" {
		opts.CacheDir = a.getenv("SNAPCTL_CACHE_DIR")
	}
	opts.CacheSize = a.cacheSize
	opts.StateDir = a.state()
	a.secrets.Give(&opts)
	opts.Log = a.logger()
	opts.Version = readVersion().Version
	if a.verbose == 0 { // the log has it
		opts.OnClock = a.tellClock
	}
	if !a.ui.Quiet && a.verbose == 0 { // the log has them
		retries := &ui.Seldom{Console: a.ui.Console, Now: a.now}
		opts.OnRetry = func(err error, wait time.Duration) {
			retries.Tell(func(int64) string { return fmt.Sprintf("retrying in %s: %v", ui.Round(wait), err) })
		}
	}
	return &opts
}

// tellClock warns that this machine's clock is off.
func (a *app) tellClock(ahead time.Duration) {
	at := time.Unix(0, 0)
	a.ui.Console.Warn("the clock of this machine is " + humanize.RelTime(at, at.Add(ahead), "ahead of", "behind") +
		" that of the repository, which says what has expired")
}

// logger is where -v sends what a developer wants to know.
func (a *app) logger() *slog.Logger {
	if a.log == nil {
		var w io.Writer = a.ui.Console
		level := slog.LevelDebug
		switch a.verbose {
		case 0:
			w, level = io.Discard, slog.LevelError+1
		case 1:
			level = slog.LevelInfo
		}
		a.log = slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
	}
	return a.log
}

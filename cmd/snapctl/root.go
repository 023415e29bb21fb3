package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/background"
	"github.com/snapctl/snapctl/cmd/snapctl/internal/secret"
	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
)

// An app is one run of the command: its world, and what all commands share.
type app struct {
	env      *env
	args     []string // of the command line
	started  bool     // the command line was understood
	ui       *ui.Streams
	secrets  *secret.Secrets
	repos    *repositories
	refs     *references
	complete *completer
	profiles *profiles
}

func newApp(e *env) *app {
	streams := ui.New(e.stdout, e.stderr, e.now, e.getenv("TERM") == "dumb")
	secrets := secret.New(streams, e.getenv, e.terminal)
	secrets.Warned = background.MayAsk(e.getenv)
	repos := &repositories{env: e, ui: streams, secrets: secrets}
	return &app{
		env:      e,
		ui:       streams,
		secrets:  secrets,
		repos:    repos,
		refs:     &references{stdin: e.stdin},
		complete: &completer{repos: repos},
		profiles: &profiles{},
	}
}

// newRootCommand is the whole tree of commands, for running it and for
// generating documentation from it.
func newRootCommand(e *env) *cobra.Command { return newApp(e).command() }

// command is the tree of commands of this run.
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
		Version:           readVersion().Version,
		SilenceErrors:     true, // report prints them
		SilenceUsage:      true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.begin(cmd) },
		Args:              a.rootArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SetOut(a.env.stderr)
			if err := cmd.Help(); err != nil {
				return err
			}
			return usagef(cmd, "no command given")
		},
	}
	root.SetIn(a.env.stdin)
	root.SetOut(a.ui.Out)
	root.SetErr(a.env.stderr)
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

	a.globalFlags(root)
	a.addCommands(root)
	return root
}

// begin is what every command does first.
func (a *app) begin(cmd *cobra.Command) error {
	a.started = true
	if size := a.env.getenv("SNAPCTL_CACHE_SIZE"); size != "" && a.repos.cacheSize == 0 {
		if err := (*sizeFlag)(&a.repos.cacheSize).Set(size); err != nil {
			return usagef(cmd, "SNAPCTL_CACHE_SIZE: %w", err)
		}
	}
	if !background.KeyComes(a.env.getenv) && !takesOver(a.env.getenv) {
		if err := a.secrets.ReadIdentities(); err != nil {
			return &hintError{err: &usageError{err: err}, hint: encryptionHint}
		}
	}
	return a.profiles.start()
}

// globalFlags adds the flags of all commands.
func (a *app) globalFlags(root *cobra.Command) {
	flags := root.PersistentFlags()
	flags.StringVar(&a.repos.url, "repo", "", "use the repository at `URL`: a path, s3://bucket/prefix, r2://ACCOUNT/bucket/prefix\n(default $SNAPCTL_REPO, else snapctl under $XDG_DATA_HOME or ~/.local/share)")
	flags.StringVar(&a.repos.cacheDir, "cache-dir", "", "keep in `DIR` what makes the next run fast; it may be deleted at any time\n(default $SNAPCTL_CACHE_DIR, else snapctl under $XDG_CACHE_HOME or ~/.cache)")
	flags.Var((*sizeFlag)(&a.repos.cacheSize), "cache-size", "of what was fetched from a bucket keep at most `SIZE` there, such as 500MB\n(default $SNAPCTL_CACHE_SIZE, else 10GiB)")
	flags.StringVar(&a.repos.stateDir, "state-dir", "", "keep in `DIR` what is mounted; it must not be deleted while something is\n(default $SNAPCTL_STATE_DIR, else snapctl under $XDG_STATE_HOME or ~/.local/state)")
	flags.BoolVar(&a.ui.JSON, "json", false, "print JSON on standard output")
	flags.BoolVarP(&a.ui.Quiet, "quiet", "q", false, "no progress and no summary; warnings and errors only")
	flags.CountVarP(&a.repos.verbose, "verbose", "v", "log to standard error what is done, and what requests it took; -vv logs more")

	// For developers, hence hidden: profiles of one command, to be read with
	// go tool pprof.
	flags.StringVar(&a.profiles.cpu, "cpuprofile", "", "write a CPU profile to `FILE`")
	flags.StringVar(&a.profiles.mem, "memprofile", "", "write a heap profile to `FILE` at the end")
	for _, name := range []string{"cpuprofile", "memprofile"} {
		flags.Lookup(name).Hidden = true
	}
}

// addCommands adds the commands, in the groups in which the help shows them.
func (a *app) addCommands(root *cobra.Command) {
	for _, group := range []struct {
		title    string
		commands []*cobra.Command
	}{
		{"Snapshots", []*cobra.Command{
			createCommand(a), restoreCommand(a), listCommand(a), showCommand(a), diffCommand(a), logCommand(a),
			copyCommand(a), tagCommand(a), renameCommand(a), rmCommand(a),
		}},
		{"Looking into a snapshot", []*cobra.Command{lsCommand(a), catCommand(a), findCommand(a), dumpCommand(a)}},
		{"Mounts and forks", []*cobra.Command{
			mountCommand(a), umountCommand(a), mountsCommand(a), forkCommand(a), unforkCommand(a), forksCommand(a),
			resumeCommand(a), doctorCommand(a),
		}},
		{"Keeping and freeing", []*cobra.Command{
			extendCommand(a), pinCommand(a), unpinCommand(a), pruneCommand(a), lifecycleCommand(a), gcCommand(a),
		}},
		{"Repositories", []*cobra.Command{
			initCommand(a), verifyCommand(a), repairCommand(a), statsCommand(a), keyCommand(a),
		}},
	} {
		root.AddGroup(&cobra.Group{ID: group.title, Title: group.title + ":"})
		for _, cmd := range group.commands {
			cmd.GroupID = group.title
			root.AddCommand(cmd)
		}
	}
	root.AddCommand(manCommand(a), versionCommand(a))
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

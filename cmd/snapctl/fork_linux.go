package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/manifest"
)

func forkCommand(a *app) *cobra.Command {
	var opts engine.ForkOptions
	resume := false
	cmd := &cobra.Command{
		Use:   "fork (REF DIR | --resume DIR)",
		Short: "Make a writable directory of a snapshot, at once",
		Long: `Makes DIR, an empty directory or one that is not there yet, a writable view of
a snapshot. It takes milliseconds: all forks of a snapshot lie over one mount of
it, whose files are fetched when they are read, and each keeps what is changed
in it in a folder of its own. How to write a REF: snapctl help references.

What is changed stays until snapctl unfork: snapctl umount only unmounts, and
--resume DIR, which may be a fork's name too, mounts it again, as it does after
a restart of the machine or when the process that serves the snapshot was
killed; see snapctl resume. No fork is mounted twice: while a container has it
mounted, or a program has files open of a mount that was detached, that is an
error. A snapshot that is removed while none of its forks is mounted cannot be
resumed; what was changed is still in the fork's folder.

While there is a fork, nothing can be written to DIR when it is unmounted: it
would be hidden later. DIR is immutable then, or of mode 0 where only that can
be (which does not stop root), unless it held something; unfork undoes that.

It is kept in the state folder; with --upper FOLDER in a folder that is empty or
missing, or that unfork --keep left of a fork of the same snapshot; with
--ephemeral in memory, until unfork or a restart.

Modes, of which the first is taken that this machine allows (snapctl doctor says
which, and why not):
  overlay         overlayfs, as root
  userxattr       overlayfs, as root of a user namespace; directories of the
                  snapshot are moved by copying
  fuse-overlayfs  the program of that name, for ordinary users; each name of a
                  hard link is a file of its own
  restore         no fork but a copy, with a warning

Prints one line, the path; with --json one object: name, dir, snapshot (as show
--json prints), repository, mode, upper, ephemeral, created.`,
		Example: `  snapctl fork app /work/sandbox
  snapctl fork --ephemeral --name try app~1 /tmp/try
  snapctl fork --resume try
  snapctl unfork try`,
		Args: func(cmd *cobra.Command, args []string) error {
			if resume {
				return takes("DIR")(cmd, args)
			}
			return takes("REF", "DIR")(cmd, args)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
			switch {
			case resume && len(args) == 0:
				return a.complete.fork(cmd, args, toComplete)
			case !resume && len(args) == 0:
				return a.complete.ref(cmd, args, toComplete)
			}
			return completeDir(!resume && len(args) == 1)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[len(args)-1] == "" {
				return usagef(cmd, "fork: DIR is empty")
			}
			if resume {
				if err := onlyResumes(cmd); err != nil {
					return err
				}
				return runForkResume(cmd.Context(), a, args[0], opts)
			}
			ref, err := a.refs.ref(cmd, args[0])
			if err != nil {
				return err
			}
			return runFork(cmd.Context(), a, ref, args[1], opts)
		},
	}
	forkFlags(cmd, &opts, &resume)
	return cmd
}

// forkFlags adds the flags of fork.
func forkFlags(cmd *cobra.Command, opts *engine.ForkOptions, resume *bool) {
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&opts.Name, "name", "", "call the fork `F`, by which other commands know it too (default: after DIR)")
	flags.StringVar(&opts.Upper, "upper", "", "keep what is changed in `FOLDER`")
	flags.BoolVar(&opts.Ephemeral, "ephemeral", false, "keep what is changed in memory")
	flags.Var((*forkModeFlag)(&opts.Mode), "mode", "insist on a `MODE`: overlay, userxattr, fuse-overlayfs or restore")
	flags.BoolVar(&opts.Force, "force", false, "fork over a directory that holds something, which is hidden meanwhile")
	flags.Var((*prefetchFlag)(&opts.Prefetch), "prefetch", "as of mount: `WORD` is all, hot or none; counts if nobody has mounted the snapshot")
	flags.BoolVar(resume, "resume", false, "mount a fork again")
	noCompletions(cmd, "name")
	mustComplete(cmd, "upper", func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return completeDir(true)
	})
	mustComplete(cmd, "mode", cobra.FixedCompletions([]cobra.Completion{"overlay", "userxattr", "fuse-overlayfs", "restore"}, cobra.ShellCompDirectiveNoFileComp))
	mustComplete(cmd, "prefetch", cobra.FixedCompletions([]cobra.Completion{"all", "hot", "none"}, cobra.ShellCompDirectiveNoFileComp))
}

// onlyResumes refuses flags that --resume does not go with.
func onlyResumes(cmd *cobra.Command) error {
	for _, name := range []string{"name", "upper", "ephemeral", "mode"} {
		if cmd.Flags().Changed(name) {
			return usagef(cmd, "fork: --%s is what the fork was made with, and cannot be changed by --resume", name)
		}
	}
	return nil
}

// A forkModeFlag is the name of a mode.
type forkModeFlag engine.ForkMode

var _ pflag.Value = (*forkModeFlag)(nil)

func (f *forkModeFlag) String() string { return string(*f) }
func (f *forkModeFlag) Type() string   { return "mode" }
func (f *forkModeFlag) Set(s string) error {
	m, err := engine.ParseForkMode(s)
	if err != nil {
		return errors.New("not overlay, userxattr, fuse-overlayfs or restore")
	}
	*f = forkModeFlag(m)
	return nil
}

func runFork(ctx context.Context, a *app, ref, dir string, opts engine.ForkOptions) error {
	repo, err := a.repos.openFor(ctx, ref)
	if err != nil {
		return about(ref, err)
	}
	defer a.repos.close(repo)
	prepareFork(a, repo, &opts)
	f, err := repo.Fork(ctx, ref, dir, &opts)
	if errors.Is(err, engine.ErrExists) && !opts.Force && opts.Upper == "" {
		err = &hintError{err: err, hint: "--force forks over a directory that holds something; see: snapctl forks"}
	}
	if err != nil {
		return mountHint(a.repos, err, filepath.Dir(filepath.Clean(dir)))
	}
	return printFork(a.ui, f, "forked")
}

// prepareFork says what of a fork is the command's: who serves, and what is said.
func prepareFork(a *app, repo *engine.Repository, opts *engine.ForkOptions) {
	opts.Warn = a.ui.Warn
	opts.Serve = func(ctx context.Context, id manifest.ID, dir string, prefetch engine.Prefetch) error {
		return startInBackground(ctx, a, serverOf(a.repos, repo.URL(), id, dir, "--prefetch", prefetch.String()), nil, repo.Key())
	}
}

// serverOf gives the arguments of the command that mounts a snapshot.
func serverOf(repos *repositories, repo string, id manifest.ID, dir string, flags ...string) []string {
	args := []string{"mount", "--quiet", "--repo", repo, "--state-dir", repos.state()}
	if repos.cacheDir != "" {
		args = append(args, "--cache-dir", repos.cacheDir)
	}
	if repos.cacheSize > 0 {
		args = append(args, "--cache-size", strconv.FormatInt(repos.cacheSize, 10))
	}
	if repos.verbose > 0 {
		args = append(args, "-"+strings.Repeat("v", repos.verbose))
	}
	return append(append(args, flags...), "--", id.String(), dir)
}

func printFork(out *ui.Streams, f *engine.Fork, done string) error {
	if out.JSON {
		return out.PrintJSON(f)
	}
	err := out.PrintLine(f.Dir)
	out.Say(fmt.Sprintf("%s %s, %s, mode %s; remove it with: snapctl unfork %s", done, f.Snapshot.ID, ui.Plural(f.Snapshot.Files, "file"), f.Mode, f.Name))
	return err
}

// runForkResume mounts a fork again, of whatever repository.
func runForkResume(ctx context.Context, a *app, nameOrDir string, opts engine.ForkOptions) error {
	found, err := engine.FindFork(a.repos.state(), nameOrDir)
	if err != nil {
		return forkHint(err)
	}
	repo, err := engine.Open(ctx, found.Repository, a.repos.optionsFor(found.Repository))
	if err != nil {
		return fmt.Errorf("resuming fork %s: %w", found.Name, err)
	}
	defer a.repos.close(repo)
	prepareFork(a, repo, &opts)
	f, err := repo.ResumeFork(ctx, found.Name, &opts)
	if errors.Is(err, engine.ErrExists) {
		err = &hintError{err: err, hint: "--force mounts over it all the same"}
	}
	if err != nil {
		return resumeHint(err, found.Dir)
	}
	return printFork(a.ui, f, "resumed")
}

// resumeHint adds who is in the way of a fork that is to be resumed.
func resumeHint(err error, dir string) error {
	if errors.Is(err, fusefs.ErrBusy) {
		return inUse(err, dir, "two mounts of one fork would damage it: end them first")
	}
	return err
}

func forkHint(err error) error {
	if errors.Is(err, engine.ErrNoFork) {
		return &hintError{err: err, hint: "see what there is: snapctl forks"}
	}
	if errors.Is(err, engine.ErrAmbiguous) {
		return &hintError{err: err, hint: "./ before it means the directory; see: snapctl forks"}
	}
	return err
}

func unforkCommand(a *app) *cobra.Command {
	var opts engine.RemoveForkOptions
	cmd := &cobra.Command{
		Use:   "unfork DIR...",
		Short: "Remove forks, and what was changed in them",
		Long: `Unmounts forks and removes what was changed in them. A DIR may be a fork's name
too. A directory that fork made is removed; one that was there is left, with
what it held before.

A fork that somebody uses, in another mount namespace too, is left as it is, and
the exit code is 1; it says who, as far as it may know. With --keep what was
changed is kept, and the folder printed that it is in: fork --upper takes it for
another fork of the same snapshot.

With --json, prints an array of objects: fork, as it was named, and kept.`,
		Example: `  snapctl unfork /work/sandbox
  snapctl unfork --keep try`,
		Args:              takes("DIR..."),
		ValidArgsFunction: a.complete.fork,
		RunE: func(cmd *cobra.Command, args []string) error {
			if slices.Contains(args, "") {
				return usagef(cmd, "unfork: a DIR is empty")
			}
			opts.Warn = a.ui.Warn
			return runUnfork(cmd.Context(), a, args, &opts)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVar(&opts.Keep, "keep", false, "keep what was changed")
	flags.BoolVar(&opts.Force, "force", false, "remove forks that somebody uses, who then gets errors")
	return cmd
}

// unforkOutput is what unfork --json prints an array of.
type unforkOutput struct {
	Fork string `json:"fork"`
	Kept string `json:"kept,omitempty"`
}

func runUnfork(ctx context.Context, a *app, args []string, opts *engine.RemoveForkOptions) error {
	done := []unforkOutput{}
	var errs []error
	for _, arg := range args {
		found, err := engine.FindFork(a.repos.state(), arg)
		var kept string
		if err == nil {
			kept, err = engine.RemoveFork(ctx, a.repos.state(), found.Name, opts)
		}
		if errors.Is(err, fusefs.ErrBusy) {
			err = inUse(err, found.Dir, "--force removes it all the same")
		}
		if err != nil {
			errs = append(errs, forkHint(err))
			if kept == "" {
				continue
			}
		}
		done = append(done, unforkOutput{arg, kept})
		if kept != "" && !a.ui.JSON {
			errs = append(errs, a.ui.PrintLine(kept))
		}
	}
	if a.ui.JSON {
		errs = append(errs, a.ui.PrintJSON(done))
	}
	return errors.Join(errs...)
}

// inUse adds to an error who is in the way.
func inUse(err error, path, hint string) error {
	if users := usersOf(path); len(users) > 0 {
		err = fmt.Errorf("%w by %s", err, strings.Join(users, ", "))
	}
	return &hintError{err: err, hint: hint}
}

// fork offers forks that were not named yet, by name.
func (c *completer) fork(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), c.repos.env.menuPatience)
	defer cancel()
	forks, _ := engine.Forks(ctx, c.repos.state()) // an error has no place in a shell's menu
	var all []cobra.Completion
	for _, f := range forks {
		if !slices.Contains(args, f.Name) {
			all = append(all, cobra.CompletionWithDesc(f.Name, string(f.State)+", "+ui.Printable(filepath.Clean(f.Dir))))
		}
	}
	return all, cobra.ShellCompDirectiveDefault
}

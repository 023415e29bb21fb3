package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/cmd/snapctl/internal/background"
	"github.com/snapctl/snapctl/cmd/snapctl/internal/doctor"
	"github.com/snapctl/snapctl/cmd/snapctl/internal/keeper"
	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/remote"
)

// mountOutput is what mount --json prints.
type mountOutput struct {
	Dir      string          `json:"dir"` // the mount point
	Pid      int             `json:"pid"` // of the process that serves it
	Snapshot engine.Snapshot `json:"snapshot"`
}

func mountCommand(a *app) *cobra.Command {
	var opts engine.MountOptions
	foreground := false
	cmd := &cobra.Command{
		Use:   "mount REF DIR",
		Short: "Show a snapshot as a read-only directory",
		Long: `Mounts a snapshot at DIR, an empty directory. Files can be used at once: what
they hold is fetched when it is read, checked against the snapshot, and kept in
the cache directory. How to write a REF: snapctl help references.

It returns when the mount can be used, and leaves a process behind that serves
it, until snapctl umount. With --foreground it is that process itself, and
unmounts at Ctrl-C or SIGTERM. A snapshot that is mounted already is served by
the process that does so, which ends with the last of its mounts.

Beside that process is a small one, its keeper: if it dies, the keeper starts
another, which takes over, and readers wait for a moment. After five deaths with
less than a minute between them the mount is dead, and readers get errors. If
the keeper dies, the server starts another; snapctl mounts says when there is
none. This needs Linux 6.9, and --foreground has no keeper. A signal to stop, to
either of the two, unmounts and ends both.

While it is mounted a snapshot can be removed: a lease in the repository says
what garbage collection has to leave, until the mount ends, or for an hour
after it died. Where it may not write, that is a warning.

From a bucket, what is likely to be read next is fetched before it is asked for:
with --prefetch all, the default, in the end the whole snapshot, while nobody
waits for anything and as long as the cache has room (--cache-size); with hot
what was read from it in earlier mounts, which the repository remembers; with
none only what lies beside what is read.

When the repository cannot be reached, readers wait while requests are tried
again, and then get an I/O error; the mount works on when it is back.

As root it needs no other program; other users need fusermount3.

Prints one line, the path; with --json one object: dir, pid, and snapshot, the
fields that show --json prints.`,
		Example: `  snapctl mount latest /mnt
  snapctl umount /mnt
  snapctl mount --foreground app~1 /mnt`,
		Args: takes("REF", "DIR"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return a.complete.ref(cmd, args, toComplete)
			}
			return completeDir(len(args) == 1)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[1] == "" {
				return usagef(cmd, "mount: DIR is empty")
			}
			return beginMount(cmd, a, args, opts, foreground)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVar(&foreground, "foreground", false, "stay, and unmount when interrupted")
	flags.BoolVar(&opts.Force, "force", false, "mount over a directory that holds something, which is hidden meanwhile")
	flags.BoolVar(&opts.AllowOther, "allow-other", false, "let other users look at it, as permissions allow (always so, if root mounts)")
	flags.Var((*prefetchFlag)(&opts.Prefetch), "prefetch", "fetch from a bucket before it is asked for: `WORD` is all, hot or none")
	mustComplete(cmd, "prefetch", cobra.FixedCompletions([]cobra.Completion{"all", "hot", "none"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// beginMount finds out what this process is for: to take over from a server that died, to
// serve, or to start another that does.
func beginMount(cmd *cobra.Command, a *app, args []string, opts engine.MountOptions, foreground bool) error {
	handed, err := keeper.Inherit(a.env.getenv)
	if err != nil {
		return err
	}
	if handed != nil {
		return takeOver(cmd.Context(), a, handed)
	}
	parent, err := background.Inherit(a.env.getenv)
	if err != nil {
		return err
	}
	if parent != nil {
		a.secrets.Key, a.secrets.Ask = parent.Key, parent.Ask
	} else if !foreground {
		a.profiles.drop() // they are for the process that serves
		return startInBackground(cmd.Context(), a, a.args, a.env.stdout, nil)
	}
	ref, err := a.refs.ref(cmd, args[0])
	if err != nil {
		return err
	}
	return runMount(cmd.Context(), a, ref, args[1], opts, parent)
}

// runMount mounts, says so, and serves until the mount is gone or a signal comes.
func runMount(ctx context.Context, a *app, ref, dir string, opts engine.MountOptions, parent *background.Parent) error {
	// The process in the background leaves the directory that it was started in;
	// the engine minds that for the state folder itself.
	if cache := a.repos.options().CacheDir; cache != "" {
		cache, err := remote.Abs(cache)
		if err != nil {
			return err
		}
		a.repos.cacheDir = cache
	}
	repo, err := a.repos.openFor(ctx, ref)
	if err != nil {
		return about(ref, err)
	}
	defer a.repos.close(repo)
	opts.Share = true
	tuneServer()
	m, err := repo.Mount(ctx, ref, dir, told(a.ui, opts))
	if errors.Is(err, engine.ErrExists) {
		err = &hintError{err: err, hint: "--force mounts over it all the same"}
	}
	if err != nil {
		return mountHint(a.repos, err, dir)
	}
	if a.ui.JSON {
		err = a.ui.PrintJSON(mountOutput{Dir: m.Dir, Pid: m.Pid(), Snapshot: m.Snapshot})
	} else {
		err = a.ui.PrintLine(m.Dir)
		a.ui.Say(fmt.Sprintf("mounted %s, %s; unmount it with: snapctl umount %s", m.Snapshot.ID, ui.Plural(m.Snapshot.Files, "file"), ui.ShellQuote(m.Dir)))
	}
	a.repos.tellRequests("it served") // before the log goes to a file
	serves := m.Pid() == os.Getpid()
	if err == nil && parent != nil {
		var args []string
		if args, err = serverArgs(a, repo, m); err == nil {
			err = parent.Detach(filepath.Join(repo.CacheDir(), "logs"), m.Dir)
		}
		if err == nil && serves {
			kept := &keeper.Server{Args: args, Key: repo.Key(), Dir: m.Dir, Tell: a.ui.Console.Line}
			kept.Keep(m)
		}
		if err == nil {
			err = parent.Release()
		}
		if err == nil && !serves {
			return nil // that process serves it
		}
	}
	if err != nil {
		return errors.Join(err, endMount(a.ui, m))
	}
	return untilEnded(ctx, a.ui, m)
}

// startInBackground starts this program once more, as a mount command of any arguments,
// and waits until it serves. What it prints goes to stdout; nil for nowhere. key is that of
// an encrypted repository, if it is known.
func startInBackground(ctx context.Context, a *app, args []string, stdout io.Writer, key *chunk.Key) error {
	p := &background.Process{
		Args: args, Stdin: a.env.stdin, Stdout: stdout, Stderr: a.env.stderr, Log: a.repos.logger(),
		Key: key, Passphrase: a.secrets.Passphrase, Identities: a.secrets.HaveIdentities(),
	}
	return p.Start(ctx)
}

// mountHint adds what to do about a mount that failed, if nothing else says so: folder
// has to be there, and the machine to allow mounts.
func mountHint(repos *repositories, err error, folder string) error {
	if hintFor(err) != "" {
		return err
	}
	if _, serr := os.Stat(folder); errors.Is(err, fs.ErrNotExist) && errors.Is(serr, fs.ErrNotExist) {
		return &hintError{err: err, hint: "make it first: mkdir -p " + ui.ShellQuote(folder)}
	}
	if errors.Is(err, fusefs.ErrNoMtab) {
		return &hintError{err: err, hint: doctor.MtabHint}
	}
	if engine.TryMount(repos.state()) != nil {
		return &hintError{err: err, hint: "what mounts need here, and how to allow it: snapctl doctor"}
	}
	return err
}

// told has what happens to a mount said.
func told(out *ui.Streams, opts engine.MountOptions) *engine.MountOptions {
	failures := &ui.Seldom{Console: out.Console, Now: time.Now}
	opts.Fail = func(op, path string, err error) {
		at := time.Now().Format(time.RFC3339)
		failures.Tell(func(unsaid int64) string {
			s := fmt.Sprintf("%s %s of %s: %v", at, op, ui.Quoted(path), err)
			if unsaid > 0 {
				s += fmt.Sprintf(" (and %s before)", ui.Plural(unsaid, "other"))
			}
			return s
		})
	}
	opts.Warn = out.Warn
	return &opts
}

// untilEnded waits until this process serves nothing any more, or a signal comes.
func untilEnded(ctx context.Context, out *ui.Streams, m *engine.Mount) error {
	select {
	case <-m.ServerEnded():
		return nil
	case <-ctx.Done():
		// The keeper passes on a signal that may have gone to both: let the second not
		// end us before all is unmounted.
		signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
		return endMount(out, m)
	}
}

// endMount unmounts since this process is about to end, wherever it is mounted.
// Whoever uses it then gets errors: better than a process that no signal ends.
func endMount(out *ui.Streams, m *engine.Mount) error {
	inUse, err := m.Shutdown()
	for _, dir := range inUse {
		out.Console.Warn(ui.Quoted(dir) + " was in use")
	}
	return err
}

// A prefetchFlag is a word for what a mount fetches ahead.
type prefetchFlag engine.Prefetch

var _ pflag.Value = (*prefetchFlag)(nil)

func (f *prefetchFlag) String() string { return engine.Prefetch(*f).String() }
func (f *prefetchFlag) Type() string   { return "word" }
func (f *prefetchFlag) Set(s string) error {
	p, err := engine.ParsePrefetch(s)
	if err != nil {
		return errors.New("not all, hot or none")
	}
	*f = prefetchFlag(p)
	return nil
}

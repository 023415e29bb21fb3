package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/snapctl/snapctl/engine"
)

// errInterrupted is the cause of the context's end after a signal.
var errInterrupted = errors.New("interrupted")

// env is what a command sees of the world outside, so that a test can give it
// another.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	now            func() time.Time
	// terminal is secret.Secrets.Terminal.
	terminal func() (*os.File, error)
	// workFactor is that of new passphrases: see engine.NewKey.
	workFactor int
	// menuPatience bounds how long a shell waits for what it could complete.
	menuPatience time.Duration
	// engine is what every repository is opened with, beside what the flags say.
	engine engine.Options
}

func processEnv() *env {
	return &env{
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		getenv: os.Getenv,
		now:    time.Now,
		terminal: func() (*os.File, error) {
			return os.OpenFile("/dev/tty", os.O_RDWR, 0)
		},
		menuPatience: 2 * time.Second,
	}
}

// run is the whole process but for its end.
func run(e *env, args []string) int {
	// A reader that goes away is an error of the write that found out, not the
	// death of a create in the middle because nobody reads its progress.
	signal.Ignore(syscall.SIGPIPE)
	if isKeeperProcess(e) {
		return keep(e)
	}
	tuneMemory()
	ctx, stop := untilSignal(context.Background())
	defer stop()
	return execute(ctx, e, args)
}

// untilSignal gives a context that ends with errInterrupted at the first
// signal to stop. The second ends the process at once. A signal that whoever
// started us had ignored, as nohup does, stays ignored.
func untilSignal(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 2)
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	go func() {
		<-signals
		cancel(errInterrupted)
		<-signals
		os.Exit(exitInterrupted)
	}()
	return ctx, func() { signal.Stop(signals); cancel(nil) }
}

// execute runs one command and gives its exit code.
func execute(ctx context.Context, e *env, args []string) int {
	a := newApp(e)
	root := a.command()
	root.SetArgs(args)
	a.args = args

	began := e.now()
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !a.started {
		err = &usageError{err: err, help: cmd.CommandPath()} // cobra did not like the command line
	}
	if perr := a.profiles.stop(); err == nil {
		err = perr
	}
	if err == nil {
		err = a.ui.Out.Err
	}
	a.repos.tellRequests("")
	if a.repos.verbose > 0 {
		a.repos.logger().Info("finished", "command", cmd.CommandPath(), "took", e.now().Sub(began).Round(time.Millisecond))
	}
	return a.report(ctx, cmd, err)
}

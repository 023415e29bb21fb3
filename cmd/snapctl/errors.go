package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/background"
	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
	"github.com/snapctl/snapctl/remote"
)

// Exit codes. They are documented in the help topic exit-codes, and scripts
// rely on them.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitIncomplete  = 3
	exitNotFound    = 4
	exitExpired     = 5
	exitIntegrity   = 6
	exitLocked      = 7
	exitInterrupted = 130 // 128 + SIGINT
	exitPipe        = 141 // 128 + SIGPIPE
)

// A usageError is a command line that cannot be meant.
type usageError struct {
	err  error
	help string // the command whose --help says more
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...), help: cmd.CommandPath()}
}

// errIncomplete says that a command did its work but for some files, each of
// which was named.
var errIncomplete = errors.New("incomplete")

// errDifferences says that diff --exit-code found some, which needs no message.
var errDifferences = errors.New("there are differences")

// A hintError carries one line on what to do about the error.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

// exitCode is the exit code for an error of a command that was not interrupted.
func exitCode(err error) int {
	var usage *usageError
	var output *ui.OutputError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &output):
		if errors.Is(err, syscall.EPIPE) {
			return exitPipe
		}
		return exitFailed
	case errors.As(err, &usage), errors.Is(err, engine.ErrInvalid):
		return exitUsage
	case errors.Is(err, errIncomplete):
		return exitIncomplete
	case errors.Is(err, engine.ErrIntegrity):
		return exitIntegrity
	case errors.Is(err, engine.ErrLocked):
		return exitLocked
	case errors.Is(err, engine.ErrExpired):
		return exitExpired
	case errors.Is(err, engine.ErrNotFound):
		return exitNotFound
	}
	return exitFailed
}

// report tells of the error, one line for what failed and one for what to do
// where that is known, and gives the exit code.
func (a *app) report(ctx context.Context, cmd *cobra.Command, err error) int {
	code := exitCode(err)
	if code == exitDone || code == exitPipe || errors.Is(err, errDifferences) {
		return code
	}
	var said *background.ExitError
	switch {
	case errors.As(err, &said):
		return said.Code
	case errors.Is(err, background.ErrNotSaid):
		return exitLocked
	}
	hint := hintFor(err)
	if errors.Is(context.Cause(ctx), errInterrupted) {
		code = exitInterrupted
		if errors.Is(err, context.Canceled) || errors.Is(err, errInterrupted) {
			err = fmt.Errorf("%s: %w", cmd.Name(), errInterrupted)
		}
	}
	for _, err := range separate(err) {
		a.ui.Console.Line("snapctl: " + err.Error())
	}
	if hint != "" {
		a.ui.Console.Line(hint)
	}
	return code
}

// separate is the errors that errors.Join put together, a line each. An error
// that wraps several in one sentence stays one.
func separate(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var texts []string
	var all []error
	for _, e := range joined.Unwrap() {
		texts = append(texts, e.Error())
		all = append(all, separate(e)...)
	}
	if strings.Join(texts, "\n") != err.Error() {
		return []error{err}
	}
	return all
}

const encryptionHint = "see: snapctl help encryption"

// hintFor says what to do about an error, or nothing.
func hintFor(err error) string {
	var usage *usageError
	var hinted *hintError
	switch {
	case errors.As(err, &hinted):
		return hinted.hint
	case errors.As(err, &usage):
		return "see: " + usage.help + " --help"
	case errors.Is(err, engine.ErrAmbiguous):
		return "give more of the id; see: snapctl list"
	case errors.Is(err, engine.ErrNotFound):
		return "see what there is: snapctl list"
	case errors.Is(err, engine.ErrLocked), errors.Is(err, engine.ErrNotEncrypted):
		return encryptionHint
	case errors.Is(err, remote.ErrClock):
		return "set it, and have it kept right: timedatectl set-ntp true"
	case errors.Is(err, remote.ErrAccess):
		return "see: snapctl help permissions"
	case errors.Is(err, remote.ErrNoBucket):
		return "snapctl makes no buckets; see: snapctl help repositories"
	case errors.Is(err, engine.ErrNeedsLinux):
		return "what works here: snapctl restore, ls, cat, find and dump"
	case errors.Is(err, engine.ErrUnsupported):
		return "get a newer snapctl: https://github.com/snapctl/snapctl/releases"
	}
	return ""
}

package main

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

func TestExitCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, exitDone},
		{errors.New("x"), exitFailed},
		{engine.ErrNotInitialised, exitFailed},
		{engine.ErrExists, exitFailed},
		{engine.ErrAmbiguous, exitFailed},
		{engine.ErrUnsupported, exitFailed},
		{engine.ErrInvalid, exitUsage},
		{&usageError{err: errors.New("x")}, exitUsage},
		{&hintError{err: &usageError{err: errors.New("x")}}, exitUsage},
		{errIncomplete, exitIncomplete},
		{engine.ErrNotFound, exitNotFound},
		{errNothingYet, exitNotFound},
		{engine.ErrExpired, exitExpired},
		{engine.ErrIntegrity, exitIntegrity},
		{&ui.OutputError{Err: syscall.EPIPE}, exitPipe},
		{&ui.OutputError{Err: syscall.ENOSPC}, exitFailed},
		{syscall.EPIPE, exitFailed}, // of a connection
	} {
		err := c.err
		if err != nil {
			err = fmt.Errorf("doing a thing: %w", err)
		}
		if got := exitCode(err); got != c.want {
			t.Errorf("exitCode(%v) = %d; want %d", err, got, c.want)
		}
	}
}

func TestSeparate(t *testing.T) {
	a, b, c := errors.New("a"), errors.New("b\nb"), errors.New("c")
	for want, err := range map[string]error{
		"a":        a,
		"a|b\nb":   errors.Join(a, b),
		"a|b\nb|c": errors.Join(errors.Join(a, b), nil, c),
		"c":        errors.Join(c),
		"a: c":     fmt.Errorf("%w: %w", a, c),
		"a|c: a":   errors.Join(a, fmt.Errorf("%w: %w", c, a)),
		"x: a\nc":  fmt.Errorf("x: %w", errors.Join(a, c)),
	} {
		var got []string
		for _, e := range separate(err) {
			got = append(got, e.Error())
		}
		if strings.Join(got, "|") != want {
			t.Errorf("%q; want %q", got, want)
		}
	}
}

package secret

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
)

// askSecret asks for a line at the terminal, which does not show it.
func (s *Secrets) askSecret(ctx context.Context, prompt string) (string, error) {
	if s.Terminal == nil {
		return "", errNoTerminal
	}
	tty, err := s.Terminal()
	if err != nil {
		return "", errNoTerminal
	}
	fd := int(tty.Fd())
	restore, err := hideTyping(fd)
	if err != nil {
		tty.Close()
		return "", errNoTerminal
	}
	fmt.Fprint(tty, ui.Printable(prompt))
	type answer struct {
		line []byte
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		line, err := term.ReadPassword(fd)
		got <- answer{line, err}
	}()
	select {
	case <-ctx.Done():
		// Nothing ends the read but a line, or the end of this process.
		restore()
		fmt.Fprintln(tty)
		return "", context.Cause(ctx)
	case x := <-got:
		fmt.Fprintln(tty)
		restore()
		tty.Close()
		return string(bytes.TrimSuffix(x.line, []byte("\r"))), x.err
	}
}

// hideTyping has a terminal not show what is typed: before anybody is asked, as people
// type fast.
func hideTyping(fd int) (restore func(), err error) {
	before, err := unix.IoctlGetTermios(fd, getTermios)
	if err != nil {
		return nil, os.NewSyscallError("ioctl", err)
	}
	hidden := *before
	hidden.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, setTermios, &hidden); err != nil {
		return nil, os.NewSyscallError("ioctl", err)
	}
	return func() { _ = unix.IoctlSetTermios(fd, setTermios, before) }, nil
}

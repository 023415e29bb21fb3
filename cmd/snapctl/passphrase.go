package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

// What opens an encrypted repository, beside what is typed at the terminal.
const (
	passphraseFileEnv = "SNAPCTL_PASSPHRASE_FILE"
	identityFileEnv   = "SNAPCTL_IDENTITY_FILE"
)

// maxSecret bounds a passphrase, and a file of identities, in bytes.
const (
	maxPassphrase = 4 << 10
	maxIdentities = 1 << 20
)

var errNoTerminal = errors.New("there is no terminal to ask for it, and " + passphraseFileEnv + " is not set")

// setSecrets adds to opts what opens an encrypted repository.
func (a *app) setSecrets(opts *engine.Options) {
	if a.unencrypted {
		return
	}
	if a.key != nil {
		opts.Key = a.key
		return
	}
	opts.Identities = a.identities
	opts.Passphrase = a.passphrase
	opts.Encrypted = a.getenv(passphraseFileEnv) != ""
}

// readIdentities reads the file of identities, if there is to be one.
func (a *app) readIdentities() error {
	path := a.getenv(identityFileEnv)
	if path == "" || a.getenv(keyFdEnv) != "" || a.getenv(takeOverEnv) != "" {
		return nil
	}
	f, err := a.openSecret(path)
	if err != nil {
		return &hintError{err: &usageError{err: fmt.Errorf("%s: %w", identityFileEnv, err)}, hint: encryptionHint}
	}
	defer f.Close()
	if a.identities, err = age.ParseIdentities(io.LimitReader(f, maxIdentities)); err != nil {
		return &hintError{err: &usageError{err: fmt.Errorf("%s: %s is not a file that age-keygen made: %w", identityFileEnv, ui.Quoted(path), err)}, hint: encryptionHint}
	}
	return nil
}

// passphrase is engine.Options.Passphrase. What was given once is not asked for again.
func (a *app) passphrase(ctx context.Context, url string) (string, error) {
	if p, ok := a.passphrases[url]; ok {
		return p, nil
	}
	p, err := a.findPassphrase(ctx, url)
	if err != nil {
		return "", err
	}
	if a.passphrases == nil {
		a.passphrases = map[string]string{}
	}
	a.passphrases[url] = p
	return p, nil
}

func (a *app) findPassphrase(ctx context.Context, url string) (string, error) {
	if a.starter != nil {
		return a.starter.ask(url)
	}
	if path := a.getenv(passphraseFileEnv); path != "" {
		return a.readPassphrase(path)
	}
	return a.askSecret(ctx, "Passphrase of "+ui.Quoted(url)+": ")
}

// newPassphrase gets a passphrase for a key that is to be made: from a file, if it is
// not "", else from the terminal, twice.
func (a *app) newPassphrase(ctx context.Context, path string) (string, error) {
	if path != "" {
		return a.readPassphrase(path)
	}
	first, err := a.askSecret(ctx, "New passphrase: ")
	if err != nil {
		return "", err
	}
	if first == "" {
		return "", errors.New("the passphrase is empty")
	}
	again, err := a.askSecret(ctx, "The same again: ")
	if err == nil && first != again {
		err = errors.New("the two differ")
	}
	return first, err
}

// openSecret opens a file that holds a passphrase or identities. It warns, once, where others
// than its owner can read it.
func (a *app) openSecret(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	told := a.openSecrets[path] || a.getenv(askFdEnv) != "" // or whoever started this process did
	if err != nil || told || !st.Mode().IsRegular() || st.Mode().Perm()&0o044 == 0 {
		return f, nil
	}
	if a.openSecrets == nil {
		a.openSecrets = map[string]bool{}
	}
	a.openSecrets[path] = true
	a.ui.Console.Warn("others can read " + ui.Quoted(path) + ", which opens the repository; to keep them from it: chmod go= " + ui.ShellQuote(path))
	return f, nil
}

// readPassphrase reads a passphrase: all of a file but for a newline at its end.
func (a *app) readPassphrase(path string) (string, error) {
	f, err := a.openSecret(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPassphrase+1))
	if err != nil {
		return "", err
	}
	p := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	switch {
	case len(b) > maxPassphrase:
		return "", fmt.Errorf("%s: more than %d bytes", ui.Quoted(path), maxPassphrase)
	case p == "":
		return "", fmt.Errorf("%s is empty", ui.Quoted(path))
	case strings.Contains(p, "\n"):
		return "", fmt.Errorf("%s has more than one line", ui.Quoted(path))
	}
	return p, nil
}

// askSecret asks for a line at the terminal, which does not show it.
func (a *app) askSecret(ctx context.Context, prompt string) (string, error) {
	if a.terminal == nil {
		return "", errNoTerminal
	}
	tty, err := a.terminal()
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

// Package secret gets what opens an encrypted repository: the identities of a file, and
// passphrases from a file, from a terminal, or from whoever started this process. New is
// where to start.
package secret

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

// PassphraseFileEnv is the variable that names the file with the passphrase.
const PassphraseFileEnv = "SNAPCTL_PASSPHRASE_FILE"

// identityFileEnv is the variable that names the file with age identities.
const identityFileEnv = "SNAPCTL_IDENTITY_FILE"

// MaxPassphrase bounds a passphrase, in bytes.
const MaxPassphrase = 4 << 10

// maxIdentities bounds a file of identities, in bytes.
const maxIdentities = 1 << 20

var errNoTerminal = errors.New("there is no terminal to ask for it, and " + PassphraseFileEnv + " is not set")

// Secrets are what opens encrypted repositories: a key, identities, or passphrases.
type Secrets struct {
	// Terminal opens the terminal of whoever runs the command; nil if there is none.
	Terminal func() (*os.File, error)
	// Key is that of the only repository, if it is known: nothing else is needed then.
	Key *chunk.Key
	// Ask asks whoever started this process for the passphrase of the repository at url.
	// Nil: the one to ask is at the terminal.
	Ask func(url string) (string, error)
	// Warned says that whoever started this process has told of files that others can read.
	Warned bool

	ui          *ui.Streams
	getenv      func(string) string
	identities  []age.Identity
	passphrases map[string]string // by URL of the repository
	told        map[string]bool   // files that others can read
}

// New gives the secrets of a command that is run with an environment and at a terminal. It
// warns on streams.
func New(streams *ui.Streams, getenv func(string) string, terminal func() (*os.File, error)) *Secrets {
	return &Secrets{ui: streams, getenv: getenv, Terminal: terminal, passphrases: map[string]string{}, told: map[string]bool{}}
}

// Give adds to opts what opens an encrypted repository.
func (s *Secrets) Give(opts *engine.Options) {
	if s.Key != nil {
		opts.Key = s.Key
		return
	}
	opts.Identities = s.identities
	opts.Passphrase = s.Passphrase
	opts.Encrypted = s.PassphraseFile() != ""
}

// Withhold takes from opts what Give has added: the repository is not encrypted.
func Withhold(opts *engine.Options) {
	opts.Key, opts.Identities, opts.Passphrase, opts.Encrypted = nil, nil, nil, false
}

// PassphraseFile is the file that the environment names, "" if it names none.
func (s *Secrets) PassphraseFile() string { return s.getenv(PassphraseFileEnv) }

// HaveIdentities reports whether there are any.
func (s *Secrets) HaveIdentities() bool { return len(s.identities) > 0 }

// ReadIdentities reads the file of identities, if the environment names one.
func (s *Secrets) ReadIdentities() error {
	path := s.getenv(identityFileEnv)
	if path == "" {
		return nil
	}
	f, err := s.open(path)
	if err != nil {
		return fmt.Errorf("%s: %w", identityFileEnv, err)
	}
	defer f.Close()
	if s.identities, err = age.ParseIdentities(io.LimitReader(f, maxIdentities)); err != nil {
		return fmt.Errorf("%s: %s is not a file that age-keygen made: %w", identityFileEnv, ui.Quoted(path), err)
	}
	return nil
}

// Passphrase gives the passphrase of the repository at url: engine.Options.Passphrase. What was given once is not asked for again.
func (s *Secrets) Passphrase(ctx context.Context, url string) (string, error) {
	if p, ok := s.passphrases[url]; ok {
		return p, nil
	}
	p, err := s.findPassphrase(ctx, url)
	if err != nil {
		return "", err
	}
	s.passphrases[url] = p
	return p, nil
}

// findPassphrase gets the passphrase of a repository from whoever has it.
func (s *Secrets) findPassphrase(ctx context.Context, url string) (string, error) {
	if s.Ask != nil {
		return s.Ask(url)
	}
	if path := s.PassphraseFile(); path != "" {
		return s.readPassphrase(path)
	}
	return s.askSecret(ctx, "Passphrase of "+ui.Quoted(url)+": ")
}

// NewPassphrase gets a passphrase for a key that is to be made: from a file, if it is
// not "", else from the terminal, twice.
func (s *Secrets) NewPassphrase(ctx context.Context, path string) (string, error) {
	if path != "" {
		return s.readPassphrase(path)
	}
	first, err := s.askSecret(ctx, "New passphrase: ")
	if err != nil {
		return "", err
	}
	if first == "" {
		return "", errors.New("the passphrase is empty")
	}
	again, err := s.askSecret(ctx, "The same again: ")
	if err == nil && first != again {
		err = errors.New("the two differ")
	}
	return first, err
}

// open opens a file that holds a passphrase or identities. It warns, once, where others
// than its owner can read it.
func (s *Secrets) open(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil || s.Warned || s.told[path] || !st.Mode().IsRegular() || st.Mode().Perm()&0o044 == 0 {
		return f, nil
	}
	s.told[path] = true
	s.ui.Console.Warn("others can read " + ui.Quoted(path) + ", which opens the repository; to keep them from it: chmod go= " + ui.ShellQuote(path))
	return f, nil
}

// readPassphrase reads a passphrase: all of a file but for a newline at its end.
func (s *Secrets) readPassphrase(path string) (string, error) {
	f, err := s.open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxPassphrase+1))
	if err != nil {
		return "", err
	}
	p := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	switch {
	case len(b) > MaxPassphrase:
		return "", fmt.Errorf("%s: more than %d bytes", ui.Quoted(path), MaxPassphrase)
	case p == "":
		return "", fmt.Errorf("%s is empty", ui.Quoted(path))
	case strings.Contains(p, "\n"):
		return "", fmt.Errorf("%s has more than one line", ui.Quoted(path))
	}
	return p, nil
}

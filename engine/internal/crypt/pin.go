package crypt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/zeebo/blake3"
)

// Pin is what this machine remembers of an encrypted repository: the key check of its
// config. It lies in the file encrypted/HASH of the cache, where HASH is of the URL: the
// check and the first 8 bytes of its BLAKE3, in hex, and a newline. Whoever can write to the
// repository could put another one in its place: one without encryption, or one
// whose key he has made himself, and wrapped for a recipient that is no secret. This
// machine then notices, if it was there before.
type Pin struct{ Path string } // "" for none

// Check compares with what is remembered, and remembers what was not. An empty check is
// that of a repository without encryption.
func (p Pin) Check(keyCheck string) error {
	if p.Path == "" {
		return nil
	}
	remembered := p.read()
	var err error
	switch {
	case remembered == keyCheck:
		return nil
	case remembered == "":
		return p.Set(keyCheck)
	case keyCheck == "":
		err = errors.New("it is not encrypted, but was when this machine used it last")
	default:
		err = errors.New("it has another key than when this machine used it last")
	}
	return fmt.Errorf("%w: %w: somebody put another repository in its place; if that was you, delete %s", snapshot.ErrIntegrity, err, p.Path)
}

// read gives what is remembered, "" for nothing: what is damaged is not there.
func (p Pin) read() string {
	b, err := os.ReadFile(p.Path)
	check, _, _ := strings.Cut(string(b), " ")
	if err != nil || string(b) != pinLine(check) {
		return ""
	}
	return check
}

func pinLine(keyCheck string) string {
	sum := blake3.Sum256([]byte(keyCheck))
	return fmt.Sprintf("%s %x\n", keyCheck, sum[:8])
}

// Set remembers, as far as it can: a cache is no reason to fail.
func (p Pin) Set(keyCheck string) error {
	if p.Path == "" {
		return nil
	}
	if keyCheck == "" {
		if err := os.Remove(p.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forgetting the repository that was here: %w", err)
		}
		return nil
	}
	dir := local.Dir{Root: filepath.Dir(filepath.Dir(p.Path))}
	_ = dir.Write(local.Pins, filepath.Base(p.Path), []byte(pinLine(keyCheck)))
	return nil
}

package snapshot

import (
	"errors"
	"fmt"
)

// Errors that callers branch on with errors.Is. Messages name the repository,
// snapshot or file that they are about.
var (
	// ErrNotInitialised: there is no repository at the URL.
	ErrNotInitialised = errors.New("no repository here")
	// ErrExists: Init found a repository at the URL, or Restore a target that
	// it may not replace.
	ErrExists = errors.New("exists already")
	// ErrNotEmpty: Restore, Mount or Fork found a directory that holds something, and was
	// not told what becomes of that. It is ErrExists as well.
	ErrNotEmpty = fmt.Errorf("%w: the directory is not empty", ErrExists)
	// ErrGone: this machine has used a repository at the URL, and it is not there any
	// more. The error is ErrNotInitialised as well.
	ErrGone = errors.New("this machine has used one here, which is gone")
	// ErrOwn: what Restore or Fork would write to, delete or hide is snapctl's own.
	ErrOwn = errors.New("it is what snapctl keeps on this machine")
	// ErrPartlyWritten: Restore was stopped while it changed the target in place.
	ErrPartlyWritten = errors.New("the target may be partly written")
	// ErrNotFound: no snapshot answers to the reference.
	ErrNotFound = errors.New("no such snapshot")
	// ErrAmbiguous: more than one snapshot answers to the reference.
	ErrAmbiguous = errors.New("ambiguous reference")
	// ErrExpired: the snapshot's time to live has passed.
	ErrExpired = errors.New("snapshot has expired")
	// ErrIntegrity: an object of the repository is damaged, or not what it was
	// when it was written. No byte of it was used.
	ErrIntegrity = errors.New("damaged repository")
	// ErrInvalid: an argument or option that cannot be meant, such as a name
	// with a newline.
	ErrInvalid = errors.New("invalid argument")
	// ErrLocked: the repository is encrypted, and what was given opens none of its
	// keys: a wrong passphrase, or nothing.
	ErrLocked = errors.New("locked repository")
	// ErrNoIdentity: none of the identities that were given opens a key of the encrypted
	// repository. It comes with ErrLocked.
	ErrNoIdentity = errors.New("none of the identities opens one of its keys")
	// ErrNotEncrypted: the repository is not encrypted, although whoever opened it
	// expected that, or asked for its keys.
	ErrNotEncrypted = errors.New("not an encrypted repository")
	// ErrNoKey: an encrypted repository has no such key.
	ErrNoKey = errors.New("no key")
	// ErrLastKey: the last key of an encrypted repository cannot be removed.
	ErrLastKey = errors.New("it is the last key, without which nothing could be read again")
	// ErrNeedsLinux: this system has not what mounts and forks are made of. It wraps
	// errors.ErrUnsupported.
	ErrNeedsLinux error = needsLinux{}
	// ErrUnsupported: the repository needs a newer snapctl.
	ErrUnsupported = errors.New("made by a newer version of snapctl")
)

// ErrNoFork: no fork answers to the name or directory.
var ErrNoFork = errors.New("no such fork")

// ErrForkLost: what a fork had changed is gone.
var ErrForkLost = errors.New("what the fork had changed is gone")

// ErrServerStays: what was mounted is unmounted, but the process that served it
// has not ended.
var ErrServerStays = errors.New("it is unmounted, but the process that served it has not ended")

// needsLinux is ErrNeedsLinux.
type needsLinux struct{}

func (needsLinux) Error() string { return "mounts and forks need Linux" }

func (needsLinux) Unwrap() error { return errors.ErrUnsupported }

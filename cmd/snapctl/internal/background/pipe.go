// Package background starts this program once more, as a mount command that serves in the
// background, and hands it what opens an encrypted repository. Process.Start is the side of
// the one that starts it, and Inherit that of the one that is started.
package background

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/cmd/snapctl/internal/secret"
	"github.com/snapctl/snapctl/engine"
)

// How a process in the background opens an encrypted repository. If who starts it
// has the key, it passes that through a pipe, whose number is in keyFdEnv. Else the
// process asks for the passphrase when it turns out to need one: it writes askWord and
// the URL to its ready pipe, as a line, and reads the passphrase from the pipe of
// askFdEnv. So there is one place that talks to people, and one process that does
// what scrypt costs.
//
// Nothing of that is in an argument, in the environment, or on a disk.
const (
	keyFdEnv = "SNAPCTL_MOUNT_KEY_FD"
	askFdEnv = "SNAPCTL_MOUNT_PASSPHRASE_FD"
	askWord  = "passphrase "
)

// KeyComes reports whether whoever started this process gives it the key.
func KeyComes(getenv func(string) string) bool { return getenv(keyFdEnv) != "" }

// MayAsk reports whether this process may ask whoever started it.
func MayAsk(getenv func(string) string) bool { return getenv(askFdEnv) != "" }

// An ExitError is an exit code of a process that said why.
type ExitError struct{ Code int }

// Error says which code it is: the reason was told by the process.
func (e *ExitError) Error() string { return fmt.Sprintf("exit code %d", e.Code) }

// secretPipe is the pipe to a process that is about to be started.
type secretPipe struct {
	env    string // for the process
	theirs *os.File
	ours   *os.File // nil if all was said
}

// newSecretPipe makes the pipe for a process whose descriptor fd it will be. key may
// be nil.
func newSecretPipe(fd int, key *chunk.Key) (*secretPipe, error) {
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p := &secretPipe{env: fmt.Sprintf("%s=%d", askFdEnv, fd), theirs: theirs, ours: ours}
	if key != nil {
		p.env = fmt.Sprintf("%s=%d", keyFdEnv, fd)
		_, err = ours.Write(key[:]) // a pipe holds that much
		p.say()
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// say ends what is said.
func (p *secretPipe) say() {
	if p.ours != nil {
		p.ours.Close()
		p.ours = nil
	}
}

func (p *secretPipe) close() {
	p.theirs.Close()
	p.say()
}

// answer reads what the started process says until it is ready or ends, and answers it.
// It gives the last word. identities says that the process had some, which did not help if
// it asks.
func (p *secretPipe) answer(ctx context.Context, ready io.Reader, passphrase func(context.Context, string) (string, error), identities bool) (word string, err error) {
	defer p.say()
	r := bufio.NewReader(ready)
	for {
		line, rerr := r.ReadString('\n')
		if !strings.HasPrefix(line, askWord) || rerr != nil {
			if rerr != nil && !errors.Is(rerr, io.EOF) {
				err = errors.Join(err, rerr)
			}
			return line, err
		}
		url := strings.TrimSuffix(strings.TrimPrefix(line, askWord), "\n")
		s, perr := passphrase(ctx, url)
		if perr == nil && p.ours != nil {
			_, perr = io.WriteString(p.ours, s)
		}
		switch {
		case perr != nil && identities:
			err = fmt.Errorf("opening repository %s: %w: %w; passphrase: %w", url, engine.ErrLocked, engine.ErrNoIdentity, perr)
		case perr != nil:
			err = fmt.Errorf("opening repository %s: %w: passphrase: %w", url, engine.ErrLocked, perr)
		}
		p.say()
	}
}

// ErrNotSaid: whoever started this process could not get the passphrase, and says why.
var ErrNotSaid = errors.New("there is no passphrase")

// askParent asks whoever started this process for the passphrase of the repository at url.
func askParent(ready io.Writer, secrets io.Reader, url string) (string, error) {
	if _, err := io.WriteString(ready, askWord+url+"\n"); err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(secrets, secret.MaxPassphrase))
	if err == nil && len(b) == 0 {
		err = ErrNotSaid
	}
	return string(b), err
}

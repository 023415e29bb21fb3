package background

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
)

// A process in the background is this program once more, with the same arguments,
// in a session of its own. Until it serves it has our standard streams, so that
// what it says is said where the user looks. Then it says so through a pipe,
// whose number is in readyEnv.
const (
	readyEnv  = "SNAPCTL_MOUNT_READY_FD"
	readyWord = "ready"
)

// A Process is a mount command that is to serve in the background.
type Process struct {
	Args           []string // of this program
	Stdin          io.Reader
	Stdout, Stderr io.Writer // until it serves; nil for nowhere
	Log            *slog.Logger

	Key *chunk.Key // of an encrypted repository, if it is known
	// Passphrase gives that of the repository at a URL, if the process asks for it.
	Passphrase func(ctx context.Context, url string) (string, error)
	Identities bool // the process has some too; if it asks they did not help
}

// Start starts the process and waits until it serves. An *ExitError says that it has told
// people what failed.
func (p *Process) Start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("mount: starting a process: %w", err)
	}
	ready, theirs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("mount: starting a process: %w", err)
	}
	defer ready.Close()
	secrets, err := newSecretPipe(4, p.Key)
	if err != nil {
		theirs.Close()
		return fmt.Errorf("mount: starting a process: %w", err)
	}
	defer secrets.close()
	cmd := exec.Command(self)
	cmd.Args = append([]string{os.Args[0]}, p.Args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.Stdin, p.Stdout, p.Stderr
	cmd.Env = append(os.Environ(), readyEnv+"=3", secrets.env)
	cmd.ExtraFiles = []*os.File{theirs, secrets.theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// Whatever else we inherited, such as a lock or the end of a pipe, should
	// end with us.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		p.Log.Info("close_range", "err", err)
	}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return fmt.Errorf("mount: starting a process: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
	word, err := secrets.answer(ctx, ready, p.Passphrase, p.Identities)
	stop()
	if err == nil && word == readyWord {
		return cmd.Process.Release()
	}
	if err != nil {
		cmd.Wait() // it leaves it to us to say why
		return err
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return &ExitError{exit.ExitCode()} // it said why
	}
	if err == nil {
		err = errors.New("it ended")
	}
	return fmt.Errorf("mount: the process in the background: %w", err)
}

// A Parent is the process that started this one to serve in the background, as far as this
// one knows it.
type Parent struct {
	Key *chunk.Key // of the repository; nil if it has none
	// Ask asks it for the passphrase of the repository at url; nil if it cannot be asked.
	Ask func(url string) (string, error)

	ready *os.File
}

// Inherit takes what whoever started this process has passed on. It gives nil if this
// process was not started to serve in the background.
func Inherit(getenv func(string) string) (*Parent, error) {
	take := func(name, what string) *os.File {
		fd, err := strconv.Atoi(getenv(name))
		if err != nil {
			return nil
		}
		os.Unsetenv(name)
		unix.CloseOnExec(fd)
		return os.NewFile(uintptr(fd), what)
	}
	p := &Parent{ready: take(readyEnv, "ready")}
	if p.ready == nil {
		return nil, nil
	}
	if f := take(keyFdEnv, "secrets"); f != nil {
		defer f.Close()
		p.Key = new(chunk.Key)
		if _, err := io.ReadFull(f, p.Key[:]); err != nil {
			return nil, fmt.Errorf("mount: the key of the repository: %w", err)
		}
	}
	if f := take(askFdEnv, "secrets"); f != nil {
		p.Ask = func(url string) (string, error) { return askParent(p.ready, f, url) }
	}
	return p, nil
}

// Detach leaves the world of the process that started us. What is said from here on goes to
// a file in the folder logs, one for each mount point.
func (p *Parent) Detach(logs, mountPoint string) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	log := null
	if f, err := openLog(logs, mountPoint); err == nil {
		defer f.Close()
		log = f
	}
	for fd, f := range []*os.File{null, null, log} {
		if err := unix.Dup3(int(f.Fd()), fd, 0); err != nil {
			return fmt.Errorf("mount: leaving standard streams: %w", err)
		}
	}
	return os.Chdir("/") // so that no file system is in use because of us
}

// Release tells the process that started us that all is well.
func (p *Parent) Release() error {
	_, err := io.WriteString(p.ready, readyWord)
	return errors.Join(err, p.ready.Close())
}

// openLog makes the log of a mount point.
func openLog(dir, mountPoint string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("mount-%.8x.log", sha256.Sum256([]byte(mountPoint)))
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err == nil {
		fmt.Fprintf(f, "%s, process %d\n", ui.Quoted(mountPoint), os.Getpid())
	}
	return f, err
}

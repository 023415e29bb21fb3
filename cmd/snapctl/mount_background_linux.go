package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
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

// A mount in the background is this program once more, with the same arguments,
// in a session of its own. Until it serves it has our standard streams, so that
// what it says is said where the user looks. Then it says so through a pipe,
// whose number is in readyEnv.
const (
	readyEnv  = "SNAPCTL_MOUNT_READY_FD"
	readyWord = "ready"
)

// mountInBackground starts the process that mounts and waits until it serves.
func (a *app) mountInBackground(ctx context.Context) error {
	return a.startInBackground(ctx, a.args, a.stdout, nil)
}

// startInBackground is that for a mount command of any arguments. What it prints goes
// to stdout; nil for nowhere. key is that of an encrypted repository, if it is known.
func (a *app) startInBackground(ctx context.Context, args []string, stdout io.Writer, key *chunk.Key) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("mount: starting a process: %w", err)
	}
	ready, theirs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("mount: starting a process: %w", err)
	}
	defer ready.Close()
	secrets, err := newSecretPipe(4, key)
	if err != nil {
		theirs.Close()
		return fmt.Errorf("mount: starting a process: %w", err)
	}
	defer secrets.close()
	cmd := exec.Command(self)
	cmd.Args = append([]string{os.Args[0]}, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, stdout, a.stderr
	cmd.Env = append(os.Environ(), readyEnv+"=3", secrets.env)
	cmd.ExtraFiles = []*os.File{theirs, secrets.theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// Whatever else we inherited, such as a lock or the end of a pipe, should
	// end with us.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		a.logger().Info("close_range", "err", err)
	}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return fmt.Errorf("mount: starting a process: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
	word, err := secrets.answer(ctx, ready, a.secrets.Passphrase, a.secrets.HaveIdentities())
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
		return &exitError{exit.ExitCode()} // it said why
	}
	if err == nil {
		err = errors.New("it ended")
	}
	return fmt.Errorf("mount: the process in the background: %w", err)
}

// background is what a process in the background has of the one that started it.
type background struct{ pipe *os.File }

// startedByMount tells whether this process was started to mount in the
// background; nil if not.
func (a *app) startedByMount() *background {
	fd, err := strconv.Atoi(a.getenv(readyEnv))
	if err != nil {
		return nil
	}
	os.Unsetenv(readyEnv)
	unix.CloseOnExec(fd)
	return &background{os.NewFile(uintptr(fd), "ready")}
}

// detach leaves the world of the process that started us. What is said from here on goes to a file in the folder logs, one for
// each mount point.
func (b *background) detach(logs, mountPoint string) error {
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

// ready tells the process that started us that all is well.
func (b *background) ready() error {
	_, err := io.WriteString(b.pipe, readyWord)
	return errors.Join(err, b.pipe.Close())
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

// inherit takes what whoever started this process has passed on.
func (a *app) inherit(b *background) error {
	take := func(name string) *os.File {
		fd, err := strconv.Atoi(a.getenv(name))
		if err != nil {
			return nil
		}
		os.Unsetenv(name)
		unix.CloseOnExec(fd)
		return os.NewFile(uintptr(fd), "secrets")
	}
	if f := take(keyFdEnv); f != nil {
		defer f.Close()
		var key chunk.Key
		if _, err := io.ReadFull(f, key[:]); err != nil {
			return fmt.Errorf("mount: the key of the repository: %w", err)
		}
		a.secrets.Key = &key
	}
	if f := take(askFdEnv); f != nil {
		a.secrets.Ask = (&starter{ready: b.pipe, secrets: f}).ask
	}
	return nil
}

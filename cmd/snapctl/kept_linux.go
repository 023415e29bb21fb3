package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine"
	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/remote"
)

// keepMount has what this process serves kept as long as it serves it: by the keeper that
// first gives, and by another whenever there is none any more. args are those of a server
// that takes over, and key that of an encrypted repository. That there is no keeper is no
// reason to end: then the mount dies with this process.
func (a *app) keepMount(m *engine.Mount, first func() (*keeperOf, error), args []string, key *chunk.Key) {
	k, err := keptBy(m, first)
	if errors.Is(err, fusefs.ErrNoTakeOver) {
		return // which snapctl mounts says
	}
	go a.watchKeeper(m, k, err, func() (*keeperOf, error) { return startKeeper(args, key, m.Dir) })
}

// keptBy has a keeper that start gives keep a mount.
func keptBy(m *engine.Mount, start func() (*keeperOf, error)) (*keeperOf, error) {
	k, err := start()
	if err != nil {
		return nil, err
	}
	if err := m.KeepWith(k); err != nil {
		k.Release()
		return nil, err
	}
	return k, nil
}

// watchKeeper replaces the keeper of a mount whenever it dies, as long as this process
// serves it: the first at once, and one that dies again and again, or cannot be started,
// more and more slowly. It does not give up: perhaps the machine has no memory left, and
// will have some. k is the first, nil if err says why there is none.
func (a *app) watchKeeper(m *engine.Mount, k *keeperOf, err error, start func() (*keeperOf, error)) {
	var wait time.Duration
	for {
		if err == nil {
			began := time.Now()
			select {
			case <-k.gone:
			case <-m.ServerEnded():
				return
			}
			if k.released.Load() {
				return
			}
			err = fmt.Errorf("its keeper (process %d) has died", k.pid)
			if time.Since(began) > longEnough {
				wait = 0
			}
		}
		a.ui.Console.Line(fmt.Sprintf("%s warning: nobody restarts this process if it dies: %v", time.Now().Format(time.RFC3339), err))
		select {
		case <-m.ServerEnded():
			return
		case <-time.After(wait):
		}
		wait = min(max(firstDelay, 2*wait), longEnough)
		if k, err = keptBy(m, start); errors.Is(err, engine.ErrServerEnds) {
			return
		}
		if err == nil {
			a.ui.Console.Line(fmt.Sprintf("%s process %d is its keeper now", time.Now().Format(time.RFC3339), k.pid))
		}
	}
}

// serverArgs are the arguments of a server that takes over: those of a mount
// command that would mount the same. Its working directory is another.
func (a *app) serverArgs(repo *engine.Repository, m *engine.Mount) ([]string, error) {
	location, _, err := a.location()
	if err != nil {
		return nil, err
	}
	url, err := remote.ParseURL(location)
	if err != nil {
		return nil, err
	}
	cache, err := remote.Abs(repo.CacheDir())
	if err != nil {
		return nil, err
	}
	state, err := remote.Abs(a.state())
	if err != nil {
		return nil, err
	}
	args := []string{"mount", "--repo", url.String(), "--cache-dir", cache, "--state-dir", state}
	if a.cacheSize > 0 {
		args = append(args, "--cache-size", strconv.FormatInt(a.cacheSize, 10))
	}
	if a.ui.Quiet {
		args = append(args, "--quiet")
	}
	if a.verbose > 0 {
		args = append(args, "-"+strings.Repeat("v", a.verbose))
	}
	return append(args, "--", m.Snapshot.ID.String(), m.Dir), nil
}

// takesOver tells whether this process was started to take over a mount.
func takesOver(getenv func(string) string) bool { return getenv(takeOverEnv) != "" }

// startedToTakeOver gives the socket of the keeper that started this process, nil
// if none did.
func (a *app) startedToTakeOver() *os.File {
	fd, err := strconv.Atoi(a.getenv(takeOverEnv))
	if err != nil {
		return nil
	}
	os.Unsetenv(takeOverEnv)
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "keeper")
}

// takeOver serves what a server has served that died.
func (a *app) takeOver(ctx context.Context, socket *os.File) error {
	conn, err := unixConn(socket)
	if err != nil {
		return err
	}
	received, err := receive(conn)
	if err != nil {
		return fmt.Errorf("mount: from the keeper: %w", err)
	}
	var message keepMessage
	if err := json.Unmarshal(received.data, &message); err != nil {
		return fmt.Errorf("mount: from the keeper: %w", err)
	}
	a.secrets.Key = message.Key
	repo, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer a.closeRepo(repo)
	tuneServer()
	m, err := repo.TakeOver(ctx, &engine.Handover{State: message.State, Files: received.files}, a.told(engine.MountOptions{}))
	if err != nil {
		return err
	}
	a.ui.Console.Line(fmt.Sprintf("%s process %d has taken over", time.Now().Format(time.RFC3339), os.Getpid()))
	a.keepMount(m, func() (*keeperOf, error) { return keeperBehind(conn, message.Args, message.Key) }, message.Args, message.Key)
	return a.untilEnded(ctx, m)
}

// keeperBehind is the keeper that started this process, if it still lives.
func keeperBehind(conn *net.UnixConn, args []string, key *chunk.Key) (*keeperOf, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var peer *unix.Ucred
	var peerErr error
	err = raw.Control(func(fd uintptr) { peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, peerErr); err != nil {
		return nil, err
	}
	k, err := newKeeperOf(conn, int(peer.Pid), args, key)
	if err != nil {
		return nil, err
	}
	if os.Getppid() != int(peer.Pid) { // else it is that process, and not another with its number
		conn.Close()
		return nil, errors.New("the keeper has died")
	}
	k.ready.Store(true)
	return k, nil
}

// A keeperOf is what a server has of its keeper: engine.Keeper.
type keeperOf struct {
	conn    *net.UnixConn
	args    []string
	key     *chunk.Key // of an encrypted repository; else nil
	pid     int
	process *os.File      // pidfd
	gone    chan struct{} // closed when it is, and conn and process are closed

	ready, released atomic.Bool
}

// keeperGrace is how long a keeper may take to end.
const keeperGrace = 5 * time.Second

// startKeeper starts the keeper of this process. args are those of a server that
// takes over, and key that of an encrypted repository; about is for lists of processes.
func startKeeper(args []string, key *chunk.Key, about string) (*keeperOf, error) {
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	us := os.NewFile(uintptr(self), "server")
	defer us.Close()
	conn, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{os.Args[0], "keeper", "of", about}
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), keeperEnv+"=1")
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs, us}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, err
	}
	go cmd.Wait()
	k, err := newKeeperOf(conn, cmd.Process.Pid, args, key)
	if err == nil {
		go func() {
			m, err := receive(conn)
			k.ready.Store(err == nil && m.kind == msgReady)
		}()
	}
	return k, err
}

func newKeeperOf(conn *net.UnixConn, pid int, args []string, key *chunk.Key) (*keeperOf, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		conn.Close()
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	k := &keeperOf{conn: conn, args: args, key: key, pid: pid, process: os.NewFile(uintptr(pidfd), "keeper"), gone: make(chan struct{})}
	go func() {
		defer close(k.gone)
		pollDead(pidfd)
		conn.Close()
		k.process.Close()
	}()
	return k, nil
}

// Pid is engine.Keeper.
func (k *keeperOf) Pid() int {
	if !k.Alive() || !k.ready.Load() {
		return 0 // of one that begins the first signal would be the end
	}
	return k.pid
}

// Alive is engine.Keeper.
func (k *keeperOf) Alive() bool {
	select {
	case <-k.gone:
		return false
	default:
		return true
	}
}

// Keep is engine.Keeper.
func (k *keeperOf) Keep(h *engine.Handover) error {
	b, err := json.Marshal(keepMessage{Args: k.args, Key: k.key, State: h.State})
	if err == nil && len(b) >= maxMessage {
		err = errors.New("there is too much to hand over")
	}
	if err != nil {
		return err
	}
	return send(k.conn, msgKeep, b, h.Files)
}

// Release is engine.Keeper. It ends the keeper, also one that is stopped.
func (k *keeperOf) Release() {
	k.released.Store(true)
	if send(k.conn, msgEnd, nil, nil) == nil {
		select {
		case <-k.gone:
			return
		case <-time.After(keeperGrace):
		}
	}
	if raw, err := k.process.SyscallConn(); err == nil { // else it is gone
		raw.Control(func(pidfd uintptr) { unix.PidfdSendSignal(int(pidfd), unix.SIGKILL, nil, 0) })
	}
	<-k.gone
}

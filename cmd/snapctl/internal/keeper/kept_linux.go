package keeper

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine"
)

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

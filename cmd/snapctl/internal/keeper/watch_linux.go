package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine"
	"github.com/snapctl/snapctl/fusefs"
)

// takeOverEnv is set for a server that follows one that died: the descriptor of the socket.
const takeOverEnv = "SNAPCTL_MOUNT_TAKEOVER_FD"

// A Mount is a mount that this process serves. *engine.Mount is one.
type Mount interface {
	// KeepWith is that of *engine.Mount: it has a keeper keep the mount.
	KeepWith(engine.Keeper) error
	// ServerEnded is closed when this process does not serve it any more.
	ServerEnded() <-chan struct{}
}

// A Server is this process, which serves a mount that is to outlive it.
type Server struct {
	Args []string   // of this program, as one that takes over
	Key  *chunk.Key // of an encrypted repository; else nil
	Dir  string     // a mount point, for lists of processes
	// Tell tells people that a keeper has died, and which is the next. It is called by
	// another goroutine.
	Tell func(string)
}

// Keep has a mount kept as long as this process serves it: by a keeper that it starts, and
// by another whenever there is none any more. That there is no keeper is no reason to end:
// then the mount dies with this process.
func (s *Server) Keep(m Mount) { s.keepBy(m, s.startKeeper) }

// keepBy is Keep with a keeper that first gives.
func (s *Server) keepBy(m Mount, first func() (*keeperOf, error)) {
	k, err := keptBy(m, first)
	if errors.Is(err, fusefs.ErrNoTakeOver) {
		return // which snapctl mounts says
	}
	go s.watch(m, k, err)
}

func (s *Server) startKeeper() (*keeperOf, error) { return startKeeper(s.Args, s.Key, s.Dir) }

// keptBy has a keeper that start gives keep a mount.
func keptBy(m Mount, start func() (*keeperOf, error)) (*keeperOf, error) {
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

// watch replaces the keeper of a mount whenever it dies, as long as this process
// serves it: the first at once, and one that dies again and again, or cannot be started,
// more and more slowly. It does not give up: perhaps the machine has no memory left, and
// will have some. k is the first, nil if err says why there is none.
func (s *Server) watch(m Mount, k *keeperOf, err error) {
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
		s.Tell(fmt.Sprintf("%s warning: nobody restarts this process if it dies: %v", time.Now().Format(time.RFC3339), err))
		select {
		case <-m.ServerEnded():
			return
		case <-time.After(wait):
		}
		wait = min(max(firstDelay, 2*wait), longEnough)
		if k, err = keptBy(m, s.startKeeper); errors.Is(err, engine.ErrServerEnds) {
			return
		}
		if err == nil {
			s.Tell(fmt.Sprintf("%s process %d is its keeper now", time.Now().Format(time.RFC3339), k.pid))
		}
	}
}

// TakesOver tells whether this process was started to take over a mount.
func TakesOver(getenv func(string) string) bool { return getenv(takeOverEnv) != "" }

// A Handed is what a keeper hands to the process that is to take over from a server which
// died.
type Handed struct {
	Key      *chunk.Key       // of an encrypted repository; else nil
	Handover *engine.Handover // for engine.Repository.TakeOver

	args []string
	conn *net.UnixConn // to the keeper
}

// Inherit gives what the keeper hands over that started this process, nil if none did.
func Inherit(getenv func(string) string) (*Handed, error) {
	fd, err := strconv.Atoi(getenv(takeOverEnv))
	if err != nil {
		return nil, nil
	}
	os.Unsetenv(takeOverEnv)
	unix.CloseOnExec(fd)
	conn, err := unixConn(os.NewFile(uintptr(fd), "keeper"))
	if err != nil {
		return nil, err
	}
	received, err := receive(conn)
	if err != nil {
		return nil, fmt.Errorf("mount: from the keeper: %w", err)
	}
	var message keepMessage
	if err := json.Unmarshal(received.data, &message); err != nil {
		return nil, fmt.Errorf("mount: from the keeper: %w", err)
	}
	return &Handed{
		Key: message.Key, Handover: &engine.Handover{State: message.State, Files: received.files},
		args: message.Args, conn: conn,
	}, nil
}

// Keep is Server.Keep, by the keeper that handed this over, if it still lives. dir is a mount
// point, for lists of processes.
func (h *Handed) Keep(m Mount, dir string, tell func(string)) {
	s := &Server{Args: h.args, Key: h.Key, Dir: dir, Tell: tell}
	s.keepBy(m, func() (*keeperOf, error) { return keeperBehind(h.conn, h.args, h.Key) })
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

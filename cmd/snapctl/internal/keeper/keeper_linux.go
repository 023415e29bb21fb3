package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keeperEnv is set for a keeper.
const keeperEnv = "SNAPCTL_MOUNT_KEEPER"

// A server that dies again and again will go on doing so: perhaps because of one
// request. Then the mount is to die too, so that readers get errors.
const (
	// MaxDeaths is how many deaths in a row end a mount.
	MaxDeaths = 5

	longEnough = time.Minute // that a server has lived for its death to be the first
	firstDelay = 100 * time.Millisecond
)

// keeping is a keeper. It opens nothing, and its memory is that of an idle Go
// program.
type keeping struct {
	log     io.Writer
	last    []byte // message
	files   []*os.File
	ended   bool
	told    bool // by a signal, to stop
	deaths  int
	signals chan os.Signal
}

// Started tells whether this process was started to be a keeper.
func Started(getenv func(string) string) bool { return getenv(keeperEnv) != "" }

// Run is the whole keeper process, which logs to log. Descriptor 3 is the socket, and 4
// the server.
func Run(log io.Writer) error {
	os.Unsetenv(keeperEnv)
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	k := &keeping{log: log, signals: make(chan os.Signal, 1)}
	signal.Notify(k.signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	conn, err := unixConn(os.NewFile(3, "server"))
	if err != nil {
		k.say("%v", err)
		return err
	}
	_ = send(conn, msgReady, nil, nil) // or the server is dead
	debug.FreeOSMemory()               // of all that this program sets up for other purposes
	server := &served{pidfd: 4, conn: conn, how: "died", dead: make(chan struct{})}
	go func() {
		pollDead(4)
		close(server.dead)
	}()
	for server != nil {
		k.watch(server)
		server = k.replace(server)
	}
	return nil
}

func (k *keeping) say(format string, args ...any) {
	fmt.Fprintf(k.log, "%s keeper: %s\n", time.Now().Format(time.RFC3339), fmt.Sprintf(format, args...))
}

// served is a server, as its keeper sees it.
type served struct {
	pidfd int
	conn  *net.UnixConn
	since time.Time     // zero for the first
	dead  chan struct{} // closed when it is
	how   string        // it died, once dead is closed
}

// pollDead waits for the end of a process.
func pollDead(pidfd int) {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// watch takes what the server says until it is dead.
func (k *keeping) watch(s *served) {
	messages := make(chan received)
	go func() {
		defer close(messages)
		for {
			m, err := receive(s.conn)
			if err != nil {
				return
			}
			messages <- m
		}
	}()
	dead := s.dead
	for dead != nil || messages != nil {
		select {
		case m, ok := <-messages:
			if !ok {
				messages = nil
				continue
			}
			k.take(m)
			if k.ended {
				return
			}
		case <-k.signals:
			// It is for both of us. The server unmounts, and tells us. If it ends without,
			// as by a second signal (a service manager sends one to each of us), it has been
			// asked to.
			k.told = true
			unix.PidfdSendSignal(s.pidfd, unix.SIGTERM, nil, 0)
		case <-dead:
			dead = nil
		}
	}
	s.conn.Close()
	unix.Close(s.pidfd)
}

func (k *keeping) take(m received) {
	switch m.kind {
	case msgKeep:
		k.forget()
		k.last, k.files = m.data, m.files
	case msgEnd:
		k.ended = true
	}
}

func (k *keeping) forget() {
	for _, f := range k.files {
		f.Close()
	}
	k.last, k.files = nil, nil
}

// replace starts another server in the place of one that died. It gives nil if
// there is to be none.
func (k *keeping) replace(s *served) *served {
	for {
		if k.ended || k.told || k.last == nil || k.unmounted(0) {
			return nil
		}
		if k.deaths++; time.Since(s.since) > longEnough {
			k.deaths = 1
		}
		if k.deaths >= MaxDeaths {
			k.say("the server %s, the %dth time in a row; giving up: the mount is dead", s.how, k.deaths)
			return nil
		}
		k.say("the server %s; starting another", s.how)
		if k.deaths > 1 && k.pause(firstDelay<<(k.deaths-2)) {
			return nil
		}
		next, err := k.start()
		if err == nil {
			return next
		}
		s = &served{since: time.Now(), how: fmt.Sprintf("cannot be started: %v", err)}
	}
}

// pause waits, and reports whether the keeper is to end.
func (k *keeping) pause(d time.Duration) bool {
	gone := make(chan bool, 1)
	go func() { gone <- k.unmounted(d) }()
	select {
	case g := <-gone:
		return g
	case <-k.signals:
		return true
	}
}

// unmounted reports whether nothing is mounted any more, as soon as that is so, but
// after some time at the latest. It must not be asked while a server lives: each
// request would wake who asks.
func (k *keeping) unmounted(patience time.Duration) bool {
	var devices []unix.PollFd
	for _, f := range k.files[min(2, len(k.files)):] { // see engine.Handover
		devices = append(devices, unix.PollFd{Fd: int32(f.Fd())})
	}
	for until := time.Now().Add(patience); ; {
		left := devices[:0]
		wait := max(time.Until(until), 0)
		_, err := unix.Poll(devices, int(wait/time.Millisecond))
		for _, d := range devices {
			if d.Revents&unix.POLLERR == 0 {
				left = append(left, d)
			}
		}
		if devices = left; len(left) == 0 {
			return true
		}
		if wait == 0 && !errors.Is(err, unix.EINTR) {
			return false
		}
	}
}

// start starts a server that takes over.
func (k *keeping) start() (*served, error) {
	var m keepMessage
	if err := json.Unmarshal(k.last, &m); err != nil {
		return nil, err
	}
	conn, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{os.Args[0]}, m.Args...)
	cmd.Env = append(os.Environ(), takeOverEnv+"=3")
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err = send(conn, msgKeep, k.last, k.files); err == nil {
		err = cmd.Start()
	}
	theirs.Close()
	if err != nil {
		conn.Close()
		return nil, err
	}
	s := &served{conn: conn, since: time.Now(), dead: make(chan struct{})}
	if s.pidfd, err = unix.PidfdOpen(cmd.Process.Pid, 0); err != nil {
		s.pidfd = -1
	}
	go func() {
		cmd.Wait()
		s.how = fmt.Sprintf("(process %d) died: %v", cmd.Process.Pid, cmd.ProcessState)
		close(s.dead)
	}()
	return s, nil
}

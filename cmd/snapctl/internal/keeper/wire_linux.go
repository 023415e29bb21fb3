package keeper

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/chunk"
)

// What is sent through the socket: see the package comment.
const (
	msgReady = 'r'
	msgKeep  = 'k'
	msgEnd   = 'e'

	maxMessage = 64 << 10
	maxPassed  = 128 // descriptors
)

// keepMessage is what comes with a k.
type keepMessage struct {
	Args  []string   `json:"args"`          // that make this program a server which takes over
	Key   *chunk.Key `json:"key,omitempty"` // of an encrypted repository
	State []byte     `json:"state"`         // engine.Handover
}

// received is a message with its descriptors.
type received struct {
	kind  byte
	data  []byte
	files []*os.File
}

func socketPair() (*net.UnixConn, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	conn, err := unixConn(os.NewFile(uintptr(pair[0]), "socket"))
	if err != nil {
		theirs.Close()
	}
	return conn, theirs, err
}

// unixConn is a socket, whose file it closes.
func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("not a socket of this machine")
	}
	return u, nil
}

// sendPatience is how long a message may take: the other side may be stopped.
const sendPatience = time.Second

func send(c *net.UnixConn, kind byte, data []byte, files []*os.File) error {
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	c.SetWriteDeadline(time.Now().Add(sendPatience))
	_, _, err := c.WriteMsgUnix(append([]byte{kind}, data...), rights, nil)
	return err
}

func receive(c *net.UnixConn) (received, error) {
	b, control := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*maxPassed))
	n, rights, flags, _, err := c.ReadMsgUnix(b, control)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return received{}, err
	}
	m := received{kind: b[0], data: append([]byte(nil), b[1:n]...)}
	messages, err := unix.ParseSocketControlMessage(control[:rights])
	for i := range messages {
		fds, _ := unix.ParseUnixRights(&messages[i])
		for _, fd := range fds {
			m.files = append(m.files, os.NewFile(uintptr(fd), "kept"))
		}
	}
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = fmt.Errorf("a message of more than %d bytes", maxMessage)
	}
	if err != nil {
		for _, f := range m.files {
			f.Close()
		}
		return received{}, err
	}
	return m, nil
}

package fusefs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// A Connection is what another process needs to serve a mount on when its server
// has died. As long as somebody has a copy of Device the kernel keeps the mount,
// and readers wait.
//
// There is nothing else to hand over: inode numbers are ranks, no file has a
// handle, and nothing changes. The kernel remembers what it told the first server
// about itself, and what that answered, and does not say it again; hence Init and
// Answer. What the dead server had taken and not answered the kernel sends once
// more when it is asked to (FUSE_NOTIFY_RESEND).
type Connection struct {
	Device *os.File // a copy of /dev/fuse
	Init   []byte   // the kernel's first request
	Answer []byte   // what was answered
}

// Connection gives what TakeOver needs; the caller closes the Device. It fails with
// ErrNoTakeOver where there is no TakeOver, and with os.ErrClosed if nothing is
// mounted any more.
func (s *Server) Connection() (*Connection, error) {
	if s.server.KernelSettings().Flags64()&fuse.CAP_HAS_RESEND == 0 {
		return nil, ErrNoTakeOver
	}
	raw, err := s.device.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	if raw.Control(func(dev uintptr) { fd, err = unix.FcntlInt(dev, unix.F_DUPFD_CLOEXEC, 3) }) != nil {
		return nil, os.ErrClosed // which is the only error that there can be
	}
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return &Connection{os.NewFile(uintptr(fd), "/dev/fuse"), s.device.init, s.device.answer}, nil
}

// TakeOver makes the server of a mount at dir whose server has died. It must really have:
// of two servers, each would take requests from the other. The rest is as for Mount,
// and must be what it was then. It serves from Start on; nothing can fail from here on.
// The Connection's Device is closed with the Server, or if this fails.
func TakeOver(c *Connection, dir string, m *manifest.Manifest, tree *manifest.Tree, src Source, o *Options) (*Server, error) {
	s, err := takeOver(c, dir, m, tree, src, o)
	if err != nil {
		c.Device.Close()
		return nil, fmt.Errorf("taking over the mount at %s: %w", dir, err)
	}
	return s, nil
}

// Start has a Server that TakeOver gave serve.
func (s *Server) Start() { s.serve() }

// Discard gives up a Server that TakeOver gave and that was not started. Another may take
// over from the same dead one.
func (s *Server) Discard() {
	letGo(s.device.attach)
	s.device.file.Close()
	s.stop()
}

func takeOver(c *Connection, dir string, m *manifest.Manifest, tree *manifest.Tree, src Source, o *Options) (_ *Server, err error) {
	if o == nil {
		o = &Options{}
	}
	s := newServerOf(dir, m, tree, src, o)
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	s.fs.mounted.Store(true)
	server, answer, attach, err := newServer(s.fs, c.Init, serverOptions(m))
	switch {
	case err != nil:
		return nil, err
	case server.KernelSettings().Flags64()&fuse.CAP_HAS_RESEND == 0:
		return nil, ErrNoTakeOver
	case !bytes.Equal(answer, c.Answer):
		return nil, errors.New("the dead server spoke to the kernel in another way")
	}
	if err := attach(c.Device); err != nil {
		return nil, err
	}
	// Before anything is read: what this server takes is not to be sent twice.
	if err := resend(c.Device); err != nil {
		letGo(attach)
		return nil, err
	}
	s.server, s.device = server, &device{c.Device, c.Init, c.Answer, attach}
	return s, nil
}

// resend has the kernel send again what was taken and not answered. The numbers
// of such requests have a bit that others have not, which is echoed as they are.
func resend(dev *os.File) error {
	h := fuse.OutHeader{Length: uint32(unsafe.Sizeof(fuse.OutHeader{})), Status: -fuse.NOTIFY_RESEND}
	b, err := binary.Append(nil, binary.NativeEndian, &h)
	if err == nil {
		_, err = retry(func() (int, error) { return unix.Write(int(dev.Fd()), b) })
	}
	if err != nil {
		return fmt.Errorf("having requests sent again: %w", err)
	}
	return nil
}

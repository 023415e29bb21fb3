package fusefs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// maxRequest is how much the kernel may ask for at once.
const maxRequest = 1 << 20

// openDevice mounts a file system at dir, and gives its /dev/fuse, where the
// kernel's first request waits. go-fuse can do that too, but keeps the descriptor
// to itself (see TakeOver), and leaves it to every program that this process
// starts: when this process dies the mount would not be dead but silent, for as
// long as that program runs.
func openDevice(dir, source string, allowOther bool) (*os.File, error) {
	if os.Geteuid() == 0 {
		f, err := mountDevice(dir, source, allowOther)
		if !errors.Is(err, unix.EPERM) {
			return f, err
		}
		if _, noHelper := helper(); noHelper != nil {
			return nil, err
		}
	}
	return mountByHelper(dir, source, allowOther)
}

func mountDevice(dir, source string, allowOther bool) (*os.File, error) {
	// Not os.OpenFile, which would have the runtime poll it.
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/fuse", Err: err}
	}
	f := os.NewFile(uintptr(fd), "/dev/fuse")
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d,default_permissions", fd, unix.S_IFDIR, os.Geteuid(), os.Getegid(), maxRequest)
	if allowOther {
		options += ",allow_other"
	}
	if err := unix.Mount(source, dir, FSType, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_RDONLY, options); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// mountByHelper is for users who may not call mount(2). The helper sends the
// descriptor through a socket.
func mountByHelper(dir, source string, allowOther bool) (*os.File, error) {
	program, err := helper()
	if err == nil && os.Geteuid() != 0 {
		err = canUnmount()
	}
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "fusermount3")
	_, subtype, _ := strings.Cut(FSType, ".")
	options := fmt.Sprintf("ro,default_permissions,fsname=%s,subtype=%s,max_read=%d", source, subtype, maxRequest)
	if allowOther {
		options += ",allow_other"
	}
	cmd := exec.Command(program, "-o", options, "--", dir)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	out, err := cmd.CombinedOutput()
	theirs.Close()
	if err != nil {
		if text := strings.TrimSpace(string(out)); text != "" {
			err = errors.New(text)
		}
		return nil, err
	}
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 4), control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("%s sent no descriptor", filepath.Base(program))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("%s sent no descriptor", filepath.Base(program))
	}
	return os.NewFile(uintptr(fds[0]), "/dev/fuse"), nil
}

// A device is a /dev/fuse that go-fuse is to serve. Whoever has a copy keeps the
// mount from dying; see TakeOver.
type device struct {
	file *os.File
	// init is the first request, and answer what the server said to it. They say
	// how the kernel and the server speak to each other from then on.
	init, answer []byte
	// attach gives the server another device.
	attach func(dev *os.File) error
}

// newServer makes a server of go-fuse and has it answer the first request, which
// is not sent to it by the kernel but through a socket: so that the two are known,
// and the kernel's, which comes but once, can be repeated. It then takes the place
// of the socket, by the number of its descriptor.
func newServer(fs fuse.RawFileSystem, init []byte, options *fuse.MountOptions) (_ *fuse.Server, answer []byte, attach func(dev *os.File) error, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, nil, os.NewSyscallError("socketpair", err)
	}
	kernel, theirs := pair[0], pair[1]
	defer unix.Close(kernel)
	if _, err := unix.Write(kernel, init); err != nil {
		unix.Close(theirs)
		return nil, nil, nil, os.NewSyscallError("write", err)
	}
	// From here on theirs is go-fuse's, which closes it if it fails.
	server, err := fuse.NewServer(fs, fmt.Sprintf("/dev/fd/%d", theirs), options)
	if err != nil {
		return nil, nil, nil, err
	}
	touchBuffers(server)
	answer = make([]byte, 4<<10)
	n, err := unix.Read(kernel, answer)
	if err != nil {
		return nil, nil, nil, os.NewSyscallError("read", err)
	}
	var h fuse.OutHeader
	if _, err := binary.Decode(answer[:n], binary.NativeEndian, &h); err != nil || h.Status != 0 {
		return nil, nil, nil, fmt.Errorf("the first request is answered with error %d", -h.Status)
	}
	attach = func(dev *os.File) error {
		defer runtime.KeepAlive(server) // else the collector closes theirs, which is another's then
		return os.NewSyscallError("dup3", unix.Dup3(int(dev.Fd()), theirs, unix.O_CLOEXEC))
	}
	return server, bytes.Clone(answer[:n]), attach, nil
}

// letGo takes the device from a server that is not to serve. go-fuse closes its descriptor
// when it ends to serve, or the collector does; until then it is one of /dev/null.
func letGo(attach func(dev *os.File) error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return // the collector frees it later
	}
	defer null.Close()
	_ = attach(null)
}

// touchBuffers has the buffers into which requests are read be in memory from the
// beginning, and reports whether it could. A thread that is being killed may take
// a request still. If it then had to wait for a page of its buffer it would fail,
// and who asked would get EIO, and not wait for the server that takes over: as
// measured, of 75 requests that came just when a server was killed 28. go-fuse has
// no way to give it buffers.
func touchBuffers(server *fuse.Server) bool {
	v := reflect.ValueOf(server).Elem().FieldByName("readPool")
	if !v.IsValid() || v.Type() != reflect.TypeFor[sync.Pool]() {
		return false
	}
	pool := (*sync.Pool)(unsafe.Pointer(v.UnsafeAddr()))
	make := pool.New
	pool.New = func() any {
		b := make()
		if b, ok := b.([]byte); ok {
			for i := 0; i < min(len(b), 8<<10); i += 4 << 10 { // no request of a reader is longer
				b[i] = 0
			}
		}
		return b
	}
	return true
}

// connect reads the kernel's first request from a device, and has a new server
// answer it.
func connect(dev *os.File, fs fuse.RawFileSystem, options *fuse.MountOptions) (*fuse.Server, *device, error) {
	init := make([]byte, 8<<10) // the kernel insists on so much room
	n, err := retry(func() (int, error) { return unix.Read(int(dev.Fd()), init) })
	if err != nil {
		return nil, nil, fmt.Errorf("the kernel's first request: %w", err)
	}
	d := &device{file: dev, init: bytes.Clone(init[:n])}
	server, answer, attach, err := newServer(fs, d.init, options)
	if err != nil {
		return nil, nil, err
	}
	d.answer, d.attach = answer, attach
	if err := attach(dev); err != nil {
		return nil, nil, err
	}
	if _, err := retry(func() (int, error) { return unix.Write(int(dev.Fd()), answer) }); err != nil {
		letGo(attach)
		return nil, nil, fmt.Errorf("the answer to the kernel's first request: %w", err)
	}
	return server, d, nil
}

// retry repeats what a signal interrupted.
func retry(call func() (int, error)) (n int, err error) {
	for {
		if n, err = call(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// settle has the kernel learn that files of the mount cannot be polled, by asking
// about one whose name go-fuse answers. The Go runtime polls every file that it
// opens: if that were a file of a mount of the same process, it could stand still.
func settle(dir string) error {
	path := filepath.Join(dir, ".go-fuse-epoll-hack")
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0) // what it says does not matter
	return unix.Close(fd)
}

package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"golang.org/x/sys/unix"
)

// While there is a fork nobody writes into the directory beneath it: whoever does not
// know that the fork is unmounted, or dead, gets an error. What they wrote the next mount
// would hide. So the directory is made immutable, where its file system and the rights
// of this process allow, or else it gets mode 0, which does not stop root.

// immutableFlag is that of ioctl_iflags(2).
const immutableFlag = 0x10

// A bareDir is what the directory was before that. A directory that held something is
// left as it is, and has none.
type bareDir struct {
	forkCopy
	Mode      uint32     `json:"permissions"`
	Immutable bool       `json:"immutable,omitempty"`
	Handle    *dirHandle `json:"handle,omitempty"` // nil if the file system has none
}

// openBare opens a directory beneath a fork, before that is mounted: afterwards no path
// leads to it.
func openBare(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// bareAt says what a directory is; nil if it holds something.
func bareAt(dir string) (*bareDir, error) {
	if empty, err := fsys.IsEmptyDir(dir); !empty || err != nil {
		return nil, err
	}
	f, err := openBare(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := &bareDir{Handle: handleOf(f)}
	if err := b.stat(f); err != nil {
		return nil, err
	}
	flags, err := inodeFlags(f, func(flags uint32) uint32 { return flags })
	b.Immutable = err == nil && flags&immutableFlag != 0
	return b, nil
}

// stat fills in what the directory is, but for its flags.
func (b *bareDir) stat(f *os.File) error {
	c, err := identify(int(f.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	b.forkCopy, b.Mode = *c, st.Mode&0o7777
	return nil
}

// wasBare is what the directory beneath the fork was; nil if it is not guarded.
func (e *forkEntry) wasBare() *bareDir {
	if e.rec.Bare == nil && e.rec.MadeDir {
		return &bareDir{Mode: 0o755}
	}
	return e.rec.Bare
}

// bare opens the directory that is to be, or was, beneath the fork, at a path. It gives
// nil if the fork has none, or if that is not there. One that an earlier version made for
// the fork is known by its being guarded; toBe says that it need not be yet.
func (e *forkEntry) bare(dir string, toBe bool) (*os.File, error) {
	was := e.wasBare()
	if was == nil {
		return nil, nil
	}
	f, err := openBare(dir)
	if fsys.IsAny(err, fs.ErrNotExist, unix.ENOTDIR, unix.ELOOP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	now := &bareDir{}
	err = now.stat(f)
	known := now.forkCopy == was.forkCopy
	if e.rec.Bare == nil {
		flags, _ := inodeFlags(f, func(flags uint32) uint32 { return flags })
		known = toBe || now.Mode == 0 || flags&immutableFlag != 0
	}
	if err != nil || !known {
		f.Close()
		return nil, err
	}
	return f, nil
}

// guardBare sees to it that nobody can write into a directory, as well as it can.
func guardBare(f *os.File) {
	_, err := inodeFlags(f, func(flags uint32) uint32 { return flags | immutableFlag })
	if err != nil {
		_ = unix.Fchmodat(unix.AT_FDCWD, descriptorPath(f), 0, 0) // which another user's is not changed by
	}
}

// restore makes the directory what it was.
func (b *bareDir) restore(f *os.File) error {
	if !b.Immutable {
		_, err := inodeFlags(f, func(flags uint32) uint32 { return flags &^ immutableFlag })
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%s is immutable: %w", f.Name(), err)
		}
	}
	now := &bareDir{}
	if err := now.stat(f); err != nil || now.Mode == b.Mode {
		return err
	}
	if err := unix.Fchmodat(unix.AT_FDCWD, descriptorPath(f), b.Mode, 0); err != nil {
		return &os.PathError{Op: "chmod", Path: f.Name(), Err: err}
	}
	return nil
}

// unguardToMount opens the directory beneath the fork, which is about to be mounted over
// it, or in the place of dead. guard is to be called when that is done, or failed.
//
// fusermount3 mounts for ordinary users where they may write, so then they can for as
// long as that takes.
func (e *forkEntry) unguardToMount(dead *mountinfo.Info) (guard func(), err error) {
	if dead != nil && e.rec.Mode != ForkFuse { // it is guarded, and there is no way to it
		return func() {}, nil
	}
	f, err := e.bare(e.where(), true)
	if f == nil {
		return func() {}, err
	}
	guard = func() { guardBare(f); f.Close() }
	if os.Geteuid() != 0 {
		if err := e.wasBare().restore(f); err != nil {
			guard()
			return nil, err
		}
	}
	return guard, nil
}

// unguard makes the directory beneath the fork what it was, if it is at a path. It
// reports whether it is.
func (e *forkEntry) unguard(dir string) (bool, error) {
	f, err := e.bare(dir, false)
	if f == nil {
		return false, err
	}
	defer f.Close()
	return true, e.wasBare().restore(f)
}

// inodeFlags gives the flags of a directory that chattr(1) sets, once they are changed.
func inodeFlags(f *os.File, change func(flags uint32) uint32) (uint32, error) {
	d, err := os.OpenFile(descriptorPath(f), os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	flags, err := unix.IoctlGetUint32(int(d.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return 0, os.NewSyscallError("ioctl", err)
	}
	want := change(flags)
	if want == flags {
		return flags, nil
	}
	return want, os.NewSyscallError("ioctl", unix.IoctlSetPointerInt(int(d.Fd()), unix.FS_IOC_SETFLAGS, int(want)))
}

// descriptorPath leads to what is open, also where no other path does.
func descriptorPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

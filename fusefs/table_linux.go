package fusefs

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// A Device is the number of a file system in the kernel. Mount points of one
// number are one file system: one server and one page cache.
type Device struct{ Major, Minor uint32 }

// String is the form of /proc/self/mountinfo, as in 0:45.
func (d Device) String() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// MarshalText and UnmarshalText make a device a string in JSON.
func (d Device) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText parses what MarshalText wrote.
func (d *Device) UnmarshalText(b []byte) error {
	major, minor, ok := strings.Cut(string(b), ":")
	a, err1 := strconv.ParseUint(major, 10, 32)
	i, err2 := strconv.ParseUint(minor, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return fmt.Errorf("%q is no device number", b)
	}
	*d = Device{uint32(a), uint32(i)}
	return nil
}

// A Point is a directory at which a snapshot is mounted, as the kernel has it.
type Point struct {
	Dir    string
	Source string // see SourceOf
	Device Device
	Whole  bool // all of the snapshot, not a bind mount of a directory of it
	// Covered: something else is mounted over it, and no path leads there. It is in use, and
	// cannot be unmounted before that.
	Covered bool
}

// SourceOf is the source of a snapshot's mounts, as in /proc/self/mountinfo.
func SourceOf(id manifest.ID) string { return sourcePrefix + id.String() }

const sourcePrefix = "snapctl:"

// Snapshot is the id of the snapshot that is mounted there.
func (p *Point) Snapshot() (manifest.ID, error) {
	return manifest.ParseID(strings.TrimPrefix(p.Source, sourcePrefix))
}

// Points gives all mount points of snapshots that this process can see, in the
// order of the kernel: what was mounted later, or on top, comes later.
func Points() ([]Point, error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("reading the table of mounts: %w", err)
	}
	covered := Covered(mounts)
	var all []Point
	for _, m := range mounts {
		if m.FSType == FSType {
			all = append(all, Point{m.Mountpoint, m.Source, Device{uint32(m.Major), uint32(m.Minor)}, m.Root == "/", covered[m] != nil})
		}
	}
	return all, nil
}

// mountAt is what is mounted at a path, that the path leads to; nil for nothing. over is what
// lies over a snapshot that is mounted there too, nil for nothing.
func mountAt(path string) (at, over *mountinfo.Info, err error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the table of mounts: %w", err)
	}
	covered := Covered(mounts)
	for _, m := range mounts {
		switch {
		case m.Mountpoint != path:
		case covered[m] == nil:
			at = m
		case m.FSType == FSType:
			over = covered[m]
		}
	}
	return at, over, nil
}

// Bind shows the snapshot that is mounted at from at dir as well: one file system
// at two mount points, each of which can be unmounted without the other. device
// is what must be mounted at from. Only root may, on Linux 5.12 or newer.
func Bind(from string, device Device, dir string) error {
	err := bind(from, device, dir)
	if err != nil {
		return fmt.Errorf("binding %s to %s: %w", from, dir, err)
	}
	return nil
}

func bind(from string, device Device, dir string) error {
	// A copy of the mount that is nowhere yet, so that it can be looked at first.
	fd, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	// What the kernel knows is enough: the server may be this process.
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return err
	}
	if got := (Device{st.Dev_major, st.Dev_minor}); got != device {
		return fmt.Errorf("device %v is mounted there, not %v", got, device)
	}
	// Whatever somebody made of the mount that this is a copy of.
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return err
	}
	return unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// Watch calls look at once and then whenever the table of mounts may have
// changed, until stop is closed. It returns when that is set up.
func Watch(stop <-chan struct{}, look func()) error {
	// Not os.Open: the runtime would poll the file too, and who polls first is the
	// only one that the kernel tells of a change.
	table, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/proc/self/mountinfo", Err: err}
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(table)
		return os.NewSyscallError("eventfd", err)
	}
	ended := make(chan struct{})
	go func() {
		<-stop
		var one [8]byte
		one[0] = 1
		unix.Write(wake, one[:]) // which cannot fail: the counter is 0
		<-ended
		unix.Close(wake)
	}()
	go func() {
		defer close(ended)
		defer unix.Close(table)
		// The kernel tells of changes since the last poll, and of the time before
		// the first one since the file was opened.
		fds := []unix.PollFd{{Fd: int32(table), Events: unix.POLLPRI}, {Fd: int32(wake), Events: unix.POLLIN}}
		for {
			look()
			for {
				_, err := unix.Poll(fds, -1)
				if err == nil {
					break
				}
				if !errors.Is(err, unix.EINTR) {
					return
				}
			}
			if fds[1].Revents != 0 {
				return
			}
		}
	}()
	return nil
}

// Probe asks the server of the mount at a path whether it is there, and waits
// that long for its answer.
func Probe(path string, patience time.Duration) error {
	answer := make(chan error, 1)
	go func() { // which lasts as long as the server keeps silent
		var st unix.Statfs_t // not stat, which the kernel answers for a server that is gone
		answer <- unix.Statfs(path, &st)
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-answer:
		if errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) {
			return ErrNoServer
		}
		return err
	case <-timer.C:
		return ErrNoAnswer
	}
}

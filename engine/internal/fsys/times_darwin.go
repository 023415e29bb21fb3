package fsys

import (
	"fmt"

	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

const utimeOmit = -2 // UTIME_OMIT of sys/stat.h

// SetTimesFD sets the modification time of an open file, by its spot: by a descriptor
// there are only microseconds.
func SetTimesFD(_ int, at Spot, t manifest.Time) error { return SetTimes(at.Dir, at.Name, t) }

// MknodAt makes a FIFO or a device; mode has its type.
func MknodAt(dir int, name string, mode uint32, dev manifest.Device) error {
	if mode&unix.S_IFMT == unix.S_IFIFO {
		return within(dir, func() error { return unix.Mkfifo(name, mode&^unix.S_IFMT) })
	}
	rdev := unix.Mkdev(dev.Major, dev.Minor)
	if unix.Major(rdev) != dev.Major || unix.Minor(rdev) != dev.Minor {
		return fmt.Errorf("%w: device numbers %d:%d are larger than there are here", unix.EPERM, dev.Major, dev.Minor)
	}
	return within(dir, func() error { return unix.Mknod(name, mode, int(int32(rdev))) })
}

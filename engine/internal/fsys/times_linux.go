package fsys

import (
	"fmt"

	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

const utimeOmit = unix.UTIME_OMIT

// SetTimesFD sets the modification time of an open file.
func SetTimesFD(fd int, _ Spot, t manifest.Time) error {
	if err := unix.UtimesNanoAt(fd, "", onlyModified(t), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("setting the time: %w", err)
	}
	return nil
}

// MknodAt makes a FIFO or a device; mode has its type.
func MknodAt(dir int, name string, mode uint32, dev manifest.Device) error {
	return unix.Mknodat(dir, name, mode, int(unix.Mkdev(dev.Major, dev.Minor)))
}

package engine

import (
	"fmt"

	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

const utimeOmit = unix.UTIME_OMIT

// setTimesFD sets the modification time of an open file.
func setTimesFD(fd int, _ spot, t manifest.Time) error {
	if err := unix.UtimesNanoAt(fd, "", onlyModified(t), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("setting the time: %w", err)
	}
	return nil
}

// mknodAt makes a FIFO or a device; mode has its type.
func mknodAt(dir int, name string, mode uint32, dev manifest.Device) error {
	return unix.Mknodat(dir, name, mode, int(unix.Mkdev(dev.Major, dev.Minor)))
}

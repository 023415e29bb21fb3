package fsys

import (
	"fmt"

	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// A Spot is an entry of an open directory.
type Spot struct {
	Dir  int
	Name string
}

// SetTimes sets the modification time of an entry of an open directory, of a link
// itself.
func SetTimes(dir int, name string, t manifest.Time) error {
	if err := unix.UtimesNanoAt(dir, name, onlyModified(t), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("setting the time: %w", err)
	}
	return nil
}

// onlyModified is what sets the modification time and leaves the access time.
func onlyModified(t manifest.Time) []unix.Timespec {
	return []unix.Timespec{{Nsec: utimeOmit}, {Sec: t.Sec, Nsec: int64(t.Nsec)}}
}

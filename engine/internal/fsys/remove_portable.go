//go:build !linux || portable

package fsys

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// RemoveAt removes an entry of an open directory and all below it, whatever the modes of
// directories that are ours.
func RemoveAt(parent int, name string) error {
	err := unix.Unlinkat(parent, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	var st unix.Stat_t
	if StatAt(parent, name, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	if os.Geteuid() != 0 && st.Mode&0o700 != 0o700 {
		_ = unix.Fchmodat(parent, name, 0o700, 0) // it is about to go
	}
	fd, notDir := OpenAt(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if notDir != nil {
		return notDir
	}
	names, err := ReadNames(fd)
	for _, sub := range names {
		if err == nil {
			err = RemoveAt(fd, sub)
		}
	}
	unix.Close(fd)
	if err != nil {
		return err
	}
	return unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
}

//go:build !linux || portable

package engine

import (
	"errors"

	"golang.org/x/sys/unix"
)

// removeAt removes an entry of an open directory and all below it.
func removeAt(parent int, name string) error {
	err := unix.Unlinkat(parent, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	fd, notDir := openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if notDir != nil {
		return err
	}
	names, err := readNames(fd)
	for _, sub := range names {
		if err == nil {
			err = removeAt(fd, sub)
		}
	}
	unix.Close(fd)
	if err != nil {
		return err
	}
	return unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
}

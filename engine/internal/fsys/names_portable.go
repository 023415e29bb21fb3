//go:build !linux || portable

package fsys

import (
	"os"

	"golang.org/x/sys/unix"
)

// ReadNames gives the names in an open directory, unordered.
func ReadNames(fd int) ([]string, error) {
	// By a descriptor of its own, which the os package closes.
	again, err := OpenAt(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	d := os.NewFile(uintptr(again), ".")
	defer d.Close()
	return d.Readdirnames(-1)
}

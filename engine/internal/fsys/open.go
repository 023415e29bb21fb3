package fsys

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// A tree is read and written relative to a file descriptor of its root, and no
// path below it ever follows a symbolic link: whoever swaps a directory for a
// link while snapctl works cannot lead it out of the tree.

// maxOpenPath is how much of a path one system call takes: PATH_MAX with room.
const maxOpenPath = 3 << 10

// OpenBelow opens a path below the directory root, "" for root itself, without
// following any symbolic link. The path may be longer than PATH_MAX.
func OpenBelow(root int, path string, flags int) (int, error) {
	if path == "" {
		path = "."
	}
	dir := root
	for len(path) > maxOpenPath {
		cut := strings.LastIndexByte(path[:maxOpenPath], '/')
		fd, err := openShort(dir, path[:cut], OpenPath|unix.O_DIRECTORY)
		if dir != root {
			unix.Close(dir)
		}
		if err != nil {
			return -1, err
		}
		dir, path = fd, path[cut+1:]
	}
	fd, err := openShort(dir, path, flags)
	if dir != root {
		unix.Close(dir)
	}
	return fd, err
}

func openShort(dir int, path string, flags int) (int, error) {
	flags |= unix.O_CLOEXEC | unix.O_NOFOLLOW
	if fd, ok, err := openWhole(dir, path, flags); ok {
		return fd, err
	}
	at := dir
	for {
		name, rest, more := strings.Cut(path, "/")
		f := flags
		if more {
			f = OpenPath | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		}
		fd, err := OpenAt(at, name, f)
		if at != dir {
			unix.Close(at)
		}
		if err != nil || !more {
			return fd, err
		}
		at, path = fd, rest
	}
}

// OpenAt is openat(2) without a mode, again where a signal came in between.
func OpenAt(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

package fsys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/disk"
	"golang.org/x/sys/unix"
)

// IsAny is errors.Is for any of several.
func IsAny(err error, targets ...error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}

// Pread is pread(2), again where a signal came in between. At the end of the file it reads 0 bytes.
func Pread(fd int, p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(fd, p, off)
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), err
		}
	}
}

// Resolve makes the path absolute and follows the links in it: what is
// swapped is the directory, not a link to it.
func Resolve(dir string) (string, error) {
	abs, err := remote.Abs(dir)
	if err != nil {
		return "", err
	}
	there, missing := os.Lstat(abs) // before it is followed: another restore may make it at any moment
	if p, err := filepath.EvalSymlinks(abs); err == nil {
		return p, nil
	}
	// It does not exist: then as much of it as does.
	parent, name := filepath.Split(abs)
	if parent = filepath.Clean(parent); parent == abs {
		return abs, nil
	}
	if missing == nil && there.Mode()&os.ModeSymlink != 0 {
		return "", fmt.Errorf("%w: it is a symbolic link to nowhere: move it away, or make the directory that it leads to", snapshot.ErrExists)
	}
	p, err := Resolve(parent)
	return filepath.Join(p, name), err
}

// IsEmptyDir reports whether a directory, which no symbolic link leads to, is empty.
func IsEmptyDir(path string) (bool, error) {
	fd, err := OpenDir(path)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	names, err := ReadNames(fd)
	return len(names) == 0, err
}

// NamesIn lists an open directory from its beginning, however often.
func NamesIn(dir int) ([]string, error) {
	fd, err := OpenAt(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return ReadNames(fd)
}

// LeadsTo reports whether a path is that of an open directory.
func LeadsTo(path string, fd int) bool {
	var at, open unix.Stat_t
	return unix.Lstat(path, &at) == nil && unix.Fstat(fd, &open) == nil && at.Dev == open.Dev && at.Ino == open.Ino
}

// OpenDir opens a directory, which no symbolic link leads to, for reading.
func OpenDir(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// lockTries is how often a new directory is taken away by who sweeps, before it can be
// locked, until it is an error.
const lockTries = 100

// MakeLocked makes a directory in parent that is ours as long as its descriptor
// is open.
func MakeLocked(parent, prefix string) (fd int, name string, err error) {
	for range lockTries {
		path, err := os.MkdirTemp(parent, prefix+"*")
		if err != nil {
			return -1, "", err
		}
		// Until it is locked another restore may take it for one that was left.
		fd, err := OpenDir(path)
		if err == nil {
			err = disk.Lock(fd)
			if err == nil && LeadsTo(path, fd) {
				return fd, filepath.Base(path), nil
			}
			unix.Close(fd)
		}
		if err == nil || errors.Is(err, unix.ENOENT) {
			continue
		}
		os.Remove(path)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue // whoever sweeps holds it, to remove it or only to look at it
		}
		return -1, "", fmt.Errorf("locking %s: %w", path, err)
	}
	return -1, "", fmt.Errorf("making a directory in %s: others remove it, %d times", parent, lockTries)
}

// StatAt is lstat(2) of a name in an open directory, again where a signal came in between.
func StatAt(dir int, name string, st *unix.Stat_t) error {
	for {
		err := unix.Fstatat(dir, name, st, unix.AT_SYMLINK_NOFOLLOW)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

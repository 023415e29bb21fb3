package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Restores of one target take turns: whoever writes to a directory that is there holds a
// lock (flock) on it. The directory that takes a target's place is locked too, from
// before anybody sees it until its restore has ended.

// tempPrefix begins the name of a directory that a restore is making. While the
// restore lives it holds a lock on it.
const tempPrefix = ".snapctl-restore-"

// lockTarget waits until no other restore works on the directory at a path, and opens it.
// It gives -1 where nothing is. With wait nil, which is for whoever changes nothing, it opens
// the directory and neither waits for its lock nor takes it.
func lockTarget(ctx context.Context, path string, wait *lockWait) (fd int, err error) {
	for {
		st, err := os.Lstat(path)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return -1, nil
		case err != nil:
			return -1, err
		case !st.IsDir():
			return -1, fmt.Errorf("%w: it is not a directory: move it away, or restore to another path", ErrExists)
		}
		fd, err := openDirectory(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // another restore is about to put its own there
		}
		if err != nil {
			return -1, err
		}
		if wait != nil {
			if err := wait.lock(ctx, path, fd); err != nil {
				unix.Close(fd)
				return -1, err
			}
		}
		if leadsTo(path, fd) {
			return fd, nil
		}
		unix.Close(fd)
		if err := ctx.Err(); err != nil {
			return -1, err
		}
	}
}

// leadsTo reports whether a path is that of an open directory.
func leadsTo(path string, fd int) bool {
	var at, open unix.Stat_t
	return unix.Lstat(path, &at) == nil && unix.Fstat(fd, &open) == nil && at.Dev == open.Dev && at.Ino == open.Ino
}

func openDirectory(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// lockTries is how often a new directory is taken away by who sweeps, before it can be
// locked, until it is an error.
const lockTries = 100

// makeLocked makes a directory in parent that is ours as long as its descriptor
// is open.
func makeLocked(parent, prefix string) (fd int, name string, err error) {
	for range lockTries {
		path, err := os.MkdirTemp(parent, prefix+"*")
		if err != nil {
			return -1, "", err
		}
		// Until it is locked another restore may take it for one that was left.
		fd, err := openDirectory(path)
		if err == nil {
			err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
			if err == nil && leadsTo(path, fd) {
				return fd, filepath.Base(path), nil
			}
			unix.Close(fd)
		}
		if err == nil || errIsAny(err, unix.ENOENT, unix.EWOULDBLOCK) {
			continue
		}
		os.Remove(path)
		return -1, "", fmt.Errorf("locking %s: %w", path, err)
	}
	return -1, "", fmt.Errorf("making a directory in %s: others remove it, %d times", parent, lockTries)
}

// sweep removes what restores that were killed have left in parent: it is theirs
// by its name and owner, and nobody holds its lock.
func sweep(parent, prefix string) {
	root, err := os.OpenRoot(parent)
	if err != nil {
		return
	}
	defer root.Close()
	eachTemp(parent, prefix, func(fd int, name string) {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Uid == uint32(os.Geteuid()) && unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
			removeIn(root, name)
		}
	})
}

// lockedTemp reports whether a restore lives that has made a directory in parent.
func lockedTemp(parent, prefix string) (locked bool) {
	eachTemp(parent, prefix, func(fd int, _ string) {
		err := unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB)
		locked = locked || errors.Is(err, unix.EWOULDBLOCK)
	})
	return locked
}

// eachTemp opens each directory in parent that makeLocked may have made.
func eachTemp(parent, prefix string, do func(fd int, name string)) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !e.IsDir() || !isTemp(e.Name(), prefix) {
			continue
		}
		if fd, err := openDirectory(filepath.Join(parent, e.Name())); err == nil {
			do(fd, e.Name())
			unix.Close(fd)
		}
	}
}

// isTemp reports whether makeLocked may have given a name.
func isTemp(name, prefix string) bool {
	rest, ours := strings.CutPrefix(name, prefix)
	return ours && rest != "" && strings.Trim(rest, "0123456789") == ""
}

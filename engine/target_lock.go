package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/remote/disk"
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
			return -1, fmt.Errorf("%w: it is not a directory: move it away, or restore to another path", snapshot.ErrExists)
		}
		fd, err := fsys.OpenDir(path)
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
		if fsys.LeadsTo(path, fd) {
			return fd, nil
		}
		unix.Close(fd)
		if err := ctx.Err(); err != nil {
			return -1, err
		}
	}
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
		if unix.Fstat(fd, &st) == nil && st.Uid == uint32(os.Geteuid()) && disk.Lock(fd) == nil {
			fsys.RemoveIn(root, name)
		}
	})
}

// lockedTemp reports whether a restore lives that has made a directory in parent.
func lockedTemp(parent, prefix string) (locked bool) {
	eachTemp(parent, prefix, func(fd int, _ string) {
		err := disk.LockShared(fd)
		locked = locked || errors.Is(err, unix.EWOULDBLOCK)
	})
	return locked
}

// eachTemp opens each directory in parent that fsys.MakeLocked may have made.
func eachTemp(parent, prefix string, do func(fd int, name string)) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !e.IsDir() || !isTemp(e.Name(), prefix) {
			continue
		}
		if fd, err := fsys.OpenDir(filepath.Join(parent, e.Name())); err == nil {
			do(fd, e.Name())
			unix.Close(fd)
		}
	}
}

// isTemp reports whether fsys.MakeLocked may have given a name.
func isTemp(name, prefix string) bool {
	rest, ours := strings.CutPrefix(name, prefix)
	return ours && rest != "" && strings.Trim(rest, "0123456789") == ""
}

package engine

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/ignore"
	"golang.org/x/sys/unix"
)

// format is how the upper directory of a fork tells what is removed.
func (m ForkMode) format() upperFormat {
	switch m {
	case ForkUserOverlay:
		return upperUser
	case ForkFuse:
		return upperFuse
	}
	return upperTrusted
}

// disbelieve takes out of an upper directory what fuse-overlayfs would believe at its next
// start although anybody may have set it in the fork: attributes by which a directory
// would show nothing of the snapshot's, or files would have other modes and owners.
func disbelieve(ctx context.Context, upper string) error {
	fd, err := fsys.OpenDir(upper)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := dropXattr(fd, "user.containers.override_stat"); err != nil {
		return fmt.Errorf("%s: %w", upper, err)
	}
	w := &walker{root: fd, exclude: &ignore.Rules{}}
	err = w.walk(ctx, 1, func(n *dirNode) error {
		err := n.err
		if err == nil {
			err = disbelieveAt(fd, n.path)
		}
		if errors.Is(err, unix.EACCES) {
			return nil // nor may fuse-overlayfs look at it, which this user runs
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", upper, err)
	}
	return nil
}

// disbelieveAt does so for one directory, unless the overlay itself says the same.
func disbelieveAt(root int, path string) error {
	fd, err := fsys.OpenBelow(root, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	err = fsys.StatAt(fd, fuseOpaque, &st)
	if mark := fsys.DirentOf(fuseOpaque, &st); err == nil && isFuseMark(&mark) {
		return nil
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if err := dropXattr(fd, "user.overlay.opaque"); err != nil {
		return &os.PathError{Op: "removexattr", Path: path, Err: err}
	}
	return nil
}

// dropXattr removes an attribute of an open file, if it has one of that name.
func dropXattr(fd int, name string) error {
	err := unix.Fremovexattr(fd, name)
	if fsys.IsAny(err, fsys.ErrNoXattr, unix.ENOTSUP) {
		return nil
	}
	return err
}

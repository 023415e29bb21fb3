package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/fusefs"
	"golang.org/x/sys/unix"
)

// A fork whose server died stays mounted until another mount of it is there. Whoever
// writes to it meanwhile gets errors: without a mount they would write into the
// directory beneath it, and the new mount would hide that.

// Of move_mount(2) and fspick(2).
const (
	moveMountBeneath = 0x200 // Linux 6.5
	fspickFlags      = 0x1 | 0x2 | 0x4
)

// replaceMount puts a mount that is nowhere yet in the place of a dead one, and
// detaches that. At no time is what is beneath them to be seen.
func replaceMount(fd int, dead *mountinfo.Info) error {
	dir := dead.Mountpoint
	err := unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH|moveMountBeneath)
	if errors.Is(err, unix.EINVAL) { // an older kernel, or a mount that may be seen elsewhere
		return coverMount(fd, dir)
	}
	if err != nil {
		return os.NewSyscallError("move_mount", err)
	}
	above, err := mountAbove(dead)
	if err != nil {
		return err
	}
	if above != nil {
		return fmt.Errorf("%w: something else was mounted at %s meanwhile", fusefs.ErrBusy, dir)
	}
	return fusefs.UnmountAt(dir, true)
}

// coverMount puts a mount over what is mounted at dir. That is there again when the
// mount is not, and then it goes: see unmountPoint.
func coverMount(fd int, dir string) error {
	return os.NewSyscallError("move_mount", unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// silencePatience is how long a program may still write a file that it had open when
// the server died.
const silencePatience = 2 * time.Second

// silence makes the overlay of a dead fork read-only, wherever it is mounted: nobody
// changes its upper directory by means of it from then on. It fails with
// fusefs.ErrBusy while somebody has a file of it open for writing.
func silence(ctx context.Context, dead *mountinfo.Info) error {
	for began := time.Now(); ; {
		err := makeReadOnly(dead.Mountpoint)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		if time.Since(began) > silencePatience {
			return fmt.Errorf("%w: its server has died, and programs have files of it open for writing", fusefs.ErrBusy)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// makeReadOnly makes the file system read-only that is mounted at a path.
func makeReadOnly(path string) error {
	fd, err := unix.Fspick(unix.AT_FDCWD, path, fspickFlags)
	if err != nil {
		return os.NewSyscallError("fspick", err)
	}
	defer unix.Close(fd)
	if err := unix.FsconfigSetFlag(fd, "ro"); err != nil {
		return os.NewSyscallError("fsconfig", err)
	}
	return os.NewSyscallError("fsconfig", unix.FsconfigReconfigure(fd))
}

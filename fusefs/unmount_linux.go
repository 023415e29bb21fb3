package fusefs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Resolve makes the path of a directory one that the kernel's table of mounts
// has: absolute and without symbolic links. It does not look at what is mounted
// there, which may be dead or wait for a network.
func Resolve(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if at, err := Mounted(dir); err != nil || at != "" {
		return dir, err
	}
	if target, err := os.Readlink(dir); err == nil {
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(dir), target)
		}
		if at, err := Mounted(target); err != nil || at != "" {
			return target, err
		}
		return filepath.EvalSymlinks(dir)
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(dir)), nil
}

// Mounted tells what snapshot is mounted at a path that Resolve gave: the source
// of the mount, "snapctl:" and its id; "" if what is mounted there is none.
func Mounted(dir string) (source string, err error) {
	mounts, err := mountinfo.GetMounts(atPath(dir))
	if err != nil {
		return "", fmt.Errorf("reading the table of mounts: %w", err)
	}
	if len(mounts) == 0 || mounts[len(mounts)-1].FSType != FSType {
		return "", nil
	}
	return mounts[len(mounts)-1].Source, nil
}

// Unmount unmounts the snapshot at a path that Resolve gave, whoever serves it;
// nobody need. It fails with ErrNotMounted, or ErrBusy if somebody uses it. With
// detach the path is free at once, and the mount ends when nobody uses it.
func Unmount(dir string, detach bool) error {
	source, err := Mounted(dir)
	if err == nil && source == "" {
		err = ErrNotMounted
	}
	if err == nil {
		err = unmount(dir, detach)
	}
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", dir, err)
	}
	return nil
}

func unmount(dir string, detach bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if detach {
		flags |= unix.MNT_DETACH
	}
	var err error
	// Whoever only looked at it, such as a list of file systems, is gone soon.
	for wait := time.Millisecond; wait <= 16*time.Millisecond; wait *= 2 {
		if err = unix.Unmount(dir, flags); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(wait)
	}
	if errors.Is(err, unix.EPERM) && os.Geteuid() != 0 {
		return unmountByHelper(dir, detach)
	}
	if errors.Is(err, unix.EBUSY) {
		err = ErrBusy
	}
	return err
}

// helper finds that program where go-fuse does: it may be in /bin alone for a
// service that has no PATH.
func helper() (path string, err error) {
	for _, name := range []string{"fusermount3", "/bin/fusermount3", "fusermount", "/bin/fusermount"} {
		if path, err = exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", ErrNoHelper
}

// unmountByHelper is for users who may not call umount(2).
func unmountByHelper(dir string, detach bool) error {
	program, err := helper()
	if err != nil {
		return err
	}
	args := []string{"-u", "--", dir}
	if detach {
		args = []string{"-u", "-z", "--", dir}
	}
	out, err := exec.Command(program, args...).CombinedOutput()
	switch text := strings.TrimSpace(string(out)); {
	case err == nil:
		return nil
	case strings.Contains(strings.ToLower(text), "busy"):
		return ErrBusy
	case text != "":
		return errors.New(text)
	}
	return err
}

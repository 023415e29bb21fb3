package fusefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

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
	m, _, err := mountAt(dir)
	if err != nil || m == nil || m.FSType != FSType {
		return "", err
	}
	return m.Source, nil
}

// Unmount unmounts the snapshot at a path that Resolve gave, whoever serves it;
// nobody need. It fails with ErrNotMounted, or ErrBusy if somebody uses it. With
// detach the path is free at once, and the mount ends when nobody uses it.
func Unmount(dir string, detach bool) error {
	m, over, err := mountAt(dir)
	switch {
	case err != nil:
	case m != nil && m.FSType == FSType:
		err = unmount(dir, detach)
	case over != nil:
		err = CoveredError(over)
	default:
		err = ErrNotMounted
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

// helperPatience is how long a helper may take.
const helperPatience = time.Minute

// mtab is what fusermount3 looks into before it unmounts for a user, and not before it
// mounts.
const mtab = "/etc/mtab"

// unmountByHelper is for users who may not call umount(2). Where fusermount3 fails, as
// without /etc/mtab, the system's umount may do it, which knows from the kernel whose a
// FUSE mount is.
func unmountByHelper(dir string, detach bool) error {
	var errs []error
	program, err := helper()
	if err == nil {
		err = runUnmount(program, detach, "-z", "-u", dir)
	}
	if err == nil || errors.Is(err, ErrBusy) {
		return err
	}
	errs = append(errs, err)
	if program, err = systemUmount(); err == nil {
		err = runUnmount(program, detach, "-l", "", dir)
	}
	if err == nil || errors.Is(err, ErrBusy) {
		return err
	}
	errs = append(errs, err)
	if _, err := os.Stat(mtab); err != nil {
		errs = append([]error{ErrNoMtab}, errs...)
	}
	return errors.Join(errs...)
}

// runUnmount runs a program that unmounts. lazy is its option to detach, and option one
// that it needs.
func runUnmount(program string, detach bool, lazy, option, dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), helperPatience)
	defer cancel()
	var args []string
	if option != "" {
		args = append(args, option)
	}
	if detach {
		args = append(args, lazy)
	}
	cmd := exec.CommandContext(ctx, program, append(args, "--", dir)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C") // for what it says
	out, err := cmd.CombinedOutput()
	switch text := strings.TrimSpace(string(out)); {
	case err == nil:
		return nil
	case strings.Contains(strings.ToLower(text), "busy"):
		return ErrBusy
	case text != "":
		return errors.New(text)
	}
	return fmt.Errorf("%s: %w", program, err)
}

// systemUmount finds the system's umount, if it may unmount for users: it belongs to
// root and runs as root.
func systemUmount() (path string, err error) {
	for _, name := range []string{"umount", "/bin/umount"} {
		if path, err = exec.LookPath(name); err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && st.Uid == 0 && st.Mode&unix.S_ISUID != 0 {
			return path, nil
		}
		err = fmt.Errorf("%s is not for users other than root", path)
	}
	return "", err
}

// canUnmount reports that what the helper mounts for a user could not be unmounted. It is
// better known before.
func canUnmount() error {
	if _, err := os.Stat(mtab); err == nil {
		return nil
	}
	if _, err := systemUmount(); err != nil {
		return fmt.Errorf("%w, and %w", ErrNoMtab, err)
	}
	return nil
}

package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/fusefs"
	"golang.org/x/sys/unix"
)

// sharedMemory is a tmpfs that every Linux has.
const sharedMemory = "/dev/shm"

// A noOverlay is an errNoOverlay that says no more than why.
type noOverlay struct{ err error }

func (e *noOverlay) Error() string   { return e.err.Error() }
func (e *noOverlay) Unwrap() []error { return []error{errNoOverlay, e.err} }

// possible says why a mode cannot be had here, as far as that is known before the snapshot
// is mounted for it.
func (x *forker) possible(mode ForkMode) error {
	if mode == ForkFuse {
		_, err := exec.LookPath("fuse-overlayfs")
		return err
	}
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fsopen", err)
	}
	unix.Close(fd)
	// Removing what is not there changes nothing, and takes the same right.
	if mode == ForkOverlay && errors.Is(unix.Lremovexattr("/", trustedProbe), unix.EPERM) {
		return onlyRoot(trustedProbe)
	}
	return nil
}

// trustedProbe is an attribute that nothing has.
const trustedProbe = "trusted.snapctl-probe"

func onlyRoot(name string) error { return fmt.Errorf("only root may set the attribute %s", name) }

// mountMemory gives an ephemeral fork its tmpfs.
func (e *forkEntry) mountMemory() error {
	dir := filepath.Join(e.folder(), memoryName)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
		return &noOverlay{fmt.Errorf("tmpfs: %w", err)}
	}
	return nil
}

// makeUpper makes the upper directory. An overlay's root has its metadata, which is
// to be the snapshot's.
func makeUpper(lower, upper string, format upperFormat) error {
	if err := os.Mkdir(upper, 0o700); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(lower, &st); err != nil {
		return &os.PathError{Op: "stat", Path: lower, Err: err}
	}
	names, err := fsys.GrowBuffer(func(dest []byte) (int, error) { return unix.Llistxattr(lower, dest) })
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("extended attributes of the snapshot's root: %w", err)
	}
	// Owners and attributes that this user may not set he would not have with a
	// restore either.
	if err := os.Lchown(upper, int(st.Uid), int(st.Gid)); err != nil && !fsys.IsAny(err, unix.EPERM, unix.EINVAL) {
		return err
	}
	for name := range strings.SplitSeq(string(names), "\x00") {
		if name == "" || format.shown(name) == "" {
			continue
		}
		value, err := fsys.GrowBuffer(func(dest []byte) (int, error) { return unix.Lgetxattr(lower, name, dest) })
		if err == nil {
			err = unix.Lsetxattr(upper, name, value, 0)
		}
		if err != nil && !fsys.IsAny(err, unix.EPERM, unix.ENOTSUP, unix.EINVAL, unix.ENODATA) {
			return fmt.Errorf("extended attribute %s of the snapshot's root: %w", name, err)
		}
	}
	if err := unix.Chmod(upper, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: upper, Err: err}
	}
	times := []unix.Timespec{st.Mtim, st.Mtim}
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(unix.AT_FDCWD, upper, times, unix.AT_SYMLINK_NOFOLLOW))
}

// mount mounts the fork over the lower directory, with the last work folder of the
// record, in the place of dead, which is a mount of it whose server has died; nil for
// none. The caller has the lock, and has written the record.
func (e *forkEntry) mount(ctx context.Context, lower string, dead *mountinfo.Info) error {
	guard, err := e.unguardToMount(dead)
	if err != nil {
		return err
	}
	defer guard()
	last := len(e.rec.Works) - 1
	work := filepath.Join(e.layer(), e.rec.Works[last])
	if err := os.Mkdir(work, 0o700); err != nil {
		return err
	}
	o := &overlayMount{
		source: e.source(), lower: lower, upper: e.upper(), work: work, user: e.rec.Mode == ForkUserOverlay,
	}
	if e.rec.Mode == ForkFuse {
		if err = disbelieve(ctx, o.upper); err == nil {
			err = e.mountFuse(ctx, o)
		}
	} else if err = o.writable(); err == nil {
		err = o.mount(e.where(), dead)
	}
	if err != nil {
		fsys.RemoveTree(work)
		return &noOverlay{err}
	}
	if e.rec.Mode == ForkFuse { // its number is known only now
		if err := e.write(); err != nil {
			return errors.Join(err, fusefs.UnmountAt(e.where(), true))
		}
	}
	for _, name := range e.rec.Works[:last] {
		fsys.RemoveTree(filepath.Join(e.layer(), name)) // or it stays on the record
	}
	return nil
}

// An overlayMount is what the kernel is told.
type overlayMount struct {
	source             string
	lower, upper, work string
	user               bool // root of a user namespace
}

// writable says why the upper directory does not do. The kernel mounts an overlay
// all the same, on which a directory cannot be removed and made again.
func (o *overlayMount) writable() error {
	name := trustedProbe
	if o.user {
		name = "user.snapctl-probe"
	}
	err := unix.Lsetxattr(o.work, name, []byte("y"), 0)
	switch {
	case err == nil:
		err = unix.Lremovexattr(o.work, name)
	case errors.Is(err, unix.EPERM):
		err = onlyRoot(name)
	case errors.Is(err, unix.ENOTSUP):
		err = fmt.Errorf("the file system of %s has no extended attributes that begin with %s", filepath.Dir(o.work), strings.SplitAfter(name, ".")[0])
	}
	return err
}

// mount mounts the overlay at dir, in the place of a dead mount unless that is nil.
// Device files and setuid programs of a snapshot have no power there, as in all its
// mounts.
func (o *overlayMount) mount(dir string, dead *mountinfo.Info) error {
	fd, err := o.open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if dead != nil {
		return replaceMount(fd, dead)
	}
	return os.NewSyscallError("move_mount", unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// open makes the overlay, mounted nowhere yet.
func (o *overlayMount) open() (fd int, err error) {
	c, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(c)
	// With redirects a directory is renamed rather than copied; with metacopy so are
	// a file's mode and owner changed. Neither index nor NFS: they tie the upper
	// directory to one mount of the snapshot, and it will meet another. With xino the
	// kernel would put the layer into the upper bits of inode numbers, and programs that
	// keep those in a double (JavaScript) would take neighbouring files for one. Without
	// it a file's number is the one that it has in its layer, which st_dev tells.
	options := append(o.directories(), [][2]string{{"source", o.source}, {"index", "off"}, {"xino", "off"}}...)
	if o.user {
		options = append(options, [2]string{"userxattr", ""})
	} else {
		options = append(options, [2]string{"nfs_export", "off"}, [2]string{"redirect_dir", "on"}, [2]string{"metacopy", "on"})
	}
	if err := o.configure(c, options); err != nil {
		return -1, err
	}
	if err := unix.FsconfigCreate(c); err != nil {
		return -1, fmt.Errorf("overlay: %w", o.why(c, err))
	}
	fd, err = unix.Fsmount(c, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	return fd, os.NewSyscallError("fsmount", err)
}

// directories are the options that name them.
func (o *overlayMount) directories() [][2]string {
	escape := strings.NewReplacer(`\`, `\\`)
	return [][2]string{{"lowerdir+", o.lower}, {"upperdir", escape.Replace(o.upper)}, {"workdir", escape.Replace(o.work)}}
}

// configure gives options to the kernel. One without a value is a flag.
func (o *overlayMount) configure(context int, options [][2]string) (err error) {
	for _, x := range options {
		switch {
		case x[1] == "":
			err = unix.FsconfigSetFlag(context, x[0])
		default:
			err = unix.FsconfigSetString(context, x[0], x[1])
		}
		if x[0] == "lowerdir+" && errors.Is(err, unix.EINVAL) { // before Linux 6.8
			err = unix.FsconfigSetString(context, "lowerdir", strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace(o.lower))
		}
		if err != nil {
			return fmt.Errorf("overlay option %s=%s: %w", x[0], x[1], o.why(context, err))
		}
	}
	return nil
}

// why adds what the kernel has to say about an error.
func (o *overlayMount) why(context int, err error) error {
	b := make([]byte, 1<<10)
	var said []string
	for {
		n, rerr := unix.Read(context, b)
		if rerr != nil || n <= 0 {
			break
		}
		// "e overlay: ...": an error; "w" a warning, "i" what it says anyway.
		if text, ok := strings.CutPrefix(string(b[:n]), "e "); ok {
			said = append(said, strings.TrimSpace(text))
		}
	}
	if len(said) > 0 {
		return fmt.Errorf("%w (%s)", err, strings.Join(said, "; "))
	}
	return err
}

// mountFuse mounts by means of fuse-overlayfs, which goes on in the background.
func (e *forkEntry) mountFuse(ctx context.Context, o *overlayMount) error {
	program, err := exec.LookPath("fuse-overlayfs")
	if err != nil {
		return err
	}
	for _, p := range []string{o.lower, o.upper, o.work} {
		if strings.ContainsAny(p, `,:\`) {
			return fmt.Errorf("fuse-overlayfs takes no path with a comma, colon or backslash: %s", p)
		}
	}
	// Not a pipe, which it would keep open.
	said, err := memoryFile("fuse-overlayfs", nil)
	if err != nil {
		return err
	}
	defer said.Close()
	// As root it would have setuid programs and devices work.
	// Without a cache of writes in the kernel: since Linux 6.16 syncfs does not wait until
	// that is written, and a snapshot would miss what a program wrote a moment before.
	options := fmt.Sprintf("nosuid,nodev,writeback=0,lowerdir=%s,upperdir=%s,workdir=%s", o.lower, o.upper, o.work)
	if os.Geteuid() != 0 { // as after a restore, all files are his
		options += fmt.Sprintf(",squash_to_uid=%d,squash_to_gid=%d", os.Geteuid(), os.Getegid())
	}
	cmd := exec.CommandContext(ctx, program, "-o", options, e.where())
	cmd.Dir = "/"
	switch lock, err := lockUpper(o.upper); {
	case err == nil:
		defer lock.Close()
		cmd.ExtraFiles = []*os.File{lock} // it keeps that as long as it lives
	case errors.Is(err, unix.EWOULDBLOCK):
		return fmt.Errorf("%w: another fuse-overlayfs has the upper directory", fusefs.ErrBusy)
	}
	cmd.Stdout, cmd.Stderr = said, said
	// If we are killed meanwhile it is not to mount what has been swept by then. That
	// goes by threads.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		said.Seek(0, io.SeekStart)
		text, _ := io.ReadAll(io.LimitReader(said, 1<<10))
		return fmt.Errorf("fuse-overlayfs: %w: %s", err, strings.TrimSpace(string(text)))
	}
	e.rec.Mounted.Mount = mountNumber(e.where())
	table, err := readMountTable()
	if err != nil {
		return err
	}
	if !e.mountedIn(table) {
		return errors.New("fuse-overlayfs says that it has mounted, and has not")
	}
	if m := table.at(e.where()); !powerless(m) {
		err := fmt.Errorf("fuse-overlayfs has mounted with the options %s, in which setuid programs or devices have power", m.Options)
		return errors.Join(err, fusefs.UnmountAt(e.where(), true))
	}
	if m := table.at(o.lower); m != nil {
		e.rec.Mounted.Below = deviceOf(m)
	}
	return nil
}

func deviceOf(m *mountinfo.Info) string { return fmt.Sprintf("%d:%d", m.Major, m.Minor) }

// powerless reports whether setuid programs and device files have no power in a mount.
func powerless(m *mountinfo.Info) bool {
	options := strings.Split(m.Options, ",")
	return slices.Contains(options, "nosuid") && slices.Contains(options, "nodev")
}

// probe asks for a file that there is not, which the server of the snapshot has to
// say, and waits that long for its answer. It fails with fusefs.ErrNoServer or ErrNoAnswer, and with ErrBusy where something
// else is mounted over the fork.
func (e *forkEntry) probe(patience time.Duration) error {
	if e.over != nil {
		return fusefs.CoveredError(e.over)
	}
	dir := e.where()
	if e.rec.Mode == ForkFuse {
		if err := fusefs.Probe(dir, patience); err != nil {
			return err
		}
		if err := e.probeLower(); err != nil {
			return err
		}
	}
	answer := make(chan error, 1)
	go func() { // which lasts as long as the server keeps silent
		// A name that nobody has asked for, since the kernel remembers; and the first
		// in order, so that the page that has it is that of the root.
		var st unix.Stat_t
		answer <- unix.Lstat(fmt.Sprintf("%s/\x01snapctl-%016x", dir, rand.Uint64()), &st)
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-answer:
		if fsys.IsAny(err, unix.ENOTCONN, unix.ECONNABORTED, unix.EIO) {
			return fusefs.ErrNoServer
		}
		return nil
	case <-timer.C:
		return fusefs.ErrNoAnswer
	}
}

// probeLower asks the server of the snapshot by its own mount: fuse-overlayfs itself says what
// there is not in a directory that somebody has listed. If that mount is another by now, the
// one that the fork lies over was dead.
func (e *forkEntry) probeLower() error {
	table, err := readMountTable()
	if err != nil {
		return err
	}
	m := table.at(e.g.lower(e.rec.lower()))
	if m == nil || m.FSType != fusefs.FSType {
		return nil // what there is to ask is the fork
	}
	if p := e.rec.Mounted; p != nil && p.Below != "" && p.isHere() && p.Below != deviceOf(m) {
		return fusefs.ErrNoServer
	}
	return fusefs.Probe(m.Mountpoint, statusPatience)
}

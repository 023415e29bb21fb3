package engine

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/remote/disk"
	"golang.org/x/sys/unix"
)

// Where a fork is mounted the kernel says. It knows a fork by more than a path, which
// changes when somebody renames a directory above it:
//
//   - an overlay by its source, which has the fork's ID, in every mount namespace;
//   - a mount of fuse-overlayfs, which cannot be given a name, by its number: the
//     kernel gives that to no other mount until the machine is started again.
//
// And it knows what no table of mounts shows: see held.

// A forkPlace is where a fork was mounted last.
type forkPlace struct {
	Boot      string `json:"boot"`
	Namespace string `json:"namespace"`
	// Mount is the number of the mount, as statx(2) has it, in mode fuse-overlayfs;
	// 0 before Linux 6.8.
	Mount uint64 `json:"mount,omitempty"`
	// Below is the device of the snapshot's mount that fuse-overlayfs lies over.
	Below string `json:"below,omitempty"`
}

func placeHere() *forkPlace { return &forkPlace{Boot: bootID(), Namespace: mountNamespace()} }

// isHere reports whether it is this start of the machine and this mount namespace.
func (p *forkPlace) isHere() bool { return p.Boot == bootID() && p.Namespace == mountNamespace() }

// mountNumber is the number of what is mounted at a path, topmost; 0 if it is not
// known. It waits for no server.
func mountNumber(path string) uint64 {
	var st unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_DONT_SYNC
	err := unix.Statx(unix.AT_FDCWD, path, flags, unix.STATX_MNT_ID_UNIQUE, &st)
	if err != nil || st.Mask&unix.STATX_MNT_ID_UNIQUE == 0 {
		return 0
	}
	return st.Mnt_id
}

// source is that of the fork's overlay, as in /proc/self/mountinfo.
func (e *forkEntry) source() string { return forkSource + e.rec.Name + "@" + e.rec.ID }

// isFork reports whether a mount is an overlay that is a fork.
func isFork(m *mountinfo.Info) bool {
	return m.FSType == overlayType && strings.HasPrefix(m.Source, forkSource)
}

// isAt reports whether a mount of this namespace is the fork, or a bind mount of it or of a
// directory in it.
func (e *forkEntry) isAt(m *mountinfo.Info) bool {
	if e.rec.Mode != ForkFuse {
		return m.FSType == overlayType && m.Source == e.source()
	}
	p := e.rec.Mounted
	if m.FSType != fuseOverlayType || p == nil || !p.isHere() {
		return false
	}
	if p.Mount == 0 {
		return m.Mountpoint == string(e.rec.Dir)
	}
	if id, err := tableID(p.Mount); err == nil {
		return m.ID == id
	}
	return mountNumber(m.Mountpoint) == p.Mount // of the topmost, before Linux 6.8
}

// pointsIn gives all mounts of the fork in a table, the oldest first: also those that
// something else lies over, which are in use like any other. Of two that lie over each other,
// as while a fork is brought back, the upper one counts: they go together.
func (e *forkEntry) pointsIn(t *mountTable) []*mountinfo.Info {
	all := slices.DeleteFunc(slices.Clone(t.all), func(m *mountinfo.Info) bool {
		if !e.isAt(m) {
			return true
		}
		by := t.covered[m]
		return by != nil && by.Mountpoint == m.Mountpoint && e.isAt(by)
	})
	slices.SortFunc(all, func(a, b *mountinfo.Info) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// pointIn gives the fork's mount: at its directory, or where that is now, and if it can be one
// that a path leads to; nil if there is none.
func (e *forkEntry) pointIn(t *mountTable) (point *mountinfo.Info) {
	if m := t.at(string(e.rec.Dir)); m != nil && m.Root == "/" && e.isAt(m) {
		return m
	}
	for _, m := range e.pointsIn(t) {
		if m.Root == "/" && (point == nil || t.covered[point] != nil && t.covered[m] == nil) {
			point = m
		}
	}
	return point
}

// mountedIn reports whether the fork is mounted. Then where is there, if nothing is over it.
func (e *forkEntry) mountedIn(t *mountTable) bool {
	m := e.pointIn(t)
	if e.over = nil; m != nil {
		e.at, e.over = m.Mountpoint, t.covered[m]
	}
	return m != nil
}

// where is where the fork is mounted, or else where it is to be.
func (e *forkEntry) where() string {
	if e.at != "" {
		return e.at
	}
	return string(e.rec.Dir)
}

// elsewhere gives a mount of the fork in another namespace, of those that are seen;
// nil for none.
func (e *forkEntry) elsewhere(foreign []seenMount) *seenMount {
	i := slices.IndexFunc(foreign, func(m seenMount) bool { return m.Source == e.source() })
	if e.rec.Mode == ForkFuse || i < 0 {
		return nil
	}
	return &foreign[i]
}

// stays gives a mount of the fork in another namespace that does not go with those in
// this one.
func (e *forkEntry) stays() (*seenMount, error) {
	foreign, err := foreignMounts(isFork)
	if err != nil {
		return nil, err
	}
	here, err := mountsOf(os.Getpid(), func(m *mountinfo.Info) bool { return isFork(m) && m.Source == e.source() })
	return e.elsewhere(slices.DeleteFunc(foreign, func(m seenMount) bool { return slices.ContainsFunc(here, m.goesWith) })), err
}

// held reports whether an overlay has the fork's upper directory: one that is mounted,
// in whatever mount namespace, or one that is not any more and is in use. A second one
// over the same directory would have what the kernel calls undefined behaviour.
//
// The kernel knows, by a mark on the inodes of upper and work directories. That of the
// upper directory is lost once a fork was brought back while its dead mount had it; each
// mount has a work directory of its own. Of fuse-overlayfs it is a lock that tells, which
// that program has inherited (lockUpper).
func (e *forkEntry) held() (bool, error) {
	upper := e.upper()
	if e.rec.Mode == ForkFuse {
		lock, err := lockUpper(upper)
		if err == nil {
			lock.Close()
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			return true, nil
		}
		return false, err
	}
	dirs := []string{upper}
	for _, name := range e.rec.Works {
		work := filepath.Join(filepath.Dir(upper), name)
		if info, err := os.Lstat(work); err == nil && info.IsDir() {
			dirs = append(dirs, work)
		}
	}
	for _, dir := range dirs {
		if held, err := overlayHolds(dir, e.rec.Mode == ForkUserOverlay); held || err != nil {
			return held, err
		}
	}
	return false, nil
}

// overlayHolds reports whether an overlay has a directory as its upper or work directory.
func overlayHolds(dir string, user bool) (bool, error) {
	c, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(c)
	// With an index the kernel refuses to be the second. The work directory is none, so
	// that it refuses in any case, and writes nothing; but it looks at that later.
	o := &overlayMount{lower: filepath.Dir(dir), upper: dir, work: dir}
	options := append(o.directories(), [2]string{"index", "on"})
	if user {
		options = append(options, [2]string{"userxattr", ""})
	}
	if err := o.configure(c, options); err != nil {
		return false, err
	}
	switch err := unix.FsconfigCreate(c); {
	case errors.Is(err, unix.EBUSY):
		return true, nil
	case errors.Is(err, unix.EINVAL):
		return false, nil
	default:
		return false, fmt.Errorf("whether %s is in use: %w", dir, o.why(c, err))
	}
}

// lockUpper locks the upper directory of a fork by fuse-overlayfs, for as long as the
// file that it gives is open, here or in a process that has inherited it. It fails with
// EWOULDBLOCK.
func lockUpper(upper string) (*os.File, error) {
	f, err := os.OpenFile(upper, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := disk.Lock(int(f.Fd())); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "flock", Path: upper, Err: err}
	}
	return f, nil
}

// free reports with fusefs.ErrBusy that the fork is mounted in another namespace, where
// it stays when it is unmounted here, or that it is not mounted here and is in use.
func (e *forkEntry) free(ctx context.Context, mountedHere bool) error {
	for began := time.Now(); ; {
		err := e.isFree(mountedHere)
		if !errors.Is(err, fusefs.ErrBusy) || time.Since(began) > elsewherePatience {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (e *forkEntry) isFree(mountedHere bool) error {
	m, err := e.stays()
	if err != nil {
		return err
	}
	if m != nil {
		return fmt.Errorf("%w: it is mounted at %s in the mount namespace of %s", fusefs.ErrBusy, m.Mountpoint, m.process())
	}
	if mountedHere {
		return nil
	}
	held, err := e.held()
	if held {
		err = fmt.Errorf("%w: programs have files of its last mount open, or it is mounted in a mount namespace that cannot be seen from here", fusefs.ErrBusy)
	}
	return err
}

// Of statmount(2).
const (
	statmountBasic = 0x2
	statmountOldID = 56 // where struct statmount has mnt_id_old
)

// tableID gives the ID in /proc/self/mountinfo of the mount of a number, 0 if there is none in
// this namespace. It fails before Linux 6.8, and where it is not allowed.
func tableID(number uint64) (int, error) {
	request := struct {
		size, spare  uint32
		mount, param uint64
	}{24, 0, number, statmountBasic}
	answer := make([]byte, 512)
	_, _, errno := unix.Syscall6(unix.SYS_STATMOUNT, uintptr(unsafe.Pointer(&request)),
		uintptr(unsafe.Pointer(unsafe.SliceData(answer))), uintptr(len(answer)), 0, 0, 0)
	switch {
	case errno == unix.ENOENT:
		return 0, nil
	case errno != 0:
		return 0, os.NewSyscallError("statmount", errno)
	}
	return int(binary.NativeEndian.Uint32(answer[statmountOldID:])), nil
}

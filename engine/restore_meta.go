package engine

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// ownerPolicy is how owners and modes are set, and when nothing has to be done.
type ownerPolicy struct {
	set      bool // restore owners
	fresh    bool // nothing but this run's was there before
	uid, gid uint32
	umask    uint32
}

func newOwnerPolicy(t *target, noOwner bool) (ownerPolicy, error) {
	p := ownerPolicy{fresh: t.fresh, set: !noOwner && os.Geteuid() == 0, uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), umask: fsys.Umask()}
	var st unix.Stat_t
	if err := unix.Fstat(t.root, &st); err != nil {
		return p, err
	}
	// What is made below inherits the group: then nothing is as it was made.
	if st.Mode&unix.S_ISGID != 0 || st.Gid != p.gid {
		p.umask = 0o777
	}
	return p, nil
}

// asMade reports whether an entry that was made with the permissions made needs
// no other owner, mode or extended attribute.
func (p *ownerPolicy) asMade(e *manifest.Entry, made uint32) bool {
	return p.fresh && len(e.Xattrs) == 0 && made == e.Mode && made&p.umask == 0 &&
		(!p.set || e.UID == p.uid && e.GID == p.gid)
}

// setMetaFD gives an open file or directory, which is at, its metadata. The order
// matters: chown clears setuid and capabilities; attributes need write permission.
func (x *restorer) setMetaFD(fd int, at fsys.Spot, e *manifest.Entry) error {
	if x.owner.set {
		if err := x.ownerProblem(e, unix.Fchown(fd, int(e.UID), int(e.GID))); err != nil {
			return err
		}
	}
	if !x.fresh {
		if err := x.dropXattrs(fd, e); err != nil {
			return err
		}
	}
	for _, a := range e.Xattrs {
		if err := unix.Fsetxattr(fd, a.Name, a.Value, 0); err != nil {
			if err := x.xattrProblem(fd, e, a.Name, err); err != nil {
				return err
			}
		}
	}
	if err := unix.Fchmod(fd, x.safeMode(fd, e)); err != nil {
		return fmt.Errorf("changing the mode: %w", err)
	}
	return fsys.SetTimesFD(fd, at, e.Mtime)
}

// safeMode is the mode that a file gets: without setuid and setgid where it does
// not belong to whom the snapshot says, or their program would come to run as us.
func (x *restorer) safeMode(fd int, e *manifest.Entry) uint32 {
	const special = 0o6000
	if e.Type != manifest.File || e.Mode&special == 0 {
		return e.Mode
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil && st.Uid == e.UID && st.Gid == e.GID {
		return e.Mode
	}
	if x.noSetuid.CompareAndSwap(false, true) {
		x.problem(fmt.Errorf("restoring %q: without setuid and setgid, for it belonged to %d:%d; so for any other such file", e.Path(), e.UID, e.GID))
	}
	return e.Mode &^ special
}

// dropXattrs removes what the snapshot's entry does not have: inherited ACLs, or
// what was there before. Labels of the system's own stay.
func (x *restorer) dropXattrs(fd int, e *manifest.Entry) error {
	names, err := fsys.GrowBuffer(func(dest []byte) (int, error) { return unix.Flistxattr(fd, dest) })
	if errors.Is(err, unix.ENOTSUP) || err == nil && len(names) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing extended attributes: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if fsys.LabelXattr(name) || slices.ContainsFunc(e.Xattrs, func(a manifest.Xattr) bool { return a.Name == name }) {
			continue
		}
		if err := unix.Fremovexattr(fd, name); err != nil && !errors.Is(err, fsys.ErrNoXattr) {
			if err := x.xattrProblem(fd, e, name, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// setMeta gives what is not a file or directory its metadata.
func (x *restorer) setMeta(parent int, name string, e *manifest.Entry) error {
	if x.owner.set {
		err := unix.Fchownat(parent, name, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW)
		if err := x.ownerProblem(e, err); err != nil {
			return err
		}
	}
	for _, a := range e.Xattrs {
		if err := fsys.SetXattrAt(parent, name, a.Name, a.Value); err != nil {
			if err := x.xattrProblem(parent, e, a.Name, err); err != nil {
				return err
			}
		}
	}
	if e.Type != manifest.Symlink {
		// It is no link: we made it, in a directory that we opened.
		if err := unix.Fchmodat(parent, name, e.Mode, 0); err != nil {
			return fmt.Errorf("changing the mode: %w", err)
		}
	}
	return fsys.SetTimes(parent, name, e.Mtime)
}

// ownerProblem tells owners that this user may not give, or does not know in its
// user namespace, from failures. It is told once: it would be so for every file.
func (x *restorer) ownerProblem(e *manifest.Entry, err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("changing the owner to %d:%d: %w", e.UID, e.GID, err)
	if !fsys.IsAny(err, unix.EPERM, unix.EINVAL) {
		return err
	}
	if x.noOwner.CompareAndSwap(false, true) {
		x.problem(fmt.Errorf("restoring %q: %w; the owners of other files may be wrong too", e.Path(), err))
	}
	x.partial.Store(true)
	return nil
}

// xattrProblem tells attributes that this user or file system cannot have from failures.
// fd is open in the file system.
func (x *restorer) xattrProblem(fd int, e *manifest.Entry, name string, err error) error {
	switch {
	case fsys.IsAny(err, unix.ENOTSUP, unix.EPERM, unix.EACCES, unix.EINVAL):
	case fsys.IsAny(err, unix.E2BIG, unix.ERANGE), errors.Is(err, unix.ENOSPC) && hasRoom(fd):
		// ext4 has a block for all attributes of a file, and says ENOSPC.
		err = fmt.Errorf("it is too large for this file system (%w)", err)
	default:
		return fmt.Errorf("setting extended attribute %q: %w", name, err)
	}
	x.partial.Store(true)
	x.problem(fmt.Errorf("restoring %q: setting extended attribute %q: %w", e.Path(), name, err))
	return nil
}

// hasRoom reports whether a file system has room for an attribute of any size: then it is
// not full, whatever it says of one. One that does not tell its size has.
func hasRoom(fd int) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil {
		return false
	}
	return st.Blocks == 0 || uint64(st.Bavail)*uint64(st.Bsize) >= 4*manifest.MaxXattrValue
}

// note keeps the fingerprint of a finished entry for the stat cache.
func (x *restorer) note(parent int, name string, rank uint64) error {
	if x.prints == nil && x.marks == nil {
		return nil
	}
	var st unix.Stat_t
	if err := fsys.StatAt(parent, name, &st); err != nil {
		return err
	}
	x.notePrint(&st, rank)
	return nil
}

func (x *restorer) noteFD(fd int, rank uint64) error {
	if x.prints == nil && x.marks == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	x.notePrint(&st, rank)
	return nil
}

// markFD marks an open file for which the stat cache is to have no fingerprint.
func (x *restorer) markFD(fd int, rank uint64) error {
	if x.marks == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	d := fsys.DirentOf("", &st)
	x.marks[rank] = entryMark(&d)
	return nil
}

func (x *restorer) notePrint(st *unix.Stat_t, rank uint64) {
	d := fsys.DirentOf("", st)
	if x.prints != nil {
		x.prints[rank] = statPrint(&d)
	}
	if x.marks != nil {
		x.marks[rank] = entryMark(&d)
	}
}

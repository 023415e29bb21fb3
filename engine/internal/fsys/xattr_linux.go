package fsys

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrNoXattr: a file has no extended attribute of that name.
const ErrNoXattr = unix.ENODATA

// SystemXattr reports whether an extended attribute is no part of a snapshot, since the
// system itself gives it to every file.
func SystemXattr(string) bool { return false }

// LabelXattr reports whether a file keeps an extended attribute that the snapshot does not
// have: a label of the system's own.
func LabelXattr(name string) bool { return name == "security.selinux" }

// procPath names an entry of an open directory for the system calls that have
// no *at form, without following a link at its end or on the way.
func procPath(dir int, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
}

// XattrsAt gives the extended attributes of an entry of an open directory, of a link
// itself.
func XattrsAt(dir int, name string) XattrAccess {
	path := procPath(dir, name)
	return XattrAccess{
		func(dest []byte) (int, error) { return unix.Llistxattr(path, dest) },
		func(name string, dest []byte) (int, error) { return unix.Lgetxattr(path, name, dest) },
	}
}

// SetXattrAt sets an extended attribute of an entry of an open directory, of a link
// itself.
func SetXattrAt(dir int, name, attr string, value []byte) error {
	return unix.Lsetxattr(procPath(dir, name), attr, value, 0)
}

// DropDefaultACL drops what the parent has every new file inherit: it is no part
// of a snapshot.
func DropDefaultACL(fd int) error {
	for _, name := range []string{"system.posix_acl_default", "system.posix_acl_access"} {
		if err := unix.Fremovexattr(fd, name); err != nil && !IsAny(err, unix.ENODATA, unix.ENOTSUP) {
			return fmt.Errorf("removing an inherited ACL: %w", err)
		}
	}
	return nil
}

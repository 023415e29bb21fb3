package engine

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// errNoXattr: a file has no extended attribute of that name.
const errNoXattr = unix.ENODATA

// ofSystem reports whether an extended attribute is no part of a snapshot, since the
// system itself gives it to every file.
func ofSystem(string) bool { return false }

// stays reports whether a file keeps an extended attribute that the snapshot does not
// have: a label of the system's own.
func stays(name string) bool { return name == "security.selinux" }

// procPath names an entry of an open directory for the system calls that have
// no *at form, without following a link at its end or on the way.
func procPath(dir int, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
}

// xattrsAt gives the extended attributes of an entry of an open directory, of a link
// itself.
func xattrsAt(dir int, name string) xattrAccess {
	path := procPath(dir, name)
	return xattrAccess{
		func(dest []byte) (int, error) { return unix.Llistxattr(path, dest) },
		func(name string, dest []byte) (int, error) { return unix.Lgetxattr(path, name, dest) },
	}
}

// setXattrAt sets an extended attribute of an entry of an open directory, of a link
// itself.
func setXattrAt(dir int, name, attr string, value []byte) error {
	return unix.Lsetxattr(procPath(dir, name), attr, value, 0)
}

// dropDefaultACL drops what the parent has every new file inherit: it is no part
// of a snapshot.
func dropDefaultACL(fd int) error {
	for _, name := range []string{"system.posix_acl_default", "system.posix_acl_access"} {
		if err := unix.Fremovexattr(fd, name); err != nil && !errIsAny(err, unix.ENODATA, unix.ENOTSUP) {
			return fmt.Errorf("removing an inherited ACL: %w", err)
		}
	}
	return nil
}

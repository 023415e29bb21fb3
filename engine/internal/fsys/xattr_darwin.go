package fsys

import (
	"golang.org/x/sys/unix"
)

// ErrNoXattr: a file has no extended attribute of that name.
const ErrNoXattr = unix.ENOATTR

// provenance is an attribute that the kernel gives to what some programs write, and
// that nobody else can set.
const provenance = "com.apple.provenance"

// SystemXattr reports whether an extended attribute is no part of a snapshot, since the
// system itself gives it to every file.
func SystemXattr(name string) bool { return name == provenance }

// LabelXattr reports whether a file keeps an extended attribute that the snapshot does not
// have: a label of the system's own.
func LabelXattr(name string) bool { return name == provenance }

// XattrsAt gives the extended attributes of an entry of an open directory, of a link
// itself.
func XattrsAt(dir int, name string) XattrAccess {
	return XattrAccess{
		func(dest []byte) (n int, err error) {
			err = within(dir, func() (err error) { n, err = unix.Llistxattr(name, dest); return err })
			return n, err
		},
		func(attr string, dest []byte) (n int, err error) {
			err = within(dir, func() (err error) { n, err = unix.Lgetxattr(name, attr, dest); return err })
			return n, err
		},
	}
}

// SetXattrAt sets an extended attribute of an entry of an open directory, of a link
// itself.
func SetXattrAt(dir int, name, attr string, value []byte) error {
	return within(dir, func() error { return unix.Lsetxattr(name, attr, value, 0) })
}

// DropDefaultACL: ACLs are no extended attributes here, and not part of snapshots.
func DropDefaultACL(int) error { return nil }

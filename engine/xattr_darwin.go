package engine

import (
	"golang.org/x/sys/unix"
)

// errNoXattr: a file has no extended attribute of that name.
const errNoXattr = unix.ENOATTR

// provenance is an attribute that the kernel gives to what some programs write, and
// that nobody else can set.
const provenance = "com.apple.provenance"

// ofSystem reports whether an extended attribute is no part of a snapshot, since the
// system itself gives it to every file.
func ofSystem(name string) bool { return name == provenance }

// stays reports whether a file keeps an extended attribute that the snapshot does not
// have: a label of the system's own.
func stays(name string) bool { return name == provenance }

// xattrsAt gives the extended attributes of an entry of an open directory, of a link
// itself.
func xattrsAt(dir int, name string) xattrAccess {
	return xattrAccess{
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

// setXattrAt sets an extended attribute of an entry of an open directory, of a link
// itself.
func setXattrAt(dir int, name, attr string, value []byte) error {
	return within(dir, func() error { return unix.Lsetxattr(name, attr, value, 0) })
}

// dropDefaultACL: ACLs are no extended attributes here, and not part of snapshots.
func dropDefaultACL(int) error { return nil }

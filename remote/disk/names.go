package disk

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// RenameNew gives a file a name that nothing has, or fails with [io/fs.ErrExist].
// Where the file system has no such rename (NFS, some FUSE) it does what comes
// nearest: link never overwrites either, and then the old name is removed.
func RenameNew(from, to string) error {
	err := renameNew(from, to)
	switch err {
	case unix.EINVAL, unix.ENOSYS, unix.ENOTSUP:
	default:
		return err
	}
	if err := os.Link(from, to); err != nil {
		return err
	}
	return os.Remove(from)
}

// SyncDir makes the names in a directory durable. Some network and FUSE file systems
// cannot sync a directory; what they offer is all that can be had, and no error.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}

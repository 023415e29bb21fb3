package fsys

import "golang.org/x/sys/unix"

// Exchange has two paths change places, in one step.
func Exchange(a, b string) error { return unix.RenamexNp(a, b, unix.RENAME_SWAP) }

// RenameNew renames, unless something is at the new path already: EEXIST.
func RenameNew(from, to string) error { return unix.RenamexNp(from, to, unix.RENAME_EXCL) }

// RenameNewAt is RenameNew for names in open directories.
func RenameNewAt(fromDir int, from string, toDir int, to string) error {
	return unix.RenameatxNp(fromDir, from, toDir, to, unix.RENAME_EXCL)
}

// SyncFileSystem writes all of the file system to disk that an open file is on: what
// is nearest to that here. sync begins to write, and does not wait; the full sync of a
// file is a barrier behind it, for the disk's own cache too.
func SyncFileSystem(fd int) error {
	if err := unix.Sync(); err != nil {
		return err
	}
	_, err := unix.FcntlInt(uintptr(fd), unix.F_FULLFSYNC, 0)
	if IsAny(err, unix.ENOTSUP, unix.EINVAL, unix.ENOTTY) { // a network's, or FAT
		err = unix.Fsync(fd)
	}
	return err
}

// WaitForTick has nothing to wait for: APFS takes times from a clock of nanoseconds. On
// file systems with coarser ones a change of metadata alone, in the very second of a
// restore, may be missed by the next create; one of contents changes their time too.
func WaitForTick() {}

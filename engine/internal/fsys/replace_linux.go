package fsys

import (
	"time"

	"golang.org/x/sys/unix"
)

// Exchange has two paths change places, in one step.
func Exchange(a, b string) error {
	return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
}

// RenameNew renames, unless something is at the new path already: EEXIST.
func RenameNew(from, to string) error { return RenameNewAt(unix.AT_FDCWD, from, unix.AT_FDCWD, to) }

// RenameNewAt is RenameNew for names in open directories. Where the file system cannot do it
// in one step, as NFS, another file that comes in between is replaced.
func RenameNewAt(fromDir int, from string, toDir int, to string) error {
	err := unix.Renameat2(fromDir, from, toDir, to, unix.RENAME_NOREPLACE)
	if IsAny(err, unix.EINVAL, unix.ENOSYS, unix.ENOTSUP) { // as of NFS
		if StatAt(toDir, to, new(unix.Stat_t)) == nil {
			return unix.EEXIST
		}
		err = unix.Renameat(fromDir, from, toDir, to)
	}
	return err
}

// SyncFileSystem writes all of the file system to disk that an open file is on.
func SyncFileSystem(fd int) error { return unix.Syncfs(fd) }

// WaitForTick waits until the clock that file systems take times from has moved
// on: a file that is changed after this shows it by its ctime.
func WaitForTick() {
	var then, now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &then) != nil {
		return
	}
	for i := 0; i < 100; i++ {
		if unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &now) != nil || now != then {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

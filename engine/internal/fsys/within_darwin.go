package fsys

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// within calls do with an open directory as the working directory, of this thread
// alone: for the system calls that have no *at form. They are to be given a plain name,
// so that no link on the way can lead elsewhere.
func within(dir int, do func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PthreadFchdir(dir); err != nil {
		return err
	}
	defer func() {
		if err := unix.PthreadFchdir(-1); err != nil {
			panic(err) // the thread would go on to other work in that directory
		}
	}()
	return do()
}

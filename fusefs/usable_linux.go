package fusefs

import (
	"fmt"
	"os"
)

// Usable tries whether this process can mount, and says why not. What it mounts
// for that, at a directory of its own in the folder, is gone when it returns.
func Usable(folder string) error {
	dir, err := os.MkdirTemp(folder, ".try-fuse-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	dev, err := openDevice(dir, "snapctl-test", false)
	if err != nil {
		return fmt.Errorf("mounting: %w", err)
	}
	dev.Close() // nobody asks anything of it from here on
	return unmount(dir, true)
}

// Helper is the program that mounts for users other than root, "" if there is none.
func Helper() string {
	path, err := helper()
	if err != nil {
		return ""
	}
	return path
}

// UnmountAt unmounts whatever is mounted at a path, topmost, which the caller knows
// to be his. It is for file systems that lie over a snapshot's; else see Unmount.
func UnmountAt(dir string, detach bool) error {
	if err := unmount(dir, detach); err != nil {
		return fmt.Errorf("unmounting %s: %w", dir, err)
	}
	return nil
}

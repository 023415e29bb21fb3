package fusefs

import "fmt"

// Usable tries whether this process can mount at a directory, and unmount, and says why
// not.
func Usable(dir string) error {
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

//go:build linux

package fusefs

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWatch: every change of the table of mounts is seen.
func TestWatch(t *testing.T) {
	stop := make(chan struct{})
	looked := make(chan struct{}, 100)
	if err := Watch(stop, func() { looked <- struct{}{} }); err != nil {
		t.Fatal(err)
	}
	<-looked
	dir := t.TempDir()
	for range 5 {
		if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
			t.Skip(err)
		}
		select {
		case <-looked:
		case <-time.After(tooLong):
			t.Fatal("mount")
		}
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
		select {
		case <-looked:
		case <-time.After(tooLong):
			t.Fatal("umount")
		}
	}
	close(stop)
}

package index

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadOnlyFolder(t *testing.T) {
	dir := t.TempDir()
	mount(t, dir, "size=16m")
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	b := newBucket()
	b.fill(t, 0, 5000)
	ix := open(t, filepath.Join(dir, "sub"))
	b.sync(t, ix)
	check(t, ix, b.places(t), 6000)
	mustClose(t, ix)
}

func TestFullDisk(t *testing.T) {
	for name, size := range map[string]string{"some left": "32m", "nothing left": "4k", "no inodes": "32m,nr_inodes=2"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			mount(t, dir, "size="+size)
			b := newBucket()
			b.fill(t, 0, bufferLimit+5000)
			ix := open(t, dir)
			b.sync(t, ix)
			check(t, ix, b.places(t), bufferLimit+6000)
			mustClose(t, ix)
			ix = open(t, dir)
			b.sync(t, ix)
			check(t, ix, b.places(t), bufferLimit+6000)
			mustClose(t, ix)
		})
	}
}

// The disk fills up when the slot holds something already: that stays.
func TestDiskFillsUp(t *testing.T) {
	dir := t.TempDir()
	mount(t, dir, "size=256m")
	b := newBucket()
	b.fill(t, 0, 5000)
	ix := open(t, dir)
	b.sync(t, ix)
	mustClose(t, ix)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	first := b.places(t)
	b.fill(t, 5000, 5000)
	for range 2 {
		ix = open(t, dir)
		check(t, ix, first, 12_000)
		b.sync(t, ix)
		check(t, ix, b.places(t), 12_000)
		mustClose(t, ix)
	}
}

func mount(t *testing.T, dir, data string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, data); err != nil {
		t.Skipf("mounting needs privileges: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
}

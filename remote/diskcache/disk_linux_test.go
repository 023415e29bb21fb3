package diskcache_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/remote/diskcache"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// mountTmpfs mounts a small file system for the test, or skips it.
func mountTmpfs(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("a small disk to fill cannot be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// TestCacheFullDisk: a disk that others have filled costs the cache, not the
// reads; it says so once, and what it has is still used.
func TestCacheFullDisk(t *testing.T) {
	dir := mountTmpfs(t, 8*mib)
	data := remotetest.Random(1, 2*mib)
	o := newOrigin(t, nil)
	for i := range 20 {
		if err := o.Put(t.Context(), fmt.Sprintf("packs/%02d", i), data); err != nil {
			t.Fatal(err)
		}
	}
	var said notices
	c := openCache(t, filepath.Join(dir, "cache"), 1<<30, &diskcache.Options{Notify: said.add})
	s := c.Wrap(o, "repo")
	if err := s.Prefetch(t.Context(), "packs/00", 0, -1); err != nil {
		t.Fatal(err)
	}
	// All but 1.5 MiB of what is free.
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	hog := filepath.Join(dir, "hog")
	if err := os.WriteFile(hog, make([]byte, int64(st.Bavail)*st.Bsize-mib*3/2), 0o600); err != nil {
		t.Fatal(err)
	}
	read(t, s, "packs/00", data, 0, 2*mib)
	for i := range 20 {
		name := fmt.Sprintf("packs/%02d", i)
		read(t, s, name, data, 5, 100)
		read(t, s, name, data, 0, 2*mib)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	said.expect(t, unix.ENOSPC)
	if got := c.Stats(); got.Errors == 0 || got.Damaged != 0 {
		t.Errorf("%+v", got)
	}
}

// TestCacheReadOnly: a folder that cannot be written serves what it has.
func TestCacheReadOnly(t *testing.T) {
	dir := mountTmpfs(t, 8*mib)
	data := remotetest.Random(1, 2*mib)
	o := newOrigin(t, map[string][]byte{"packs/a": data, "packs/b": data})
	c := openCache(t, dir, 1<<30, nil)
	s := c.Wrap(o, "repo")
	if err := s.Prefetch(t.Context(), "packs/a", 0, mib); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	// Something in it is damaged, and cannot be mended.
	f, err := os.OpenFile(filepath.Join(dir, "repo/packs/a"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("damage"), 1<<20+500_000)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	o.asked()
	var said notices
	c = openCache(t, dir, 1<<30, &diskcache.Options{Notify: said.add})
	s = c.Wrap(o, "repo")
	read(t, s, "packs/a", data, 0, 400_000)
	expectAsked(t, o)
	for range 3 {
		read(t, s, "packs/a", data, 0, 2*mib)
		read(t, s, "packs/b", data, 0, 2*mib)
	}
	s.Invalidate("packs/a", 0, 100)
	said.expect(t, unix.EROFS)
	if err := s.Prefetch(t.Context(), "packs/b", 0, -1); !errors.Is(err, diskcache.ErrNoCache) {
		t.Errorf("got %v", err)
	}
}

package remote_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// TestFileFull fills a file system of 1 MiB.
func TestFileFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("a small file system cannot be mounted: %v", err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	s := remotetest.OpenFile(t, dir)
	ctx := t.Context()
	if err := s.Put(ctx, "packs/00/fits", make([]byte, 600<<10)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		err := s.Put(ctx, "packs/00/too-much", make([]byte, 600<<10))
		if !errors.Is(err, unix.ENOSPC) || remote.Transient(err) || !strings.Contains(err.Error(), dir+" is full: ") {
			t.Errorf("got %v", err)
		}
		if err := s.Replace(ctx, "packs/00/fits", make([]byte, 700<<10)); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("got %v", err)
		}
	}
	if got := files(t, dir); !slices.Equal(got, []string{"packs/00/fits"}) {
		t.Errorf("left: %q", got)
	}
	if info, err := s.Stat(ctx, "packs/00/fits"); err != nil || info.Size != 600<<10 {
		t.Errorf("got %v, %v", info, err)
	}
	if err := s.Delete(ctx, "packs/00/fits"); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(ctx, "packs/00/too-much", make([]byte, 600<<10)); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

package disk_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/remote/disk"
)

func open(t *testing.T, path string) int {
	t.Helper()
	fd, err := disk.Open(path, unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// TestLock: a lock belongs to the open file, alone or shared, until it is given back.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, dir), open(t, dir)
	for _, step := range []struct {
		what string
		err  error
		want error
	}{
		{"the first alone", disk.Lock(a), nil},
		{"the second beside it", disk.Lock(b), disk.ErrLocked},
		{"the second shared beside it", disk.LockShared(b), disk.ErrLocked},
		{"the first shared", disk.LockShared(a), nil},
		{"the second shared too", disk.LockShared(b), nil},
		{"the first alone again", disk.Lock(a), disk.ErrLocked},
		{"the second given back", disk.Unlock(b), nil},
		{"the first alone at last", disk.Lock(a), nil},
		{"none", disk.Lock(-1), unix.EBADF},
	} {
		if step.err != step.want {
			t.Errorf("%s: got %v, want %v", step.what, step.err, step.want)
		}
	}
}

func TestRenameNew(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	for name, content := range map[string]string{from: "new", to: "old"} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := disk.RenameNew(from, to); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over another: %v", err)
	}
	if got, err := os.ReadFile(to); err != nil || string(got) != "old" {
		t.Errorf("it holds %q, %v", got, err)
	}
	if err := os.Remove(to); err != nil {
		t.Fatal(err)
	}
	if err := disk.RenameNew(from, to); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(to); err != nil || string(got) != "new" {
		t.Errorf("it holds %q, %v", got, err)
	}
	if err := disk.SyncDir(dir); err != nil {
		t.Error(err)
	}
	if err := disk.SyncDir(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the sync of no directory: %v", err)
	}
}

// TestPread reads up to a file's end, and what was written comes back.
func TestPread(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	if err := disk.Pwrite(fd, []byte("content"), 3); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 20)
	for _, r := range []struct {
		offset int64
		n      int
		want   string
	}{{0, 20, "\x00\x00\x00content"}, {3, 4, "cont"}, {9, 5, "t"}, {10, 5, ""}, {50, 5, ""}} {
		n, err := disk.Pread(fd, p[:r.n], r.offset)
		if err != nil || string(p[:n]) != r.want {
			t.Errorf("%d bytes at %d: got %q, %v", r.n, r.offset, p[:n], err)
		}
	}
	bufs := [3][]byte{p[:2], {}, p[10:15]}
	if n, err := disk.Preadv(fd, bufs, 4); err != nil || n != 6 || string(p[:2]) != "on" || string(p[10:14]) != "tent" {
		t.Errorf("into several: %d bytes, %q and %q, %v", n, p[:2], p[10:15], err)
	}
	if _, err := disk.Pread(-1, p, 0); err != unix.EBADF {
		t.Errorf("of no file: %v", err)
	}
}

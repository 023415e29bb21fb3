//go:build linux

package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// Nearly every case of go-fuse's posixtest writes first. ReadDirConsistency is the
// one that does not; the others run on an overlay whose lower layer is a mount, so
// that what they change is copied up from it. What they check of reads is checked
// of the mount itself by the tests below, and by those of this package that are
// about directories, holes, attributes and links.
func TestPosix(t *testing.T) {
	w := newWorld()
	for name := range posixtest.All {
		w.dir(name)
	}
	// Files that the cases would make, or write again.
	for _, name := range []string{"FileLarge/file", "FdLeak/file", "ParallelFileOpen/file", "LseekEnxioCheck/file.bin", "LseekHoleSeeksToEOF/file.bin", "FcntlFlockSetLk/file0"} {
		w.file(name, 4096, piece{8192, "what was there"})
	}
	for i := range 168 {
		w.file(fmt.Sprintf("ReadDirConsistency/%d", i+1), 0)
	}
	lower := w.mount(t)
	t.Run("ReadDirConsistency", func(t *testing.T) { posixtest.ReadDirConsistency(t, lower+"/ReadDirConsistency") })

	dir := t.TempDir()
	for _, d := range []string{"upper", "work", "merged"} {
		check(t, os.Mkdir(dir+"/"+d, 0o755))
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, dir, dir)
	if err := unix.Mount("overlay", dir+"/merged", "overlay", 0, options); err != nil {
		t.Skipf("no overlayfs here: %v", err)
	}
	defer func() { check(t, unix.Unmount(dir+"/merged", 0)) }()
	for name, run := range posixtest.All {
		switch name {
		case "FcntlFlockLocksFile", "OpenSymlinkRace": // go-fuse leaves them out as well
		default:
			t.Run("overlay/"+name, func(t *testing.T) { run(t, filepath.Join(dir, "merged", name)) })
		}
	}
	// Beneath, nothing has changed.
	if b, err := os.ReadFile(lower + "/FileLarge/file"); err != nil || !bytes.Equal(b, content([]piece{{8192, "what was there"}}, 4096)) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// content is what a file of pieces holds.
func content(pieces []piece, end uint64) (b []byte) {
	for _, p := range pieces {
		b = append(append(b, make([]byte, p.hole)...), p.data...)
	}
	return append(b, make([]byte, end)...)
}

// mixedFile is a file of chunks and holes of odd lengths.
func mixedFile(w *world, path string) []byte {
	random := rand.NewChaCha8([32]byte{7})
	var pieces []piece
	for i, n := range []int{1, 4095, 4097, 100_001, 65536, 3, 250_000, 4096} {
		data := make([]byte, n)
		random.Read(data)
		pieces = append(pieces, piece{uint64(i%3) * 12_345, string(data)})
	}
	const end = 70_001
	w.file(path, end, pieces...)
	return content(pieces, end)
}

// readOnlyWorld mounts what TestReadOnly tries to change, and opens the file in it.
func readOnlyWorld(t *testing.T) (dir string, f *os.File) {
	t.Helper()
	w := newWorld()
	w.file("file", 0, piece{0, "content"})
	w.dir("dir")
	w.dir("empty")
	w.file("dir/inside", 0)
	w.add("link", manifest.Entry{Type: manifest.Symlink, Mode: 0o777, Target: "file", Links: 1})
	dir = w.mount(t)
	f, err := os.Open(dir + "/file")
	check(t, err)
	t.Cleanup(func() { f.Close() })
	return dir, f
}

// TestReadOnly: whatever would change something is refused, by the mount and not
// for want of permissions.
func TestReadOnly(t *testing.T) {
	dir, f := readOnlyWorld(t)
	fd := int(f.Fd())
	now := []unix.Timespec{{Sec: 1}, {Sec: 1}}
	for what, err := range map[string]error{
		"open to write":  func() error { _, err := unix.Open(dir+"/file", unix.O_RDWR, 0); return err }(),
		"truncate":       unix.Truncate(dir+"/file", 1),
		"open, truncate": func() error { _, err := unix.Open(dir+"/file", unix.O_RDONLY|unix.O_TRUNC, 0); return err }(),
		"make a file":    func() error { _, err := unix.Open(dir+"/new", unix.O_RDONLY|unix.O_CREAT, 0o600); return err }(),
		"O_TMPFILE":      func() error { _, err := unix.Open(dir, unix.O_RDWR|unix.O_TMPFILE, 0o600); return err }(),
		"mkdir":          unix.Mkdir(dir+"/new", 0o700),
		"mknod":          unix.Mknod(dir+"/new", unix.S_IFIFO|0o600, 0),
		"symlink":        unix.Symlink("x", dir+"/new"),
		"link":           unix.Link(dir+"/file", dir+"/new"),
		"unlink":         unix.Unlink(dir + "/file"),
		"rmdir":          unix.Rmdir(dir + "/empty"),
		"rename":         unix.Rename(dir+"/file", dir+"/new"),
		"exchange":       unix.Renameat2(unix.AT_FDCWD, dir+"/file", unix.AT_FDCWD, dir+"/dir/inside", unix.RENAME_EXCHANGE),
		"chmod":          unix.Chmod(dir+"/file", 0o600),
		"fchmod":         unix.Fchmod(fd, 0o600),
		"chown":          unix.Lchown(dir+"/link", 1, 1),
		"utimes":         unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/file", now, 0),
		"setxattr":       unix.Setxattr(dir+"/file", "user.x", nil, 0),
		"removexattr":    unix.Removexattr(dir+"/file", "user.x"),
		"access":         unix.Access(dir+"/file", unix.W_OK),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v, want EROFS", what, err)
		}
	}
	for what, err := range map[string]error{
		"fallocate": unix.Fallocate(fd, 0, 0, 1),
		"ftruncate": unix.Ftruncate(fd, 0),
		"write":     func() error { _, err := unix.Write(fd, []byte("x")); return err }(),
	} {
		if !errors.Is(err, unix.EBADF) && !errors.Is(err, unix.EINVAL) { // opened to read
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := unix.Mkdir(dir+"/dir", 0o700); !errors.Is(err, unix.EEXIST) {
		t.Errorf("mkdir of what is there: %v", err)
	}
}

// TestReadOnlyAllows: what changes nothing works.
func TestReadOnlyAllows(t *testing.T) {
	dir, f := readOnlyWorld(t)
	fd := int(f.Fd())
	lock := func(kind int16) error {
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Len: 3})
	}
	for what, err := range map[string]error{
		"fsync":          unix.Fsync(fd),
		"syncfs":         unix.Syncfs(fd),
		"fadvise":        unix.Fadvise(fd, 0, 0, unix.FADV_WILLNEED),
		"access":         unix.Access(dir+"/file", unix.R_OK),
		"flock":          unix.Flock(fd, unix.LOCK_EX),
		"lock to read":   lock(unix.F_RDLCK),
		"unlock":         lock(unix.F_UNLCK),
		"open, O_CREAT":  openClose(dir+"/file", unix.O_RDONLY|unix.O_CREAT),
		"open, NOATIME":  openClose(dir+"/file", unix.O_RDONLY|unix.O_NOATIME),
		"open, O_PATH":   openClose(dir+"/link", unix.O_PATH|unix.O_NOFOLLOW),
		"open, NONBLOCK": openClose(dir+"/file", unix.O_RDONLY|unix.O_NONBLOCK),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := lock(unix.F_WRLCK); !errors.Is(err, unix.EBADF) {
		t.Errorf("lock to write: %v", err)
	}
	other, err := os.Open(dir + "/file")
	check(t, err)
	defer other.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("flock of what is locked: %v", err)
	}
	if err := openClose(dir+"/link", unix.O_RDONLY|unix.O_NOFOLLOW); !errors.Is(err, unix.ELOOP) {
		t.Errorf("O_NOFOLLOW: %v", err)
	}
}

func openClose(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

// TestPaths: names and paths of any length, and ways of following them.
func TestPaths(t *testing.T) {
	w := newWorld()
	long := strings.Repeat("ä", 127) + "x" // 255 bytes
	w.dir("dir")
	w.dir("dir/" + long)
	w.file("dir/"+long+"/"+long, 0, piece{0, "content"})
	deep := "deep"
	w.dir(deep)
	for range 300 {
		deep += "/" + long[:40]
		w.dir(deep)
	}
	w.file(deep+"/file", 0, piece{0, "deep down"})
	for name, target := range map[string]string{"out": "/etc/passwd", "up": "../../../../etc/passwd", "in": long + "/" + long, "loop": "loop", "self": "."} {
		w.add("dir/"+name, manifest.Entry{Type: manifest.Symlink, Mode: 0o777, Target: target, Links: 1})
	}
	dir := w.mount(t)
	if b, err := os.ReadFile(dir + "/dir/in"); string(b) != "content" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	for _, more := range []string{"x", strings.Repeat("x", 1000)} {
		if _, err := os.Lstat(dir + "/dir/" + long + more); !errors.Is(err, unix.ENAMETOOLONG) {
			t.Errorf("a name of %d bytes: %v", len(long+more), err)
		}
	}
	if _, err := os.Stat(dir + "/dir/loop"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link to itself: %v", err)
	}
	// A path that is longer than a system call takes.
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	check(t, err)
	for _, name := range strings.Split(deep, "/") {
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		check(t, err)
		unix.Close(fd)
		fd = next
	}
	file, err := unix.Openat(fd, "file", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	check(t, err)
	unix.Close(fd)
	buf := make([]byte, 100)
	if n, err := unix.Read(file, buf); string(buf[:max(n, 0)]) != "deep down" || err != nil {
		t.Errorf("%q, %v", buf[:max(n, 0)], err)
	}
	unix.Close(file)

	fd, err = unix.Open(dir+"/dir", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(fd)
	for _, c := range []struct {
		path    string
		resolve uint64
		err     error
	}{
		{"in", unix.RESOLVE_BENEATH, nil}, {"self/self/in", unix.RESOLVE_BENEATH, nil}, {long + "/../in", unix.RESOLVE_BENEATH, nil},
		{"out", unix.RESOLVE_BENEATH, unix.EXDEV}, {"up", unix.RESOLVE_BENEATH, unix.EXDEV}, {"../dir/in", unix.RESOLVE_BENEATH, unix.EXDEV},
		{"up", unix.RESOLVE_IN_ROOT, unix.ENOENT}, {"in", unix.RESOLVE_NO_SYMLINKS, unix.ELOOP}, {"up", unix.RESOLVE_NO_XDEV, unix.EXDEV},
	} {
		f, err := unix.Openat2(fd, c.path, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: c.resolve})
		if err == nil {
			unix.Close(f)
		}
		if errors.Is(err, unix.ENOSYS) {
			t.Skip("no openat2")
		}
		if !errors.Is(err, c.err) {
			t.Errorf("%.20q, %d: %v, want %v", c.path, c.resolve, err, c.err)
		}
	}
}

// TestParallelListing: many who list one large directory at once, from where they
// please, all see the same.
func TestParallelListing(t *testing.T) {
	w := newWorld()
	w.dir("big")
	const n = 5000
	for i := range n {
		w.file(fmt.Sprintf("big/%05d-%s", i, strings.Repeat("x", i%60)), 0)
	}
	dir := w.mount(t) + "/big"
	first := make(chan []dirent, 1)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			all := dirents(t, dir)
			select {
			case first <- all:
			default:
			}
			if len(all) != n+2 {
				t.Errorf("%d names", len(all))
				return
			}
			fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Close(fd)
			for range 100 {
				i := rand.IntN(len(all) - 1)
				if _, err := unix.Seek(fd, all[i].off, unix.SEEK_SET); err != nil {
					t.Error(err)
				}
				for k, d := range someDirents(t, fd, 512+rand.IntN(4096)) {
					if d != all[i+1+k] {
						t.Errorf("behind %d: %v, not %v", i, d, all[i+1+k])
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	want := <-first
	for i, d := range dirents(t, dir) {
		if d != want[i] {
			t.Fatalf("%d: %v, not %v", i, d, want[i])
		}
	}
}

// TestOpenFiles: reading leaves no file of the server's open, and no goroutine.
func TestOpenFiles(t *testing.T) {
	w := newWorld()
	w.file("file", 0, piece{0, "content"})
	dir := w.mount(t)
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		check(t, err)
		return len(fds)
	}
	before := count()
	for range 500 {
		if _, err := os.ReadFile(dir + "/file"); err != nil {
			t.Fatal(err)
		}
		if _, err := os.ReadDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(); n > before+5 {
		t.Errorf("%d files are open, %d were", n, before)
	}
}

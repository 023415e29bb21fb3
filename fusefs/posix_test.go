//go:build linux

package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
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

// TestWaysToRead: every way that the kernel has of reading a file gives the same
// bytes.
func TestWaysToRead(t *testing.T) {
	w := newWorld()
	want := mixedFile(w, "file")
	w.file("empty", 0)
	dir := w.mount(t)
	// Of nothing in the page cache.
	open := func(flags int) *os.File {
		t.Helper()
		f, err := os.OpenFile(dir+"/file", os.O_RDONLY|flags, 0)
		check(t, err)
		t.Cleanup(func() { f.Close() })
		check(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
		return f
	}
	same := func(how string, got []byte, err error) {
		t.Helper()
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes of %d, %v", how, len(got), len(want), err)
		}
	}

	data, err := io.ReadAll(open(0))
	same("read", data, err)
	for _, size := range []int{4096, 65536, 1 << 20, 3 << 20} {
		f := open(unix.O_DIRECT)
		var all []byte
		buf := make([]byte, size)
		for {
			n, err := f.Read(buf)
			all = append(all, buf[:n]...)
			if err != nil {
				same(fmt.Sprint("O_DIRECT by ", size), all, nil)
				break
			}
		}
	}
	direct := open(unix.O_DIRECT)
	for range 300 {
		off, n := rand.IntN(len(want)+1), rand.IntN(200_000)
		buf := make([]byte, n)
		for how, f := range map[string]*os.File{"pread": open(0), "pread, O_DIRECT": direct} {
			k, err := unix.Pread(int(f.Fd()), buf, int64(off))
			if rest := want[off:min(off+n, len(want))]; err != nil || k != len(rest) || !bytes.Equal(buf[:k], rest) {
				t.Fatalf("%s of %d at %d: %d bytes, %v", how, n, off, k, err)
			}
		}
		if n%16 == 0 {
			var parts [][]byte
			for at := 0; at < n; at += 1 + n/5 {
				parts = append(parts, buf[at:min(n, at+1+n/5)])
			}
			k, err := unix.Preadv(int(open(0).Fd()), parts, int64(off))
			if rest := want[off:min(off+n, len(want))]; err != nil || k != len(rest) || !bytes.Equal(buf[:k], rest) {
				t.Fatalf("preadv of %d at %d: %d bytes, %v", n, off, k, err)
			}
		}
	}

	for how, flags := range map[string]int{"mmap, private": unix.MAP_PRIVATE, "mmap, shared": unix.MAP_SHARED, "mmap, populated": unix.MAP_SHARED | unix.MAP_POPULATE} {
		m, err := unix.Mmap(int(open(0).Fd()), 0, len(want), unix.PROT_READ, flags)
		check(t, err)
		// The server is this very process: a page fault outside of a system call
		// would keep the collector, and so the server, from going on.
		check(t, unix.Madvise(m, unix.MADV_POPULATE_READ))
		same(how, m, nil)
		check(t, unix.Munmap(m))
	}

	out := func() *os.File {
		f, err := os.CreateTemp(t.TempDir(), "")
		check(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	copied := func(how string, f *os.File, err error) {
		t.Helper()
		data, err2 := os.ReadFile(f.Name())
		same(how, data, errors.Join(err, err2))
	}
	f, to := open(0), out()
	for {
		n, err := unix.Sendfile(int(to.Fd()), int(f.Fd()), nil, 123_457)
		if n <= 0 || err != nil {
			copied("sendfile", to, err)
			break
		}
	}
	f, to = open(0), out()
	for {
		n, err := unix.CopyFileRange(int(f.Fd()), nil, int(to.Fd()), nil, 200_003, 0)
		if errors.Is(err, unix.EXDEV) { // the kernel's wish, not ours
			break
		}
		if n <= 0 || err != nil {
			copied("copy_file_range", to, err)
			break
		}
	}
	f, to = open(0), out()
	r, p, err := os.Pipe()
	check(t, err)
	for {
		n, err := unix.Splice(int(f.Fd()), nil, int(p.Fd()), nil, 50_001, 0)
		if n <= 0 || err != nil {
			copied("splice", to, err)
			break
		}
		_, err = io.CopyN(to, r, n)
		check(t, err)
	}
	r.Close()
	p.Close()

	// Seeking, at the borders.
	f = open(0)
	size := int64(len(want))
	for _, c := range []struct {
		off    int64
		whence int
		want   int64
		err    error
	}{
		{0, unix.SEEK_DATA, 0, nil}, {0, unix.SEEK_HOLE, 1, nil}, {size - 1, unix.SEEK_HOLE, size - 1, nil},
		{size - 1, unix.SEEK_DATA, 0, unix.ENXIO}, {size, unix.SEEK_DATA, 0, unix.ENXIO}, {size, unix.SEEK_HOLE, 0, unix.ENXIO},
		{size + 1, unix.SEEK_HOLE, 0, unix.ENXIO}, {-1, unix.SEEK_DATA, 0, unix.ENXIO}, {0, unix.SEEK_END, size, nil}, {-1, unix.SEEK_SET, 0, unix.EINVAL},
	} {
		got, err := unix.Seek(int(f.Fd()), c.off, c.whence)
		if !errors.Is(err, c.err) || err == nil && got != c.want {
			t.Errorf("seek to %d, %d: %d, %v", c.off, c.whence, got, err)
		}
	}
	empty, err := os.Open(dir + "/empty")
	check(t, err)
	defer empty.Close()
	if _, err := unix.Seek(int(empty.Fd()), 0, unix.SEEK_HOLE); !errors.Is(err, unix.ENXIO) {
		t.Errorf("seek in an empty file: %v", err)
	}
}

// TestReadOnly: whatever would change something is refused, by the mount and not
// for want of permissions; what changes nothing is not.
func TestReadOnly(t *testing.T) {
	w := newWorld()
	w.file("file", 0, piece{0, "content"})
	w.dir("dir")
	w.dir("empty")
	w.file("dir/inside", 0)
	w.add("link", manifest.Entry{Type: manifest.Symlink, Mode: 0o777, Target: "file", Links: 1})
	dir := w.mount(t)
	f, err := os.Open(dir + "/file")
	check(t, err)
	defer f.Close()
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

//go:build linux

package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestTypes: what stat says of every type of entry.
func TestTypes(t *testing.T) {
	w := newWorld()
	all := map[string]manifest.Entry{
		"dir":     {Type: manifest.Dir, Mode: 0o1751, UID: 4_294_967_294, GID: 7, Links: 1},
		"link":    {Type: manifest.Symlink, Mode: 0o777, Target: strings.Repeat("t", 4095), Links: 1},
		"fifo":    {Type: manifest.Fifo, Mode: 0o4600, Links: 1},
		"char":    {Type: manifest.CharDevice, Mode: 0o640, Links: 1, Device: manifest.Device{Major: 4095, Minor: 1<<20 - 1}},
		"block":   {Type: manifest.BlockDevice, Mode: 0o6640, Links: 3, Device: manifest.Device{Major: 8, Minor: 257}},
		"\xff\n ": {Type: manifest.File, Links: 1},
		"old":     {Type: manifest.File, Links: 1, Mtime: manifest.Time{Sec: -1, Nsec: 999_999_999}},
		"new":     {Type: manifest.File, Links: 1, Mtime: manifest.Time{Sec: 1 << 40, Nsec: 1}},
		"huge":    {Type: manifest.File, Links: 1, Size: math.MaxInt64},
	}
	for path, e := range all {
		w.add(path, e)
	}
	dir := w.mount(t)
	for path, e := range all {
		var st unix.Stat_t
		check(t, unix.Lstat(filepath.Join(dir, path), &st))
		if st.Mode != modes[e.Type]|e.Mode || st.Uid != e.UID || st.Gid != e.GID || uint32(st.Nlink) != e.Links {
			t.Errorf("%q: %+v", path, st)
		}
		if st.Mtim.Sec != e.Mtime.Sec || st.Mtim.Nsec != int64(e.Mtime.Nsec) || st.Ctim != st.Mtim {
			t.Errorf("%q: times %v %v", path, st.Mtim, st.Ctim)
		}
		if want := unix.Mkdev(e.Device.Major, e.Device.Minor); st.Rdev != want {
			t.Errorf("%q: device %x, not %x", path, st.Rdev, want)
		}
		if size := max(e.Size, uint64(len(e.Target))); uint64(st.Size) != size {
			t.Errorf("%q: size %d, not %d", path, st.Size, size)
		}
	}
	if target, err := os.Readlink(dir + "/link"); err != nil || target != all["link"].Target {
		t.Errorf("readlink: %v %.40q", err, target)
	}
	if err := os.WriteFile(dir+"/other", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing: %v", err)
	}
	// Devices can be looked at, not used.
	if _, err := os.Open(dir + "/block"); !errors.Is(err, unix.EACCES) {
		t.Errorf("opening a device: %v", err)
	}
}

// TestHardLinks: names of one file are one inode, in lookups and in listings.
func TestHardLinks(t *testing.T) {
	w := newWorld()
	w.dir("a")
	w.dir("z")
	w.file("a/first", 0, piece{0, "content"})
	w.entries[len(w.entries)-1].Links = 3
	for _, path := range []string{"a/second", "z/third"} {
		w.add(path, manifest.Entry{Type: manifest.Link, First: manifest.Key{Dir: "a", Name: "first"}})
	}
	dir := w.mount(t)
	for _, path := range []string{"z/third", "a/second", "a/first"} {
		var first, st unix.Stat_t
		check(t, unix.Lstat(dir+"/"+path, &st))
		check(t, unix.Lstat(dir+"/a/first", &first))
		if st != first || st.Nlink != 3 {
			t.Errorf("%s: %+v is not %+v", path, st, first)
		}
		if b, err := os.ReadFile(dir + "/" + path); string(b) != "content" || err != nil {
			t.Errorf("%s: %q %v", path, b, err)
		}
		ino := inodes(t, filepath.Dir(dir+"/"+path))[filepath.Base(path)]
		if ino != st.Ino {
			t.Errorf("%s: inode %d in the listing, %d by stat", path, ino, st.Ino)
		}
	}
}

// TestHoles: data and holes are where they were, and read as they should, in a
// file whose extents are in pages of their own too.
func TestHoles(t *testing.T) {
	w := newWorld()
	block := strings.Repeat("0123456789abcdef", 1024) // 16 KiB
	w.file("none", 0, piece{0, block}, piece{0, block})
	w.file("all", 1<<40)
	w.file("some", 100_000, piece{4096, block}, piece{0, block}, piece{1 << 30, block})
	var many []piece
	for i := range uint64(5000) {
		many = append(many, piece{hole: i % 3 * 4096, data: block[:4096*(1+i%4)]})
	}
	w.file("many", 4096, many...)
	dir := w.mount(t)

	for name, want := range map[string][]int64{
		"none": {0, 32 << 10},
		"all":  {},
		"some": {4096, 4096 + 32<<10, 4096 + 32<<10 + 1<<30, 4096 + 48<<10 + 1<<30},
	} {
		f, err := os.Open(dir + "/" + name)
		check(t, err)
		var got []int64
		for at := int64(0); ; {
			data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) {
				break
			}
			check(t, err)
			at, err = unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
			check(t, err)
			got = append(got, data, at)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: data at %v, not %v", name, got, want)
		}
		f.Close()
	}

	f, err := os.Open(dir + "/many")
	check(t, err)
	defer f.Close()
	var content []byte
	for _, p := range many {
		content = append(append(content, make([]byte, p.hole)...), p.data...)
	}
	content = append(content, make([]byte, 4096)...)
	st, err := f.Stat()
	check(t, err)
	if st.Size() != int64(len(content)) {
		t.Fatalf("size %d, not %d", st.Size(), len(content))
	}
	buf := make([]byte, 300_000)
	for range 300 {
		off, n := rand.IntN(len(content)), 1+rand.IntN(len(buf))
		n, err := f.ReadAt(buf[:n], int64(off))
		if want := content[off:min(off+n, len(content))]; n != len(want) || string(buf[:n]) != string(want) {
			t.Fatalf("%d bytes at %d are not what they should be (%v)", n, off, err)
		}
	}
	// At the end, and behind it.
	for off, want := range map[int64]int{int64(len(content)) - 3: 3, int64(len(content)): 0, 1 << 50: 0} {
		if n, err := unix.Pread(int(f.Fd()), buf, off); n != want || err != nil {
			t.Errorf("at %d: %d bytes, %v", off, n, err)
		}
	}
}

// TestXattrs: names, values, and what is asked of the size.
func TestXattrs(t *testing.T) {
	w := newWorld()
	value := []byte(strings.Repeat("v", 60_000))
	w.add("with", manifest.Entry{Type: manifest.File, Links: 1, Xattrs: []manifest.Xattr{
		{Name: "user.empty", Value: []byte{}}, {Name: "user.large", Value: value},
	}})
	w.file("without", 0)
	dir := w.mount(t)
	buf := make([]byte, 64<<10)
	n, err := unix.Listxattr(dir+"/with", buf)
	if err != nil || string(buf[:n]) != "user.empty\x00user.large\x00" {
		t.Errorf("list: %q %v", buf[:max(n, 0)], err)
	}
	if n, err := unix.Listxattr(dir+"/without", buf); n != 0 || err != nil {
		t.Errorf("list of none: %d %v", n, err)
	}
	if n, err := unix.Getxattr(dir+"/with", "user.large", buf); err != nil || string(buf[:n]) != string(value) {
		t.Errorf("get: %d %v", n, err)
	}
	if n, err := unix.Getxattr(dir+"/with", "user.large", nil); n != len(value) || err != nil {
		t.Errorf("size: %d %v", n, err)
	}
	if n, err := unix.Getxattr(dir+"/with", "user.empty", buf); n != 0 || err != nil {
		t.Errorf("empty: %d %v", n, err)
	}
	if _, err := unix.Getxattr(dir+"/with", "user.large", buf[:10]); !errors.Is(err, unix.ERANGE) {
		t.Errorf("too small: %v", err)
	}
	for _, path := range []string{"/with", "/without"} {
		if _, err := unix.Getxattr(dir+path, "user.none", buf); !errors.Is(err, unix.ENODATA) {
			t.Errorf("none: %v", err)
		}
	}
}

// TestTrouble: while the source fails everything that needs it is EIO, never
// ENOENT, and when it is back all is well.
func TestTrouble(t *testing.T) {
	w := newWorld()
	for i := range 20 { // enough for several pages
		w.dir(fmt.Sprintf("dir%02d", i))
		for k := range 300 {
			w.file(fmt.Sprintf("dir%02d/%s-%03d", i, strings.Repeat("n", 100), k), 0, piece{0, fmt.Sprint(i, k)})
		}
	}
	dir := w.mount(t)
	w.fail(func(context.Context) error { return fmt.Errorf("the network is away: %w", fs.ErrNotExist) })
	name := func(i, k int) string { return fmt.Sprintf("%s/dir%02d/%s-%03d", dir, i, strings.Repeat("n", 100), k) }
	for range 2 {
		for i := 5; i < 20; i++ { // the first page is there since the mount
			if _, err := os.Lstat(name(i, 7)); !errors.Is(err, unix.EIO) {
				t.Fatalf("stat: %v", err)
			}
			if _, err := os.Lstat(name(i, 7) + "-not-there"); !errors.Is(err, unix.EIO) {
				t.Fatalf("stat of what is not there: %v", err)
			}
		}
		if _, err := os.ReadDir(filepath.Dir(name(3, 0))); !errors.Is(err, unix.EIO) {
			t.Fatalf("readdir: %v", err)
		}
	}
	w.heal()
	for i := range 20 {
		_, err := os.Lstat(name(i, 7))
		check(t, err)
		if _, err := os.Lstat(name(i, 7) + "-not-there"); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	w.fail(func(context.Context) error { return manifest.ErrNotExist })
	if _, err := os.ReadFile(name(5, 7)); !errors.Is(err, unix.EIO) {
		t.Fatalf("read: %v", err)
	}
	w.fail(func(context.Context) error { return context.Canceled }) // of somebody else
	if _, err := os.ReadFile(name(5, 7)); !errors.Is(err, unix.EIO) {
		t.Fatalf("read: %v", err)
	}
	w.heal()
	if b, err := os.ReadFile(name(5, 7)); string(b) != "5 7" {
		t.Fatalf("read: %q %v", b, err)
	}
}

// TestInterrupt: a signal that ends nobody does not disturb a read, and a reader
// that is killed does not wait for the network.
func TestInterrupt(t *testing.T) {
	w := newWorld()
	w.file("file", 0, piece{0, "content"})
	w.file("other", 0, piece{0, "other content"})
	dir := w.mount(t)
	waiting := make(chan struct{}, 10)
	w.fail(func(ctx context.Context) error {
		waiting <- struct{}{}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(patience / 2):
			return nil
		}
	})
	// read(2) without os.File, which hides EINTR.
	tid := make(chan int, 1)
	result := make(chan error, 1)
	go func() {
		fd, err := unix.Open(dir+"/file", unix.O_RDONLY, 0)
		if err == nil {
			tid <- unix.Gettid()
			_, err = unix.Read(fd, make([]byte, 10))
			unix.Close(fd)
		}
		result <- err
	}()
	<-waiting
	check(t, unix.Tgkill(os.Getpid(), <-tid, unix.SIGURG))
	if err := <-result; err != nil {
		t.Errorf("with a signal: %v", err)
	}

	back := make(chan struct{})
	w.fail(func(ctx context.Context) error {
		waiting <- struct{}{}
		select {
		case <-ctx.Done():
		case <-back:
		}
		return errors.New("the network was away")
	})
	for len(waiting) > 0 {
		<-waiting
	}
	cat := exec.Command("cat", dir+"/other")
	check(t, cat.Start())
	<-waiting
	check(t, cat.Process.Kill())
	ended := make(chan error, 1)
	go func() { ended <- cat.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("it read what is not there")
		}
	case <-time.After(tooLong):
		t.Error("who was killed waits for the network")
	}
	w.heal()
	close(back) // what the kernel reads ahead it does not interrupt
	if b, err := os.ReadFile(dir + "/other"); string(b) != "other content" {
		t.Errorf("afterwards: %q %v", b, err)
	}
}

// TestParallel: many readers at once, while the kernel's caches are dropped.
func TestParallel(t *testing.T) {
	w := newWorld()
	for i := range 50 {
		w.dir(fmt.Sprint("dir", i))
		for k := range 40 {
			w.file(fmt.Sprintf("dir%d/%d", i, k), 0, piece{0, strings.Repeat(fmt.Sprint(i, k), 100)}, piece{4096, "end"})
		}
	}
	dir := w.mount(t)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 200 {
				i, k := rand.IntN(50), rand.IntN(40)
				b, err := os.ReadFile(fmt.Sprintf("%s/dir%d/%d", dir, i, k))
				want := strings.Repeat(fmt.Sprint(i, k), 100) + strings.Repeat("\x00", 4096) + "end"
				if err != nil || string(b) != want {
					t.Errorf("%d %d: %v", i, k, err)
				}
				if all, err := os.ReadDir(fmt.Sprintf("%s/dir%d", dir, i)); len(all) != 40 || err != nil {
					t.Errorf("%d: %d names, %v", i, len(all), err)
				}
			}
		})
	}
	wg.Wait()
}

func TestStatFS(t *testing.T) {
	w := newWorld()
	w.file("file", 1<<20)
	dir := w.mount(t)
	var st unix.Statfs_t
	check(t, unix.Statfs(dir, &st))
	if st.Files != 2 || st.Blocks*uint64(st.Bsize) != 1<<20 || st.Bfree != 0 || st.Namelen != 255 || st.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("%+v", st)
	}
}

// TestUnmount: what is in use is said to be, can be detached, and what is not
// ours is left alone.
func TestUnmount(t *testing.T) {
	w := newWorld()
	w.file("file", 0)
	dir := w.mount(t)
	f, err := os.Open(dir + "/file")
	check(t, err)
	if err := Unmount(dir, false); !errors.Is(err, ErrBusy) {
		t.Errorf("in use: %v", err)
	}
	f.Close()
	link := filepath.Join(t.TempDir(), "link")
	check(t, os.Symlink(dir, link))
	for _, path := range []string{dir, dir + "/", link, filepath.Dir(dir) + "/./" + filepath.Base(dir)} {
		if got, err := Resolve(path); got != dir || err != nil {
			t.Errorf("%s is %s, %v", path, got, err)
		}
	}
	for _, other := range []string{"/", "/proc", t.TempDir()} {
		if err := Unmount(other, false); !errors.Is(err, ErrNotMounted) {
			t.Errorf("%s: %v", other, err)
		}
	}
}

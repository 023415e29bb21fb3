//go:build linux

package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/read"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/engine/view"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
	"golang.org/x/sys/unix"
)

// snapshotFS opens a snapshot as a file system.
func snapshotFS(t testing.TB, r *Repository, ref string) *view.FS {
	t.Helper()
	s, err := view.Open(t.Context(), r.repo, ref)
	must(t, err)
	return s
}

// plantForFS makes a tree of names that testing/fstest can take, which reads every
// file byte by byte: large files it gets none.
func plantForFS(t testing.TB, dir string, large int) (names []string) {
	t.Helper()
	must(t, os.MkdirAll(dir+"/a/b/c", 0o755))
	must(t, os.MkdirAll(dir+"/a.b/empty", 0o2750))
	must(t, os.MkdirAll(dir+"/many", 0o755))
	for name, data := range map[string][]byte{
		"empty": nil, "a/small": []byte("small"), "a/b/c/deep": []byte("deep"), "a/b/large": random(1, large), "名前": []byte("name"),
		"a b/*[x]?": []byte("odd"), "a-": []byte("sorts before a/"), "zeros": make([]byte, 300_000), "-rf": []byte("dash"), "new\nline": []byte("line"),
	} {
		writeFile(t, dir+"/"+name, data)
		names = append(names, name)
	}
	for i := range 300 {
		name := fmt.Sprintf("many/%d", i)
		writeFile(t, dir+"/"+name, fmt.Append(nil, "file ", i))
		names = append(names, name)
	}
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(root)
	f := &forest{t, root, dir}
	f.sparse("holes", 1<<20, map[int64][]byte{500_001: random(2, 70_000), 900_000: []byte("end")})
	f.sparse("a/all hole", 100_000, nil)
	must(t, os.Link(dir+"/a/small", dir+"/hard"))
	must(t, os.Symlink("small", dir+"/a/link"))
	must(t, os.Symlink("../../../a/b", dir+"/a/b/c/up"))
	must(t, os.Symlink("a/b/c/up/large", dir+"/through"))
	must(t, os.Chmod(dir+"/a/small", 0o4711))
	return append(names, "holes", "a/all hole", "hard", "a/link", "a/b/c/up", "through", "a.b/empty")
}

// TestFS: what testing/fstest asks of a file system, and the same as the
// directory itself.
func TestFS(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.path("src")
	names := plantForFS(t, src, unlessShort(1_500_000, 400_000))
	s := snapshotFS(t, r, complete(t, r, src, nil).ID.String())
	must(t, fstest.TestFS(s, names...))
	sub, err := fs.Sub(s, "a")
	must(t, err)
	must(t, fstest.TestFS(sub, "small", "b/large"))
	sameFS(t, os.DirFS(src), s)
}

// sameFS compares two file systems through io/fs.
func sameFS(t testing.TB, want, got fs.FS) {
	t.Helper()
	seen := 0
	must(t, fs.WalkDir(want, ".", func(name string, d fs.DirEntry, err error) error {
		must(t, err)
		seen++
		a, err := fs.Lstat(want, name)
		must(t, err)
		b, err := fs.Lstat(got, name)
		if err != nil {
			t.Errorf("%q: %v", name, err)
			return nil
		}
		if a.Name() != b.Name() || a.Mode() != b.Mode() || !a.ModTime().Equal(b.ModTime()) || !a.IsDir() && a.Size() != b.Size() {
			t.Errorf("%q: %v %v %d, want %v %v %d", name, b.Mode(), b.ModTime(), b.Size(), a.Mode(), a.ModTime(), a.Size())
		}
		if a.Mode().IsRegular() {
			x, err := fs.ReadFile(want, name)
			must(t, err)
			y, err := fs.ReadFile(got, name)
			if err != nil || !bytes.Equal(x, y) {
				t.Errorf("%q: other contents, %v", name, err)
			}
			var z bytes.Buffer
			f, err := got.Open(name)
			must(t, err)
			n, err := f.(io.WriterTo).WriteTo(&z)
			if err != nil || n != int64(len(x)) || !bytes.Equal(x, z.Bytes()) {
				t.Errorf("%q: other contents of %d bytes written, %v", name, n, err)
			}
			must(t, f.Close())
		}
		return nil
	}))
	must(t, fs.WalkDir(got, ".", func(string, fs.DirEntry, error) error { seen--; return nil }))
	if seen != 0 {
		t.Errorf("%d entries more", -seen)
	}
}

// TestFSEverything: every entry of a tree with all that Linux has is listed,
// described, and read, by Walk and OpenPath.
func TestFSEverything(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.path("src")
	plant(t, src)
	s := snapshotFS(t, r, complete(t, r, src, nil).ID.String())
	want := scan(t, src)
	inodes := map[uint64]string{}
	n := 1 // the root
	must(t, s.Walk("", func(i *view.FileInfo) error {
		n++
		w, ok := want[i.Path()]
		if !ok {
			t.Errorf("%q is too many", i.Path())
			return nil
		}
		a := i.Sys().(*view.FileAttr)
		type file struct {
			mode     uint32
			uid, gid uint32
			sec, nsec,
			size int64
			device uint64
			target string
		}
		x := file{w.Mode, w.UID, w.GID, w.Mtime.Sec, w.Mtime.Nsec, w.Size, w.Device, w.Target}
		y := file{unixMode(i.Mode()), a.UID, a.GID, i.ModTime().Unix(), int64(i.ModTime().Nanosecond()), i.Size(), unix.Mkdev(a.Device.Major, a.Device.Minor), a.Target}
		if i.IsDir() || a.Target != "" {
			x.size = y.size
		}
		if x != y {
			t.Errorf("%q is %+v, want %+v", i.Path(), y, x)
		}
		if len(a.Xattrs) != strings.Count(w.Xattrs, " ") {
			t.Errorf("%q has %d extended attributes, want %s", i.Path(), len(a.Xattrs), w.Xattrs)
		}
		if same, ok := inodes[a.Inode]; ok && (want[same].Same == "" || want[same].Same != w.Same) {
			t.Errorf("%q has the inode number of %q", i.Path(), same)
		}
		inodes[a.Inode] = i.Path()
		if i.Mode().IsRegular() && i.Size() < 1<<20 {
			f, err := s.OpenPath(i.Path())
			must(t, err)
			b, err := io.ReadAll(f)
			must(t, err)
			must(t, f.Close())
			fd, err := unix.Open(src, unix.O_RDONLY|unix.O_DIRECTORY, 0)
			must(t, err)
			if len(i.Path()) < 4000 {
				c, err := os.ReadFile(src + "/" + i.Path())
				if err != nil || !bytes.Equal(b, c) {
					t.Errorf("%q: other contents", i.Path())
				}
			}
			unix.Close(fd)
		}
		return nil
	}))
	if n != len(want) {
		t.Errorf("%d entries, want %d", n, len(want))
	}
	// What is no name for io/fs is listed, but not opened by it.
	list, err := s.ReadDir("names")
	must(t, err)
	odd := "\x01\x7f\x80\xfe"
	if !slices.ContainsFunc(list, func(d fs.DirEntry) bool { return d.Name() == odd }) {
		t.Errorf("%q is not listed", odd)
	}
	for op, f := range map[string]func(string) error{
		"open":     func(n string) error { _, err := s.Open(n); return err },
		"stat":     func(n string) error { _, err := s.Stat(n); return err },
		"lstat":    func(n string) error { _, err := s.Lstat(n); return err },
		"readlink": func(n string) error { _, err := s.ReadLink(n); return err },
		"readdir":  func(n string) error { _, err := s.ReadDir(n); return err },
		"readfile": func(n string) error { _, err := s.ReadFile(n); return err },
	} {
		for _, name := range []string{"names/" + odd, "", "/", "..", "names/", "./names", "names//a", "a/../names", "/names"} {
			if err := f(name); !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%s of %q: %v", op, name, err)
			}
		}
		if err := f("names/none"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", op, err)
		}
	}
	f, err := s.OpenPath("/names//./" + odd + "/")
	must(t, err)
	if b, err := io.ReadAll(f); string(b) != odd || err != nil {
		t.Errorf("%q %v", b, err)
	}
	if _, err := s.OpenPath("names/../names"); !errors.Is(err, snapshot.ErrInvalid) {
		t.Error(err)
	}
}

// unixMode is a mode as system calls have it.
func unixMode(m fs.FileMode) uint32 {
	u := uint32(m.Perm())
	for bit, mode := range map[uint32]fs.FileMode{
		0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky,
		unix.S_IFDIR: fs.ModeDir, unix.S_IFLNK: fs.ModeSymlink, unix.S_IFIFO: fs.ModeNamedPipe,
	} {
		if m&mode != 0 {
			u |= bit
		}
	}
	switch {
	case m&fs.ModeCharDevice != 0:
		u |= unix.S_IFCHR
	case m&fs.ModeDevice != 0:
		u |= unix.S_IFBLK
	case m.IsRegular():
		u |= unix.S_IFREG
	}
	return u
}

// TestFSLinks: symbolic links lead inside the snapshot only.
func TestFSLinks(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	outside := p.files("outside", map[string]string{"secret": "secret"})
	src := p.files("src", map[string]string{"d/sub/f": "f", "d/g": "g"})
	for name, target := range map[string]string{
		"abs": outside + "/secret", "d/out": "../../outside/secret", "out-and-in": "../src/d/g", "loop": "loop", "a": "b", "b": "a",
		"dir": "d/sub", "dir/": "", "d/sub/back": "../..//./d/g", "file-as-dir": "d/g/", "dangling": "d/none", "root": ".", "dot": "d/./sub/",
	} {
		if target != "" {
			must(t, os.Symlink(target, src+"/"+name))
		}
	}
	chain := "d/g"
	for i := range 60 {
		name := fmt.Sprint("chain-", i)
		must(t, os.Symlink(chain, src+"/"+name))
		chain = name
	}
	s := snapshotFS(t, r, complete(t, r, src, nil).ID.String())
	for name, want := range map[string]string{"dir/f": "f", "dir/back": "g", "root/root/d/g": "g", "dot/f": "f", "chain-39": "g", "d/sub/back": "g"} {
		if b, err := s.ReadFile(name); string(b) != want || err != nil {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	for name, want := range map[string]string{
		"abs": "leads out of the snapshot", "d/out": "leads out of the snapshot", "out-and-in": "leads out of the snapshot",
		"loop": "too many levels", "a": "too many levels", "chain-40": "too many levels", "file-as-dir": "not a directory",
		"dangling": "file does not exist", "d/g/x": "not a directory", "dir/none": "file does not exist", "abs/x": "leads out of the snapshot",
	} {
		_, err := s.Open(name)
		var pe *fs.PathError
		if err == nil || !strings.Contains(err.Error(), want) || !errors.As(err, &pe) || pe.Path != name {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := s.Stat(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("stat of %s: %v", name, err)
		}
	}
	info, err := s.Lstat("abs")
	if err != nil || info.Mode().Type() != fs.ModeSymlink || info.Name() != "abs" {
		t.Errorf("%v, %v", info, err)
	}
	if to, err := s.ReadLink("abs"); to != outside+"/secret" || err != nil {
		t.Errorf("%q, %v", to, err)
	}
	if _, err := s.ReadLink("d/g"); !errors.Is(err, fs.ErrInvalid) {
		t.Error(err)
	}
	info, err = s.Stat("dir/f")
	if err != nil || info.Name() != "f" || info.Sys().(*view.FileAttr).Path != "d/sub/f" {
		t.Errorf("%v, %v", info, err)
	}
}

// TestFSHostile: a tree that lies is an error, or harmless.
func TestFSHostile(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	dir := func(name string) manifest.Entry { return manifest.Entry{Name: name, Type: manifest.Dir} }
	link := func(dir, name, to string) manifest.Entry {
		return manifest.Entry{Dir: dir, Name: name, Type: manifest.Link, First: manifest.KeyOf(to)}
	}
	for name, entries := range map[string][]manifest.Entry{
		"nowhere":        {link("", "x", "a")},
		"to a directory": {dir("a"), link("", "x", "a")},
		"to a link":      {{Name: "a", Type: manifest.File}, link("", "b", "a"), link("", "x", "b")},
	} {
		s := snapshotFS(t, r, forge(t, r, entries...).String())
		_, err := s.Open("x")
		_, list := s.ReadDir(".")
		for _, err := range []error{err, list, s.Walk("", func(*view.FileInfo) error { return nil }), s.Dump(io.Discard, "")} {
			if !errors.Is(err, snapshot.ErrIntegrity) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	s := snapshotFS(t, r, forge(t, r, manifest.Entry{Name: "huge", Type: manifest.File, Size: 1<<63 - 1}).String())
	if _, err := s.ReadFile("huge"); err == nil {
		t.Error("a file of 8 EiB was read")
	}
	f, err := s.Open("huge")
	must(t, err)
	b := []byte("12345")
	if n, err := f.(io.ReaderAt).ReadAt(b, 1<<63-4); n != 3 || !errors.Is(err, io.EOF) || string(b[:3]) != "\x00\x00\x00" {
		t.Errorf("%d %v", n, err)
	}
}

// TestFSReads: random reads at random places, by many at once, whatever the way.
func TestFSReads(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.path("src")
	plantForFS(t, src, read.Memory+4<<20) // more than is kept of it
	root, err := unix.Open(src, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(root)
	pieces := map[int64][]byte{}
	for i := range int64(700) { // more extents than an entry holds
		pieces[i*3*4096] = random(uint64(i), 4096)
	}
	(&forest{t, root, src}).sparse("holes-many", 700*3*4096+5, pieces)
	s := snapshotFS(t, r, complete(t, r, src, nil).ID.String())
	sameFS(t, os.DirFS(src), s)
	names := []string{"a/b/large", "holes", "holes-many", "zeros", "many/7", "a/all hole"}
	contents := map[string][]byte{}
	for _, name := range names {
		contents[name], err = os.ReadFile(src + "/" + name)
		must(t, err)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 1))
			for range times(40, 400) {
				name := names[rnd.IntN(len(names))]
				want := contents[name]
				f, err := s.Open(name)
				if err != nil {
					t.Error(err)
					return
				}
				at := rnd.IntN(len(want) + 2)
				b := make([]byte, rnd.IntN(2<<20))
				n, err := f.(io.ReaderAt).ReadAt(b, int64(at))
				end := min(at+len(b), len(want))
				if n != max(0, end-at) || n > 0 && !bytes.Equal(b[:n], want[at:end]) || (n < len(b)) != errors.Is(err, io.EOF) {
					t.Errorf("%s: %d bytes at %d, %v", name, n, at, err)
				}
				at = len(want) - 1 - rnd.IntN(min(len(want), 4<<20))
				if _, err := f.(io.Seeker).Seek(int64(at-len(want)), io.SeekEnd); err != nil {
					t.Error(err)
				}
				rest := want[at:]
				var got []byte
				if g%2 == 0 {
					got, err = io.ReadAll(struct{ io.Reader }{f})
				} else {
					var buf bytes.Buffer
					_, err = io.Copy(&buf, f)
					got = buf.Bytes()
				}
				if err != nil || !bytes.Equal(got, rest) {
					t.Errorf("%s from %d on: %d bytes, want %d, %v", name, at, len(got), len(rest), err)
				}
			}
		})
	}
	wg.Wait()
}

// TestFSDamage: damage is an error that names the path, and no wrong byte.
func TestFSDamage(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"a": string(random(1, 3<<20)), "b": string(random(2, 5000))})
	id := complete(t, r, src, nil).ID
	for _, pack := range packsOf(t, r, id, chunk.DataPack) {
		must(t, damages["flipped"](p.repo+"/"+repo.PackName(pack)))
	}
	s := snapshotFS(t, r, id.String())
	failed := 0
	for _, name := range []string{"a", "b"} {
		want, err := os.ReadFile(src + "/" + name)
		must(t, err)
		f, err := s.Open(name)
		must(t, err)
		var out bytes.Buffer
		_, err = io.Copy(&out, f)
		if !bytes.HasPrefix(want, out.Bytes()) {
			t.Errorf("%s: wrong bytes", name)
		}
		if err != nil {
			failed++
			if !errors.Is(err, snapshot.ErrIntegrity) || !strings.Contains(err.Error(), "read "+name) {
				t.Errorf("%s: %v", name, err)
			}
			if _, err := s.ReadFile(name); !errors.Is(err, snapshot.ErrIntegrity) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if failed == 0 {
		t.Error("nothing was wrong")
	}
}

// TestFSContext: reads end with the context.
func TestFSContext(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	id := complete(t, r, p.files("src", map[string]string{"a": string(random(1, 3<<20))}), nil).ID
	ctx, cancel := context.WithCancel(t.Context())
	s, err := view.Open(ctx, r.repo, id.String())
	must(t, err)
	f, err := s.Open("a")
	must(t, err)
	cancel()
	for _, err := range []error{errOf(f.Read(make([]byte, 5))), errOf64(f.(io.WriterTo).WriteTo(io.Discard)), s.Dump(io.Discard, "")} {
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}

func errOf(_ int, err error) error     { return err }
func errOf64(_ int64, err error) error { return err }

// TestFSRequests: over S3, what one small file takes is the manifest, pages on
// the way to it, and a part of one pack.
func TestFSRequests(t *testing.T) {
	plainOnly(t)
	b := newBucket(t)
	r := b.init()
	src := b.path("src")
	must(t, os.MkdirAll(src, 0o755))
	for i := range 40 {
		writeFile(t, fmt.Sprintf("%s/noise/%d", src, i), random(uint64(i), 700_000))
	}
	for i := range 4000 {
		// Targets of links are in the tree, which is to be of several windows.
		dir := fmt.Sprintf("%s/tree/%d", src, i%40)
		must(t, os.MkdirAll(dir, 0o755))
		must(t, os.Symlink(fmt.Sprintf("%x", random(uint64(i), 1000)), fmt.Sprintf("%s/%d", dir, i)))
	}
	writeFile(t, src+"/noise/5.txt", []byte("small"))
	id := complete(t, r, src, nil).ID.String()
	var retries atomic.Int64
	r = b.open("another", &retries)
	var requests []string
	var mu sync.Mutex
	b.Hook(func(req *http.Request) remotetest.Trouble {
		mu.Lock()
		defer mu.Unlock()
		requests = append(requests, fmt.Sprint(req.Method, " ", req.URL.Path, " ", req.Header.Get("Range")))
		return remotetest.Trouble{}
	})
	s := snapshotFS(t, r, id)
	data, err := s.ReadFile("noise/5.txt")
	must(t, err)
	if string(data) != "small" {
		t.Errorf("%q", data)
	}
	n := r.Requests().Ops
	t.Logf("one small file: %v\n%s", n, strings.Join(requests, "\n"))
	pages := int64(2)
	if n[remote.OpList].Calls != 0 || n[remote.OpGet].Calls != 2 /* config, manifest */ || n[remote.OpReadAt].Calls > pages+1 {
		t.Errorf("%v\n%s", n, strings.Join(requests, "\n"))
	}
	if bytes := n[remote.OpReadAt].Received; bytes > (pages+1)<<20 {
		t.Errorf("%d bytes were fetched", bytes)
	}
	// Once more, from the disk cache.
	s = snapshotFS(t, r, id)
	if _, err := s.ReadFile("noise/5.txt"); err != nil {
		t.Error(err)
	}
	if m := r.Requests().Ops; m[remote.OpReadAt].Calls != n[remote.OpReadAt].Calls || m[remote.OpGet].Calls != n[remote.OpGet].Calls+1 {
		t.Errorf("again: %v", m)
	}
	// An archive of all of it takes no range twice.
	r = b.open("third", &retries)
	_, files := members(t, dump(t, snapshotFS(t, r, id), "noise"))
	for i := range 40 {
		if files[fmt.Sprint("./", i)] != string(random(uint64(i), 700_000)) {
			t.Errorf("file %d is another", i)
		}
	}
	if m := r.Requests().Ops; m[remote.OpReadAt].Calls > 40 || m[remote.OpReadAt].Received > 32<<20 {
		t.Errorf("an archive of 27 MB: %v", m)
	}
	if retries.Load() != 0 {
		t.Errorf("%d retries", retries.Load())
	}
}

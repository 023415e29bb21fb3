//go:build linux

package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A forest makes a tree with everything that a Linux tree can hold. It goes by
// descriptors of directories, since paths may be longer than a system call takes.
type forest struct {
	testing.TB
	root int
	dir  string
}

func (f *forest) ok(what string, err error) {
	f.Helper()
	if err != nil {
		f.Fatalf("%s: %v", what, err)
	}
}

// mkdirs makes directories, each in the one before, and opens the last.
func (f *forest) mkdirs(names ...string) int {
	f.Helper()
	at := f.root
	for _, name := range names {
		if err := unix.Mkdirat(at, name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			f.Fatal(err)
		}
		fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		f.ok(name, err)
		if at != f.root {
			unix.Close(at)
		}
		at = fd
	}
	return at
}

func (f *forest) file(at int, name string, data []byte) {
	f.Helper()
	fd, err := unix.Openat(at, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	f.ok(name, err)
	file := os.NewFile(uintptr(fd), name)
	_, err = file.Write(data)
	f.ok(name, errors.Join(err, file.Close()))
}

// sparse makes a file of a size with data at some places.
func (f *forest) sparse(name string, size int64, data map[int64][]byte) {
	f.Helper()
	file, err := os.OpenFile(f.dir+"/"+name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	f.ok(name, err)
	for at, b := range data {
		_, err := file.WriteAt(b, at)
		f.ok(name, err)
	}
	f.ok(name, errors.Join(file.Truncate(size), file.Close()))
}

func (f *forest) time(name string, sec, nsec int64) {
	f.Helper()
	ts := []unix.Timespec{{Sec: sec, Nsec: nsec}, {Sec: sec, Nsec: nsec}}
	f.ok(name, unix.UtimesNanoAt(f.root, name, ts, unix.AT_SYMLINK_NOFOLLOW))
}

// acl is the value of a system.posix_acl_* attribute.
func acl(entries ...[3]uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries { // tag, permissions, id
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

const noID = 0xffffffff

// hugeFile is the size of the largest file without holes: several packs.
func hugeFile() int {
	if testing.Short() {
		return 10 << 20
	}
	return 40 << 20
}

// plant makes everything that any user can make, and what root can if it is root.
func plant(t testing.TB, dir string) {
	t.Helper()
	if !keepsHoles {
		t.Skip("the tree has a hole of 100 GB, which would be read and written as zeros")
	}
	must(t, os.MkdirAll(dir, 0o755))
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(root)
	f := &forest{t, root, dir}

	// Sizes around every bound.
	at := f.mkdirs("sizes")
	for i, size := range []int{
		0, 1, 2, 4095, 4096, 4097, 128<<10 - 1, 128 << 10, 128<<10 + 1,
		1<<20 - 1, 1 << 20, 1<<20 + 1, 2<<20 - 1, 2 << 20, 2<<20 + 1, 5 << 20, hugeFile(),
	} {
		f.file(at, fmt.Sprint(size), random(uint64(i), size))
	}
	f.file(at, "zeros", make([]byte, 3<<20))
	f.file(at, "small zeros", make([]byte, 3000))
	f.file(at, "repeating", []byte(strings.Repeat("snapctl ", 300_000)))
	unix.Close(at)
	at = f.mkdirs("duplicates")
	for i := range 100 {
		f.file(at, fmt.Sprint(i), random(1000, 10_000))
	}
	f.file(at, "large", random(16, hugeFile()))
	unix.Close(at)

	// Names.
	at = f.mkdirs("names")
	for _, name := range []string{
		strings.Repeat("n", 255), strings.Repeat("\xff", 255), "\x01\x7f\x80\xfe", "new\nline", "\n", "-rf", "--help", "...", "..a",
		".hidden", " ", "a b", "tab\t", "'\"`$", "*", "?", "[a]", "\\", "a\\b", "é", "e\u0301", "名前", "a", "a.b", "a-b", "a!b", "A",
	} {
		f.file(at, name, []byte(name))
	}
	unix.Close(at)
	for _, name := range []string{"a", "a.b", "a-", "a!", "a\x01", "ab"} { // they sort differently as paths
		unix.Close(f.mkdirs("order", name, "x"))
		at := f.mkdirs("order", name)
		f.file(at, "file", []byte(name))
		unix.Close(at)
	}
	unix.Close(f.mkdirs("empty", "empty", "empty"))

	// Paths longer than PATH_MAX, and much longer.
	for _, bytes := range []int{4200, 10_000} {
		var names []string
		for n := 0; n < bytes; n += 201 {
			names = append(names, strings.Repeat(string(rune('a'+n%26)), 200))
		}
		names[0] = fmt.Sprintf("deep-%d", bytes)
		at := f.mkdirs(names...)
		f.file(at, "file", []byte("deep"))
		f.ok("link", unix.Symlinkat("file", at, "link"))
		f.ok("fifo", unix.Mknodat(at, "fifo", unix.S_IFIFO|0o600, 0))
		f.ok("hard", unix.Linkat(at, "file", at, "hard", 0))
		f.ok("hard", unix.Linkat(at, "file", f.root, fmt.Sprintf("hard-from-deep-%d", bytes), 0))
		unix.Close(at)
	}

	// Symbolic links.
	for name, target := range map[string]string{
		"dangling": "nowhere", "absolute": "/etc/passwd", "to-dir": "sizes", "loop": "loop", "up": "../../..", "odd": "\xff\n",
		"long": strings.Repeat("l/", 2047) + "l", "dot": ".", "slash": "/", "with slash": "sizes/",
	} {
		f.ok(name, unix.Symlinkat(target, root, "symlink-"+name))
	}
	f.time("symlink-dangling", -5_000_000_000, 999_999_999)

	// Hard links: in one directory, across directories in both orders, of links,
	// of FIFOs, of empty files, of a file with holes.
	for _, d := range []string{"links-a", "links-b", "links-c"} {
		unix.Close(f.mkdirs(d, "sub"))
	}
	f.file(root, "links-b/file", random(2000, 300_000))
	f.file(root, "links-c/empty", nil)
	f.ok("symlink", unix.Symlinkat("target", root, "links-b/symlink"))
	f.ok("fifo", unix.Mkfifoat(root, "links-b/fifo", 0o640))
	f.sparse("links-b/sparse", 1<<20, map[int64][]byte{500_000: []byte("x")})
	for _, name := range []string{"file", "symlink", "fifo", "sparse"} {
		for _, d := range []string{"links-a", "links-a/sub", "links-b", "links-b/sub", "links-c"} {
			f.ok(name, unix.Linkat(root, "links-b/"+name, root, d+"/"+name+"-again", 0))
		}
	}
	f.ok("empty", unix.Linkat(root, "links-c/empty", root, "links-a/empty", 0))

	// Times.
	for name, ts := range map[string][2]int64{
		"1969": {-1, 1}, "1901": {-2_147_483_648, 999_999_999}, "1700": {-8_520_336_000, 5}, "epoch": {0, 0},
		"2038": {2_147_483_648, 123_456_789}, "2106": {4_294_967_296, 1}, "2300": {10_413_792_000, 999_999_999},
	} {
		f.file(root, "time-"+name, []byte(name))
		f.time("time-"+name, ts[0], ts[1])
		unix.Close(f.mkdirs("time-dir-"+name, "sub"))
		f.time("time-dir-"+name, ts[0], ts[1])
	}

	// Holes.
	block := random(3000, 64<<10)
	f.sparse("holes-start", 10<<20, map[int64][]byte{9 << 20: block})
	f.sparse("holes-middle", 10<<20, map[int64][]byte{0: block, 10<<20 - 64<<10: block})
	f.sparse("holes-end", 10<<20, map[int64][]byte{0: block})
	f.sparse("holes-all", 10<<20, nil)
	f.sparse("holes-small", 8192, map[int64][]byte{4096: block[:10]})
	f.sparse("holes-odd", 10<<20+7, map[int64][]byte{3: []byte("abc"), 5_000_001: block[:9999], 10 << 20: []byte("1234567")})
	many := map[int64][]byte{}
	for i := range int64(700) { // more extents than an entry holds
		many[i*3*4096] = random(uint64(i), 4096)
	}
	f.sparse("holes-many", 700*3*4096+5, many)
	f.sparse("holes-100GB", 100<<30, map[int64][]byte{0: block, 50 << 30: block, 100<<30 - 5: []byte("hello")})

	// Attributes.
	f.file(root, "xattrs", []byte("x"))
	for name, value := range map[string][]byte{"user.empty": nil, "user.a": []byte("1"), "user.bin": random(1, 1000), "user.long": random(2, 60_000), "user.\xffodd": []byte("\x00\xff")} {
		f.ok(name, unix.Setxattr(dir+"/xattrs", name, value, 0))
	}
	unix.Close(f.mkdirs("xattrs-dir"))
	f.ok("user.d", unix.Setxattr(dir+"/xattrs-dir", "user.d", []byte("dir"), 0))
	f.ok("user.root", unix.Setxattr(dir, "user.root", []byte("root"), 0))
	f.file(root, "acl", []byte("acl"))
	f.ok("acl", unix.Setxattr(dir+"/acl", "system.posix_acl_access",
		acl([3]uint32{1, 6, noID}, [3]uint32{2, 7, 1234}, [3]uint32{4, 4, noID}, [3]uint32{8, 5, 99}, [3]uint32{16, 5, noID}, [3]uint32{32, 0, noID}), 0))
	unix.Close(f.mkdirs("acl-dir"))
	defaults := acl([3]uint32{1, 7, noID}, [3]uint32{2, 6, 77}, [3]uint32{4, 5, noID}, [3]uint32{16, 7, noID}, [3]uint32{32, 1, noID})
	f.ok("default acl", unix.Setxattr(dir+"/acl-dir", "system.posix_acl_default", defaults, 0))
	f.file(root, "acl-dir/inherits", []byte("1"))
	unix.Close(f.mkdirs("acl-dir", "inherits-too", "and-this"))
	unix.Removexattr(dir+"/acl-dir/inherits-too/and-this", "system.posix_acl_default")
	f.file(root, "acl-dir/inherits-too/and-this/not", nil)

	f.ok("fifo", unix.Mkfifoat(root, "fifo", 0o622))
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	f.ok("socket", err)
	defer unix.Close(sock)

	if os.Geteuid() == 0 {
		f.plantAsRoot()
	}
	// Modes, at last, the hard ones on what nothing more is written into.
	for i, mode := range []uint32{0, 0o111, 0o222, 0o444, 0o1777, 0o2755, 0o4755, 0o6755, 0o7777, 0o7000, 0o4000, 0o600} {
		name := fmt.Sprintf("mode-%04o", mode)
		f.file(root, name, random(uint64(i), 100))
		f.file(root, name+"-large", random(uint64(i), 300_000))
		f.ok(name, unix.Chmod(dir+"/"+name, mode))
		f.ok(name, unix.Chmod(dir+"/"+name+"-large", mode))
		unix.Close(f.mkdirs(name+"-dir", "sub"))
		f.file(root, name+"-dir/file", []byte("1"))
		f.ok(name, unix.Linkat(root, name+"-dir/file", root, name+"-dir/sub/hard", 0))
		if os.Geteuid() == 0 || mode&0o500 == 0o500 {
			f.ok(name, unix.Chmod(dir+"/"+name+"-dir", mode))
		}
	}
	f.ok("root", unix.Fchmod(root, 0o1750))
	f.time(".", 1_000_000_000, 987_654_321)
}

func (f *forest) plantAsRoot() {
	f.Helper()
	for name, dev := range map[string][2]uint32{"null": {1, 3}, "zero-zero": {0, 0}, "large": {4095, 1_048_575}} {
		for kind, mode := range map[string]uint32{"char": unix.S_IFCHR, "block": unix.S_IFBLK} {
			f.ok(name, unix.Mknodat(f.root, kind+"-"+name, mode|0o640, int(unix.Mkdev(dev[0], dev[1]))))
		}
	}
	f.ok("hard device", unix.Linkat(f.root, "char-null", f.root, "links-c/device", 0))
	for _, name := range []string{"xattrs", "xattrs-dir", "symlink-absolute", "fifo", "char-null"} {
		f.ok(name, unix.Lsetxattr(f.dir+"/"+name, "trusted.snapctl", []byte(name), 0))
	}
	for i, id := range [][2]int{{1, 0}, {0, 1}, {65534, 65534}, {4_000_000_000, 4_294_967_294}, {1234, 5678}} {
		name := fmt.Sprintf("owner-%d", i)
		f.file(f.root, name, []byte(name))
		unix.Close(f.mkdirs(name+"-dir", "sub"))
		f.ok(name, unix.Symlinkat("x", f.root, name+"-symlink"))
		for _, suffix := range []string{"", "-dir", "-symlink"} {
			f.ok(name, unix.Fchownat(f.root, name+suffix, id[0], id[1], unix.AT_SYMLINK_NOFOLLOW))
		}
		f.ok(name, unix.Chmod(f.dir+"/"+name, 0o6755)) // chown clears these bits
	}
	// cap_net_bind_service=ep, of version 2.
	f.file(f.root, "capable", random(4000, 5000))
	f.ok("chown", os.Chown(f.dir+"/capable", 77, 88))
	f.ok("capability", unix.Setxattr(f.dir+"/capable", "security.capability",
		[]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0))
}

// TestFidelity: everything that a Linux tree holds comes back identical.
func TestFidelity(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src, dst := p.path("src"), p.path("dst")
	plant(t, src)
	want := scan(t, src)
	before := cpuTime(t)
	first := complete(t, r, src, nil)
	if took := cpuTime(t) - before; took > 30*time.Second {
		t.Errorf("with a file of 100 GB that is nearly all holes, it took %v of the processor", took)
	}
	restore(t, r, first.ID.String(), dst, &RestoreOptions{Verify: true})
	got := scan(t, dst)
	if os.Geteuid() != 0 {
		withoutOwners(want)
		withoutOwners(got)
	}
	compare(t, want, got)
	rsyncFindsNothing(t, src, dst)

	// What was restored is recognised, and read in full is the same.
	for _, cache := range []string{"cache", "empty"} {
		res := complete(t, p.open(cache), dst, nil)
		if res.NewBytes != 0 {
			t.Errorf("%s: a snapshot of what was restored has %d new bytes", cache, res.NewBytes)
		}
		equalEntries(t, entriesOf(t, r, first.ID), entriesOf(t, r, res.ID))
		a, err := r.repo.Manifest(t.Context(), first.ID)
		must(t, err)
		b, err := r.repo.Manifest(t.Context(), res.ID)
		must(t, err)
		if a.Digest() != b.Digest() {
			t.Errorf("%s: the tree's digest is another", cache)
		}
	}

	// Over a different tree, and over itself.
	other := p.files("other", map[string]string{"sizes/0/dir/instead": "1", "symlink-up/dir": "2", "fifo": "3", "extra": "4", "links-a/file-again": "5"})
	for range 2 {
		restore(t, r, first.ID.String(), other, &RestoreOptions{Into: true, Delete: true, Verify: true})
		compare(t, want, scan(t, other))
	}
	rsyncFindsNothing(t, src, other)
}

func withoutOwners(all tree) {
	for path, n := range all {
		n.UID, n.GID = 0, 0
		all[path] = n
	}
}

// rsyncFindsNothing compares two trees by means of a program that is not ours.
func rsyncFindsNothing(t testing.TB, a, b string) {
	t.Helper()
	rsync, err := exec.LookPath("rsync")
	if err != nil {
		t.Log("no rsync here")
		return
	}
	// The deep paths and the file of 100 GB are more than it can do.
	cmd := exec.Command(rsync, "-aHAXn", "--checksum", "--itemize-changes", "--delete", "--exclude=/deep-*", "--exclude=/holes-100GB", a+"/", b+"/")
	out, err := cmd.CombinedOutput()
	if len(out) > 0 || err != nil {
		t.Errorf("rsync finds differences (%v):\n%.3000s", err, out)
	}
}

// TestFidelityS3 does the same through an S3 server.
func TestFidelityS3(t *testing.T) {
	b := newBucket(t)
	src, dst := b.path("src"), b.path("dst")
	plant(t, src)
	res := complete(t, b.init(), src, nil)
	r := b.open("empty", nil)
	restore(t, r, res.ID.String(), dst, nil)
	want, got := scan(t, src), scan(t, dst)
	if os.Geteuid() != 0 {
		withoutOwners(want)
		withoutOwners(got)
	}
	compare(t, want, got)
}

// TestFidelityUnprivileged: the same by a user without rights, of a tree of its
// own; and of a tree of root's, as far as it can.
func TestFidelityUnprivileged(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	src, mine := p.path("src"), p.path("mine")
	plant(t, src)
	id := complete(t, r, src, nil).ID.String()
	must(t, r.Close())
	// The place belongs to nobody, and the way to it is open.
	openTo(t, p, nobody)
	must(t, exec.Command("chown", "-R", "65534:65534", p.repo).Run())
	must(t, os.Mkdir(mine, 0o755))
	must(t, os.Chown(mine, 65534, 65534))

	j := job{Op: "restore", Repo: p.repo, Cache: mine + "/cache", Ref: id, Dir: mine + "/out"}
	o := j.do(t, nobody)
	if o.Err != "" {
		t.Fatal(o.Err)
	}
	for _, problem := range o.Problems {
		if !strings.Contains(problem, "only root") && !strings.Contains(problem, "without setuid") && !strings.Contains(problem, "links-c/device") && !strings.Contains(problem, "trusted.") && !strings.Contains(problem, "security.") {
			t.Errorf("problem: %s", problem)
		}
	}
	if len(o.Problems) == 0 {
		t.Error("no problems with devices and capabilities")
	}
	want, got := scan(t, src), scan(t, mine+"/out")
	for path, n := range want {
		// A program of another user does not become one of this user.
		if n.Mode&unix.S_IFMT == unix.S_IFREG && (n.UID != nobody.Uid || n.GID != nobody.Gid) {
			n.Mode &^= unix.S_ISUID | unix.S_ISGID
			want[path] = n
		}
	}
	for _, all := range []tree{want, got} {
		withoutOwners(all)
		for path, n := range all {
			if n.Mode&unix.S_IFMT == unix.S_IFBLK || n.Mode&unix.S_IFMT == unix.S_IFCHR {
				delete(all, path)
				continue
			}
			var kept []string
			for _, x := range strings.Fields(n.Xattrs) {
				if !strings.HasPrefix(x, "trusted.") && !strings.HasPrefix(x, "security.") {
					kept = append(kept, x)
				}
			}
			n.Xattrs = strings.Join(kept, " ")
			all[path] = n
		}
	}
	compare(t, want, got)

	// And a snapshot of that: what was not restored is not in it.
	for _, cache := range []string{"/cache", "/another-cache"} {
		j = job{Op: "create", Repo: p.repo, Cache: mine + cache, Dir: mine + "/out"}
		if o = j.do(t, nobody); o.Err != "" {
			t.Fatal(o.Err)
		}
		r = p.open("check")
		for _, e := range entriesOf(t, r, o.id(t)) {
			if strings.Contains(e, " trusted.") || strings.Contains(e, " security.capability") {
				t.Errorf("%s: an attribute that is not there: %.200s", cache, e)
			}
		}
	}
}

// openTo lets another user pass to a place, and write into it.
func openTo(t testing.TB, p *place, user *syscall.Credential) {
	t.Helper()
	must(t, os.Chmod(p.dir, 0o777))
	for dir := p.dir; dir != "/" && dir != os.TempDir(); dir = dir[:strings.LastIndexByte(dir, '/')] {
		st, err := os.Stat(dir)
		must(t, err)
		must(t, os.Chmod(dir, st.Mode().Perm()|0o011))
	}
}

// TestUnreadable: what a user may not read is named, and all else is there.
func TestUnreadable(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	src := p.files("src", map[string]string{
		"readable": "1", "secret": "2", "closed/inside": "3", "locked/inside": "4", "a/b/secret": "5", "a/b/readable": "6",
		"unlisted/inside": "7", "linked": "8",
	})
	must(t, os.Link(src+"/linked", src+"/linked-too"))
	must(t, os.WriteFile(src+"/large-secret", random(1, 3<<20), 0o600))
	for name, mode := range map[string]os.FileMode{
		"secret": 0o600, "closed": 0o700, "locked": 0o744, "a/b/secret": 0, "unlisted": 0o711, "linked": 0o200,
	} {
		must(t, os.Chmod(src+"/"+name, mode))
	}
	p.init().Close()
	openTo(t, p, nobody)
	must(t, exec.Command("chown", "-R", "65534:65534", p.repo).Run())
	for round := range 2 {
		o := job{Op: "create", Repo: p.repo, Cache: p.path("mine"), Dir: src}.do(t, nobody)
		if o.Err != "" || !o.Incomplete {
			t.Fatalf("%+v", o)
		}
		for _, name := range []string{`"secret"`, `"closed"`, `"locked/inside"`, `"a/b/secret"`, `"unlisted"`, `"linked"`, `"linked-too"`, `"large-secret"`} {
			n := 0
			for _, problem := range o.Problems {
				if strings.Contains(problem, name) {
					n++
				}
			}
			if n == 0 {
				t.Errorf("%s is not named in %q", name, o.Problems)
			}
		}
		r := p.open("check")
		out := p.path(fmt.Sprint("out", round))
		restore(t, r, o.id(t).String(), out, nil)
		got := scan(t, out)
		for _, name := range []string{"readable", "a/b/readable", "closed", "unlisted", "locked"} {
			if _, ok := got[name]; !ok {
				t.Errorf("%q is missing", name)
			}
		}
		for _, name := range []string{"secret", "closed/inside", "a/b/secret", "linked", "linked-too", "large-secret"} {
			if _, ok := got[name]; ok {
				t.Errorf("%q is there", name)
			}
		}
		s, err := r.Get(t.Context(), o.id(t).String())
		if err != nil || !s.Incomplete || s.Unreadable != int64(len(o.Problems)) {
			t.Errorf("snapshot: %+v, %v", s, err)
		}
	}
	// The directory itself.
	must(t, os.Chmod(src, 0o700))
	if o := (job{Op: "create", Repo: p.repo, Cache: p.path("mine"), Dir: src}).do(t, nobody); !strings.Contains(o.Err, "permission denied") {
		t.Errorf("%+v", o)
	}
	// Root can read it all, and takes nothing from what could not be read before. It uses
	// no cache of another user's.
	must(t, os.Chmod(src, 0o755))
	must(t, filepath.WalkDir(p.path("mine"), func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, 0, 0))
	}))
	r := p.open("mine")
	p.check(complete(t, r, src, nil).ID, scan(t, src))
}

// TestTooManyXattrs: a file with more attributes than an entry can hold is left
// out and named.
func TestTooManyXattrs(t *testing.T) {
	p := newPlace(t)
	src := p.files("src", map[string]string{"f": "1", "other": "2"})
	for i := range 20 {
		if err := unix.Setxattr(src+"/f", fmt.Sprintf("user.%d", i), random(uint64(i), 60_000), 0); err != nil {
			t.Skipf("this file system holds less: %v", err)
		}
	}
	r := p.init()
	res := create(t, r, src, nil)
	if !res.Incomplete || len(res.Problems) != 1 || !strings.Contains(res.Problems[0].Error(), `"f"`) {
		t.Errorf("incomplete %v: %v", res.Incomplete, res.Problems)
	}
	restore(t, r, res.ID.String(), p.path("out"), nil)
	if _, ok := scan(t, p.path("out"))["other"]; !ok {
		t.Error("another file is missing")
	}
}

// TestSockets are left out and counted.
func TestSockets(t *testing.T) {
	p := newPlace(t)
	src := p.files("src", map[string]string{"f": "1"})
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: src + "/s"}))
	r := p.init()
	res := complete(t, r, src, nil)
	if res.Skipped != 1 || res.Files != 1 {
		t.Errorf("skipped %d, files %d", res.Skipped, res.Files)
	}
}

// TestOneFileSystem leaves out what is mounted, but for the directory itself.
func TestOneFileSystem(t *testing.T) {
	p := newPlace(t)
	src := p.files("src", map[string]string{"f": "1", "mnt/beneath": "2"})
	mount(t, src+"/mnt", "size=1m")
	writeFile(t, src+"/mnt/mounted/f", []byte("3"))
	r := p.init()
	for _, one := range []bool{true, false} {
		res := complete(t, r, src, &CreateOptions{OneFileSystem: one})
		want := scan(t, src)
		if one {
			delete(want, "mnt/mounted")
			delete(want, "mnt/mounted/f")
		}
		p.check(res.ID, want)
	}
}

// mount mounts a tmpfs for the length of a test.
func mount(t testing.TB, dir, options string) {
	t.Helper()
	needRoot(t)
	must(t, os.MkdirAll(dir, 0o755))
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("mounting is not allowed here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// TestTotals: a snapshot's numbers are those of its tree.
func TestTotals(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := manyFiles(p, "src")
	must(t, os.Link(src+"/large", src+"/linked"))
	must(t, os.Symlink("large", src+"/symlink"))
	res := complete(t, r, src, nil)
	var files, dirs, bytes int64
	for path, n := range scan(t, src) {
		switch {
		case n.Mode&unix.S_IFMT == unix.S_IFDIR:
			dirs++
		default:
			files++
			if n.Same == "" || n.Same == path {
				bytes += n.Size
			}
		}
	}
	if res.Files != files || res.Dirs != dirs || res.Bytes != bytes || res.NewBytes != bytes {
		t.Errorf("files %d, dirs %d, bytes %d, new %d; want %d, %d, %d", res.Files, res.Dirs, res.Bytes, res.NewBytes, files, dirs, bytes)
	}
	var stored int64
	for _, f := range filesBelow(t, p.repo+"/packs") {
		st, err := os.Stat(f)
		must(t, err)
		stored += st.Size()
	}
	if res.StoredBytes != stored {
		t.Errorf("stored bytes %d, packs have %d", res.StoredBytes, stored)
	}
	rec := restore(t, r, res.ID.String(), p.path("out"), nil)
	m, err := r.repo.Manifest(t.Context(), res.ID)
	must(t, err)
	if rec.Files != files || rec.Dirs != dirs || rec.Bytes != bytes || rec.Digest != fmt.Sprintf("%x", m.Digest()) {
		t.Errorf("receipt: %+v", rec)
	}
}

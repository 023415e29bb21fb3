//go:build linux

package fusefs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"testing"
	"unsafe"

	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// onThread runs f on a thread of its own, which ends with it: f may change what
// the thread is.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		f()
	}()
	<-done
}

// become makes the thread another user's. The libc way, and Go's, is to change
// all threads of the process.
func become(uid, gid uint32, groups ...uint32) error {
	var list unsafe.Pointer
	if len(groups) > 0 {
		list = unsafe.Pointer(&groups[0])
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(list), 0); e != 0 {
		return e
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); e != 0 {
		return e
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
		return e
	}
	return nil
}

// aclValue is a system.posix_acl_access attribute of tag, permissions and id.
func aclValue(entries ...[3]uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

// TestPermissions: the kernel lets users do what modes and ACLs say, no more and
// no less.
func TestPermissions(t *testing.T) {
	const (
		owner, user, group, groupOf, mask, other = 1, 2, 4, 8, 16, 32
		none                                     = 0xffffffff
	)
	acl := func(entries ...[3]uint32) []manifest.Xattr {
		return []manifest.Xattr{{Name: "system.posix_acl_access", Value: aclValue(entries...)}}
	}
	w := newWorld()
	data := []byte("content")
	add := func(path string, mode, uid, gid uint32, xattrs []manifest.Xattr) {
		w.file(path, 0, piece{0, string(data)})
		e := &w.entries[len(w.entries)-1]
		e.Mode, e.UID, e.GID, e.Xattrs = mode, uid, gid, xattrs
	}
	add("mode", 0o640, 777, 500, nil)
	add("own-group-less", 0o604, 777, 500, nil)
	// The group's bits of the mode are the mask: who looks at the mode alone lets
	// group 500 in.
	add("acl", 0o640, 777, 500, acl([3]uint32{owner, 6, none}, [3]uint32{user, 4, 12345}, [3]uint32{group, 0, none}, [3]uint32{groupOf, 4, 99}, [3]uint32{mask, 4, none}, [3]uint32{other, 0, none}))
	add("masked", 0o600, 777, 500, acl([3]uint32{owner, 6, none}, [3]uint32{user, 4, 12345}, [3]uint32{group, 4, none}, [3]uint32{mask, 0, none}, [3]uint32{other, 0, none}))
	add("refused", 0o644, 777, 500, acl([3]uint32{owner, 6, none}, [3]uint32{user, 0, 12345}, [3]uint32{group, 4, none}, [3]uint32{mask, 4, none}, [3]uint32{other, 4, none}))
	w.add("dir", manifest.Entry{Type: manifest.Dir, Mode: 0o710, UID: 777, GID: 500, Links: 1,
		Xattrs: acl([3]uint32{owner, 7, none}, [3]uint32{user, 1, 12345}, [3]uint32{group, 0, none}, [3]uint32{mask, 1, none}, [3]uint32{other, 0, none})})
	add("dir/inside", 0o644, 777, 500, nil)
	root, err := os.Open(w.mount(t))
	check(t, err)
	defer root.Close()

	type who struct {
		uid, gid uint32
		groups   []uint32
	}
	everybody := map[string]who{
		"root": {}, "owner": {777, 1, nil}, "12345": {12345, 1, nil}, "12346": {12346, 1, nil},
		"group": {1000, 500, nil}, "also group": {1000, 1, []uint32{7, 500}}, "group 99": {1000, 1, []uint32{99}}, "12345 of group": {12345, 500, nil},
	}
	for path, may := range map[string]map[string]bool{
		"mode":           {"root": true, "owner": true, "group": true, "also group": true, "12345 of group": true},
		"own-group-less": {"root": true, "owner": true, "12345": true, "12346": true, "group 99": true},
		"acl":            {"root": true, "owner": true, "12345": true, "12345 of group": true, "group 99": true},
		"masked":         {"root": true, "owner": true},
		"refused":        {"root": true, "owner": true, "12346": true, "group": true, "also group": true, "group 99": true},
		"dir/inside":     {"root": true, "owner": true, "12345": true, "12345 of group": true},
	} {
		for name, is := range everybody {
			onThread(func() {
				if err := become(is.uid, is.gid, is.groups...); err != nil {
					t.Error(err)
					return
				}
				fd, err := unix.Openat(int(root.Fd()), path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err == nil {
					buf := make([]byte, 100)
					n, err := unix.Read(fd, buf)
					if !bytes.Equal(buf[:max(n, 0)], data) {
						t.Errorf("%s by %s: %q, %v", path, name, buf[:max(n, 0)], err)
					}
					unix.Close(fd)
				}
				if may[name] && err != nil || !may[name] && !errors.Is(err, unix.EACCES) {
					t.Errorf("%s by %s: %v, allowed: %v", path, name, err, may[name])
				}
			})
		}
	}
}

// TestNoHelper: without fusermount3 users other than root are told what they need,
// and with it, and no PATH, it is found.
func TestNoHelper(t *testing.T) {
	path, err := helper()
	if err != nil {
		t.Skip(err)
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can hide a program")
	}
	t.Setenv("PATH", "")
	if _, err := helper(); err != nil {
		if _, notThere := os.Stat("/bin/fusermount3"); notThere == nil {
			t.Errorf("without a PATH: %v", err)
		}
	}
	os.Setenv("PATH", "/usr/bin:/bin")
	w := newWorld()
	w.build(t)
	tree, err := manifest.NewTree(w.manifest.Root, w.source())
	check(t, err)
	dir := t.TempDir()
	blank := dir + "/blank"
	check(t, os.WriteFile(blank, nil, 0o644))
	onThread(func() {
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		for _, p := range []string{path, "/bin/fusermount3", "/bin/fusermount"} {
			if _, there := os.Stat(p); err == nil && there == nil {
				err = unix.Mount(blank, p, "", unix.MS_BIND, "")
			}
		}
		if err == nil {
			err = become(12345, 12345)
		}
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := Mount(dir, w.manifest, tree, w, nil); !errors.Is(err, ErrNoHelper) {
			t.Errorf("mounting: %v", err)
		}
		if err := unmountByHelper(dir, false); !errors.Is(err, ErrNoHelper) {
			t.Errorf("unmounting: %v", err)
		}
	})
}

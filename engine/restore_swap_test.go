//go:build linux

package engine

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// ext4 mounts a new file system of that many bytes, made with those features, and gives its
// directory and the file that holds it.
func ext4(t *testing.T, p *place, size int64, features string) (dir, image string) {
	t.Helper()
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("needs mkfs.ext4, of e2fsprogs")
	}
	dir, image = p.path("disk"), p.path("image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, size))
	must(t, os.Mkdir(dir, 0o755))
	if out, err := exec.Command("mkfs.ext4", "-q", "-m", "0", "-b", "4096", "-O", features, image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	mountImage(t, image, dir)
	return dir, image
}

func mountImage(t *testing.T, image, dir string) {
	t.Helper()
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("no loop devices here: %v: %s", err, out)
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
}

// TestRestoreSwapIsDurable: when a tree was replaced, and the old one removed, the new one
// is on the disk. What is on it at that moment is what a power cut would leave.
func TestRestoreSwapIsDurable(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	files := map[string]string{}
	for i := range 40 {
		files[fmt.Sprintf("d%d/f%d", i%4, i)] = string(random(uint64(i), 20_000))
	}
	src := p.files("src", files)
	want := scan(t, src)
	id := complete(t, r, src, nil).ID.String()
	disk, image := ext4(t, p, 64<<20, "has_journal")
	p.files("disk/out", map[string]string{"old/f": "old"})
	restore(t, r, id, disk+"/out", &RestoreOptions{Delete: true})

	from, err := os.Open(image)
	must(t, err)
	defer from.Close()
	to, err := os.Create(p.path("after"))
	must(t, err)
	_, err = io.Copy(to, from)
	must(t, err)
	must(t, to.Close())
	must(t, os.Mkdir(p.path("cut"), 0o755))
	mountImage(t, p.path("after"), p.path("cut"))
	compare(t, want, scan(t, p.path("cut/out")))
}

// TestRestoreIntoLinked: a file of the target that is as the snapshot's by size and time,
// and has another name outside, is not changed there when it gets another mode.
func TestRestoreIntoLinked(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"a": "1", "d/large": string(random(1, 3<<20))})
	want := scan(t, src)
	id := complete(t, r, src, nil).ID.String()
	outside := p.files("outside", map[string]string{})
	for _, o := range []RestoreOptions{{Into: true}, {Into: true, Verify: true}, {Into: true, Delete: true}, {Into: true, Include: []string{"a", "large"}}} {
		dst := p.path("dst")
		must(t, os.RemoveAll(dst))
		restore(t, r, id, dst, nil)
		for name, path := range map[string]string{"a": "a", "large": "d/large"} {
			must(t, os.RemoveAll(outside+"/"+name))
			must(t, os.Link(dst+"/"+path, outside+"/"+name))
			must(t, os.Chmod(dst+"/"+path, 0o600))
			must(t, unix.Setxattr(dst+"/"+path, "user.mine", []byte("1"), 0))
		}
		before := scan(t, outside)
		restore(t, r, id, dst, &o)
		got := scan(t, dst)
		for _, path := range []string{"a", "d/large"} {
			if got[path] != want[path] {
				t.Errorf("%+v: %q: %+v, want %+v", o, path, got[path], want[path])
			}
		}
		// It has one name less now, and nothing else is another.
		after := scan(t, outside)
		for name, n := range before {
			if m := after[name]; m.Mode != n.Mode || m.Xattrs != n.Xattrs || m.Mtime != n.Mtime {
				t.Errorf("%+v: %q outside of the target: %+v, it was %+v", o, name, m, n)
			}
		}
	}
}

//go:build linux

package engine

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRestoreLargeAttribute: an attribute for which the file system has no room in a file is
// that file's problem. A full disk is the end.
func TestRestoreLargeAttribute(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"a": "1", "d/b": "22", "d/c": "333"})
	large := random(5, 12<<10)
	for _, name := range []string{"a", "d"} {
		must(t, unix.Setxattr(src+"/"+name, "user.small", []byte("s"), 0))
		must(t, unix.Setxattr(src+"/"+name, "user.large", large, 0))
	}
	must(t, os.Symlink("a", src+"/symlink"))
	must(t, unix.Lsetxattr(src+"/symlink", "trusted.large", large, 0))
	id := complete(t, r, src, nil).ID.String()
	want := scan(t, src)
	disk, _ := ext4(t, p, 16<<20, "^has_journal,^ea_inode")
	for _, o := range []RestoreOptions{{}, {Into: true}, {Into: true, Delete: true}, {Verify: true}} {
		dst := disk + "/out"
		must(t, os.RemoveAll(dst))
		if o.Into {
			must(t, os.Mkdir(dst, 0o755))
		}
		rec, err := r.Restore(t.Context(), id, dst, &o)
		must(t, err)
		texts := problemTexts(rec.Problems)
		if len(rec.Problems) != 3 || !strings.Contains(texts, `"a"`) || !strings.Contains(texts, `"d"`) || !strings.Contains(texts, `"symlink"`) || strings.Contains(texts, "user.small") {
			t.Errorf("%+v: problems:\n%s", o, texts)
		}
		got := scan(t, dst)
		for path, n := range want {
			g := got[path]
			n.Xattrs, g.Xattrs = "", ""
			if path != "" && g != n {
				t.Errorf("%+v: %q: %+v, want %+v", o, path, g, n)
			}
		}
		if v := make([]byte, 8); func() bool { n, err := unix.Getxattr(dst+"/a", "user.small", v); return err != nil || n != 1 }() {
			t.Errorf("%+v: the small attribute is missing", o)
		}
		// What is not as it was is looked at again.
		res := create(t, p.open("again"), dst, nil)
		if res.Files != rec.Files {
			t.Errorf("%d files, %d were restored", res.Files, rec.Files)
		}
	}
	must(t, os.RemoveAll(disk+"/out"))
	fill(t, disk, 100<<10) // room for files and directories, not for any attribute
	_, err := r.Restore(t.Context(), id, disk+"/out", nil)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("on a full disk: %v", err)
	}
	if left := leftovers(t, disk); len(left) > 0 {
		t.Errorf("%s is left", left)
	}
}

//go:build linux

package engine

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"golang.org/x/sys/unix"
)

// touch changes files and directories of a fork, makes a snapshot of it, and removes it.
func (j *job) touch(r *Repository, f *Fork, o *outcome) error {
	for _, path := range j.Touch {
		var st unix.Stat_t
		err := unix.Lstat(filepath.Join(f.Dir, path), &st)
		if err == nil {
			err = os.Chmod(filepath.Join(f.Dir, path), os.FileMode(st.Mode&0o777)^0o010)
		}
		if err != nil {
			o.Problems = append(o.Problems, err.Error())
		}
	}
	made, err := r.Create(context.Background(), f.Dir, nil)
	if err != nil {
		return err
	}
	o.Handle = made.Handle()
	for _, err := range made.Problems {
		o.Problems = append(o.Problems, err.Error())
	}
	_, err = f.Remove(context.Background(), nil)
	return err
}

// TestForkDenied: in a fork of a user who may not have some attributes of the snapshot, what
// has them can be changed like anything else. In the next snapshot it is without them; what
// was not changed still has them.
func TestForkDenied(t *testing.T) {
	values := map[string]string{
		"trusted.snapctl": "value", "security.snapctl": "value", "security.ima": "value", "user.snapctl": "value",
		"security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00" + strings.Repeat("\x00", 12),
	}
	kept := func(name string) bool { return name == "user.snapctl" || name == "security.capability" }
	for _, mode := range mountedModes[1:] {
		t.Run(string(mode), func(t *testing.T) {
			f := newForked(t)
			tryMode(t, f.state, mode)
			src := f.files("attributes", nil)
			want := map[string]string{} // path and attribute to value
			j := f.job("one")
			j.Op, j.Mode, j.Touch = "fork", mode, []string{}
			for name, value := range values {
				for _, path := range []string{name + "/changed", name + "/unchanged", name + "/d/changed/x", name + "/d/unchanged/x"} {
					writeFile(t, src+"/"+path, []byte("text"))
					if dir, ok := strings.CutSuffix(path, "/x"); ok {
						if path = dir; name == "security.capability" {
							continue // for files alone
						}
					}
					setxattr(t, src+"/"+path, name, value)
					if strings.HasSuffix(path, "/unchanged") || kept(name) {
						want[path+" "+name] = value
					}
					if strings.HasSuffix(path, "/changed") {
						j.Touch = append(j.Touch, path)
					}
				}
			}
			r := f.open()
			id := complete(t, r, src, nil).ID
			j.Ref = id.String()
			o := j.inNamespace(t, f.dir)
			if o.Err != "" || len(o.Problems) > 0 {
				t.Fatalf("%s %q", o.Err, o.Problems)
			}
			out := f.path("out")
			restore(t, r, o.Handle, out, nil)
			for name := range values {
				for _, path := range []string{name + "/changed", name + "/unchanged", name + "/d/changed", name + "/d/unchanged"} {
					b, _ := fsys.GrowBuffer(func(dest []byte) (int, error) { return unix.Lgetxattr(out+"/"+path, name, dest) })
					if string(b) != want[path+" "+name] {
						t.Errorf("%s has %s=%q, not %q", path, name, b, want[path+" "+name])
					}
				}
			}
		})
	}
}

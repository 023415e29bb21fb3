//go:build linux

package engine

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/engine/view"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// TestRestoreIntoLeavesAlone: what needs no change is not touched, and what was is told.
func TestRestoreIntoLeavesAlone(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	src := odds(t, p, "src")
	must(t, unix.Mknod(src+"/device", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	want := scan(t, src)
	id := complete(t, r, src, nil).ID.String()
	for _, o := range []RestoreOptions{{Into: true}, {Into: true, Delete: true}, {Into: true, Verify: true}, {Into: true, Include: []string{"/d", "/third"}}} {
		dst := t.TempDir() + "/dst"
		restore(t, r, id, dst, nil)
		before := ctimes(t, dst)
		rec := restore(t, r, id, dst, &o)
		if after := ctimes(t, dst); fmt.Sprint(before) != fmt.Sprint(after) {
			t.Errorf("%+v: before\n%v, after\n%v", o, before, after)
		}
		if c := rec.Changes; c != (RestoreChanges{Unchanged: rec.Files + rec.Dirs}) {
			t.Errorf("%+v: %+v", o, c)
		}
	}
	for name, c := range map[string]struct {
		change func(dst string) error
		want   RestoreChanges // but Unchanged
	}{
		"mode":           {func(dst string) error { return os.Chmod(dst+"/d/b", 0o600) }, RestoreChanges{Adjusted: 1}},
		"mode of all":    {func(dst string) error { return os.Chmod(dst+"/third", 0o600) }, RestoreChanges{Adjusted: 1}},
		"attribute":      {func(dst string) error { return unix.Setxattr(dst+"/d", "user.y", []byte("3"), 0) }, RestoreChanges{Adjusted: 1}},
		"more attribute": {func(dst string) error { return unix.Setxattr(dst+"/large", "user.y", []byte("3"), 0) }, RestoreChanges{Adjusted: 1}},
		"contents":       {func(dst string) error { return os.WriteFile(dst+"/large", []byte("3"), 0o644) }, RestoreChanges{Written: 1}},
		"link":           {func(dst string) error { return errors.Join(os.Remove(dst+"/link"), os.Symlink("b", dst+"/link")) }, RestoreChanges{Written: 1, Adjusted: 1}},
		"device": {func(dst string) error {
			return errors.Join(os.Remove(dst+"/device"), unix.Mknod(dst+"/device", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))))
		}, RestoreChanges{Written: 1, Adjusted: 1}},
		"one name":   {func(dst string) error { return os.Remove(dst + "/third") }, RestoreChanges{Written: 3, Adjusted: 1}},
		"more names": {func(dst string) error { return os.Link(dst+"/d/b", dst+"/other") }, RestoreChanges{Written: 1, Deleted: 1, Adjusted: 1}},
		"more files": {func(dst string) error { return os.CopyFS(dst+"/empty/empty/more", os.DirFS(src+"/d/e")) }, RestoreChanges{Deleted: 2, Adjusted: 1}},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			dst := t.TempDir() + "/dst"
			restore(t, r, id, dst, nil)
			must(t, c.change(dst))
			o := &RestoreOptions{Into: true, Delete: true, DryRun: true}
			would := restore(t, r, id, dst, o).Changes
			o.DryRun = false
			did := restore(t, r, id, dst, o).Changes
			compare(t, want, scan(t, dst))
			if would != did {
				t.Errorf("would change %+v, did %+v", would, did)
			}
			did.Unchanged = 0
			if did != c.want {
				t.Errorf("%+v, not %+v", did, c.want)
			}
		})
	}
}

// TestRestoreDryRun: in all modes it says what would change, and changes nothing.
func TestRestoreDryRun(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	src := odds(t, p, "src")
	id := complete(t, r, src, nil).ID.String()
	change := func(dst string) {
		restore(t, r, id, dst, nil)
		must(t, os.WriteFile(dst+"/large", []byte("other"), 0o644))
		must(t, os.Chmod(dst+"/d/b", 0o600))
		must(t, os.RemoveAll(dst+"/d/e"))
		must(t, os.RemoveAll(dst+"/link"))
		must(t, os.Mkdir(dst+"/link", 0o755))
		writeFile(t, dst+"/mine/x/y", []byte("mine"))
	}
	for name, made := range map[string]func(dst string){
		"missing": func(string) {}, "empty": func(dst string) { must(t, os.MkdirAll(dst, 0o700)) }, "full": change,
	} {
		for _, o := range []RestoreOptions{{}, {Delete: true}, {Into: true}, {Into: true, Delete: true}, {Into: true, Verify: true}, {Into: true, Include: []string{"/d"}}} {
			t.Run(fmt.Sprintf("%s_%v_%v_%v_%d", name, o.Into, o.Delete, o.Verify, len(o.Include)), func(t *testing.T) {
				dir := t.TempDir()
				dst := dir + "/dst"
				made(dst)
				before, at := tree{}, ctimes(t, dir)
				if name != "missing" {
					before = scan(t, dst)
				}
				var told []string
				try := o
				try.DryRun = true
				try.Would = func(c *view.Change) error {
					if (c.Old == nil) != (c.Kind == view.Added) || (c.New == nil) != (c.Kind == view.Removed) {
						t.Errorf("%s %q: %v, %v", c.Kind, c.Path, c.Old, c.New)
					}
					if c.What != manifest.ChangedTimes { // compared below as well as they can be
						told = append(told, c.Path)
					}
					return nil
				}
				rec, err := r.Restore(t.Context(), id, dst, &try)
				if name == "full" && !o.Into && !o.Delete {
					if !errors.Is(err, snapshot.ErrExists) {
						t.Error(err)
					}
					return
				}
				must(t, err)
				if after := ctimes(t, dir); fmt.Sprint(at) != fmt.Sprint(after) {
					t.Fatalf("something was changed: before\n%v, after\n%v", at, after)
				}
				if left := leftovers(t, dir); len(left) > 0 {
					t.Errorf("%s is left", left)
				}
				real := restore(t, r, id, dst, &o)
				if rec.Changes != real.Changes {
					t.Errorf("would change %+v, did %+v", rec.Changes, real.Changes)
				}
				var changed []string
				after := scan(t, dst)
				for path, n := range after {
					old, was := before[path]
					n.Mtime = old.Mtime
					if !was || n != old {
						changed = append(changed, path)
					}
				}
				for path := range before {
					if _, is := after[path]; !is {
						changed = append(changed, path)
					}
				}
				slices.Sort(changed)
				slices.Sort(told)
				if !slices.Equal(changed, told) {
					t.Errorf("told %q\nchanged %q", told, changed)
				}
			})
		}
	}
}

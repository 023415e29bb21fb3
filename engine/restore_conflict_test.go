//go:build linux

package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"golang.org/x/sys/unix"
)

// forNobody lets nobody read a repository, and write below mine.
func forNobody(t *testing.T, p *place) (mine string) {
	t.Helper()
	openTo(t, p, nobody)
	must(t, filepath.WalkDir(p.repo, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chmod(path, 0o755))
	}))
	mine = p.path("mine")
	must(t, os.MkdirAll(mine, 0o755))
	must(t, os.Chown(mine, 65534, 65534))
	return mine
}

// chownAll gives a tree to nobody.
func chownAll(t *testing.T, dir string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, 65534, 65534))
	}))
}

// readOnly takes the owner's right to write from all directories of a tree, as Go's module
// cache does.
func readOnly(t *testing.T, dir string) {
	t.Helper()
	var dirs []string
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	}))
	for i := len(dirs) - 1; i >= 0; i-- {
		must(t, os.Chmod(dirs[i], 0o555))
	}
}

// modesBelow are the modes of all directories of a tree.
func modesBelow(t *testing.T, dir string) map[string]os.FileMode {
	t.Helper()
	modes := map[string]os.FileMode{}
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			var info os.FileInfo
			if info, err = d.Info(); err == nil {
				modes[path] = info.Mode()
			}
		}
		return err
	}))
	return modes
}

// TestRestoreReadOnlyDirs: an ordinary user's directories that they may not write to are
// deleted, and written to, and have their modes when the restore has ended, however.
func TestRestoreReadOnlyDirs(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"mod/a/f": "1", "mod/a/deep/h": "4444", "mod/b/g": "22", "top": "333"})
	readOnly(t, src+"/mod")
	res := complete(t, r, src, nil)
	id := res.ID.String()
	want := scan(t, src)
	withoutOwners(want)
	old := map[string]string{"mod/a/f": "old", "mod/b/g": "22", "mod/more@v1/x/y": "old", "other/deep/er/z": "old", "top": "old"}
	mine := forNobody(t, p)
	// A link out of what is deleted: what it leads to stays as it is.
	linked := p.files("mine/linked", map[string]string{"sub/f": "stays"})
	dst := mine + "/out"
	prepare := func(t *testing.T) {
		must(t, os.RemoveAll(dst))
		p.files("mine/out", old)
		must(t, os.Symlink("../linked", dst+"/other/outward"))
		must(t, os.Symlink("deep", dst+"/other/inward"))
		must(t, os.Symlink("mod", dst+"/beside"))
		chownAll(t, mine)
		readOnly(t, dst)
		readOnly(t, linked)
	}
	j := job{Op: "restore", Repo: p.repo, Cache: mine + "/cache", Dir: dst, Ref: id}
	for name, o := range map[string]RestoreOptions{
		"into, delete": {Into: true, Delete: true}, "delete": {Delete: true}, "into, delete, verify": {Into: true, Delete: true, Verify: true},
	} {
		t.Run(name, func(t *testing.T) {
			prepare(t)
			j.Restore = o
			if out := j.do(t, nobody); out.Err != "" || len(out.Problems) > 0 {
				t.Fatalf("%+v", out)
			}
			got := scan(t, dst)
			withoutOwners(got)
			compare(t, want, got)
			if left := leftovers(t, mine); len(left) > 0 {
				t.Errorf("%s is left", left)
			}
			for dir, mode := range modesBelow(t, linked) {
				if mode.Perm() != 0o555 {
					t.Errorf("%s has mode %v", dir, mode)
				}
			}
		})
	}
	t.Run("an empty target", func(t *testing.T) {
		must(t, os.RemoveAll(dst))
		must(t, errors.Join(os.Mkdir(dst, 0o755), os.Chown(dst, 65534, 65534), os.Chmod(dst, 0o555)))
		j := job{Op: "restore", Repo: p.repo, Cache: mine + "/cache3", Dir: dst, Ref: id}
		for _, pack := range packsOf(t, r, res.ID, chunk.DataPack) {
			must(t, os.Rename(p.repo+"/"+repo.PackName(pack), p.path("away")))
			out := j.do(t, nobody)
			must(t, os.Rename(p.path("away"), p.repo+"/"+repo.PackName(pack)))
			if !strings.Contains(out.Err, snapshot.ErrIntegrity.Error()) {
				t.Fatalf("%+v", out)
			}
			if entries, err := os.ReadDir(dst); len(entries) > 0 || modesBelow(t, dst)[dst].Perm() != 0o555 {
				t.Errorf("%v, %v, %v", entries, modesBelow(t, dst), err)
			}
		}
		if out := j.do(t, nobody); out.Err != "" || len(out.Problems) > 0 {
			t.Fatalf("%+v", out)
		}
		got := scan(t, dst)
		withoutOwners(got)
		compare(t, want, got)
	})
	t.Run("a part", func(t *testing.T) {
		prepare(t)
		before := modesBelow(t, dst)
		j.Restore = RestoreOptions{Into: true, Include: []string{"/mod/a/f"}}
		if out := j.do(t, nobody); out.Err != "" || len(out.Problems) > 0 {
			t.Fatalf("%+v", out)
		}
		if b, err := os.ReadFile(dst + "/mod/a/f"); string(b) != "1" {
			t.Errorf("%q, %v", b, err)
		}
		sameModes(t, before, modesBelow(t, dst))
	})
	t.Run("failure", func(t *testing.T) {
		prepare(t)
		before := modesBelow(t, dst)
		for _, pack := range packsOf(t, r, res.ID, chunk.DataPack) {
			must(t, os.Rename(p.repo+"/"+repo.PackName(pack), p.path("away")))
			defer func() { must(t, os.Rename(p.path("away"), p.repo+"/"+repo.PackName(pack))) }()
		}
		for _, j.Restore = range []RestoreOptions{{Into: true}, {Into: true, Delete: true}} {
			j.Cache = mine + "/cache2" // which does not hold the pack
			if out := j.do(t, nobody); !strings.Contains(out.Err, snapshot.ErrIntegrity.Error()) {
				t.Fatalf("%+v", out)
			}
			sameModes(t, before, modesBelow(t, dst))
		}
	})
}

func sameModes(t *testing.T, want, got map[string]os.FileMode) {
	t.Helper()
	for dir, mode := range want {
		if got[dir] != mode {
			t.Errorf("%s has mode %v, it had %v", dir, got[dir], mode)
		}
	}
}

// TestRestoreConflicts: what is in the way of one entry is that entry's problem. All else
// is restored, what is in the way stays, and nothing is deleted that stands in what was not
// restored.
func TestRestoreConflicts(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{
		"a": "file", "b/f": "file", "c/d/e": "deep", "h/first": "linked", "large": string(random(3, 3<<20)), "z": "last", "empty": "",
	})
	must(t, os.Link(src+"/h/first", src+"/h/second"))
	must(t, os.Link(src+"/h/first", src+"/third"))
	must(t, os.Symlink("a", src+"/symlink"))
	id := complete(t, r, src, nil).ID.String()
	want := scan(t, src)
	inWay := []string{"a", "large", "empty", "symlink", "h/first", "third"}
	for _, o := range []RestoreOptions{{Into: true}, {Into: true, Verify: true}} {
		dst := p.path("dst")
		must(t, os.RemoveAll(dst))
		p.files("dst", map[string]string{"b": "a file where a directory is to be", "more": "stays"})
		for _, name := range inWay {
			p.files("dst/"+name, map[string]string{"keep": "stays"})
		}
		rec, err := r.Restore(t.Context(), id, dst, &o)
		must(t, err)
		texts := problemTexts(rec.Problems)
		for _, name := range append(inWay, "h/second") {
			if n := strings.Count(texts, `"`+name+`"`); n == 0 {
				t.Errorf("%+v: nothing is said of %q in:\n%s", o, name, texts)
			}
		}
		if len(rec.Problems) != len(inWay)+1 {
			t.Errorf("%+v: problems:\n%s", o, texts)
		}
		if rec.Files != 3 || rec.Bytes != int64(len("file")+len("deep")+len("last")) {
			t.Errorf("%+v: %d files, %d bytes", o, rec.Files, rec.Bytes)
		}
		got := scan(t, dst)
		for _, name := range []string{"b", "b/f", "c", "c/d", "c/d/e", "h", "z"} {
			if got[name] != want[name] {
				t.Errorf("%+v: %q: %+v, want %+v", o, name, got[name], want[name])
			}
		}
		for _, name := range append(inWay, ".") {
			name = filepath.Join(name, map[bool]string{true: "more", false: "keep"}[name == "."])
			if b, err := os.ReadFile(dst + "/" + name); string(b) != "stays" {
				t.Errorf("%+v: %s: %q, %v", o, name, b, err)
			}
		}
		if left := leftovers(t, dst); len(left) > 0 {
			t.Errorf("%s is left", left)
		}
	}
	// With Delete nothing is in the way.
	restore(t, r, id, p.path("dst"), &RestoreOptions{Into: true, Delete: true})
	compare(t, want, scan(t, p.path("dst")))
}

func problemTexts(all []error) string {
	var b strings.Builder
	for _, err := range all {
		b.WriteString(err.Error() + "\n")
	}
	return b.String()
}

// TestRestoreForeign: what an ordinary user may not change in the target is named, and
// stays; what they may replace is replaced.
func TestRestoreForeign(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"a": "1", "closed/in/f": "22", "closed/g": "333", "open/h": "4444", "same/i": "55555", "z": "666666"})
	id := complete(t, r, src, nil).ID.String()
	want := scan(t, src)
	mine := forNobody(t, p)
	dst := mine + "/out"
	for _, o := range []RestoreOptions{{Into: true}, {Into: true, Verify: true}, {Into: true, Delete: true}} {
		must(t, os.RemoveAll(dst))
		restore(t, r, id, dst, nil)
		chownAll(t, dst)
		// Root's: a file that differs, in a directory of nobody's; a directory in which
		// nothing can be made; one that is right already.
		must(t, os.Chown(dst+"/a", 0, 0))
		must(t, os.Chmod(dst+"/a", 0o600))
		must(t, os.RemoveAll(dst+"/closed"))
		p.files("mine/out/closed", map[string]string{"g": "roots", "keep": "roots"})
		must(t, os.Chown(dst+"/same", 0, 0))
		must(t, os.Chown(dst+"/same/i", 0, 0))
		j := job{Op: "restore", Repo: p.repo, Cache: mine + "/cache", Dir: dst, Ref: id, Restore: o}
		out := j.do(t, nobody)
		if out.Err != "" {
			t.Fatalf("%+v: %s", o, out.Err)
		}
		texts := strings.Join(out.Problems, "\n")
		for _, name := range []string{`"closed"`, `"closed/in"`, `"closed/g"`} {
			if !strings.Contains(texts, name) {
				t.Errorf("%+v: nothing is said of %s in:\n%s", o, name, texts)
			}
		}
		if strings.Contains(texts, "same") || strings.Contains(texts, "open") || strings.Contains(texts, "in/f") || strings.Contains(texts, "keep") != o.Delete {
			t.Errorf("%+v: problems:\n%s", o, texts)
		}
		got := scan(t, dst)
		withoutOwners(got)
		wanted := tree{}
		for path, n := range want {
			if !strings.HasPrefix(path, "closed") {
				wanted[path] = n
			}
		}
		withoutOwners(wanted)
		for path, n := range wanted {
			if got[path] != n {
				t.Errorf("%+v: %q: %+v, want %+v", o, path, got[path], n)
			}
		}
		for _, name := range []string{"closed/g", "closed/keep"} {
			if b, err := os.ReadFile(dst + "/" + name); string(b) != "roots" {
				t.Errorf("%+v: %s: %q, %v", o, name, b, err)
			}
		}
	}
}

// TestRestoreKeepsOldTree: a tree that cannot be removed when it was replaced is no secret.
func TestRestoreKeepsOldTree(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	id := complete(t, r, p.files("src", map[string]string{"a": "1"}), nil).ID.String()
	mine := forNobody(t, p)
	p.files("mine/out", map[string]string{"roots/f": "roots"})
	must(t, os.Chown(mine+"/out", 65534, 65534))
	out := job{Op: "restore", Repo: p.repo, Cache: mine + "/cache", Dir: mine + "/out", Ref: id, Restore: RestoreOptions{Delete: true}}.do(t, nobody)
	if out.Err != "" || len(out.Problems) != 1 || !strings.Contains(out.Problems[0], tempPrefix) {
		t.Errorf("%+v", out)
	}
	if b, err := os.ReadFile(mine + "/out/a"); string(b) != "1" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestRestoreLinkConflict: a hard link that cannot take its place keeps no other one from
// its own.
func TestRestoreLinkConflict(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"a": "file"})
	must(t, os.Link(src+"/a", src+"/b"))
	must(t, os.Link(src+"/a", src+"/c"))
	id := complete(t, r, src, nil).ID.String()
	dst := p.files("dst", map[string]string{"b/keep": "stays"})
	rec, err := r.Restore(t.Context(), id, dst, &RestoreOptions{Into: true})
	must(t, err)
	if len(rec.Problems) != 1 {
		t.Errorf("problems %v", rec.Problems)
	}
	if b, err := os.ReadFile(dst + "/c"); err != nil || string(b) != "file" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestRestoreReadOnlyTarget: where nothing can be written, each file is named, those that
// are written in several pieces as well.
func TestRestoreReadOnlyTarget(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	id := complete(t, r, p.files("src", map[string]string{"big": string(random(1, 5<<20)), "empty": "", "small": "new"}), nil).ID.String()
	dst := p.files("dst", map[string]string{"small": "old"})
	bind(t, dst, dst)
	must(t, unix.Mount("", dst, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	for _, o := range []RestoreOptions{{Into: true}, {Delete: true}, {Into: true, DryRun: true}} {
		rec, err := r.Restore(t.Context(), id, dst, &o)
		must(t, err)
		for _, name := range []string{"big", "empty", "small"} {
			if !strings.Contains(problemTexts(rec.Problems), name) {
				t.Errorf("%+v: nothing is said of %s: %v", o, name, rec.Problems)
			}
		}
		if rec.Files != 0 || rec.Bytes != 0 {
			t.Errorf("%+v: %d files, %d bytes", o, rec.Files, rec.Bytes)
		}
	}
}

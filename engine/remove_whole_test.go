//go:build linux

package engine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"golang.org/x/sys/unix"
)

// deep makes so many directories, one in the other, and a file in the last.
func deep(t *testing.T, dir string, levels int) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	fd, err := fsys.OpenDir(dir)
	must(t, err)
	for range levels {
		must(t, unix.Mkdirat(fd, "d", 0o755))
		sub, err := fsys.OpenAt(fd, "d", unix.O_RDONLY|unix.O_DIRECTORY)
		must(t, err)
		unix.Close(fd)
		fd = sub
	}
	must(t, unix.Mknodat(fd, "f", unix.S_IFREG|0o644, 0))
	unix.Close(fd)
}

// TestRestoreOverDeep: what a restore deletes may be deeper than there are descriptors.
func TestRestoreOverDeep(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	id := complete(t, r, p.files("src", map[string]string{"a": "new"}), nil).ID.String()
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	t.Cleanup(func() { must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) })
	for _, o := range []RestoreOptions{{Delete: true}, {Into: true, Delete: true}} {
		dst := p.path("dst")
		must(t, os.RemoveAll(dst))
		deep(t, dst+"/a", 1100)
		deep(t, dst+"/other", 1100)
		few := limit
		few.Cur = 400
		must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &few))
		dry := o
		dry.DryRun = true
		would, err := r.Restore(t.Context(), id, dst, &dry)
		if err != nil || len(would.Problems) > 0 {
			t.Fatalf("%+v: %+v %v", dry, would, err)
		}
		rec, err := r.Restore(t.Context(), id, dst, &o)
		if err != nil || len(rec.Problems) > 0 || rec.Changes != would.Changes {
			t.Fatalf("%+v: %+v %v; before it %+v", o, rec, err, would)
		}
		must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
		if left := leftovers(t, p.dir); len(left) > 0 {
			t.Errorf("%s is left", left)
		}
	}
}

// TestRestoreOverOddNames: an ordinary user's directories that may not be written to are
// deleted with what is in them, whatever bytes their names have.
func TestRestoreOverOddNames(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	id := complete(t, r, p.files("src", map[string]string{"a": "new"}), nil).ID.String()
	mine := forNobody(t, p)
	for _, o := range []RestoreOptions{{Delete: true}, {Into: true, Delete: true}} {
		dst := mine + "/dst"
		writeFile(t, filepath.Join(dst, "\xff\xfe", `\`, "sub\n", "f"), []byte("old"))
		chownAll(t, dst)
		readOnly(t, dst+"/\xff\xfe")
		j := job{Op: "restore", Repo: p.repo, Cache: mine + "/cache", Dir: dst, Ref: id, Restore: o}
		if o := j.do(t, nobody); o.Err != "" || len(o.Problems) > 0 {
			t.Errorf("%+v: %s %s", j.Restore, o.Err, strings.Join(o.Problems, "\n"))
		}
		if left := leftovers(t, mine); len(left) > 0 {
			t.Errorf("%s is left", left)
		}
		if names, err := os.ReadDir(dst); err != nil || len(names) != 1 {
			t.Errorf("%+v: it holds %v, %v", o, names, err)
		}
	}
}

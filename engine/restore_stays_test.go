//go:build linux

package engine

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sys/unix"
)

// TestRestoreStays: whoever uses the directory that is the target has the new tree, not
// what was there before.
func TestRestoreStays(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	src := odds(t, p, "src")
	want := scan(t, src)
	id := complete(t, r, src, nil).ID.String()
	same := func(t *testing.T, dst string, do func()) {
		t.Helper()
		fd, err := fsys.OpenDir(dst)
		must(t, err)
		defer unix.Close(fd)
		do()
		if !fsys.LeadsTo(dst, fd) {
			t.Error("the directory is another one now")
		}
		compare(t, want, scan(t, dst))
		if left := leftovers(t, filepath.Dir(dst)); len(left) > 0 {
			t.Errorf("%s is left", left)
		}
	}
	old := map[string]string{"old": "1", "sub/sub/old": "1"}
	t.Run("empty", func(t *testing.T) {
		dst := p.files("empty", nil)
		same(t, dst, func() { restore(t, r, id, dst, nil) })
	})
	t.Run("empty, verified", func(t *testing.T) {
		dst := p.files("empty2", nil)
		same(t, dst, func() { restore(t, r, id, dst, &RestoreOptions{Verify: true, Delete: true}) })
	})
	t.Run("dot", func(t *testing.T) {
		dst := p.files("dot", nil)
		t.Chdir(dst)
		same(t, dst, func() { restore(t, r, id, ".", nil) })
		if _, err := os.Stat("d/b"); err != nil {
			t.Errorf("from where we are: %v", err)
		}
	})
	t.Run("dot that holds something", func(t *testing.T) {
		dst := p.files("dot2", old)
		t.Chdir(dst)
		same(t, dst, func() {
			if rec := restore(t, r, id, ".", &RestoreOptions{Delete: true}); rec.InPlace == "" {
				t.Error("it is not said that it was changed in place")
			}
		})
		if _, err := os.Stat("d/b"); err != nil {
			t.Errorf("from where we are: %v", err)
		}
	})
	t.Run("a process works below", func(t *testing.T) {
		dst := p.files("works", old)
		waiting(t, "cd '"+dst+"/sub/sub'")
		same(t, dst, func() { restore(t, r, id, dst, &RestoreOptions{Delete: true}) })
	})
	for name, made := range map[string]map[string]string{"empty": nil, "full": old} {
		t.Run("mounted elsewhere, "+name, func(t *testing.T) {
			dst := p.files("source-"+name, made)
			bind(t, dst, p.path("bound-"+name))
			same(t, dst, func() { restore(t, r, id, dst, &RestoreOptions{Delete: true}) })
			compare(t, want, scan(t, p.path("bound-"+name)))
		})
		t.Run("mounted in another namespace, "+name, func(t *testing.T) {
			dst := p.files("foreign-"+name, made)
			must(t, os.MkdirAll(p.path("there"), 0o755))
			pid := waiting(t, "unshare -m sh -c 'mount --bind "+dst+" "+p.path("there")+" && echo ready && read x'")
			_ = pid
			same(t, dst, func() { restore(t, r, id, dst, &RestoreOptions{Delete: true}) })
		})
	}
	t.Run("a part of it mounted elsewhere", func(t *testing.T) {
		dst := p.files("part", old)
		bind(t, dst+"/sub", p.path("bound-part"))
		same(t, dst, func() { restore(t, r, id, dst, &RestoreOptions{Delete: true}) })
	})
	t.Run("nobody uses it", func(t *testing.T) {
		dst := p.files("free", old)
		fd, err := fsys.OpenDir(dst)
		must(t, err)
		defer unix.Close(fd)
		if rec := restore(t, r, id, dst, &RestoreOptions{Delete: true}); rec.InPlace != "" || fsys.LeadsTo(dst, fd) {
			t.Errorf("it was not replaced in one step: %s", rec.InPlace)
		}
	})
	t.Run("something comes meanwhile", func(t *testing.T) {
		dst := p.files("comes", nil)
		r := p.open("cache2")
		r.repo.Store = &beforeRead{Store: r.repo.Store, f: func() { writeFile(t, dst+"/mine", []byte("mine")) }}
		if _, err := r.Restore(t.Context(), id, dst, nil); !errors.Is(err, snapshot.ErrExists) {
			t.Error(err)
		}
		if names, err := os.ReadDir(dst); err != nil || len(names) != 1 || names[0].Name() != "mine" {
			t.Errorf("left are %v, %v", names, err)
		}
	})
	t.Run("stopped", func(t *testing.T) {
		dst := p.files("stopped", nil)
		ctx, cancel := context.WithCancel(t.Context())
		r := p.open("cache3")
		r.repo.Store = &beforeRead{Store: r.repo.Store, f: cancel}
		_, err := r.Restore(ctx, id, dst, nil)
		if !errors.Is(err, context.Canceled) || errors.Is(err, snapshot.ErrPartlyWritten) {
			t.Error(err)
		}
		if names, err := os.ReadDir(dst); err != nil || len(names) != 0 {
			t.Errorf("left are %v, %v", names, err)
		}
	})
}

// beforeRead does something before the first byte of a pack is read.
type beforeRead struct {
	remote.Store
	once sync.Once
	f    func()
}

func (b *beforeRead) ReadAt(ctx context.Context, name string, off int64, data []byte) error {
	b.once.Do(b.f)
	return b.Store.ReadAt(ctx, name, off, data)
}

// waiting runs a shell that does something, and then waits until the test is over. It
// returns when the shell, or what that runs, has said ready.
func waiting(t *testing.T, script string) (pid int) {
	t.Helper()
	if !strings.Contains(script, "ready") {
		script += " && echo ready && read x"
	}
	cmd := exec.Command("sh", "-c", script)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Skipf("this machine cannot do that: %q, %v", line, err)
	}
	return cmd.Process.Pid
}

// TestRestoreFillsUnprivileged: an ordinary user's directories that may not be written to
// are moved up too.
func TestRestoreFillsUnprivileged(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"ro/sub/a": "1", "b": "2"})
	must(t, os.Chmod(src+"/ro/sub", 0o555))
	must(t, os.Chmod(src+"/ro", 0o500))
	want := scan(t, src)
	withoutOwners(want)
	id := complete(t, r, src, nil).ID.String()
	must(t, r.Close())
	openTo(t, p, nobody)
	must(t, filepath.WalkDir(p.repo, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chmod(path, 0o755))
	}))
	dst := p.files("mine/out", nil)
	must(t, os.Chown(p.path("mine"), int(nobody.Uid), int(nobody.Gid)))
	must(t, os.Chown(dst, int(nobody.Uid), int(nobody.Gid)))
	j := job{Op: "restore", Repo: p.repo, Cache: p.path("mine/cache"), Dir: dst, Ref: id}
	if o := j.do(t, nobody); o.Err != "" || len(o.Problems) > 0 {
		t.Fatalf("%+v", o)
	}
	got := scan(t, dst)
	withoutOwners(got)
	compare(t, want, got)
}

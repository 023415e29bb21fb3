//go:build linux

package engine

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/remote/disk"
	"golang.org/x/sys/unix"
)

// told is a Progress that gives what it is warned of.
type told chan error

func (t told) Update(snapshot.Stats) {}
func (t told) Warn(err error)        { t <- err }

// lockDir takes the lock of a directory by a descriptor of the test's own.
func lockDir(t *testing.T, dir string, flags int) (fd int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|flags, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	must(t, disk.Lock(fd))
	return fd
}

// TestRestoreWaits: who waits for a lock says so, goes on when it is free, and does not wait
// when nothing is to be changed.
func TestRestoreWaits(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"a": "1"})
	id := complete(t, r, src, nil).ID.String()
	dst := p.files("dst", map[string]string{"a": "2"})
	fd := lockDir(t, dst, unix.O_CLOEXEC)
	rec := restore(t, r, id, dst, &RestoreOptions{Into: true, DryRun: true})
	if rec.Changes.Written != 1 {
		t.Errorf("%+v", rec.Changes)
	}
	warned, done := make(told, 100), make(chan error)
	go func() {
		_, err := r.Restore(t.Context(), id, dst, &RestoreOptions{Into: true, Progress: warned})
		done <- err
	}()
	select {
	case err := <-warned:
		if !strings.Contains(err.Error(), "waiting for another restore of "+dst) {
			t.Error(err)
		}
	case err := <-done:
		t.Fatalf("it did not wait: %v", err)
	}
	must(t, disk.Unlock(fd))
	must(t, <-done)
	if b, err := os.ReadFile(dst + "/a"); err != nil || string(b) != "1" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestLockWaitEnds: nobody waits for ever for a lock that is no restore's.
func TestLockWaitEnds(t *testing.T) {
	short := func() *lockWait { return &lockWait{foreign: time.Millisecond, tell: func(error) {}} }
	wait := func(t *testing.T, dir string, w *lockWait) error {
		fd, err := lockTarget(t.Context(), dir, w)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	foreign := func(t *testing.T, err error, text string) {
		t.Helper()
		if !errors.Is(err, snapshot.ErrExists) || !strings.Contains(err.Error(), text) {
			t.Error(err)
		}
	}
	t.Run("another program's", func(t *testing.T) {
		flock, err := exec.LookPath("flock")
		if err != nil {
			t.Skip("there is no flock here")
		}
		dir := t.TempDir()
		cmd := exec.CommandContext(t.Context(), flock, "--no-fork", dir, "cat")
		in, err := cmd.StdinPipe()
		must(t, err)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		_, err = in.Write([]byte("x"))
		must(t, err)
		_, err = out.Read(make([]byte, 1)) // it has the lock
		must(t, err)
		foreign(t, wait(t, dir, short()), "(cat)")
		if fd, err := lockTarget(t.Context(), dir, nil); err != nil {
			t.Errorf("without waiting: %v", err)
		} else {
			unix.Close(fd)
		}
		must(t, in.Close())
		must(t, cmd.Wait())
		must(t, wait(t, dir, short()))
	})
	t.Run("inherited", func(t *testing.T) {
		dir := t.TempDir()
		lockDir(t, dir, 0) // as what a process begins with: it stays open on exec
		foreign(t, wait(t, dir, short()), "wait for itself")
	})
	t.Run("of this program", func(t *testing.T) {
		dir := t.TempDir()
		w := short()
		fd := lockDir(t, dir, unix.O_CLOEXEC)
		if h := lockHolder(fd); !h.restores || h.pid != os.Getpid() {
			t.Errorf("%+v", h)
		}
		w.tell = func(error) { must(t, disk.Unlock(fd)) }
		w.quiet = 20 * time.Millisecond
		must(t, wait(t, dir, w))
	})
	t.Run("a restore is seen", func(t *testing.T) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "dst")
		must(t, os.Mkdir(dir, 0o755))
		for _, at := range []struct{ parent, prefix string }{{dir, tempPrefix}, {parent, tempPrefix + "dst-"}} {
			fd, name, err := fsys.MakeLocked(at.parent, at.prefix)
			must(t, err)
			if !hasTemp(dir) {
				t.Errorf("%s is not seen", name)
			}
			must(t, unix.Close(fd))
			if hasTemp(dir) {
				t.Errorf("%s is taken for one that lives", name)
			}
		}
	})
}

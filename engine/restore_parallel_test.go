//go:build linux

package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/snapshot"
	"golang.org/x/sys/unix"
)

// TestRestoreInParallel: restores of one target take turns.
func TestRestoreInParallel(t *testing.T) {
	p := newPlace(t)
	p.init().Close()
	src := p.files("src", map[string]string{"a": "1", "d/b": "2", "d/e/c": "3"})
	r := p.withState()
	want := scan(t, src)
	id := complete(t, r, src, nil).ID.String()
	plain := p.open("cache2")
	for _, c := range []struct {
		name string
		made map[string]string // nil: nothing is there
		opts RestoreOptions
		r    *Repository
		may  error // what some may say
	}{
		{"missing", nil, RestoreOptions{}, r, nil},
		{"empty", map[string]string{}, RestoreOptions{}, r, nil},
		{"full", map[string]string{"old": "1"}, RestoreOptions{Delete: true}, r, nil},
		{"full into", map[string]string{"old": "1"}, RestoreOptions{Delete: true, Into: true}, r, nil},
		{"missing, delete", nil, RestoreOptions{Delete: true}, plain, nil},
		{"missing, and nobody remembers", nil, RestoreOptions{}, plain, snapshot.ErrExists},
		{"empty, and nobody remembers", map[string]string{}, RestoreOptions{}, plain, snapshot.ErrExists},
	} {
		t.Run(c.name, func(t *testing.T) {
			for round := range times(3, 20) {
				dst := t.TempDir() + fmt.Sprint("/", round)
				for name, text := range c.made {
					writeFile(t, dst+"/"+name, []byte(text))
				}
				if c.made != nil {
					must(t, os.MkdirAll(dst, 0o755))
				}
				errs := make([]error, 12)
				var all sync.WaitGroup
				for i := range errs {
					all.Go(func() { _, errs[i] = c.r.Restore(t.Context(), id, dst, &c.opts) })
				}
				all.Wait()
				done := 0
				for _, err := range errs {
					switch {
					case err == nil:
						done++
					case c.may == nil || !errors.Is(err, c.may) || strings.Contains(err.Error(), "meanwhile"):
						t.Error(err)
					}
				}
				if done == 0 {
					t.Error("none of them succeeded")
				}
				compare(t, want, scan(t, dst))
				if left := leftovers(t, filepath.Dir(dst)); len(left) > 0 {
					t.Errorf("%s is left", left)
				}
			}
		})
	}
}

// TestResolveTargetThatComes: a directory that somebody makes while its path is resolved is
// no link to nowhere.
func TestResolveTargetThatComes(t *testing.T) {
	parent, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	dir := filepath.Join(parent, "dst")
	var making sync.WaitGroup
	stop := make(chan struct{})
	making.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				os.Mkdir(dir, 0o755)
				os.Remove(dir)
			}
		}
	})
	for range times(20000, 200000) {
		got, err := fsys.Resolve(dir)
		if err != nil || got != dir {
			t.Errorf("%q, %v", got, err)
			break
		}
	}
	close(stop)
	making.Wait()
}

// TestMakeLocked: a directory that was just made is nothing that was left behind.
func TestMakeLocked(t *testing.T) {
	dir := t.TempDir()
	stop := make(chan struct{})
	var sweeping sync.WaitGroup
	for range 2 {
		sweeping.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					sweep(dir, tempPrefix)
				}
			}
		})
	}
	for range times(2000, 20000) {
		fd, name, err := fsys.MakeLocked(dir, tempPrefix)
		if err != nil {
			t.Error(err)
			break
		}
		if !fsys.LeadsTo(filepath.Join(dir, name), fd) {
			t.Error("it was swept away")
		}
		must(t, os.Remove(filepath.Join(dir, name)))
		unix.Close(fd)
	}
	close(stop)
	sweeping.Wait()
}

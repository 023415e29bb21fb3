//go:build linux

package engine

import (
	"errors"
	"os"
	"testing"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"golang.org/x/sys/unix"
)

// TestFolding: where two names lead to one file, the second is refused and nothing is
// replaced. On a file system that folds names the second name is there at once; here a
// hard link has to make it so.
func TestFolding(t *testing.T) {
	dir := t.TempDir()
	fd, err := fsys.OpenDir(dir)
	must(t, err)
	defer unix.Close(fd)
	if p, err := fsys.NewFolding(fd); p != nil || err != nil {
		t.Fatalf("it is said to fold names: %v, %v", p, err)
	}
	p := &fsys.Folding{Made: map[fsys.Inode]string{}}
	writeFile(t, dir+"/old", []byte("was there"))
	put := func(name, text string) error {
		return p.Put(fd, name, func() error {
			writeFile(t, dir+"/new", []byte(text))
			return os.Rename(dir+"/new", dir+"/"+name)
		})
	}
	must(t, put("readme", "one"))
	must(t, put("old", "replaced"))
	must(t, os.Link(dir+"/readme", dir+"/README"))
	if err := put("README", "two"); !errors.Is(err, fsys.ErrSameName) {
		t.Errorf("got %v", err)
	}
	if got, err := os.ReadFile(dir + "/readme"); string(got) != "one" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if !p.Has(fd, "README") || p.Has(fd, "new") {
		t.Error("it does not know what is its own")
	}
	must(t, p.Alone(fd, "README")) // which is a name in the directory
	if err := p.Alone(fd, "ReadMe"); !errors.Is(err, fsys.ErrSameName) {
		t.Errorf("got %v", err)
	}
}

// TestSameName: what is there already in a new directory is another name of the
// snapshot, for nobody else writes there.
func TestSameName(t *testing.T) {
	x := &restorer{target: &target{fresh: true}}
	if err := x.sameName(unix.EEXIST); !errors.Is(err, fsys.ErrSameName) || !errors.Is(err, unix.EEXIST) {
		t.Errorf("got %v", err)
	}
	if err := x.sameName(unix.ENOSPC); err != unix.ENOSPC {
		t.Errorf("got %v", err)
	}
}

//go:build linux

package engine

import (
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/snapctl/snapctl/engine/internal/local"
)

// TestCheckPrivate: which directories other users may write to.
func TestCheckPrivate(t *testing.T) {
	dir := t.TempDir()
	users, err := user.LookupGroup("users")
	if err != nil {
		t.Skip(err)
	}
	gid, err := strconv.Atoi(users.Gid)
	must(t, err)
	if gid == os.Getegid() || os.Geteuid() != 0 {
		t.Skip("only root can give directories to others")
	}
	for _, c := range []struct {
		what     string
		uid, gid int
		mode     fs.FileMode
		in       bool // as a directory in one that is ours
		shared   bool
	}{
		{"private", 0, gid, 0o700, false, false},
		{"for others to read", 0, gid, 0o755, false, false},
		{"for all to write", 0, gid, 0o777, false, true},
		{"for others, and not the group", 0, gid, 0o702, false, true},
		{"for a group to write", 0, gid, 0o770, false, true},
		{"for root's group to write", 0, 0, 0o770, false, false},
		{"setgid", 0, gid, 0o770 | fs.ModeSetgid, false, true},
		{"sticky", 0, gid, 0o777 | fs.ModeSticky, false, false},
		{"in it, private", 0, gid, 0o700, true, false},
		{"in it, for all to write", 0, gid, 0o777, true, true},
		{"in it, sticky", 0, gid, 0o777 | fs.ModeSticky, true, true},
		{"in it, another's", 12345, gid, 0o700, true, true},
	} {
		path, names := filepath.Join(dir, c.what), []string{"missing"}
		made := path
		if c.in {
			must(t, os.Mkdir(path, 0o700))
			must(t, os.Chmod(path, 0o777|fs.ModeSticky))
			made, names = path+"/name", append(names, "name")
		}
		must(t, os.Mkdir(made, 0o700))
		must(t, os.Chown(made, c.uid, c.gid))
		must(t, os.Chmod(made, c.mode))
		if err := local.CheckPrivate(path, names...); errors.Is(err, local.ErrShared) != c.shared || !c.shared && err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	must(t, os.Symlink(filepath.Join(dir, "for all to write"), dir+"/link"))
	if err := local.CheckPrivate(dir + "/link"); !errors.Is(err, local.ErrShared) {
		t.Errorf("through a link: %v", err)
	}
	if err := local.CheckPrivate(dir + "/none"); err != nil {
		t.Error(err)
	}
}

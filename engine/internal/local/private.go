package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// ErrShared: other users may write to a directory whose content is believed, such as that
// of Options.StateDir.
var ErrShared = errors.New("other users may write to it")

// CheckPrivate fails with ErrShared for a directory into which users other than this one
// may write, by its group or all, unless it is sticky, as /tmp is. The same goes for those
// of the names in it, sticky or not, and they must be this user's: somebody else may have
// put them there. What does not exist is private: it is made so.
func CheckPrivate(dir string, names ...string) error {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := checkShared(dir, info, info.Mode()&fs.ModeSticky != 0); err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		link, err := os.Lstat(path) // whose it is is said by who put it there
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			continue
		}
		if err == nil {
			err = CheckOwner(path, link)
		}
		if err == nil {
			info, err = os.Stat(path)
		}
		if err == nil {
			err = checkShared(path, info, false)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// CheckOwner reports what belongs to neither this user nor root.
func CheckOwner(path string, info fs.FileInfo) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s: %w: it belongs to user %d", path, ErrShared, st.Uid)
	}
	return nil
}

func checkShared(path string, info fs.FileInfo, sticky bool) error {
	perm := info.Mode().Perm()
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case sticky || perm&0o022 == 0:
		return nil
	case perm&0o002 == 0 && ok && privateGroup(st.Gid):
		return nil
	}
	return fmt.Errorf("%s: %w (mode %04o): chmod go-w %s", path, ErrShared, perm, path)
}

// privateGroup reports whether a group is root's, or has this user alone, as far as its
// name says so: by convention it is that of the user then.
func privateGroup(gid uint32) bool {
	if gid == 0 {
		return true
	}
	if int(gid) != os.Getegid() {
		return false
	}
	g, gerr := user.LookupGroupId(strconv.Itoa(int(gid)))
	u, uerr := user.LookupId(strconv.Itoa(os.Geteuid()))
	if gerr != nil || uerr != nil {
		return int(gid) == os.Geteuid()
	}
	return g.Name == u.Username
}

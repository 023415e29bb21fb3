package fsys

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// A removal removes a directory and all below it. It has two directories open at once at
// most, however deep the tree is, and takes names that are no UTF-8: os.Root does neither.
type removal struct {
	cur int // the last directory of way
	way []removing
	err error // the first one
}

// removing is a directory that is being removed.
type removing struct {
	name string
	at   Inode
	todo []string // entries
}

// RemoveWhole removes an entry of an open directory and all below it, whatever the modes of
// directories that are ours. What it cannot remove it leaves, and goes on.
func RemoveWhole(parent int, name string) error {
	r := &removal{cur: -1}
	r.remove(parent, name)
	for len(r.way) > 0 {
		if d := &r.way[len(r.way)-1]; len(d.todo) > 0 {
			last := len(d.todo) - 1
			name := d.todo[last]
			d.todo = d.todo[:last]
			r.remove(r.cur, name)
		} else if err := r.leave(parent); err != nil {
			unix.Close(r.cur)
			return err
		}
	}
	return r.err
}

// remove removes an entry of a directory, or, if it is a directory, enters it.
func (r *removal) remove(dir int, name string) {
	var st unix.Stat_t
	err := StatAt(dir, name, &st)
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		err = r.enter(dir, name, &st)
	default:
		err = unix.Unlinkat(dir, name, 0)
	}
	r.note(name, err)
}

func (r *removal) enter(dir int, name string, st *unix.Stat_t) error {
	if os.Geteuid() != 0 && !Foreign(st) && st.Mode&0o700 != 0o700 {
		_ = unix.Fchmodat(dir, name, 0o700, 0) // it is about to go
	}
	fd, err := OpenAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	todo, err := ReadNames(fd)
	if err == nil {
		err = unix.Fstat(fd, st)
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	if r.cur >= 0 {
		unix.Close(r.cur)
	}
	r.cur = fd
	r.way = append(r.way, removing{name, Inode{uint64(st.Dev), st.Ino}, todo})
	return nil
}

// leave goes back to the directory above, and removes the one that it comes from.
func (r *removal) leave(parent int) error {
	last := len(r.way) - 1
	name := r.way[last].name
	if last == 0 {
		unix.Close(r.cur)
		r.way = nil
		r.note(name, unix.Unlinkat(parent, name, unix.AT_REMOVEDIR))
		return nil
	}
	up, err := OpenAt(r.cur, "..", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("the directory above %q: %w", r.path(), err)
	}
	unix.Close(r.cur)
	r.cur = up
	var st unix.Stat_t
	if err := unix.Fstat(up, &st); err != nil || r.way[last-1].at != (Inode{uint64(st.Dev), st.Ino}) {
		return errors.Join(fmt.Errorf("%q was moved elsewhere while it was removed", r.path()), err)
	}
	r.way = r.way[:last]
	r.note(name, unix.Unlinkat(up, name, unix.AT_REMOVEDIR))
	return nil
}

// note notes why an entry of the last directory was not removed, if nothing is known yet.
func (r *removal) note(name string, err error) {
	if r.err == nil && err != nil && !errors.Is(err, unix.ENOENT) {
		r.err = fmt.Errorf("removing %q: %w", manifest.Join(r.path(), name), err)
	}
}

func (r *removal) path() string {
	var names []string
	for _, d := range r.way {
		names = append(names, d.name)
	}
	return strings.Join(names, "/")
}

// Foreign reports whether another user than this one owns a file, whose metadata are then
// not ours to change.
func Foreign(st *unix.Stat_t) bool {
	return os.Geteuid() != 0 && st.Uid != uint32(os.Geteuid())
}

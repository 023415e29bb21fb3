package fsys

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A Way is how the system goes to a path.
type Way struct {
	Links []string // the symbolic links, each by a path without others
	Last  string   // the last thing on the way that is there, by such a path
	Next  string   // what could not be reached from there
	Err   error    // why
}

// maxLinks is how many symbolic links Linux follows on the way to one path.
const maxLinks = 40

// Follow goes to an absolute path.
func Follow(path string) Way {
	w := Way{Last: "/"}
	todo := strings.Split(path, "/")
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if name == "" || name == "." {
			continue
		}
		next := filepath.Join(w.Last, name) // ".." too: w.last has no links
		var st unix.Stat_t
		if err := unix.Lstat(next, &st); err != nil {
			w.Next, w.Err = next, err
			return w
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			w.Last = next
			continue
		}
		to, err := os.Readlink(next)
		if len(w.Links) == maxLinks {
			err = unix.ELOOP
		}
		if err != nil {
			w.Next, w.Err = next, err
			return w
		}
		w.Links = append(w.Links, next)
		if filepath.IsAbs(to) {
			w.Last = "/"
		}
		todo = append(strings.Split(to, "/"), todo...)
	}
	return w
}

package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A pathWay is how the system goes to a path.
type pathWay struct {
	links []string // the symbolic links, each by a path without others
	last  string   // the last thing on the way that is there, by such a path
	next  string   // what could not be reached from there
	err   error    // why
}

// maxLinks is how many symbolic links Linux follows on the way to one path.
const maxLinks = 40

// followPath goes to an absolute path.
func followPath(path string) pathWay {
	w := pathWay{last: "/"}
	todo := strings.Split(path, "/")
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if name == "" || name == "." {
			continue
		}
		next := filepath.Join(w.last, name) // ".." too: w.last has no links
		var st unix.Stat_t
		if err := unix.Lstat(next, &st); err != nil {
			w.next, w.err = next, err
			return w
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			w.last = next
			continue
		}
		to, err := os.Readlink(next)
		if len(w.links) == maxLinks {
			err = unix.ELOOP
		}
		if err != nil {
			w.next, w.err = next, err
			return w
		}
		w.links = append(w.links, next)
		if filepath.IsAbs(to) {
			w.last = "/"
		}
		todo = append(strings.Split(to, "/"), todo...)
	}
	return w
}

// whyGone says where the way to a local repository ends, if that is before its own
// directory; "" for nothing.
func whyGone(dir string) string {
	w := followPath(dir)
	switch {
	case dir == "" || w.err == nil:
		return ""
	case len(w.links) > 0:
		return fmt.Sprintf(": %s is a symbolic link that leads to it, and there is no %s now: if that is on another disk, mount it", w.links[len(w.links)-1], w.next)
	case w.next != filepath.Clean(dir):
		return fmt.Sprintf(": there is no %s now: if that is on another disk, mount it", w.next)
	}
	return ""
}

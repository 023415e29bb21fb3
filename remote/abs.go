package remote

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Abs is filepath.Abs, but for paths in which ".." follows a symbolic link: there it
// gives the directory that the system means, which is above the one that the link leads
// to. Such a path comes out without symbolic links, as far as it exists.
func Abs(path string) (string, error) {
	if !slices.Contains(strings.Split(path, "/"), "..") {
		return filepath.Abs(path)
	}
	plain := path
	if !filepath.IsAbs(path) {
		wd, err := unix.Getwd() // os.Getwd believes $PWD, which may have links
		if err != nil {
			return "", err
		}
		path = wd + "/" + path // not cleaned
	}
	for rest := ""; ; {
		there, err := filepath.EvalSymlinks(path)
		if err == nil {
			return filepath.Join(there, rest), nil
		}
		path = strings.TrimRight(path, "/")
		i := strings.LastIndexByte(path, '/')
		switch {
		case !errors.Is(err, fs.ErrNotExist) || i < 0:
			return "", err
		case path[i+1:] == "..":
			return filepath.Abs(plain) // it goes through nothing, so through no link
		}
		path, rest = path[:i+1], filepath.Join(path[i+1:], rest)
	}
}

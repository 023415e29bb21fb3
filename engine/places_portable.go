//go:build !linux

package engine

import (
	"context"
	"os"

	"golang.org/x/sys/unix"
)

// boundFrom has no bind mounts to look through.
func (o *ownDirs) boundFrom(string) string { return "" }

// addOverlays has no overlays to look through.
func (o *ownDirs) addOverlays() {}

// inUse says why a directory cannot be replaced by another without leaving somebody
// behind in the old one: here, if this process works in it.
func inUse(_ context.Context, path string) (why string, err error) {
	var st, cwd unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: path, Err: err}
	}
	for dir := "."; unix.Stat(dir, &cwd) == nil; dir += "/.." {
		if cwd.Dev == st.Dev && cwd.Ino == st.Ino {
			return "this process works in it", nil
		}
		var up unix.Stat_t
		if unix.Stat(dir+"/..", &up) != nil || up.Dev == cwd.Dev && up.Ino == cwd.Ino {
			break
		}
	}
	return "", nil
}

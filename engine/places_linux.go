package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// A fsPlace is a directory by where it is in its file system: so that it is known as
// the same through any bind mount, in any mount namespace.
type fsPlace struct {
	major, minor int
	path         string // from the root of the file system
}

// uncovered gives the mounts of a table that a path leads to.
func uncovered(table []*mountinfo.Info) []*mountinfo.Info {
	covered := fusefs.Covered(table)
	return slices.DeleteFunc(slices.Clone(table), func(m *mountinfo.Info) bool { return covered[m] != nil })
}

// placeOf finds where a path without symbolic links is, by the mounts that are uncovered. ok
// is false where they do not say, as in a chroot.
func placeOf(mounts []*mountinfo.Info, path string) (p fsPlace, ok bool) {
	var at *mountinfo.Info
	for _, m := range mounts {
		if pathWithin(path, m.Mountpoint) && (at == nil || len(m.Mountpoint) >= len(at.Mountpoint)) {
			at = m
		}
	}
	if at == nil {
		return p, false
	}
	rel, err := filepath.Rel(at.Mountpoint, path)
	return fsPlace{at.Major, at.Minor, filepath.Join(at.Root, rel)}, err == nil
}

// pathWithin reports whether an absolute path is another, or lies in it.
func pathWithin(path, dir string) bool { return dir == "/" || manifest.Within(path, dir) }

// holds reports whether a mount shows the directory, or something below it.
func (p fsPlace) holds(m *mountinfo.Info) bool {
	return m.Major == p.major && m.Minor == p.minor && pathWithin(m.Root, p.path)
}

// boundFrom gives what of ours a path, or something mounted below it, is a bind mount of
// a part of; "" for nothing.
func (o *ownDirs) boundFrom(path string) string {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return ""
	}
	targets := []string{path}
	for _, m := range mounts {
		if m.Mountpoint != path && pathWithin(m.Mountpoint, path) {
			targets = append(targets, m.Mountpoint)
		}
	}
	mounts = uncovered(mounts)
	for _, ours := range o.paths {
		own, ok := placeOf(mounts, ours)
		if !ok {
			continue
		}
		for _, t := range targets {
			// The root of ours itself is known by its inode.
			if at, ok := placeOf(mounts, t); ok && at.major == own.major && at.minor == own.minor && at.path != own.path && pathWithin(at.path, own.path) {
				return o.at(ours)
			}
		}
	}
	return ""
}

// inUse says why a directory cannot be replaced by another without leaving somebody
// behind in the old one: a process works in it, or it is mounted elsewhere too. "" if
// nothing is known of that; ordinary users do not see other users' processes.
func inUse(ctx context.Context, path string) (why string, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: path, Err: err}
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return "", fmt.Errorf("reading the mounts: %w", err)
	}
	place, placed := placeOf(uncovered(mounts), path)
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return "", err
	}
	seen := map[string]bool{}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return "", err
		}
		if worksIn(pid, path, &st) {
			return fmt.Sprintf("process %d works in it", pid), nil
		}
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if err != nil || seen[ns] || !placed {
			continue
		}
		seen[ns] = true
		table, err := mountsOf(pid, place.holds)
		if err != nil {
			continue // it has ended
		}
		for _, m := range table {
			if m.Mountpoint != path || ns != mountNamespace() {
				return fmt.Sprintf("it is mounted at %s too", m.Mountpoint), nil
			}
		}
	}
	return "", nil
}

// worksIn reports whether the working directory of a process is a directory, or below it.
func worksIn(pid int, path string, st *unix.Stat_t) bool {
	link := fmt.Sprintf("/proc/%d/cwd", pid)
	var cwd unix.Stat_t
	if unix.Stat(link, &cwd) != nil {
		return false
	}
	if cwd.Dev == st.Dev && cwd.Ino == st.Ino {
		return true
	}
	at, err := os.Readlink(link)
	return err == nil && pathWithin(at, path)
}

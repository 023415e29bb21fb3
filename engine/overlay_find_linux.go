package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// overlayOf tells whether a fork is mounted at a path without symbolic links.
func (r *Repository) overlayOf(path string) (*overlayInfo, bool) {
	if r.forkOf != nil {
		return r.forkOf(path)
	}
	o, err := findOverlay(path)
	if err != nil {
		r.repo.Logger.Info("looking for a fork", "path", path, "err", err)
	}
	f := r.forkAt(path)
	switch {
	case o == nil && f != nil && f.Mode == ForkFuse && err == nil:
		// The kernel does not know what is below such a mount: the registry does.
		alone, err := nothingBelow(path)
		if err != nil {
			r.repo.Logger.Info("looking for a fork", "path", path, "err", err)
		}
		return &overlayInfo{Lower: f.Snapshot, Upper: f.Upper, Format: upperFuse}, alone
	case o == nil:
		return nil, false
	}
	// What is mounted at the path of the lower directory by now need not be what the
	// overlay was made of.
	if f != nil && (f.Snapshot != o.Lower || f.Upper != o.Upper) {
		r.repo.Logger.Warn("a fork is not what it is registered as, and is read whole", "path", path)
		return nil, false
	}
	return o, true
}

// findOverlay asks the kernel for an overlay at a path whose one lower directory is
// a snapshot, all of it. It gives nil where there is none, or where something else
// is mounted below it.
func findOverlay(path string) (*overlayInfo, error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("reading the table of mounts: %w", err)
	}
	covered := fusefs.Covered(mounts)
	var at *mountinfo.Info
	for _, m := range mounts {
		switch {
		case covered[m] != nil: // the path does not lead there
		case m.Mountpoint == path:
			at = m
		case at != nil && manifest.Within(m.Mountpoint, path) && path != "/":
			return nil, nil
		}
	}
	if at == nil || at.FSType != "overlay" || at.Root != "/" {
		return nil, nil
	}
	opts := overlayOptions(at.VFSOptions)
	lower := slices.Concat(opts["lowerdir"], opts["lowerdir+"])
	upper := opts["upperdir"]
	if len(lower) != 1 || len(upper) != 1 || !filepath.IsAbs(lower[0]) || !filepath.IsAbs(upper[0]) || opts["datadir+"] != nil {
		return nil, nil
	}
	// A colon separates several lower directories.
	if strings.Contains(strings.ReplaceAll(strings.ReplaceAll(lower[0], `\\`, ""), `\:`, ""), ":") {
		return nil, nil
	}
	// With an index the links of a file stay together when it is copied up.
	if slices.Equal(opts["index"], []string{"on"}) || slices.Equal(opts["nfs_export"], []string{"on"}) {
		return nil, nil
	}
	dir, err := filepath.EvalSymlinks(asMounted(lower[0]))
	if err != nil {
		return nil, err
	}
	var snapshot *mountinfo.Info
	for _, m := range mounts {
		if m.Mountpoint == dir && covered[m] == nil {
			snapshot = m
		}
	}
	if snapshot == nil || snapshot.FSType != fusefs.FSType || snapshot.Root != "/" {
		return nil, nil
	}
	p := fusefs.Point{Source: snapshot.Source}
	id, err := p.Snapshot()
	if err != nil {
		return nil, err
	}
	o := &overlayInfo{Lower: id, Upper: asMounted(upper[0])}
	if opts["userxattr"] != nil {
		o.Format = upperUser
	}
	return o, nil
}

// askStat has the kernel ask a file system for the metadata of an open file, if it can. What
// it knows of a directory in a FUSE file system is not always so: a copy of one of its
// subdirectories into the upper directory changes its times.
func askStat(fd int) {
	var st unix.Statx_t
	_ = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st)
}

// sameMount reports whether what is at a path below an open directory is in the mount that the
// directory is in: a bind mount shows files of the same device. Before Linux 5.8 that is all
// that there is to go by.
func sameMount(root int, path string) bool {
	var there, here unix.Statx_t
	const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_DONT_SYNC
	if unix.Statx(root, path, flags, unix.STATX_MNT_ID, &there) != nil || unix.Statx(root, "", flags|unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &here) != nil {
		return false
	}
	return there.Mnt_id == here.Mnt_id && there.Dev_major == here.Dev_major && there.Dev_minor == here.Dev_minor
}

// nothingBelow reports whether nothing is mounted below a path.
func nothingBelow(path string) (bool, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(path))
	if err != nil {
		return false, fmt.Errorf("reading the table of mounts: %w", err)
	}
	return !slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool { return m.Mountpoint != path }), nil
}

// asMounted is a directory as it was given to mount(2), where a backslash comes
// before what would end the name; by other ways it is as it stands.
func asMounted(dir string) string {
	if _, err := os.Lstat(dir); err == nil {
		return dir
	}
	var b strings.Builder
	for i := 0; i < len(dir); i++ {
		if dir[i] == '\\' && i+1 < len(dir) {
			i++
		}
		b.WriteByte(dir[i])
	}
	return b.String()
}

// overlayOptions takes the options of a file system apart, as the table of mounts
// has them.
func overlayOptions(text string) map[string][]string {
	all := map[string][]string{}
	for opt := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(opt, "=")
		all[name] = append(all[name], unescapeOctal(value))
	}
	return all
}

// unescapeOctal undoes the kernel's \ooo.
func unescapeOctal(s string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '\\')
		if i < 0 || len(s) < i+4 {
			break
		}
		c, err := strconv.ParseUint(s[i+1:i+4], 8, 8)
		if err != nil {
			b.WriteString(s[:i+1])
			s = s[i+1:]
			continue
		}
		b.WriteString(s[:i])
		b.WriteByte(byte(c))
		s = s[i+4:]
	}
	b.WriteString(s)
	return b.String()
}

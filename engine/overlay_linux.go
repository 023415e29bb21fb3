package engine

import (
	"bytes"
	"errors"
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

// overlayInfo says that a directory is the mount point of an overlay of one
// snapshot: what is different from it lies in the upper directory.
type overlayInfo struct {
	Lower  manifest.ID // the snapshot
	Upper  string      // absolute
	Format upperFormat
}

// upperFormat is how an upper directory tells what is removed, opaque or moved.
type upperFormat uint8

const (
	// upperTrusted is the kernel's: whiteouts are devices, and all else is in
	// attributes below trusted.overlay.
	upperTrusted upperFormat = iota
	// upperUser is the same with attributes below user.overlay, as in a user
	// namespace. Directories are then never redirected, and files never have their
	// metadata alone in the upper directory.
	upperUser
	// upperFuse is that of fuse-overlayfs: any of those, and files .wh.NAME. It
	// has neither redirects nor files without contents.
	upperFuse
)

// overlayOf tells whether a fork is mounted at a path without symbolic links.
func (r *Repository) overlayOf(path string) (*overlayInfo, bool) {
	if r.forkOf != nil {
		return r.forkOf(path)
	}
	o, err := findOverlay(path)
	if err != nil {
		r.log.Info("looking for a fork", "path", path, "err", err)
	}
	f := r.forkAt(path)
	switch {
	case o == nil && f != nil && f.Mode == ForkFuse && err == nil:
		// The kernel does not know what is below such a mount: the registry does.
		alone, err := nothingBelow(path)
		if err != nil {
			r.log.Info("looking for a fork", "path", path, "err", err)
		}
		return &overlayInfo{Lower: f.Snapshot, Upper: f.Upper, Format: upperFuse}, alone
	case o == nil:
		return nil, false
	}
	// What is mounted at the path of the lower directory by now need not be what the
	// overlay was made of.
	if f != nil && (f.Snapshot != o.Lower || f.Upper != o.Upper) {
		r.log.Warn("a fork is not what it is registered as, and is read whole", "path", path)
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
	var at *mountinfo.Info
	for _, m := range mounts {
		switch {
		case m.Mountpoint == path:
			at = m // the topmost is the last
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
		if m.Mountpoint == dir {
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

// errBadUpper: the upper directory says what cannot be, or this program does
// not understand it. There is no snapshot then: it could be a wrong one.
var errBadUpper = errors.New("the fork's upper directory is damaged")

// badUpper is such an error about an entry.
func badUpper(path, format string, args ...any) error {
	return fmt.Errorf("%w: %q: %s", errBadUpper, path, fmt.Sprintf(format, args...))
}

// Names that fuse-overlayfs gives to what takes the place of whiteouts and of the
// attribute that makes a directory opaque.
const (
	fuseWhiteout = ".wh."
	fuseOpaque   = ".wh..wh..opq"
)

// prefix is how the names of the attributes begin that are the overlay's own.
func (f upperFormat) prefix() string {
	if f == upperUser {
		return "user.overlay."
	}
	return "trusted.overlay."
}

// shown is the name under which an overlay shows an attribute of its upper
// directory, "" if it does not. An attribute of the user's that looks like one of
// the overlay's own has another "overlay." in its name there.
func (f upperFormat) shown(name string) string {
	if f == upperFuse {
		for _, hidden := range []string{"trusted.overlay.", "user.overlay.", "user.fuseoverlayfs."} {
			if strings.HasPrefix(name, hidden) {
				return ""
			}
		}
		return name
	}
	own := f.prefix()
	rest, ok := strings.CutPrefix(name, own)
	if !ok {
		return name
	}
	if rest, ok = strings.CutPrefix(rest, "overlay."); ok {
		return own + rest
	}
	return ""
}

// dirMarks is what an upper directory says of itself.
type dirMarks struct {
	opaque   bool   // nothing of the lower directory shows
	redirect string // where the lower directory is, "" for where it would be
}

// marks reads what an open upper directory says of itself.
func (f upperFormat) marks(fd int) (m dirMarks, err error) {
	names := []string{f.prefix() + "opaque"}
	if f == upperFuse {
		names = []string{"trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque"}
	}
	for _, name := range names {
		v, err := fdXattr(fd, name)
		if err != nil {
			return m, err
		}
		if v != nil { // fuse-overlayfs goes by the first that there is
			m.opaque = *v == "y" || f == upperFuse && strings.HasPrefix(*v, "y")
			break
		}
	}
	if f == upperFuse {
		return m, nil
	}
	v, err := fdXattr(fd, f.prefix()+"redirect")
	if err != nil || v == nil {
		return m, err
	}
	m.redirect = *v
	return m, nil
}

// whiteout reports whether an entry of an open upper directory hides what the lower
// one has of that name.
func (f upperFormat) whiteout(dir int, d *dirent) (bool, error) {
	switch {
	case d.kind() == unix.S_IFCHR && d.rdev == 0:
		return true, nil
	case f == upperFuse || d.kind() != unix.S_IFREG || d.size != 0:
		return false, nil
	}
	_, err := unix.Lgetxattr(procPath(dir, d.name), f.prefix()+"whiteout", nil)
	if err == nil {
		return true, nil
	}
	if errIsAny(err, unix.ENODATA, unix.ENOTSUP, unix.ENOENT) {
		return false, nil
	}
	return false, err
}

// metacopy tells whether an open upper file has no contents of its own, and where
// the lower file is then: "" where it would be.
func (f upperFormat) metacopy(fd int) (is bool, redirect string, err error) {
	if f == upperFuse {
		return false, "", nil
	}
	v, err := fdXattr(fd, f.prefix()+"metacopy")
	if err != nil || v == nil {
		return false, "", err
	}
	v, err = fdXattr(fd, f.prefix()+"redirect")
	if err != nil || v == nil {
		return true, "", err
	}
	return true, *v, nil
}

// fdXattr reads an attribute of an open file, nil if it has none of that name.
func fdXattr(fd int, name string) (*string, error) {
	b, err := grow(func(dest []byte) (int, error) { return unix.Fgetxattr(fd, name, dest) })
	if errIsAny(err, unix.ENODATA, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("extended attribute %q: %w", name, err)
	}
	s := string(bytes.TrimSuffix(b, []byte{0}))
	return &s, nil
}

// redirected is the path in the lower directory that a redirect leads to, of
// something in a directory that shows another lower one, or none.
func redirected(path, redirect string, in *lowerDir) (string, error) {
	to := redirect
	switch {
	case strings.HasPrefix(redirect, "/"):
		to = redirect[1:]
	case strings.Contains(redirect, "/"):
		return "", badUpper(path, "redirect to %q", redirect)
	case in == nil:
		return "", badUpper(path, "redirect to %q in a directory that shows none of the snapshot's", redirect)
	default:
		to = manifest.Join(in.path, redirect)
	}
	if to == "" || manifest.CheckPath(to) != nil {
		return "", badUpper(path, "redirect to %q", redirect)
	}
	return to, nil
}

// sees reports whether this process can see the attributes of a format at all:
// trusted ones are shown to none but root of the whole machine, and look to
// others as if they were not there.
func (f upperFormat) sees(fd int) bool {
	if f != upperTrusted {
		return true
	}
	// Removing what is not there changes nothing, and takes the same right.
	return errors.Is(unix.Fremovexattr(fd, "trusted.overlay.snapctl-probe"), unix.ENODATA)
}

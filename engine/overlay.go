package engine

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/snapctl/snapctl/engine/internal/fsys"
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
	// upperFuse is that of fuse-overlayfs: devices and files .wh.NAME are whiteouts. It
	// has neither redirects nor files without contents.
	upperFuse
)

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

// isFuseMark reports whether what has one of these names is as all versions of
// fuse-overlayfs make it: an empty file of mode 0700. It believes whatever has the name,
// which users make by mkdir, rename, link and so on.
func isFuseMark(d *fsys.Dirent) bool {
	return d.Mode == unix.S_IFREG|0o700 && d.Size == 0 && d.Nlink == 1
}

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
		// Not user.overlay.opaque: who works in the fork may set that, while the overlay
		// never sets it without making the file that says the same.
		names = []string{"trusted.overlay.opaque", "user.fuseoverlayfs.opaque"}
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
func (f upperFormat) whiteout(dir int, d *fsys.Dirent) (bool, error) {
	switch {
	case d.Kind() == unix.S_IFCHR && d.Rdev == 0:
		return true, nil
	case f == upperFuse || d.Kind() != unix.S_IFREG || d.Size != 0:
		return false, nil
	}
	_, err := fsys.XattrsAt(dir, d.Name).Get(f.prefix()+"whiteout", nil)
	if err == nil {
		return true, nil
	}
	if fsys.IsAny(err, fsys.ErrNoXattr, unix.ENOTSUP, unix.ENOENT) {
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
	b, err := fsys.GrowBuffer(func(dest []byte) (int, error) { return unix.Fgetxattr(fd, name, dest) })
	if fsys.IsAny(err, fsys.ErrNoXattr, unix.ENOTSUP) {
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
	return errors.Is(unix.Fremovexattr(fd, "trusted.overlay.snapctl-probe"), fsys.ErrNoXattr)
}

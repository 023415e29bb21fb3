package fusefs

import (
	"slices"
	"strings"

	"github.com/snapctl/snapctl/manifest"
)

// A View is for whom a snapshot is mounted. An overlay believes certain marks of its
// lower directory that a snapshot may hold as well, for instance when it was made of
// another overlay's layers: names would be missing in it, or answer EIO. So below an
// overlay such attributes have other names, which the overlay gives back (since Linux
// 6.7), or none. Character devices 0:0 are left out there: the overlay would list
// their names, and then say that there are none.
type View uint8

const (
	// Plain is the snapshot as it is.
	Plain View = iota
	// BelowTrusted is for the kernel's overlay: trusted.overlay.X is
	// trusted.overlay.overlay.X, which such an overlay shows as trusted.overlay.X.
	BelowTrusted
	// BelowUser is for the kernel's overlay with the option userxattr: the same with
	// user.overlay.
	BelowUser
	// BelowFuse is for fuse-overlayfs, which has no such way out: its attributes and files
	// .wh.NAME are left out. Inode numbers have bit 52 set, since it gives files of
	// all layers one device number, and has them by their numbers of each. Each name of a
	// file is a file of its own: of several names fuse-overlayfs would take any, and
	// what is written to one of them would show under another.
	BelowFuse
)

// own is how the names of attributes begin that the kernel's overlay keeps for itself.
func (v View) own() string {
	switch v {
	case BelowTrusted:
		return "trusted.overlay."
	case BelowUser:
		return "user.overlay."
	}
	return ""
}

// escape follows the overlay's own prefix in the name of an attribute that is not its own.
const escape = "overlay."

// attr is the name under which an attribute of the snapshot shows; "" if it does not.
func (v View) attr(name string, root bool) string {
	if v == BelowFuse {
		if fuseBelieves(name, root) {
			return ""
		}
		return name
	}
	own := v.own()
	rest, ok := strings.CutPrefix(name, own)
	if own == "" || !ok {
		return name
	}
	if len(name)+len(escape) > manifest.MaxXattrName {
		return ""
	}
	return own + escape + rest
}

// attrOf undoes attr: the name that an attribute has in the snapshot, "" for one that
// cannot be there.
func (v View) attrOf(shown string, root bool) string {
	if v == BelowFuse {
		return v.attr(shown, root)
	}
	own := v.own()
	rest, ok := strings.CutPrefix(shown, own)
	if own == "" || !ok {
		return shown
	}
	if rest, ok = strings.CutPrefix(rest, escape); !ok {
		return ""
	}
	return own + rest
}

// fuseBelieves reports whether fuse-overlayfs goes by an attribute of a lower layer. What
// the root has makes it go by those of files.
func fuseBelieves(name string, root bool) bool {
	if root && name == "user.containers.override_stat" {
		return true
	}
	return slices.ContainsFunc([]string{"trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.", "security.fuseoverlayfs."}, func(own string) bool {
		return strings.HasPrefix(name, own)
	})
}

// hides reports whether an entry does not show. fuse-overlayfs would take a name for what
// hides another.
func (v View) hides(name string, e *manifest.Entry) bool {
	switch {
	case v == Plain:
		return false
	case e.Type == manifest.CharDevice && e.Device == manifest.Device{}:
		return true
	}
	return v == BelowFuse && strings.HasPrefix(name, ".wh.")
}

// splits reports whether each name of a file shows as a file of its own.
func (v View) splits() bool { return v == BelowFuse }

// links is how many names an entry's file shows to have.
func (v View) links(e *manifest.Entry) uint32 {
	if v.splits() && e.Type != manifest.Dir {
		return 1
	}
	return max(e.Links, 1)
}

// inode is the number of an entry's inode, as programs see it.
func (v View) inode(rank uint64) uint64 {
	if v == BelowFuse {
		return (rank + 1) | 1<<52
	}
	return rank + 1
}

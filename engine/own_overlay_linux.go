package engine

import (
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
)

const onTheWay = "on the way to what is snapctl's own"

// addOverlays adds what is ours a second time where it lies in the upper directory of an
// overlay: it has other inodes through the mount, and the mount's have others in there.
func (o *ownDirs) addOverlays() {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("overlay"))
	if err != nil {
		return
	}
	paths, ways := slices.Clone(o.paths), slices.Clone(o.wayPaths)
	for _, m := range mounts {
		upper := overlayOptions(m.VFSOptions)["upperdir"]
		if len(upper) != 1 || !filepath.IsAbs(upper[0]) {
			continue
		}
		dir, err := filepath.EvalSymlinks(asMounted(upper[0]))
		if err != nil {
			continue
		}
		dir = filepath.Join(dir, m.Root) // a mount may show a part of it
		for _, p := range paths {
			o.add(o.at(p), moved(p, dir, m.Mountpoint))
			o.add(o.at(p), moved(p, m.Mountpoint, dir))
		}
		for _, p := range ways {
			o.addWay(onTheWay, moved(p, dir, m.Mountpoint))
			o.addWay(onTheWay, moved(p, m.Mountpoint, dir))
		}
	}
}

// moved gives the path that a path below one directory has below another; "" if it is not
// below the one.
func moved(path, from, to string) string {
	rel, err := filepath.Rel(from, path)
	if err != nil || path == from || !pathWithin(path, from) {
		return ""
	}
	return filepath.Join(to, rel)
}

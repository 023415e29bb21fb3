package engine

import (
	"fmt"

	"github.com/moby/sys/mountinfo"
	"github.com/snapctl/snapctl/fusefs"
)

// A mountTable is what is mounted. Who asks what a path leads to asks at; who asks whether
// something is mounted, and so in use, looks at all: it may be covered.
type mountTable struct {
	all     []*mountinfo.Info
	covered map[*mountinfo.Info]*mountinfo.Info // by what: see fusefs.Covered
	paths   map[string]*mountinfo.Info          // that are not covered
}

// at is what is mounted at a path, that the path leads to; nil for nothing.
func (t *mountTable) at(path string) *mountinfo.Info { return t.paths[path] }

const (
	overlayType     = "overlay"
	fuseOverlayType = "fuse.fuse-overlayfs"
)

func readMountTable() (*mountTable, error) {
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("reading the table of mounts: %w", err)
	}
	t := &mountTable{all: all, covered: fusefs.Covered(all), paths: make(map[string]*mountinfo.Info, len(all))}
	for _, m := range all {
		if t.covered[m] == nil {
			t.paths[m.Mountpoint] = m
		}
	}
	return t, nil
}

// mountBeneath gives what is directly beneath a mount at the same mount point, and
// mountAbove what is above it; nil for none.
func mountBeneath(m *mountinfo.Info) (*mountinfo.Info, error) {
	return mountBeside(m, func(other *mountinfo.Info) bool { return other.ID == m.Parent })
}

func mountAbove(m *mountinfo.Info) (*mountinfo.Info, error) {
	return mountBeside(m, func(other *mountinfo.Info) bool { return other.Parent == m.ID })
}

func mountBeside(m *mountinfo.Info, is func(other *mountinfo.Info) bool) (*mountinfo.Info, error) {
	all, err := mountinfo.GetMounts(func(other *mountinfo.Info) (skip, stop bool) {
		return other.Mountpoint != m.Mountpoint || other.ID == m.ID || !is(other), false
	})
	if err != nil {
		return nil, fmt.Errorf("reading the table of mounts: %w", err)
	}
	if len(all) == 0 {
		return nil, nil
	}
	return all[0], nil
}

package engine

import (
	"fmt"

	"github.com/moby/sys/mountinfo"
)

// A mountTable is what is mounted, topmost, by mount point.
type mountTable map[string]*mountinfo.Info

const (
	overlayType     = "overlay"
	fuseOverlayType = "fuse.fuse-overlayfs"
)

func readMountTable() (mountTable, error) {
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("reading the table of mounts: %w", err)
	}
	// What is mounted on another mount's root is above it, wherever it stands in the
	// kernel's table: that is in the order in which they were made.
	covered := make(map[int]bool)
	at := make(map[int]string, len(all))
	for _, m := range all {
		at[m.ID] = m.Mountpoint
	}
	for _, m := range all {
		if at[m.Parent] == m.Mountpoint && m.Parent != m.ID {
			covered[m.Parent] = true
		}
	}
	t := make(mountTable, len(all))
	for _, m := range all {
		if !covered[m.ID] {
			t[m.Mountpoint] = m
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

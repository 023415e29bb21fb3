package fusefs

import (
	"fmt"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
)

// Covered tells which mounts of a whole table no path leads to, and what lies over each: a
// mount on its root, or on a directory above it. The table is in the order in which they were
// made, which says nothing of that: a mount may have been put beneath another.
func Covered(table []*mountinfo.Info) map[*mountinfo.Info]*mountinfo.Info {
	type place struct {
		on  int // the ID of the mount
		dir string
	}
	at := make(map[place]*mountinfo.Info, len(table))
	byID := make(map[int]*mountinfo.Info, len(table))
	for _, m := range table {
		byID[m.ID] = m
		if m.Parent != m.ID {
			at[place{m.Parent, m.Mountpoint}] = m
		}
	}
	covered := make(map[*mountinfo.Info]*mountinfo.Info)
	for _, m := range table {
		by := at[place{m.ID, m.Mountpoint}]
		// Each mount that the way to this one leads through.
		for on := m; on != nil && by == nil; on = parentOf(byID, on) {
			for dir := on.Mountpoint; len(dir) > 1 && by == nil; {
				dir = filepath.Dir(dir)
				by = at[place{on.Parent, dir}]
			}
		}
		if by != nil && by != m {
			covered[m] = by
		}
	}
	return covered
}

// CoveredError is an ErrBusy that says what lies over a mount.
func CoveredError(by *mountinfo.Info) error {
	return fmt.Errorf("%w: something else (%s) is mounted over it at %s; unmount that first", ErrBusy, by.FSType, by.Mountpoint)
}

// parentOf is what a mount is on; nil if that is outside of what this process sees.
func parentOf(byID map[int]*mountinfo.Info, m *mountinfo.Info) *mountinfo.Info {
	if m.Parent == m.ID {
		return nil
	}
	return byID[m.Parent]
}

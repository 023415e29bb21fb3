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
	t := make(mountTable, len(all))
	for _, m := range all {
		t[m.Mountpoint] = m
	}
	return t, nil
}

// A forkPlace is where a fork was mounted last.
type forkPlace struct {
	Boot      string `json:"boot"`
	Namespace string `json:"namespace"`
}

func placeHere() *forkPlace { return &forkPlace{bootID(), mountNamespace()} }

// mountedIn reports whether the fork is what is mounted at its directory.
func (e *forkEntry) mountedIn(t mountTable) bool {
	top := t[string(e.rec.Dir)]
	switch {
	case top == nil:
		return false
	case e.rec.Mode == ForkFuse: // which cannot be given a name
		return top.FSType == fuseOverlayType && e.rec.Mounted != nil && *e.rec.Mounted == *placeHere()
	}
	return top.FSType == overlayType && top.Source == forkSource+e.rec.Name
}

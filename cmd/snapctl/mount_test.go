//go:build linux

package main

import (
	"slices"
	"testing"

	"github.com/moby/sys/mountinfo"

	"github.com/snapctl/snapctl/fusefs"
)

// noMounts fails for what a script left mounted, and unmounts it.
func noMounts(t *testing.T, dir string) {
	left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Error(err)
	}
	for _, m := range slices.Backward(left) {
		t.Errorf("left mounted: %s (%v)", m.Mountpoint, fusefs.UnmountAt(m.Mountpoint, true))
	}
}

func TestSizeFlag(t *testing.T) {
	for s, want := range map[string]int64{"1": 1, "10GiB": 10 << 30, "500MB": 500_000_000, "1.5k": 1500} {
		var f sizeFlag
		if err := f.Set(s); err != nil || int64(f) != want {
			t.Errorf("%s: %d, %v", s, f, err)
		}
	}
	for _, s := range []string{"", "0", "-1", "x", "1 potato", "10EiB", "99999999999999999999"} {
		var f sizeFlag
		if err := f.Set(s); err == nil {
			t.Errorf("%q: %d", s, f)
		}
	}
}

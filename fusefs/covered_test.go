//go:build linux

package fusefs

import (
	"testing"

	"github.com/moby/sys/mountinfo"
)

// TestCovered: what no path leads to is told by what lies on what, wherever it stands in the
// table.
func TestCovered(t *testing.T) {
	rows := []struct {
		id, parent int
		dir        string
		by         int // 0 for nothing
	}{
		{1, 1, "/", 2}, // the first file system of the kernel
		{2, 1, "/", 0},
		{11, 2, "/plain", 0},
		{12, 11, "/plain/below", 0},
		{21, 2, "/over", 23},
		{22, 21, "/over/below", 23},
		{24, 22, "/over/below/deeper", 23},
		{23, 21, "/over", 0},
		{25, 23, "/over/below", 0},
		{31, 2, "/dir/at", 32},
		{33, 31, "/dir/at/below", 32},
		{32, 2, "/dir", 0},
		{34, 2, "/dirt/at", 0},
		{42, 41, "/beneath", 0}, // which was there before the one beneath it
		{41, 2, "/beneath", 42},
		{51, 999, "/strange", 0}, // what it is on does not show
	}
	var table []*mountinfo.Info
	for _, r := range rows {
		table = append(table, &mountinfo.Info{ID: r.id, Parent: r.parent, Mountpoint: r.dir})
	}
	covered := Covered(table)
	for i, r := range rows {
		got := 0
		if by := covered[table[i]]; by != nil {
			got = by.ID
		}
		if got != r.by {
			t.Errorf("%d at %s: %d is over it, not %d", r.id, r.dir, got, r.by)
		}
	}
}

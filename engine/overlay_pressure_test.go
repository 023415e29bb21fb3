//go:build linux

package engine

import (
	"fmt"
	"os"
	"testing"
)

// TestForkUnderPressure: what the kernel drops when memory is short is there again
// when somebody looks. With file handles that outlive that, directories of the fork
// that had been copied up stayed stale.
func TestForkUnderPressure(t *testing.T) {
	const dirs, changed = 50, 200
	p := newPlace(t)
	content := map[string]string{}
	for i := range 3000 {
		content[fmt.Sprintf("d%d/f%d", i%dirs, i)] = "lower"
	}
	f := newOverlaid(p, upperTrusted, p.files("src", content))
	for i := range changed {
		name := fmt.Sprintf("%s/d%d/f%d", f.dir, i%dirs, i)
		_, err := os.ReadFile(name)
		must(t, err)
		must(t, os.WriteFile(name, []byte("changed"), 0))
	}
	for range 5 {
		pathsBelow(t, f.dir, anyType)
		if s := complete(t, f.full, f.dir, nil); s.Files != 3000 {
			t.Fatalf("%d files", s.Files)
		}
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
			t.Skipf("inodes cannot be dropped: %v", err)
		}
		for i := range changed {
			if b, err := os.ReadFile(fmt.Sprintf("%s/d%d/f%d", f.dir, i%dirs, i)); err != nil || string(b) != "changed" {
				t.Fatalf("%q, %v", b, err)
			}
		}
	}
}

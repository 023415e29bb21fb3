package engine

import (
	"os"
	"testing"
)

// TestRestoreIntoDelete: nested directories sort differently as entries and as
// runs of entries.
func TestRestoreIntoDelete(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"a/x/deep/f": "1", "a/x/g": "2", "b/h": "3", "b/i/j": "4", "c/k": "5", "z": "6"})
	must(t, os.MkdirAll(src+"/b/empty/empty", 0o755))
	want := scan(t, src)
	id := complete(t, r, src, nil).ID.String()

	dst := p.files("dst", map[string]string{"a/x/old": "o", "b/h/was/a/directory": "o", "c/more/f": "o", "old/old": "o", "z": "7"})
	restore(t, r, id, dst, &RestoreOptions{Into: true, Delete: true})
	compare(t, want, scan(t, dst))
}

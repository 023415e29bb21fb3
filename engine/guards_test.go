//go:build linux

package engine

import (
	"errors"
	"os"
	"testing"

	"github.com/snapctl/snapctl/engine/internal/gc"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/engine/view"
	"github.com/snapctl/snapctl/remote"
)

// Each of these tests is of one guard that could be taken away, and no other test failed.

// TestParentOfAnotherTime: where only size and time tell of a file whether it is the
// parent's, both do.
func TestParentOfAnotherTime(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"a": "one", "d/b": "one", "same": "one"})
	first := complete(t, r, src, nil).ID
	for _, name := range []string{"a", "d/b"} {
		st, err := os.Stat(src + "/" + name)
		must(t, err)
		writeFile(t, src+"/"+name, []byte("two"))
		// A nanosecond earlier: what was unpacked from an archive may be older.
		must(t, os.Chtimes(src+"/"+name, st.ModTime(), st.ModTime().Add(-1)))
	}
	res := complete(t, p.open("another"), src, &CreateOptions{Parent: first.String()})
	if res.NewBytes != 3 {
		t.Errorf("%d new bytes", res.NewBytes)
	}
	p.check(res.ID, scan(t, src))
}

// TestRestoreMountedMeanwhile: what was mounted in the target while the new tree was made
// is not deleted with the old one.
func TestRestoreMountedMeanwhile(t *testing.T) {
	y := newYard(t)
	r := y.enter()
	src := y.dirOf("a", 2)
	id := complete(t, r, src, nil).ID.String()
	dst := y.path("dst")
	writeFile(t, dst+"/sub/old", []byte("old"))
	came := false
	y.at(remote.OpReadAt, gc.PacksPrefix, func() {
		mount(t, dst+"/sub", "size=1m")
		writeFile(t, dst+"/sub/precious", []byte("of another file system"))
		came = true
	})
	_, err := y.enter().Restore(t.Context(), id, dst, &RestoreOptions{Delete: true})
	if !came {
		t.Fatal("no pack was read")
	}
	if !errors.Is(err, snapshot.ErrExists) {
		t.Error(err)
	}
	if b, err := os.ReadFile(dst + "/sub/precious"); err != nil {
		t.Fatalf("what another file system holds is gone: %q, %v", b, err)
	}
	if left := leftovers(t, y.path()); len(left) > 0 {
		t.Errorf("%s is left", left)
	}
}

// TestRestoreLeavesOthersAlone: what looks like a restore that was killed, and is another
// user's, is not removed, not even by root.
func TestRestoreLeavesOthersAlone(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	id := complete(t, r, p.files("src", map[string]string{"a": "1"}), nil).ID.String()
	others := p.files("work/"+tempPrefix+"t-123", map[string]string{"a/b": "1"})
	must(t, os.Chown(others, 65534, 65534))
	into := p.files("work/t/"+tempPrefix+"456", map[string]string{"a/b": "1"})
	must(t, os.Chown(into, 65534, 65534))
	restore(t, r, id, p.path("work/t"), &RestoreOptions{Into: true})
	if _, err := os.Stat(into + "/a/b"); err != nil {
		t.Error(err)
	}
	restore(t, r, id, p.path("work/t"), &RestoreOptions{Delete: true})
	if _, err := os.Stat(others + "/a/b"); err != nil {
		t.Error(err)
	}
}

// TestForkFuseWritten: what a program has written to a fork by fuse-overlayfs, and the
// kernel keeps as long as the file is open, is in the snapshot.
func TestForkFuseWritten(t *testing.T) {
	f := newForked(t)
	tryMode(t, f.state, ForkFuse)
	r := f.open()
	one := f.fork(r, "one", &ForkOptions{Mode: ForkFuse})
	file, err := os.Create(one.Dir + "/open")
	must(t, err)
	data := random(9, 100_000)
	_, err = file.Write(data)
	must(t, err)
	res := complete(t, r, one.Dir, nil)
	must(t, file.Close())
	fsys, err := view.Open(t.Context(), r.repo, res.ID.String())
	must(t, err)
	if b, err := fsys.ReadFile("open"); err != nil || string(b) != string(data) {
		t.Errorf("%d bytes of %d, %v", len(b), len(data), err)
	}
	f.remove(one)
}

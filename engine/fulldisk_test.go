//go:build linux

package engine

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// fill leaves so many bytes free on a small file system, and gives what makes
// room again.
func fill(t testing.TB, dir string, free int64) (makeRoom func()) {
	t.Helper()
	name := dir + "/ballast"
	f, err := os.Create(name)
	must(t, err)
	defer f.Close()
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	if n := int64(st.Bavail)*st.Bsize - free; n > 0 {
		must(t, unix.Fallocate(int(f.Fd()), 0, 0, n))
	}
	return func() { must(t, os.Remove(name)) }
}

// TestFullRepository: the disk is full beneath the repository.
func TestFullRepository(t *testing.T) {
	p := newPlace(t)
	p.repo = p.path("disk/repo")
	mount(t, p.path("disk"), "size=80m")
	r := p.init()
	src := p.files("src", map[string]string{"f": string(random(1, 100_000))})
	want := map[manifest.ID]tree{}
	want[complete(t, r, src, nil).ID] = scan(t, src)

	for i, free := range []int64{0, 4 << 10, 64 << 10, 1 << 20, 9 << 20} {
		writeFile(t, src+"/large", random(uint64(10+i), 12<<20))
		makeRoom := fill(t, p.path("disk"), free)
		res, err := r.Create(t.Context(), src, nil)
		if err == nil || !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), p.repo) {
			t.Errorf("with %d bytes free: %+v, %v", free, res, err)
		}
		if all, err := r.List(t.Context(), nil); len(all) != len(want) || err != nil {
			t.Errorf("with %d bytes free: %d snapshots, %v", free, len(all), err)
		}
		makeRoom()
		verifyAll(p, want)
	}
	res := complete(t, r, src, nil)
	want[res.ID] = scan(t, src)
	verifyAll(p, want)
	if entries, err := os.ReadDir(p.repo + "/tmp"); len(entries) > 0 {
		t.Errorf("%v is left in tmp (%v)", entries, err)
	}
}

// TestFullCache: the disk is full beneath the cache. That is no reason to fail.
func TestFullCache(t *testing.T) {
	p := newPlace(t)
	p.cache = p.path("disk/cache")
	mount(t, p.path("disk"), "size=160m")
	r := p.init()
	src := manyFiles(p, "src")
	want := map[manifest.ID]tree{}
	for i, free := range []int64{0, 4 << 10, 16 << 10, 64 << 10, 1 << 20, 20 << 20} {
		makeRoom := fill(t, p.path("disk"), free)
		writeFile(t, src+"/change", random(uint64(i), 50_000))
		res := complete(t, r, src, nil)
		want[res.ID] = scan(t, src)
		out := p.path(fmt.Sprint("out", i))
		restore(t, r, res.ID.String(), out, nil)
		compare(t, want[res.ID], scan(t, out))
		if i%2 == 0 { // the next opens what is on the disk
			must(t, r.Close())
			r = p.open("disk/cache")
		}
		makeRoom()
	}
	verifyAll(p, want)
	again := complete(t, r, src, nil)
	if again.NewBytes != 0 {
		t.Errorf("%d new bytes when there is room again", again.NewBytes)
	}
	for _, f := range filesBelow(t, p.cache) {
		if strings.Contains(f, "/.tmp-") {
			t.Errorf("%s is left", f)
		}
	}
}

// TestFullTarget: the disk is full beneath the target, which stays as it was.
func TestFullTarget(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"a": string(random(1, 20<<20)), "b/c": string(random(2, 100_000)), "b/d": "1"})
	id := complete(t, r, src, nil).ID.String()
	mount(t, p.path("disk"), "size=24m")
	dst := p.files("disk/dst", map[string]string{"old": string(random(3, 100_000)), "a": "old"})
	before := scan(t, dst)
	for _, free := range []int64{0, 4 << 10, 100 << 10, 10 << 20, 19 << 20} {
		makeRoom := fill(t, p.path("disk"), free)
		for _, opts := range []RestoreOptions{{Delete: true}, {Into: true}} {
			_, err := r.Restore(t.Context(), id, dst, &opts)
			if !errors.Is(err, unix.ENOSPC) {
				t.Errorf("with %d bytes free: %v", free, err)
			}
			got := scan(t, dst)
			if opts.Into {
				// Single files may be new already: then they are whole.
				if got["old"] != before["old"] || got["a"].Sum != before["a"].Sum {
					t.Errorf("with %d bytes free, into: a file that was there has changed", free)
				}
				for path := range got {
					if strings.Contains(path, tempPrefix) {
						t.Errorf("with %d bytes free: %q is left", free, path)
					}
				}
				must(t, os.RemoveAll(dst+"/b"))
				before[""] = scan(t, dst)[""]
				continue
			}
			compare(t, before, got)
			if left := leftovers(t, p.path("disk")); len(left) > 0 {
				t.Errorf("%s is left", left)
			}
		}
		makeRoom()
	}
	restore(t, r, id, dst, &RestoreOptions{Delete: true})
	compare(t, scan(t, src), scan(t, dst))
}

// TestReadOnly: the cache or the target cannot be written to.
func TestReadOnly(t *testing.T) {
	p := newPlace(t)
	mount(t, p.path("disk"), "size=16m")
	p.cache = p.path("disk/cache")
	r := p.init()
	src := p.files("src", map[string]string{"f": string(random(1, 100_000))})
	id := complete(t, r, src, nil).ID
	must(t, r.Close())
	must(t, unix.Mount("", p.path("disk"), "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	r = p.open("disk/cache")
	writeFile(t, src+"/g", []byte("2"))
	p.check(complete(t, r, src, nil).ID, scan(t, src))
	if _, err := r.Restore(t.Context(), id.String(), p.path("disk/out"), nil); !errors.Is(err, unix.EROFS) {
		t.Error(err)
	}
}

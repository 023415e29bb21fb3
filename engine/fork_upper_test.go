//go:build linux

package engine

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/fusefs"
	"golang.org/x/sys/unix"
)

// workDirsIn are the names in a directory that begin with work.
func workDirsIn(t testing.TB, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(dir + "/work*")
	must(t, err)
	return names
}

// TestForkUpperWork: somebody's own files in the directory of ForkOptions.Upper stay,
// whatever their names, through all that is done with a fork. What snapctl made goes.
func TestForkUpperWork(t *testing.T) {
	for _, mode := range []ForkMode{ForkOverlay, ForkFuse} {
		t.Run(string(mode), func(t *testing.T) {
			f := newForked(t)
			if err := TryFork(t.Context(), f.state, mode); err != nil {
				t.Skip(err)
			}
			r := f.open()
			layer := f.path("layer")
			one := f.fork(r, "one", &ForkOptions{Upper: layer, Mode: mode})
			mine := map[string]string{
				"workshop/plan": "1", "work-0123abcd/x": "2", "work/y": "3", "work-aaaaaaaaaaaaaaaa/z": "4", "works": "5", "layer.json.old": "6",
			}
			f.files("layer", mine)
			there := func(what string, ours int) {
				t.Helper()
				for name, text := range mine {
					if b, err := os.ReadFile(filepath.Join(layer, name)); err != nil || string(b) != text {
						t.Errorf("%s: %q %v", what, b, err)
					}
				}
				if all := workDirsIn(t, layer); len(all) != 5+ours {
					t.Errorf("%s: %v", what, all)
				}
			}
			there("forked", 1)
			for range 3 {
				must(t, one.Unmount(t.Context(), false))
				_, err := r.ResumeFork(t.Context(), "one", nil)
				must(t, err)
				there("resumed", 1)
			}
			_, err := one.Remove(t.Context(), &RemoveForkOptions{Keep: true})
			must(t, err)
			there("kept", 1)
			two := f.fork(r, "two", &ForkOptions{Upper: layer, Mode: mode})
			there("forked again", 1)
			f.remove(two)
			there("removed", 0)
			if _, err := os.Lstat(layer + "/upper"); !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
		})
	}
}

// TestForkUpperRefused: a fork that cannot be mounted leaves the directory as it was.
func TestForkUpperRefused(t *testing.T) {
	f := newForked(t)
	r := f.open()
	layer := f.path("layer")
	one := f.fork(r, "one", &ForkOptions{Upper: layer})
	writeFile(t, one.Dir+"/new", []byte("new"))
	f.remove(f.fork(r, "other", nil))
	_, err := one.Remove(t.Context(), &RemoveForkOptions{Keep: true})
	must(t, err)
	writeFile(t, layer+"/workshop", []byte("mine"))
	before := scan(t, layer)
	must(t, unix.Mount(layer, layer, "", unix.MS_BIND, ""))
	must(t, unix.Mount("", layer, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	_, err = r.Fork(t.Context(), f.id.String(), f.path("two"), &ForkOptions{Upper: layer})
	must(t, unix.Unmount(layer, 0))
	if err == nil {
		t.Error("it was forked into a directory that cannot be written to")
	}
	compare(t, before, scan(t, layer))
	f.remove(f.fork(r, "three", &ForkOptions{Upper: layer}))
	if names, err := os.ReadDir(layer); err != nil || len(names) != 1 {
		t.Errorf("%v %v", names, err)
	}
}

// TestForkWorkDirs: only a name that we give is taken for a work directory of ours.
func TestForkWorkDirs(t *testing.T) {
	good := workDirs(nil).next("")
	if !good.valid() || len(good) != 1 {
		t.Error(good)
	}
	for _, name := range []string{"", ".", "upper", "work", "work-", "work-0123abcd", "work-../../x", good[0] + "/x", good[0] + "\n", strings.ToUpper(good[0])} {
		if (workDirs{name}).valid() {
			t.Errorf("%q is one", name)
		}
	}
	dir := t.TempDir()
	l := &layerRecord{Version: forkVersion, Works: workDirs{"../x"}}
	l.Snapshot[0] = 1
	b, err := json.Marshal(l)
	must(t, err)
	writeFile(t, dir+"/"+layerFileName, b)
	if _, err := readLayer(dir); err == nil {
		t.Error("a layer that names a directory elsewhere is read")
	}
}

// away gives the same place with another state directory, and takes away the one that there
// is, as a container does, until back is called.
func (f *forked) away() (other *forked, back func()) {
	f.Helper()
	s := *f.shared
	s.state = f.path("other")
	must(f, os.Rename(f.state, f.path("away")))
	return &forked{&s}, func() { f.Helper(); must(f, os.Rename(f.path("away"), f.state)) }
}

// TestForkUpperLive: the directory of a fork that is in use, of a state directory that cannot
// be seen, stays as it is, also if that fork came back after its server died.
func TestForkUpperLive(t *testing.T) {
	f := newForked(t)
	layer := f.path("layer")
	f.killedForkIn(t, ForkOverlay, layer, func(string) {})
	r := f.open()
	one, err := r.ResumeFork(t.Context(), "one", nil)
	must(t, err)
	writeFile(t, one.Dir+"/new", []byte("new"))
	other, back := f.away()
	before := scan(t, layer)
	_, err = other.open().Fork(t.Context(), f.id.String(), f.path("two"), &ForkOptions{Upper: layer})
	if !errors.Is(err, fusefs.ErrBusy) || !strings.Contains(err.Error(), f.state) {
		t.Errorf("forked into another's directory: %v", err)
	}
	compare(t, before, scan(t, layer))
	back()
	must(t, one.Unmount(t.Context(), false))
	_, err = r.ResumeFork(t.Context(), "one", nil)
	must(t, err)
	if b, err := os.ReadFile(one.Dir + "/new"); err != nil || string(b) != "new" {
		t.Errorf("%q %v", b, err)
	}
	f.remove(one)
}

// TestForkUpperTaken: a fork that is given what another had, which nobody uses, and comes to
// nothing, gives it back. Once it is there the other does not come back.
func TestForkUpperTaken(t *testing.T) {
	f := newForked(t)
	layer := f.path("layer")
	r := f.open()
	one := f.fork(r, "one", &ForkOptions{Upper: layer})
	writeFile(t, one.Dir+"/new", []byte("new"))
	must(t, one.Unmount(t.Context(), false))
	other, back := f.away()
	before, err := os.ReadFile(layer + "/layer.json")
	must(t, err)
	two := other.fork(other.open(), "two", &ForkOptions{Upper: layer})
	other.unfinish(two)
	if s := other.sweep(); !strings.Contains(s, "fork two") {
		t.Errorf("swept %s", s)
	}
	if after, err := os.ReadFile(layer + "/layer.json"); string(after) != string(before) || err != nil {
		t.Errorf("%v: it said %s, and says %s", err, before, after)
	}
	if all := workDirsIn(t, layer); len(all) > 0 {
		t.Errorf("left: %v", all)
	}
	two = other.fork(other.open(), "two", &ForkOptions{Upper: layer})
	must(t, two.Unmount(t.Context(), false))
	must(t, os.Rename(other.state, f.path("aside")))
	back()
	if _, err := r.ResumeFork(t.Context(), "one", nil); !errors.Is(err, snapshot.ErrForkLost) {
		t.Errorf("it is another fork's: %v", err)
	}
	must(t, os.Rename(f.path("aside"), other.state))
	f.remove(one)
	if b, err := os.ReadFile(layer + "/upper/new"); err != nil || string(b) != "new" {
		t.Errorf("%q %v", b, err)
	}
	other.remove(two)
}

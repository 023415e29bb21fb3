//go:build linux

package engine

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// TestModel changes a tree at random, snapshots it, and restores it. After each
// create
//   - what it made is what a create makes that knows nothing of the directory;
//   - a restore gives the tree back;
//   - a create of the same tree again finds nothing new.
//
// Every restore leaves fingerprints of all files in the cache, so the creates
// after it go by them: changes that keep size and time are the ones to find.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := newModel(t)
		defer m.close()
		for range rapid.IntRange(1, 8).Draw(rt, "files at first") {
			m.write(rt)
		}
		m.create(rt)
		rt.Repeat(map[string]func(*rapid.T){
			"write":       m.write,
			"rewrite":     m.rewrite,
			"append":      m.append,
			"truncate":    m.truncate,
			"replace":     m.replace,
			"rename":      m.rename,
			"exchange":    m.exchange,
			"remove":      m.remove,
			"mkdir":       m.mkdir,
			"chmod":       m.chmod,
			"chown":       m.chown,
			"touch":       m.touch,
			"xattr":       m.xattr,
			"hard link":   m.link,
			"symlink":     m.symlink,
			"change type": m.retype,
			"create":      m.create,
			"restore":     m.restore,
		})
		m.create(rt)
	})
}

type model struct {
	*place
	repo *Repository
	dir  string // the tree
	n    int    // of directories that were restored to, and of caches
}

func newModel(t *testing.T) *model {
	p := &place{TB: t}
	var err error
	p.dir, err = os.MkdirTemp("", "model-")
	must(t, err)
	p.repo, p.cache = p.dir+"/repo", p.dir+"/cache"
	m := &model{place: p, dir: p.dir + "/tree-0"}
	must(t, os.Mkdir(m.dir, 0o755))
	m.repo, err = Init(t.Context(), p.repo, initOf(t), keyed(t, &Options{CacheDir: p.cache}))
	must(t, err)
	return m
}

func (m *model) close() {
	m.repo.Close()
	must(m, os.RemoveAll(m.place.dir))
}

// paths lists the tree's entries: of those wanted, all but the root.
func (m *model) paths(want func(mode os.FileMode) bool) []string {
	var all []string
	must(m, filepath.WalkDir(m.dir, func(path string, d os.DirEntry, err error) error {
		if path != m.dir && want(d.Type()) {
			all = append(all, path)
		}
		return err
	}))
	return all
}

func anyType(os.FileMode) bool { return true }

func notDir(mode os.FileMode) bool { return !mode.IsDir() }

// some chooses an existing entry; the action is skipped where there is none.
func (m *model) some(rt *rapid.T, want func(os.FileMode) bool) string {
	all := m.paths(want)
	if len(all) == 0 {
		rt.Skip("nothing there")
	}
	path := rapid.SampledFrom(all).Draw(rt, "path")
	rt.Logf("  %s", strings.TrimPrefix(path, m.dir))
	return path
}

// fresh chooses a name that is free, in some directory.
func (m *model) fresh(rt *rapid.T) string {
	dirs := append(m.paths(os.FileMode.IsDir), m.dir)
	slices.Sort(dirs)
	dir := rapid.SampledFrom(dirs).Draw(rt, "directory")
	// Names around '/' in the order of bytes, where paths and names sort differently.
	name := rapid.SampledFrom([]string{"a", "b", "a.b", "a-b", "a!", "ab", "\xff", "\n", "c", "d", "-e"}).Draw(rt, "name")
	path := filepath.Join(dir, name)
	if _, err := os.Lstat(path); err == nil {
		rt.Skip("taken")
	}
	rt.Logf("  %q", strings.TrimPrefix(path, m.dir))
	return path
}

var modelSizes = []int{0, 1, 7, 4095, 4096, 4097, 10_000, 128<<10 - 1, 128 << 10, 128<<10 + 1, 300_000, 2<<20 + 5}

func (m *model) write(rt *rapid.T) {
	size := rapid.SampledFrom(modelSizes).Draw(rt, "size")
	seed := rapid.Uint64Range(0, 5).Draw(rt, "seed")
	must(m, os.WriteFile(m.fresh(rt), random(seed, size), 0o644))
}

// restoreTimes gives a path the times that it had.
func (m *model) restoreTimes(path string, st *unix.Stat_t) {
	must(m, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW))
}

func (m *model) stat(path string) *unix.Stat_t {
	st := &unix.Stat_t{}
	must(m, unix.Lstat(path, st))
	return st
}

// rewrite changes contents: not the size, and perhaps not the time.
func (m *model) rewrite(rt *rapid.T) {
	path := m.some(rt, os.FileMode.IsRegular)
	st := m.stat(path)
	if st.Size == 0 {
		rt.Skip("empty")
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(m, err)
	defer f.Close()
	at := rapid.Int64Range(0, st.Size-1).Draw(rt, "offset")
	_, err = f.WriteAt([]byte{rapid.Byte().Draw(rt, "byte")}, at)
	must(m, err)
	if rapid.Bool().Draw(rt, "keep time") {
		m.restoreTimes(path, st)
	}
}

func (m *model) append(rt *rapid.T) {
	path := m.some(rt, os.FileMode.IsRegular)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	must(m, err)
	defer f.Close()
	_, err = f.Write(random(9, rapid.IntRange(1, 5000).Draw(rt, "bytes")))
	must(m, err)
}

func (m *model) truncate(rt *rapid.T) {
	path := m.some(rt, os.FileMode.IsRegular)
	// Longer makes a hole.
	must(m, os.Truncate(path, rapid.Int64Range(0, 400_000).Draw(rt, "size")))
}

// replace puts another file of the same size, mode and time in a file's place.
func (m *model) replace(rt *rapid.T) {
	path := m.some(rt, os.FileMode.IsRegular)
	st := m.stat(path)
	temp := m.path("new")
	must(m, os.WriteFile(temp, random(rapid.Uint64Range(10, 12).Draw(rt, "seed"), int(st.Size)), 0o600))
	must(m, unix.Chmod(temp, st.Mode&0o7777))
	m.restoreTimes(temp, st)
	must(m, os.Rename(temp, path))
}

func (m *model) rename(rt *rapid.T) {
	path := m.some(rt, anyType)
	to := m.fresh(rt)
	if strings.HasPrefix(to, path+"/") {
		rt.Skip("into itself")
	}
	must(m, os.Rename(path, to))
}

// exchange swaps two names.
func (m *model) exchange(rt *rapid.T) {
	a, b := m.some(rt, anyType), m.some(rt, anyType)
	if strings.HasPrefix(a+"/", b+"/") || strings.HasPrefix(b+"/", a+"/") {
		rt.Skip("one in the other")
	}
	must(m, unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE))
}

func (m *model) remove(rt *rapid.T) { must(m, os.RemoveAll(m.some(rt, anyType))) }

func (m *model) mkdir(rt *rapid.T) { must(m, os.Mkdir(m.fresh(rt), 0o755)) }

func (m *model) chmod(rt *rapid.T) {
	path := m.some(rt, func(mode os.FileMode) bool { return mode&os.ModeSymlink == 0 })
	must(m, unix.Chmod(path, rapid.SampledFrom([]uint32{0o755, 0o644, 0o700, 0o4711, 0o1777, 0o600}).Draw(rt, "mode")))
}

func (m *model) chown(rt *rapid.T) {
	if os.Geteuid() != 0 {
		rt.Skip("not root")
	}
	must(m, os.Lchown(m.some(rt, anyType), rapid.IntRange(0, 3).Draw(rt, "uid"), rapid.IntRange(0, 3).Draw(rt, "gid")))
}

func (m *model) touch(rt *rapid.T) {
	path := m.some(rt, anyType)
	at := unix.Timespec{Sec: rapid.Int64Range(-5, 5).Draw(rt, "seconds"), Nsec: rapid.Int64Range(0, 999_999_999).Draw(rt, "ns")}
	must(m, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW))
}

func (m *model) xattr(rt *rapid.T) {
	path := m.some(rt, func(mode os.FileMode) bool { return mode.IsRegular() || mode.IsDir() })
	if rapid.Bool().Draw(rt, "remove") {
		if err := unix.Removexattr(path, "user.a"); err != nil && err != unix.ENODATA {
			m.Fatal(err)
		}
		return
	}
	must(m, unix.Setxattr(path, "user.a", random(rapid.Uint64().Draw(rt, "seed"), rapid.IntRange(0, 40).Draw(rt, "bytes")), 0))
}

func (m *model) link(rt *rapid.T) { must(m, os.Link(m.some(rt, notDir), m.fresh(rt))) }

func (m *model) symlink(rt *rapid.T) {
	must(m, os.Symlink(rapid.SampledFrom([]string{"a", "b", "/nowhere", "../.."}).Draw(rt, "target"), m.fresh(rt)))
}

// retype puts something else in an entry's place, with its time.
func (m *model) retype(rt *rapid.T) {
	path := m.some(rt, anyType)
	st := m.stat(path)
	must(m, os.RemoveAll(path))
	switch rapid.SampledFrom([]string{"file", "directory", "symlink", "fifo"}).Draw(rt, "type") {
	case "file":
		must(m, os.WriteFile(path, random(20, int(min(st.Size, 1<<20))), 0o644))
	case "directory":
		must(m, os.Mkdir(path, 0o755))
	case "symlink":
		must(m, os.Symlink("a", path))
	case "fifo":
		must(m, unix.Mkfifo(path, 0o644))
	}
	m.restoreTimes(path, st)
}

func (m *model) create(rt *rapid.T) {
	want := withoutHoles(scan(m, m.dir))
	res, err := m.repo.Create(m.Context(), m.dir, nil)
	if err != nil || res.Incomplete {
		rt.Fatalf("create: %v, %+v", err, res)
	}
	again, err := m.repo.Create(m.Context(), m.dir, nil)
	if err != nil || again.NewBytes != 0 {
		rt.Fatalf("create again: %v, %+v", err, again)
	}
	// A create that knows nothing reads everything.
	m.n++
	full, err := Open(m.Context(), m.place.repo, keyed(m, &Options{CacheDir: fmt.Sprintf("%s-%d", m.cache, m.n)}))
	must(m, err)
	defer full.Close()
	all, err := full.Create(m.Context(), m.dir, nil)
	if err != nil || all.NewBytes != 0 {
		rt.Fatalf("create with an empty cache: %v, %+v", err, all)
	}
	wantEntries := entriesOf(m, full, all.ID)
	for _, s := range []*CreateResult{res, again} {
		got := entriesOf(m, m.repo, s.ID)
		if !slices.Equal(wantEntries, got) {
			rt.Fatalf("a full create has\n%s\na create from a parent\n%s", strings.Join(wantEntries, "\n"), strings.Join(got, "\n"))
		}
	}
	out := fmt.Sprintf("%s/out-%d", m.place.dir, m.n)
	if _, err := full.Restore(m.Context(), res.ID.String(), out, nil); err != nil {
		rt.Fatal(err)
	}
	if diff := differences(want, withoutHoles(scan(m, out))); len(diff) > 0 {
		rt.Fatalf("restored tree differs:\n%s", strings.Join(diff, "\n"))
	}
	must(m, os.RemoveAll(out))
}

// withoutHoles forgets where holes are: those of less than a block come and go.
func withoutHoles(all tree) tree {
	for path, n := range all {
		n.Data = ""
		all[path] = n
	}
	return all
}

// restore makes the newest snapshot's tree the one that is worked on.
func (m *model) restore(rt *rapid.T) {
	must(m, os.RemoveAll(m.dir))
	m.n++
	m.dir = fmt.Sprintf("%s/tree-%d", m.place.dir, m.n)
	if _, err := m.repo.Restore(m.Context(), "latest", m.dir, nil); err != nil {
		rt.Fatal(err)
	}
}

// TestModelOfComparison makes sure that the test's own comparison sees every
// kind of difference: without it the tests of this package say nothing.
func TestModelOfComparison(t *testing.T) {
	p := newPlace(t)
	changes := map[string]func(path string) error{
		"contents": func(path string) error { return os.WriteFile(path, []byte("TEXT"), 0) },
		"length":   func(path string) error { return os.Truncate(path, 100_000) },
		"mode":     func(path string) error { return os.Chmod(path, 0o600) },
		"time": func(path string) error {
			ts := []unix.Timespec{{Sec: 1}, {Sec: 1, Nsec: 1}}
			return unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, 0)
		},
		"xattr":   func(path string) error { return unix.Setxattr(path, "user.x", nil, 0) },
		"type":    func(path string) error { return errors.Join(os.Remove(path), os.Symlink("text", path)) },
		"links":   func(path string) error { return os.Link(path, path+"2") },
		"removed": os.Remove,
	}
	for name, change := range changes {
		dir := p.files(name, map[string]string{"d/f": "text", "d/l": ""})
		before := scan(t, dir)
		must(t, change(dir+"/d/f"))
		after := maps.Clone(scan(t, dir))
		if len(differences(before, after)) == 0 || len(differences(after, before)) == 0 {
			t.Errorf("a change of %s is not seen", name)
		}
	}
}

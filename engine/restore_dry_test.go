//go:build linux

package engine

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/view"
	"golang.org/x/sys/unix"
)

// A grove makes random trees of few names, so that two of them meet in all ways.
type grove struct {
	*testing.T
	*rand.Rand
	files []string
}

func (g *grove) plant(dir string, depth int) {
	for _, name := range []string{"a", "b", "c", "d"} {
		path := dir + "/" + name
		switch kind := g.IntN(12); {
		case kind < 3:
		case kind < 6:
			must(g.T, os.WriteFile(path, []byte(strings.Repeat("x", g.IntN(3))), []os.FileMode{0o644, 0o600, 0o755}[g.IntN(3)]))
			if g.IntN(4) == 0 {
				must(g.T, unix.Setxattr(path, "user.x", []byte{byte('0' + g.IntN(2))}, 0))
			}
			g.files = append(g.files, path)
		case kind < 8 && depth > 0:
			must(g.T, os.Mkdir(path, 0o755))
			g.plant(path, depth-1)
			must(g.T, os.Chmod(path, []os.FileMode{0o755, 0o755, 0o700, 0o555, 0o777, 0o777 | os.ModeSticky}[g.IntN(6)]))
		case kind < 9 && len(g.files) > 0:
			must(g.T, os.Link(g.files[g.IntN(len(g.files))], path))
		case kind < 10:
			must(g.T, os.Symlink([]string{"a", "b"}[g.IntN(2)], path))
		case kind < 11:
			must(g.T, unix.Mkfifo(path, 0o640))
		default:
			must(g.T, unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, uint32(3+g.IntN(2))))))
		}
	}
}

// growTree makes one that is the same for the same seed.
func growTree(t *testing.T, dir string, seed uint64, foreign bool) {
	t.Helper()
	must(t, os.RemoveAll(dir))
	must(t, os.MkdirAll(dir, 0o755))
	g := &grove{T: t, Rand: rand.New(rand.NewPCG(seed, 1))}
	g.plant(dir, 3)
	var all []string
	must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		all = append(all, path)
		return err
	}))
	for _, path := range slices.Backward(all) {
		if foreign && (path == dir || g.IntN(4) > 0) {
			must(t, os.Lchown(path, 65534, 65534))
		}
		at := unix.NsecToTimespec(int64(g.IntN(2)+1) * int64(time.Hour))
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// tried is what a restore says, dry or not.
type tried struct {
	changes  RestoreChanges
	files    int64
	kept     []string
	problems []string // the paths that they are about
	err      string
	told     []string
	texts    string
}

var quotedPath = regexp.MustCompile(`"[^"]*"`)

func triedOf(rec *Receipt, err error, told []string) tried {
	if err != nil {
		return tried{err: err.Error()}
	}
	r := tried{changes: rec.Changes, files: rec.Files, kept: rec.Kept, told: told}
	r.texts = problemTexts(rec.Problems)
	for _, p := range rec.Problems {
		r.problems = append(r.problems, quotedPath.FindString(p.Error()))
	}
	slices.Sort(r.problems)
	return r
}

// agree compares what a dry run said with what the restore did, and what that changed.
func agree(t *testing.T, dry, real tried, before, after tree, parts bool) {
	t.Helper()
	told := dry.told
	dry.told, real.told = nil, nil
	texts := dry.texts + "did\n" + real.texts
	dry.texts, real.texts = "", ""
	if fmt.Sprintf("%+v", dry) != fmt.Sprintf("%+v", real) {
		t.Errorf("told\n%+v, did\n%+v", dry, real)
	}
	paths := map[string]bool{}
	for path := range before {
		paths[path] = true
	}
	for path := range after {
		paths[path] = true
	}
	for path := range paths {
		old, was := before[path]
		n, is := after[path]
		same := was == is && n == old
		is = slices.Contains(told, path)
		if is && same && n.Same == "" { // else it may have other names now
			t.Errorf("%q was told, and is as it was: %+v", path, n)
		}
		if n.Same != "" && n.Same != path && n.Same == old.Same && slices.Contains(told, n.Same) {
			continue // as Diff does it, what changes in a file is told of its first name
		}
		n.Same = old.Same // which other names decide
		if was && before[""].UID != 0 {
			n.UID, n.GID = old.UID, old.GID // which do not count for ordinary users
		}
		if n.isDir() && (parts || toldBelow(told, path)) {
			n.Mtime = old.Mtime // of directories on the way, or that could not be deleted
			if !parts && old.isDir() {
				n.Mode = old.Mode
			}
		}
		if closedTo(before, path) {
			continue
		}
		if !is && (n != old || was != (after[path] != node{})) {
			t.Errorf("%q was not told: %+v became %+v", path, old, after[path])
		}
	}
	if t.Failed() {
		t.Logf("told %q, with\n%s", told, texts)
	}
}

func (n node) isDir() bool { return n.Mode&unix.S_IFMT == unix.S_IFDIR }

func toldBelow(told []string, dir string) bool {
	return slices.ContainsFunc(told, func(path string) bool { return strings.HasPrefix(path, dir+"/") })
}

// closedTo reports whether a path is below a directory that a user cannot look into: either
// root made the tree for that, or the user is root, who can.
func closedTo(all tree, path string) bool {
	nobodys := all[""].UID != 0
	for dir := filepath.Dir(path); nobodys && dir != "."; dir = filepath.Dir(dir) {
		if n := all[dir]; n.isDir() && n.UID == 0 && n.Mode&0o005 != 0o005 {
			return true
		}
	}
	return false
}

// TestRestoreDryRunIsTheRun: a dry run says what the restore then does, on random pairs of
// trees.
func TestRestoreDryRunIsTheRun(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	src, dst := p.path("src"), p.path("dst")
	for seed := range uint64(times(60, 2000)) {
		growTree(t, src, 2*seed, false)
		id := complete(t, r, src, nil).ID.String()
		for _, o := range []RestoreOptions{
			{Into: true}, {Into: true, Delete: true}, {Delete: true}, {Into: true, Verify: true}, {Into: true, Include: []string{"/a", "b"}},
		} {
			t.Run(fmt.Sprintf("%d_%v_%v_%v_%d", seed, o.Into, o.Delete, o.Verify, len(o.Include)), func(t *testing.T) {
				growTree(t, dst, 2*seed+1, false)
				before := scan(t, dst)
				var told []string
				try := o
				try.DryRun, try.Would = true, func(c *view.Change) error { told = append(told, c.Path); return nil }
				rec, err := r.Restore(t.Context(), id, dst, &try)
				dry := triedOf(rec, err, told)
				compare(t, before, scan(t, dst))
				rec, err = r.Restore(t.Context(), id, dst, &o)
				agree(t, dry, triedOf(rec, err, nil), before, scan(t, dst), len(o.Include) > 0)
			})
		}
	}
}

// TestRestoreDryRunObstacles: so it is where something is mounted in the target, or is
// snapctl's own.
func TestRestoreDryRunObstacles(t *testing.T) {
	needRoot(t)
	try := func(t *testing.T, h *home, id string, o RestoreOptions) (real *Receipt) {
		before := scan(t, h.dir)
		var told []string
		dry := o
		dry.DryRun, dry.Would = true, func(c *view.Change) error { told = append(told, c.Path); return nil }
		rec, err := h.r.Restore(t.Context(), id, h.dir, &dry)
		would := triedOf(rec, err, told)
		real, err = h.r.Restore(t.Context(), id, h.dir, &o)
		after := scan(t, h.dir)
		for path := range after { // what snapctl itself writes meanwhile
			if strings.HasPrefix(path, ".cache/") || strings.HasPrefix(path, ".local/s") {
				delete(after, path)
				delete(before, path)
			}
		}
		agree(t, would, triedOf(real, err, nil), before, after, false)
		return real
	}
	for _, o := range []RestoreOptions{{Into: true}, {Into: true, Delete: true}, {Delete: true}} {
		t.Run(fmt.Sprintf("own_%v_%v", o.Into, o.Delete), func(t *testing.T) {
			for _, in := range []map[string]string{{"z": "1"}, {".local": "1"}, {".local/share/snapctl": "1"}, {".local/state/snapctl/used/f": "1"}} {
				h := newHome(t)
				must(t, os.WriteFile(h.dir+"/a", []byte("changed"), 0o644))
				id := complete(t, h.r, h.files("in", in), nil).ID.String()
				try(t, h, id, o)
			}
		})
		t.Run(fmt.Sprintf("mounts_%v_%v", o.Into, o.Delete), func(t *testing.T) {
			h := newHome(t)
			for _, dir := range []string{"m", "m2", "m3/sub"} {
				writeFile(t, h.dir+"/"+dir+"/f", []byte("old"))
			}
			id := complete(t, h.r, h.files("in", map[string]string{
				"m/f": "new", "m/g/h": "new", "m2": "a file", "m3/sub/f": "new", "bound": "new", "ok": "new",
			}), nil).ID.String()
			bind(t, h.files("from", map[string]string{"f": "other", "e": "other"}), h.dir+"/m")
			bind(t, h.files("from2", nil), h.dir+"/m2")
			if rec := try(t, h, id, o); !o.Delete && len(rec.Problems) != 3 {
				t.Errorf("problems %v", rec.Problems)
			}
		})
	}
}

// TestRestoreDryRunForeign: so it is for ordinary users, in a tree of which a part is not
// theirs.
func TestRestoreDryRunForeign(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	src := p.path("src")
	var ids []string
	n := times(10, 200)
	for seed := range uint64(n) {
		growTree(t, src, 2*seed, false)
		ids = append(ids, complete(t, r, src, nil).ID.String())
	}
	mine := forNobody(t, p)
	dst := mine + "/dst"
	for seed := range uint64(n) {
		for _, o := range []RestoreOptions{{Into: true}, {Into: true, Delete: true}, {Delete: true}} {
			t.Run(fmt.Sprintf("%d_%v_%v", seed, o.Into, o.Delete), func(t *testing.T) {
				growTree(t, dst, 2*seed+1, true)
				before := scan(t, dst)
				j := job{Op: "restore", Repo: p.repo, Cache: mine + "/cache", Dir: dst, Ref: ids[seed], Restore: o}
				j.Restore.DryRun = true
				try := func() tried {
					o := j.do(t, nobody)
					r := tried{texts: strings.Join(o.Problems, "\n"), changes: o.Done, files: o.Files, kept: o.Kept, err: o.Err, told: o.Changes}
					for _, p := range o.Problems {
						r.problems = append(r.problems, quotedPath.FindString(p))
					}
					slices.Sort(r.problems)
					return r
				}
				dry := try()
				compare(t, before, scan(t, dst))
				j.Restore.DryRun = false
				agree(t, dry, try(), before, scan(t, dst), false)
			})
		}
	}
}

// TestRestoreDryRunImmutable: what could not be removed is named, also at the top.
func TestRestoreDryRunImmutable(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.init()
	id := complete(t, r, p.files("src", map[string]string{"x": "1"}), nil).ID.String()
	for _, at := range []string{"f", "d/f"} {
		dst := p.files("dst-"+filepath.Base(filepath.Dir(at)), map[string]string{at: "1"})
		f, err := os.Open(dst + "/" + at)
		must(t, err)
		t.Cleanup(func() { must(t, f.Close()) })
		if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, immutableFlag); err != nil {
			t.Skipf("nothing can be made immutable here: %v", err)
		}
		t.Cleanup(func() { must(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0)) })
		rec, err := r.Restore(t.Context(), id, dst, &RestoreOptions{Delete: true, DryRun: true})
		must(t, err)
		if len(rec.Problems) != 1 || !strings.Contains(rec.Problems[0].Error(), "removing "+at+": ") {
			t.Errorf("%q", rec.Problems)
		}
	}
}

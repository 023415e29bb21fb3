//go:build linux

package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// An overlaid is an overlay over a mount of a snapshot, for the length of a test.
type overlaid struct {
	*place
	*rand.Rand
	format upperFormat
	base   manifest.ID
	fast   *Repository // reads the upper directory alone
	full   *Repository // reads everything
	lower  string      // the snapshot's mount
	home   string      // upper, work
	dir    string      // the overlay's mount
	done   map[string]int
}

func (f upperFormat) String() string {
	return [...]string{"trusted", "user", "fuse-overlayfs"}[f]
}

// newOverlaid makes a snapshot of a directory, and a fork of it.
func newOverlaid(p *place, format upperFormat, src string) *overlaid {
	p.Helper()
	needRoot(p)
	f := &overlaid{place: p, format: format, fast: p.init(), full: p.open("full"), lower: p.path("lower"), home: p.path("a fork, with = and : no"), dir: p.path("fork"), done: map[string]int{}}
	if format == upperFuse {
		f.home = p.path("home")
		if _, err := exec.LookPath("fuse-overlayfs"); err != nil {
			p.Skip("no fuse-overlayfs here")
		}
	}
	f.home = strings.ReplaceAll(f.home, ":", "")
	f.base = complete(p, f.fast, src, nil).ID
	mountAt(p, f.fast, f.base, f.lower, nil)
	f.full.forkOf = func(string) (*overlayInfo, bool) { return nil, false }
	for _, dir := range []string{f.dir, f.home + "/upper", f.home + "/work"} {
		must(p, os.MkdirAll(dir, 0o755))
	}
	var st unix.Stat_t
	must(p, unix.Stat(f.lower, &st))
	must(p, os.Chmod(f.home+"/upper", os.FileMode(st.Mode&0o777)))
	f.mount()
	p.Cleanup(f.unmount)
	return f
}

func (f *overlaid) upper() string { return f.home + "/upper" }

func (f *overlaid) mount() {
	f.Helper()
	opts := map[upperFormat]string{
		upperTrusted: "index=off,nfs_export=off,metacopy=on,redirect_dir=on,xino=off",
		// Forks have xino=off, with which a file that was copied up and then got another
		// name counts as two in this mode: whoever reads all of the fork is misled.
		upperUser: "index=off,nfs_export=off,userxattr,xino=on",
	}[f.format]
	if f.format == upperFuse {
		must(f, disbelieve(f.Context(), f.upper()))
		out, err := exec.Command("fuse-overlayfs", "-o", "lowerdir="+f.lower+",upperdir="+f.upper()+",workdir="+f.home+"/work", f.dir).CombinedOutput()
		if err != nil {
			f.Fatalf("fuse-overlayfs: %v: %s", err, out)
		}
		o := &overlayInfo{Lower: f.base, Upper: f.upper(), Format: upperFuse}
		f.fast.forkOf = func(string) (*overlayInfo, bool) { return o, true }
		return
	}
	escape := strings.NewReplacer(",", `\,`).Replace
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,%s", f.lower, escape(f.upper()), escape(f.home+"/work"), opts)
	if err := unix.Mount("overlay", f.dir, "overlay", 0, data); err != nil {
		f.Skipf("no overlays here: %v", err)
	}
}

func (f *overlaid) unmount() {
	eventually(f, "nobody looks at the overlay", func() bool {
		err := unix.Unmount(f.dir, 0)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EBUSY) {
			f.Error(err)
		}
		return !errors.Is(err, unix.EBUSY)
	})
	if f.format == upperFuse {
		eventually(f, "the end of fuse-overlayfs", func() bool { return !lowerInUse(f) })
	}
}

// lowerInUse reports whether a fuse-overlayfs that has been unmounted is still there.
func lowerInUse(f *overlaid) bool {
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(f, err)
	return slices.ContainsFunc(procs, func(p string) bool {
		b, _ := os.ReadFile(p)
		return strings.HasPrefix(string(b), "fuse-overlayfs\x00") && strings.HasSuffix(string(b), "\x00"+f.dir+"\x00")
	})
}

// check makes a snapshot by reading the upper directory and one by reading all, and
// compares them.
func (f *overlaid) check(what string) *CreateResult {
	f.Helper()
	got := create(f, f.fast, f.dir, nil)
	want := create(f, f.full, f.dir, nil)
	if len(got.Problems) > 0 || len(want.Problems) > 0 {
		f.Fatalf("%s: problems %v, %v", what, got.Problems, want.Problems)
	}
	if got.Parent == nil {
		f.Fatalf("%s: the upper directory was not read by itself", what)
	}
	a, b := entriesOf(f, f.full, want.ID), entriesOf(f, f.fast, got.ID)
	if f.format == upperFuse {
		a, b = asFuseShows(a), asFuseShows(b)
	}
	diffs := 0
	for _, line := range lineDiff(a, b) {
		if diffs++; diffs > 12 {
			break
		}
		f.Errorf("%s: %s", what, line)
	}
	if diffs > 0 {
		out, _ := exec.Command("sh", "-c", "cd '"+f.upper()+"'; ls -lRai --time-style=full-iso; getfattr -hRdm- .").CombinedOutput()
		f.Fatalf("%s: differences; the upper directory is\n%.9000s", what, out)
	}
	w, g := want.Snapshot, got.Snapshot
	if w.Files != g.Files || w.Dirs != g.Dirs || w.Bytes != g.Bytes || w.Skipped != g.Skipped {
		f.Fatalf("%s: totals\n\twant %+v\n\thave %+v", what, w, g)
	}
	x, err := f.fast.repo.Manifest(f.Context(), g.ID)
	must(f, err)
	y, err := f.fast.repo.Manifest(f.Context(), w.ID)
	must(f, err)
	if x.Xattrs != y.Xattrs || x.HardLinks != y.HardLinks {
		f.Fatalf("%s: flags %v %v, %v %v", what, y.Xattrs, y.HardLinks, x.Xattrs, x.HardLinks)
	}
	return got
}

var (
	linkCount = regexp.MustCompile(` links \d+ `)
	extents   = regexp.MustCompile(`( \d+\+\d+:\S+)+$`)
)

// asFuseShows leaves out the number of links, which fuse-overlayfs counts by the
// names that it has seen, and the extents, since it knows no holes: contents are
// compared when they are restored.
func asFuseShows(entries []string) (all []string) {
	for _, e := range entries {
		all = append(all, extents.ReplaceAllString(linkCount.ReplaceAllString(e, " "), ""))
	}
	return all
}

func lineDiff(want, got []string) (diff []string) {
	have := map[string]bool{}
	for _, e := range got {
		have[e] = true
	}
	for _, e := range want {
		if !have[e] {
			diff = append(diff, "want "+e)
		}
		delete(have, e)
	}
	for _, e := range got {
		if have[e] {
			diff = append(diff, "have "+e)
		}
	}
	return diff
}

var overlaidNames = []string{"a", "b", "a.b", "a-b", "a!", "ab", "\xff", "new\nline", "c", "d", "-e", ".wh.x", "sp ace", "name,with=,", "f", "g"}

func (f *overlaid) name() string {
	n := overlaidNames[f.IntN(len(overlaidNames))]
	if f.format == upperFuse && strings.HasPrefix(n, ".wh.") {
		return "other"
	}
	return n
}

// paths lists what is below a directory, without the directory.
func pathsBelow(t testing.TB, dir string, want func(fs.FileMode) bool) (all []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil && path != dir {
			return nil // fuse-overlayfs forgets what it has listed at times
		}
		if err == nil && path != dir && want(d.Type()) {
			all = append(all, path)
		}
		return err
	}))
	return all
}

func (f *overlaid) some(want func(fs.FileMode) bool) string {
	all := pathsBelow(f, f.dir, want)
	if len(all) == 0 {
		return f.dir + "/nothing"
	}
	return all[f.IntN(len(all))]
}

// free is a name in some directory, mostly not taken.
func (f *overlaid) free() string {
	dirs := append(pathsBelow(f, f.dir, fs.FileMode.IsDir), f.dir)
	return dirs[f.IntN(len(dirs))] + "/" + f.name()
}

var overlaidSizes = []int{0, 1, 7, 4096, 4097, 10_000, 300_000, 2<<20 + 5}

func (f *overlaid) data() []byte {
	return random(f.Uint64N(6), overlaidSizes[min(f.IntN(len(overlaidSizes)+6), len(overlaidSizes)-1-f.IntN(3))])
}

func makeFile(path string, data []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return errors.Join(err, file.Close())
}

func writeAt(path string, data []byte, at int64) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(data, at)
	return errors.Join(err, file.Close())
}

// make makes something of any type.
func (f *overlaid) make(path string) error {
	switch f.IntN(7) {
	case 0, 1:
		return makeFile(path, f.data())
	case 2:
		return os.Mkdir(path, 0o755)
	case 3:
		return os.Symlink([]string{"a", "/nowhere", "../..", "\xff"}[f.IntN(4)], path)
	case 4:
		return unix.Mkfifo(path, 0o600)
	case 5:
		return unix.Mknod(path, unix.S_IFSOCK|0o600, 0)
	}
	return unix.Mknod(path, []uint32{unix.S_IFCHR, unix.S_IFBLK}[f.IntN(2)]|0o640, int(unix.Mkdev(uint32(1+f.IntN(3)), 3)))
}

// ops are what is done to a fork. What cannot be done is not.
func (f *overlaid) ops() map[string]func() error {
	noLink := func(m fs.FileMode) bool { return m&fs.ModeSymlink == 0 }
	plainOrDir := func(m fs.FileMode) bool { return m.IsRegular() || m.IsDir() }
	all := map[string]func() error{
		"create": func() error { return makeFile(f.free(), f.data()) },
		"mkdir":  func() error { return os.Mkdir(f.free(), 0o750) },
		"write":  func() error { return writeAt(f.some(fs.FileMode.IsRegular), []byte("written"), f.Int64N(5000)) },
		"overwrite": func() error {
			return os.WriteFile(f.some(fs.FileMode.IsRegular), f.data(), 0)
		},
		"truncate": func() error { return os.Truncate(f.some(fs.FileMode.IsRegular), f.Int64N(400_000)) },
		"rename":   func() error { return os.Rename(f.some(anyType), f.free()) },
		"rename directory": func() error {
			return os.Rename(f.some(fs.FileMode.IsDir), f.free())
		},
		"rename into directory": func() error {
			return os.Rename(f.some(anyType), f.some(fs.FileMode.IsDir)+"/"+f.name())
		},
		"rename over": func() error { return os.Rename(f.some(notDir), f.some(notDir)) },
		"rename over directory": func() error {
			over := f.some(fs.FileMode.IsDir)
			if f.IntN(2) == 0 {
				if entries, err := os.ReadDir(over); err == nil {
					for _, e := range entries {
						os.RemoveAll(over + "/" + e.Name())
					}
				}
			}
			return unix.Rename(f.some(fs.FileMode.IsDir), over) // os.Rename refuses
		},
		"exchange": func() error {
			return unix.Renameat2(unix.AT_FDCWD, f.some(anyType), unix.AT_FDCWD, f.some(anyType), unix.RENAME_EXCHANGE)
		},
		"unlink": func() error { return os.Remove(f.some(notDir)) },
		"rmdir":  func() error { return unix.Rmdir(f.some(fs.FileMode.IsDir)) },
		"remove": func() error { return os.RemoveAll(f.some(anyType)) },
		"link":   func() error { return os.Link(f.some(notDir), f.free()) },
		"chmod":  func() error { return os.Chmod(f.some(noLink), os.FileMode(f.IntN(0o1000))) },
		"chmod and write": func() error {
			path := f.some(fs.FileMode.IsRegular)
			return errors.Join(unix.Chmod(path, 0o4711), writeAt(path, []byte("after"), 10))
		},
		"chmod and rename": func() error {
			path := f.some(fs.FileMode.IsRegular)
			return errors.Join(os.Chmod(path, 0o640), os.Rename(path, f.free()))
		},
		"chmod and link": func() error {
			path := f.some(fs.FileMode.IsRegular)
			return errors.Join(os.Chmod(path, 0o606), os.Link(path, f.free()))
		},
		"chown": func() error { return os.Lchown(f.some(anyType), f.IntN(3), f.IntN(3)) },
		"touch": func() error {
			at := unix.Timespec{Sec: f.Int64N(1000), Nsec: f.Int64N(1e9)}
			return unix.UtimesNanoAt(unix.AT_FDCWD, f.some(anyType), []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
		},
		"setxattr": func() error {
			name := []string{"user.a", "user.b", "user.overlay.opaque", "user.overlay.x", "user.overlay.overlay.y", "trusted.overlay.redirect", "trusted.z", "trusted.overlay.overlay.y"}[f.IntN(8)]
			return unix.Lsetxattr(f.some(plainOrDir), name, []byte("y"), 0)
		},
		"removexattr": func() error { return unix.Lremovexattr(f.some(plainOrDir), "user.a") },
		"acl": func() error {
			return unix.Setxattr(f.some(plainOrDir), "system.posix_acl_access",
				acl([3]uint32{1, 6, noID}, [3]uint32{2, 7, 1234}, [3]uint32{4, 4, noID}, [3]uint32{16, 5, noID}, [3]uint32{32, 0, noID}), 0)
		},
		"recreate": func() error {
			path := f.some(anyType)
			return errors.Join(os.RemoveAll(path), f.make(path))
		},
		"recreate directory": func() error {
			path := f.some(fs.FileMode.IsDir)
			return errors.Join(os.RemoveAll(path), os.Mkdir(path, 0o700), makeFile(path+"/"+f.name(), f.data()))
		},
		"make": func() error { return f.make(f.free()) },
		"punch": func() error {
			file, err := os.OpenFile(f.some(fs.FileMode.IsRegular), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer file.Close()
			return unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 8192)
		},
		"root": func() error { return os.Chmod(f.dir, os.FileMode(0o700+f.IntN(0o100))) },
	}
	if f.format == upperFuse {
		// It shows a copy that was written to as if it were the file still that
		// the other names are of; and shows attributes otherwise.
		for _, name := range []string{"link", "chmod and link"} {
			delete(all, name)
		}
	}
	return all
}

// run does n things at random.
func (f *overlaid) run(n int) {
	ops := f.ops()
	var names []string
	for name := range ops {
		names = append(names, name)
	}
	slices.Sort(names)
	for range n {
		name := names[f.IntN(len(names))]
		if err := ops[name](); err == nil {
			f.done[name]++
		}
	}
}

// randomSource makes a tree to fork: small, so that what is done to it meets.
func randomSource(p *place, r *rand.Rand, format upperFormat, links bool) string {
	dir := p.path("src")
	f := &overlaid{place: p, Rand: r, format: format, dir: dir}
	must(p, os.Mkdir(dir, 0o755))
	for range 8 {
		os.Mkdir(f.free(), 0o755)
	}
	for range 30 {
		makeFile(f.free(), f.data())
		if f.IntN(4) == 0 {
			path := f.free()
			if f.make(path) == nil {
				os.Chmod(path, 0o644)
			}
		}
	}
	if links {
		for range 12 {
			os.Link(f.some(notDir), f.free())
		}
	}
	for range 6 {
		unix.Setxattr(f.some(fs.FileMode.IsRegular), "user.a", []byte("lower"), 0)
		os.Truncate(f.some(fs.FileMode.IsRegular), 100_000)
	}
	return dir
}

// TestOverlayModel does things at random to a fork, and compares the snapshot that is
// made of its upper directory with the one that is made of all that shows.
func TestOverlayModel(t *testing.T) {
	needRoot(t)
	for _, format := range []upperFormat{upperTrusted, upperUser, upperFuse} {
		done := map[string]int{}
		t.Run(format.String(), func(t *testing.T) {
			seeds := times(12, 1000)
			if format == upperFuse {
				seeds = times(5, 100) // it takes a second to end
			}
			for seed := range uint64(seeds) {
				t.Run(fmt.Sprint(seed), func(t *testing.T) {
					r := rand.New(rand.NewPCG(seed, 1))
					p := newPlace(t)
					links := seed%3 != 0 && format != upperFuse
					f := newOverlaid(p, format, randomSource(p, r, format, links))
					f.Rand, f.done = r, done
					f.check("untouched")
					for round := range 4 {
						f.run([]int{1, 3, 10, 40}[f.IntN(4)])
						// What fuse-overlayfs has the kernel remember of directories is
						// not always so.
						if f.IntN(3) == 0 || format == upperFuse {
							f.unmount()
							f.mount()
						}
						res := f.check(fmt.Sprint("round ", round))
						if round%2 == 1 || format == upperFuse {
							out := p.path(fmt.Sprint("out", round))
							restore(t, f.full, res.ID.String(), out, &RestoreOptions{Verify: true})
							compare(t, restorable(scan(t, f.dir)), restorable(scan(t, out)))
						}
					}
				})
				if t.Failed() {
					return
				}
			}
			for name := range (&overlaid{format: format}).ops() {
				if done[name] == 0 && format == upperTrusted && *long {
					t.Errorf("%s was never done", name)
				}
			}
		})
	}
}

// restorable leaves out what a restore does not bring back: sockets, where holes
// are, and that a file has other names if none of them is in the tree.
func restorable(all tree) tree {
	names := map[string]int{}
	for _, n := range all {
		names[n.Same]++
	}
	for path, n := range withoutHoles(all) {
		if names[n.Same] == 1 {
			n.Same = ""
		}
		if all[path] = n; n.Mode&unix.S_IFMT == unix.S_IFSOCK {
			delete(all, path)
		}
	}
	return all
}

//go:build linux

package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/view"
	"github.com/snapctl/snapctl/manifest"
	"github.com/snapctl/snapctl/remote/remotetest"
	"golang.org/x/sys/unix"
)

var long = flag.Bool("long", false, "run the long forms of the tests")

// childEnv holds the job of a test binary that is run as another process.
const childEnv = "SNAPCTL_ENGINE_TEST_CHILD"

func TestMain(m *testing.M) {
	if job := os.Getenv(childEnv); job != "" {
		os.Exit(runChild(job))
	}
	flag.Parse()
	// Of random tests fewer than rapid's hundred, and no long search for a
	// shorter one that fails, if nobody said how many.
	given := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { given[f.Name] = true })
	for name, value := range map[string]string{"rapid.checks": fmt.Sprint(times(24, 500)), "rapid.shrinktime": "5s", "rapid.nofailfile": "true"} {
		if !given[name] {
			_ = flag.Set(name, value)
		}
	}
	remotetest.Prepare("versitygw")
	// Trees and repositories on tmpfs: the disk is not what is tested.
	if temp, err := os.MkdirTemp("/dev/shm", "snapctl-engine-test-"); err == nil {
		// Children of other users pass through it.
		if err := os.Chmod(temp, 0o711); err != nil {
			panic(err)
		}
		os.Setenv("TMPDIR", temp)
		code := m.Run()
		if err := stopS3(); err != nil {
			fmt.Fprintln(os.Stderr, "S3 server:", err)
			code = max(code, 1)
		}
		if err := os.RemoveAll(temp); err != nil {
			fmt.Fprintln(os.Stderr, "left behind:", err)
			code = max(code, 1)
		}
		os.Exit(code)
	}
	code := m.Run()
	if err := stopS3(); err != nil {
		fmt.Fprintln(os.Stderr, "S3 server:", err)
	}
	os.Exit(code)
}

// tooLong is longer than anything takes that a test waits for, on however slow a machine:
// what has not happened by then never will.
const tooLong = 5 * time.Minute

// calm is how patient repositories of tests are: what they give up on a machine that is
// slow, or was paused, tests rely on. Saving a profile is given up where a store hangs.
func calm() repo.Patience {
	return repo.Patience{Rescue: tooLong, Goodbye: tooLong, Profile: repo.UsualPatience().Profile, Hot: tooLong, Ahead: tooLong}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can make what this test needs")
	}
}

// times says how often something is repeated: short, as often as -long wants, or
// a quarter with -short.
func times(short, all int) int {
	switch {
	case *long:
		return all
	case testing.Short():
		return (short + 3) / 4
	}
	return short
}

// unlessShort gives the first number, and with -short the second.
func unlessShort(all, short int) int {
	if testing.Short() && !*long {
		return short
	}
	return all
}

// random gives n reproducible bytes that do not compress.
func random(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1], key[2], key[3] = byte(seed), byte(seed>>8), byte(seed>>16), byte(seed>>24)
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b)
	return b
}

// A place is where the parts of a test are.
type place struct {
	testing.TB
	dir   string
	repo  string
	cache string
}

func newPlace(t testing.TB) *place {
	t.Helper()
	dir := t.TempDir()
	return &place{t, dir, dir + "/repo", dir + "/cache"}
}

// init makes the place's repository, in a folder.
func (p *place) init() *Repository {
	p.Helper()
	r, err := Init(p.Context(), p.repo, initOf(p), keyed(p, &Options{CacheDir: p.cache}))
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { r.Close() })
	return r
}

// open opens the place's repository with a cache of that name.
func (p *place) open(cache string) *Repository {
	p.Helper()
	r, err := Open(p.Context(), p.repo, keyed(p, &Options{CacheDir: p.dir + "/" + cache}))
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { r.Close() })
	return r
}

// path names a file of the place.
func (p *place) path(elem ...string) string {
	return filepath.Join(append([]string{p.dir}, elem...)...)
}

// files writes files below a directory of the place, and gives its path.
func (p *place) files(dir string, content map[string]string) string {
	p.Helper()
	root := p.path(dir)
	if err := os.MkdirAll(root, 0o755); err != nil {
		p.Fatal(err)
	}
	for name, text := range content {
		writeFile(p, filepath.Join(root, name), []byte(text))
	}
	return root
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t testing.TB, r *Repository, dir string, opts *CreateOptions) *CreateResult {
	t.Helper()
	res, err := r.Create(t.Context(), dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// complete is create of what has no problems.
func complete(t testing.TB, r *Repository, dir string, opts *CreateOptions) *CreateResult {
	t.Helper()
	res := create(t, r, dir, opts)
	if res.Incomplete || len(res.Problems) > 0 {
		t.Fatalf("snapshot of %s: incomplete %v, problems %v", dir, res.Incomplete, res.Problems)
	}
	return res
}

func restore(t testing.TB, r *Repository, ref, dir string, opts *RestoreOptions) *Receipt {
	t.Helper()
	rec, err := r.Restore(t.Context(), ref, dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	if len(rec.Problems) > 0 {
		t.Fatalf("restore of %s to %s: problems %v", ref, dir, rec.Problems)
	}
	return rec
}

// A node is all that a test compares of a file. It is found by means of this
// package's own that has nothing of the engine's.
type node struct {
	Mode     uint32
	UID, GID uint32
	Mtime    unix.Timespec
	Size     int64 // not of directories
	Device   uint64
	Target   string
	Sum      string // of a regular file's contents, wherever its holes are
	Data     string // where its data is
	Xattrs   string
	Same     string // the first of the names that this file has in the tree
}

// tree is all nodes of a directory by path, the directory itself by "".
type tree map[string]node

// scan reads a directory. Its paths may be longer than a system call takes.
func scan(t testing.TB, dir string) tree {
	t.Helper()
	s := scanner{tree{}, map[[2]uint64]string{}}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = s.dir(fd, "")
	}
	if err != nil {
		t.Fatalf("scanning %s: %v", dir, err)
	}
	return s.all
}

type scanner struct {
	all  tree
	seen map[[2]uint64]string
}

// dir scans an open directory, and closes it.
func (s *scanner) dir(fd int, path string) error {
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	n := nodeOf(&st)
	n.Xattrs = xattrsOf(fmt.Sprintf("/proc/self/fd/%d/.", fd))
	s.all[path] = n
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		p := name
		if path != "" {
			p = path + "/" + name
		}
		if err := s.entry(fd, name, p); err != nil {
			return fmt.Errorf("%q: %w", p, err)
		}
	}
	return nil
}

func (s *scanner) entry(dir int, name, path string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return s.dir(fd, path)
	}
	n := nodeOf(&st)
	n.Xattrs = xattrsOf(fmt.Sprintf("/proc/self/fd/%d/%s", dir, name))
	if st.Nlink > 1 {
		at := [2]uint64{st.Dev, st.Ino}
		if s.seen[at] == "" {
			s.seen[at] = path
		}
		n.Same = s.seen[at]
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		buf := make([]byte, 8192)
		var k int
		if k, err = unix.Readlinkat(dir, name, buf); err == nil {
			n.Target = string(buf[:k])
		}
	case unix.S_IFREG:
		n.Sum, n.Data, err = contents(dir, name)
	}
	s.all[path] = n
	return err
}

func nodeOf(st *unix.Stat_t) node {
	n := node{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: st.Mtim}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n.Size = st.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Device = st.Rdev
	}
	return n
}

func xattrsOf(path string) string {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil || n == 0 {
		return ""
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	var all strings.Builder
	for _, name := range names {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		fmt.Fprintf(&all, "%s=%x(%v) ", name, sha256.Sum256(value[:max(n, 0)]), err)
	}
	return all.String()
}

// contents gives a hash of what is not zero in a file, and the ranges that are
// not holes.
func contents(dir int, name string) (sum, data string, err error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", "", err
	}
	defer unix.Close(fd)
	h := sha256.New()
	var ranges strings.Builder
	zero, buf := make([]byte, 4096), make([]byte, 4096)
	var end int64
	for {
		begin, err := unix.Seek(fd, end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return fmt.Sprintf("%x", h.Sum(nil)), ranges.String(), nil
		}
		if err != nil {
			return "", "", err
		}
		if end, err = unix.Seek(fd, begin, unix.SEEK_HOLE); err != nil {
			return "", "", err
		}
		fmt.Fprintf(&ranges, "%d-%d ", begin, end)
		for at := begin; at < end; {
			n, err := unix.Pread(fd, buf[:min(int64(len(buf)), end-at)], at)
			if err != nil || n == 0 {
				return "", "", errors.Join(err, io.ErrUnexpectedEOF)
			}
			if !bytes.Equal(buf[:n], zero[:n]) {
				fmt.Fprintf(h, "%d:", at)
				h.Write(buf[:n])
			}
			at += int64(n)
		}
	}
}

// compare reports each path at which two trees differ.
func compare(t testing.TB, want, got tree) {
	t.Helper()
	if diff := differences(want, got); len(diff) > 0 {
		if len(diff) > 12 {
			diff = append(diff[:12], fmt.Sprintf("and %d more", len(diff)-12))
		}
		t.Fatalf("trees differ:\n%s", strings.Join(diff, "\n"))
	}
}

func differences(want, got tree) (diff []string) {
	for _, path := range slices.Sorted(maps.Keys(want)) {
		w := want[path]
		g, ok := got[path]
		switch {
		case !ok:
			diff = append(diff, fmt.Sprintf("missing: %.300q", path))
		case w != g:
			diff = append(diff, fmt.Sprintf("%.300q:\n\twant %+v\n\thave %+v", path, w, g))
		}
	}
	for _, path := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[path]; !ok {
			diff = append(diff, fmt.Sprintf("not wanted: %.300q", path))
		}
	}
	return diff
}

// entriesOf gives the entries of a snapshot as text, without where its chunks lie:
// what two snapshots of one tree have in common however they were made.
func entriesOf(t testing.TB, r *Repository, id manifest.ID) []string {
	t.Helper()
	ctx := t.Context()
	m, err := r.repo.Manifest(ctx, id)
	must(t, err)
	tr, err := manifest.NewTree(m.Root, r.repo)
	must(t, err)
	c, err := tr.Seek(ctx, manifest.Key{})
	must(t, err)
	var all []string
	var e manifest.Entry
	for {
		more, err := c.Next(ctx, &e)
		must(t, err)
		if !more {
			return all
		}
		var b strings.Builder
		fmt.Fprintf(&b, "%q %v %o %d:%d %v links %d size %d -> %q %v first %q",
			e.Path(), e.Type, e.Mode, e.UID, e.GID, e.Mtime, e.Links, e.Size, e.Target, e.Device, e.First.Path())
		for _, x := range e.Xattrs {
			fmt.Fprintf(&b, " %s=%x", x.Name, x.Value)
		}
		must(t, tr.Extents(ctx, &e, func(at uint64, x *manifest.Extent) error {
			fmt.Fprintf(&b, " %d+%d:%v", at, x.Length, x.ID)
			return nil
		}))
		all = append(all, b.String())
	}
}

func equalEntries(t testing.TB, want, got []string) {
	t.Helper()
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(want):
			t.Fatalf("entry %d is too many: %s", i, got[i])
		case i >= len(got):
			t.Fatalf("entry %d is missing: %s", i, want[i])
		case want[i] != got[i]:
			t.Fatalf("entry %d:\n\twant %s\n\thave %s", i, want[i], got[i])
		}
	}
}

// leftovers reports files of interrupted work in a directory.
func leftovers(t testing.TB, dir string) (found []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			found = append(found, e.Name())
		}
	}
	return found
}

// A job is what another process does.
type job struct {
	Op               string // "create", "restore", "verify", "mount" or "fork"
	Repo, Cache, Dir string
	State            string
	Ref              string
	Create           CreateOptions
	Restore          RestoreOptions
	Mode             ForkMode
	Ephemeral        bool
	Upper            string
	Keep             bool     // the fork
	Touch            []string // what to change in the fork, before a snapshot of that
	Identity         string   // of an encrypted repository
}

// outcome is what it tells.
type outcome struct {
	Handle     string // of the snapshot
	NewBytes   int64
	Files      int64
	Incomplete bool
	Problems   []string
	Changes    []string // that VerifyDir found, or paths that a dry run would change
	Err        string
	Kept       []string       // of a restore
	Done       RestoreChanges //
}

func runChild(text string) int {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	var o outcome
	if err := j.run(&o); err != nil {
		o.Err = err.Error()
	}
	if err := json.NewEncoder(os.Stdout).Encode(o); err != nil {
		return 2
	}
	return 0
}

func (j *job) run(o *outcome) error {
	ctx := context.Background()
	opts := &Options{CacheDir: j.Cache, StateDir: j.State, patience: calm()}
	if j.Identity != "" {
		id, err := age.ParseX25519Identity(j.Identity)
		if err != nil {
			return err
		}
		opts.Identities = []age.Identity{id}
	}
	r, err := Open(ctx, j.Repo, opts)
	if err != nil {
		return err
	}
	defer r.Close()
	var problems []error
	switch j.Op {
	case "create":
		res, err := r.Create(ctx, j.Dir, &j.Create)
		if err != nil {
			return err
		}
		o.Handle, o.NewBytes, o.Files, o.Incomplete, problems = res.Handle(), res.NewBytes, res.Files, res.Incomplete, res.Problems
	case "restore":
		j.Restore.Would = func(c *view.Change) error {
			o.Changes = append(o.Changes, c.Path)
			return nil
		}
		rec, err := r.Restore(ctx, j.Ref, j.Dir, &j.Restore)
		if err != nil {
			return err
		}
		o.Handle, o.Files, problems = rec.Snapshot.Handle(), rec.Files, rec.Problems
		o.Kept, o.Done = rec.Kept, rec.Changes
	case "verify":
		rep, err := r.VerifyDir(ctx, j.Ref, j.Dir, nil, func(c *view.Change) error {
			o.Changes = append(o.Changes, changeText(c))
			return nil
		})
		if err != nil {
			return err
		}
		problems = rep.Problems
	case "mount":
		return j.mount(r)
	case "fork":
		return j.fork(r, o)
	default:
		return fmt.Errorf("no job %q", j.Op)
	}
	for _, p := range problems {
		o.Problems = append(o.Problems, p.Error())
	}
	return nil
}

// id is the id of the snapshot that a process made.
func (o *outcome) id(t testing.TB) manifest.ID {
	t.Helper()
	var h struct{ ID manifest.ID }
	if err := json.Unmarshal([]byte(o.Handle), &h); err != nil {
		t.Fatalf("%+v: %v", o, err)
	}
	return h.ID
}

// nobody is a user without rights.
var nobody = &syscall.Credential{Uid: 65534, Gid: 65534}

// command makes a process for a job, of this user or another.
func (j job) command(t testing.TB, user *syscall.Credential) *exec.Cmd {
	t.Helper()
	if onEncrypted(t) {
		j.Identity = testIdentity().String()
	}
	text, err := json.Marshal(j)
	must(t, err)
	// By this name whoever it is run as can open it.
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	cmd.Stderr = os.Stderr
	return cmd
}

// do runs a job to its end.
func (j job) do(t testing.TB, user *syscall.Credential) outcome {
	t.Helper()
	out, err := j.command(t, user).Output()
	if err != nil {
		t.Fatalf("%s in another process: %v", j.Op, err)
	}
	var o outcome
	if err := json.Unmarshal(out, &o); err != nil {
		t.Fatalf("%s in another process printed %q", j.Op, out)
	}
	return o
}

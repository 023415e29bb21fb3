package engine

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// RestoreOptions are how a snapshot is written out. nil will do.
type RestoreOptions struct {
	// Into writes into a directory that is there, changing what differs and
	// keeping what else it holds. Without Into the snapshot is written beside
	// the target and takes its place in one step, so that whoever looks sees
	// the old tree or the new one; a target that is neither missing nor an
	// empty directory is then refused with ErrExists, unless Delete is set.
	Into bool
	// Delete makes the target hold the snapshot and nothing else.
	Delete bool
	// Include restores only what matches one of the patterns, which are
	// written as in a .gitignore file, and the directories above it.
	Include []string
	// NoOwner leaves files to the user who restores. The default for anybody
	// but root.
	NoOwner bool
	// Verify reads every file back from the target after it was written.
	Verify bool

	Progress Progress
}

// Receipt says what Restore wrote.
type Receipt struct {
	Snapshot Snapshot      `json:"snapshot"`
	Target   string        `json:"target"`
	Files    int64         `json:"files"`
	Dirs     int64         `json:"dirs"`
	Bytes    int64         `json:"bytes"`
	Fetched  int64         `json:"fetchedBytes"`
	Digest   string        `json:"digest"`   // of the snapshot's whole tree; every byte written was checked against it
	Verified bool          `json:"verified"` // and read back from the target
	Duration time.Duration `json:"-"`
	// Problems names what could not be restored as it was, such as an owner
	// when not root.
	Problems []error `json:"-"`
}

// Restore writes a snapshot out to dir; "" is the directory that it was made of.
// Every byte is checked against the snapshot before it is written.
//
// When Restore fails or is interrupted, what was at dir is as it was, but with
// Into, where every single file is either the old one or the new one.
func (r *Repository) Restore(ctx context.Context, ref, dir string, opts *RestoreOptions) (*Receipt, error) {
	if opts == nil {
		opts = &RestoreOptions{}
	}
	start := time.Now()
	m, err := r.open(ctx, ref)
	if err != nil {
		return nil, err
	}
	if dir == "" {
		dir = m.Dir
	}
	rec, err := r.restore(ctx, m, dir, opts)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("restoring %v to %s: %w", m.ID, dir, integrity(err))
	}
	rec.Duration = time.Since(start)
	return rec, nil
}

// open reads the manifest that a reference names. One request, if it is an id.
func (r *Repository) open(ctx context.Context, ref string) (*manifest.Manifest, error) {
	s, err := r.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	m, err := r.manifest(ctx, s.ID)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", printable(ref), err)
	}
	return m, nil
}

// restorer is one run of Restore.
type restorer struct {
	repo   *Repository
	m      *manifest.Manifest
	tree   *manifest.Tree
	opts   *RestoreOptions
	root   int  // file descriptor of the directory that is written to
	fresh  bool // it was made by this run, and nobody else knows of it
	target string
	meter  *meter
	owner  ownerPolicy
	chosen *selection // nil for everything

	plan   *plan
	prints []uint64 // of the entries that were written; nil where nobody asked

	mu       sync.Mutex
	problems []error
	fetched  int64
}

func (r *Repository) restore(ctx context.Context, m *manifest.Manifest, dir string, opts *RestoreOptions) (*Receipt, error) {
	if opts.Delete && len(opts.Include) > 0 {
		return nil, fmt.Errorf("%w: to restore a part and to delete all else do not go together", ErrInvalid)
	}
	include, err := parsePatterns(opts.Include)
	if err != nil {
		return nil, err
	}
	tree, err := manifest.NewTree(m.Root, r)
	if err != nil {
		return nil, err
	}
	t, err := openTarget(dir, opts)
	if err != nil {
		return nil, err
	}
	defer t.close()
	x := &restorer{
		repo: r, m: m, tree: tree, opts: opts, root: t.fd, fresh: t.fresh, target: t.path,
		meter: newMeter(opts.Progress),
	}
	if x.owner, err = newOwnerPolicy(t, opts.NoOwner); err != nil {
		return nil, err
	}
	if t.fresh && len(include) == 0 {
		x.prints = make([]uint64, tree.Len())
	}
	x.meter.totalFiles.Store(int64(m.Entries))
	x.meter.totalBytes.Store(int64(m.Bytes))
	x.meter.start(PhasePlanning)
	defer x.meter.stop()
	if len(include) > 0 {
		if x.chosen, err = choosePaths(ctx, tree, include); err != nil {
			return nil, err
		}
	}
	if err := x.run(ctx); err != nil {
		return nil, err
	}
	if x.prints != nil {
		waitForTick()
	}
	if err := t.commit(); err != nil {
		return nil, err
	}
	if x.prints != nil {
		if err := r.cache.writeStats(t.path, m.ID, x.prints); err != nil {
			r.log.Info("caching what is known of the files", "err", err)
		}
	}
	digest := m.Digest()
	return &Receipt{
		Snapshot: *snapshotOf(&m.Info), Target: t.path,
		Files: x.plan.files, Dirs: int64(len(x.plan.dirs)), Bytes: x.plan.bytes, Fetched: x.fetched,
		Digest: hex.EncodeToString(digest[:]), Verified: opts.Verify, Problems: x.problems,
	}, nil
}

// run writes everything below the root: directories and what has no contents
// first, then contents pack by pack, then what depends on those.
func (x *restorer) run(ctx context.Context) error {
	x.plan = newPlan()
	if err := x.makeTree(ctx); err != nil {
		return err
	}
	x.meter.phase(PhaseWriting)
	if err := x.writeContents(ctx); err != nil {
		return err
	}
	if err := x.makeLinks(ctx); err != nil {
		return err
	}
	if x.opts.Delete && !x.fresh {
		if err := x.deleteOthers(ctx); err != nil {
			return err
		}
	}
	if err := x.finishDirs(ctx); err != nil {
		return err
	}
	if x.opts.Verify {
		x.meter.phase(PhaseVerifying)
		return x.verify(ctx)
	}
	return nil
}

// problem notes what could not be restored as it was.
func (x *restorer) problem(err error) {
	x.mu.Lock()
	x.problems = append(x.problems, err)
	x.mu.Unlock()
	x.repo.log.Warn("restore", "err", err)
	if x.opts.Progress != nil {
		x.opts.Progress.Warn(err)
	}
}

// target is the directory that a restore writes to.
type target struct {
	path  string // absolute, without symbolic links
	fd    int
	fresh bool   // fd is a new directory beside path, which commit puts in its place
	temp  string // that directory
	swap  bool   // there is a tree at path that commit removes
}

// tempPrefix begins the name of a directory that a restore is making. While the
// restore lives it holds a lock on it.
const tempPrefix = ".snapctl-restore-"

// openTarget decides how dir is written to, and opens or makes the directory.
func openTarget(dir string, opts *RestoreOptions) (*target, error) {
	path, err := resolveTarget(dir)
	if err != nil {
		return nil, err
	}
	t := &target{path: path, fd: -1}
	empty := true
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		st = nil
	case err != nil:
		return nil, err
	case !st.IsDir():
		return nil, fmt.Errorf("%w: it is not a directory", ErrExists)
	default:
		if empty, err = isEmptyDir(path); err != nil {
			return nil, err
		}
		if !empty && !opts.Into && !opts.Delete {
			return nil, fmt.Errorf("%w: the directory is not empty", ErrExists)
		}
	}
	if st != nil && opts.Into {
		t.fd, err = unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		return t, err
	}
	t.swap = !empty
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return nil, err
	}
	t.sweep()
	if err := t.makeTemp(); err != nil {
		return nil, err
	}
	return t, nil
}

// resolveTarget makes the path absolute and follows the links in it: what is
// swapped is the directory, not a link to it.
func resolveTarget(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if p, err := filepath.EvalSymlinks(abs); err == nil {
		return p, nil
	}
	// It does not exist: then as much of it as does.
	parent, name := filepath.Split(abs)
	if parent = filepath.Clean(parent); parent == abs {
		return abs, nil
	}
	if _, err := os.Lstat(abs); err == nil {
		return "", fmt.Errorf("%w: it is a symbolic link to nowhere", ErrExists)
	}
	p, err := resolveTarget(parent)
	return filepath.Join(p, name), err
}

func isEmptyDir(path string) (bool, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	return len(names) == 0, err
}

// makeTemp makes the directory beside the target, locked.
func (t *target) makeTemp() error {
	temp, err := os.MkdirTemp(filepath.Dir(t.path), tempPrefix+tempBase(t.path)+"-*")
	if err != nil {
		return err
	}
	t.temp, t.fresh = temp, true
	fd, err := unix.Open(temp, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err == nil {
		t.fd = fd
		err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		t.close()
		return &os.PathError{Op: "making", Path: temp, Err: err}
	}
	// What the parent would have every new file inherit is no part of a snapshot.
	for _, name := range []string{"system.posix_acl_default", "system.posix_acl_access"} {
		if err := unix.Fremovexattr(fd, name); err != nil && !errIsAny(err, unix.ENODATA, unix.ENOTSUP) {
			t.close()
			return &os.PathError{Op: "removing the default ACL of", Path: temp, Err: err}
		}
	}
	return nil
}

// tempBase is enough of the target's name to tell whose the directory is.
func tempBase(path string) string {
	base := filepath.Base(path)
	return base[:min(len(base), 128)]
}

// sweep removes what restores to this target that were killed have left: it is
// theirs by its name, and nobody holds its lock.
func (t *target) sweep() {
	parent := filepath.Dir(t.path)
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), tempPrefix+tempBase(t.path)+"-")
		if !ours || !e.IsDir() || strings.Trim(rest, "0123456789") != "" {
			continue
		}
		path := filepath.Join(parent, e.Name())
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
			removeTree(path)
		}
		unix.Close(fd)
	}
}

// removeTree removes a directory that is ours, whatever its directories' modes.
func removeTree(path string) error {
	if err := os.RemoveAll(path); err == nil || os.Geteuid() == 0 {
		return err
	}
	filepath.WalkDir(path, func(p string, d os.DirEntry, _ error) error {
		if d != nil && d.IsDir() {
			os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(path)
}

// commit puts the new directory in the target's place, in one step.
func (t *target) commit() error {
	if !t.fresh {
		return nil
	}
	if t.swap {
		// The old tree is about to go: the new one must outlive a power cut.
		if err := unix.Syncfs(t.fd); err != nil {
			return fmt.Errorf("syncing: %w", err)
		}
		err := unix.Renameat2(unix.AT_FDCWD, t.temp, unix.AT_FDCWD, t.path, unix.RENAME_EXCHANGE)
		if errIsAny(err, unix.EINVAL, unix.ENOSYS, unix.ENOTSUP) {
			err = t.swapInSteps()
		}
		if err != nil {
			return &os.LinkError{Op: "putting in place", Old: t.temp, New: t.path, Err: err}
		}
		return syncDir(filepath.Dir(t.path)) // close removes the old tree
	}
	// Replaces an empty directory, and fails if it is not empty any more.
	if err := unix.Rename(t.temp, t.path); err != nil {
		if errors.Is(err, unix.ENOTEMPTY) {
			err = fmt.Errorf("%w: something was written to it meanwhile", ErrExists)
		}
		return &os.LinkError{Op: "putting in place", Old: t.temp, New: t.path, Err: err}
	}
	t.temp = ""
	return nil
}

// swapInSteps is for file systems that cannot exchange: there is a moment
// without a tree, and after a crash in it the old one lies beside the target.
func (t *target) swapInSteps() error {
	old := t.temp + ".old"
	if err := unix.Rename(t.path, old); err != nil {
		return err
	}
	if err := unix.Rename(t.temp, t.path); err != nil {
		return errors.Join(err, unix.Rename(old, t.path))
	}
	t.temp = old
	return nil
}

// close removes what is not wanted: the new tree if it was not put in place, or
// else the old one.
func (t *target) close() {
	if t.temp != "" {
		removeTree(t.temp)
		t.temp = ""
	}
	if t.fd >= 0 {
		unix.Close(t.fd)
		t.fd = -1
	}
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// waitForTick waits until the clock that file systems take times from has moved
// on: a file that is changed after this shows it by its ctime.
func waitForTick() {
	var then, now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &then) != nil {
		return
	}
	for i := 0; i < 100; i++ {
		if unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &now) != nil || now != then {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

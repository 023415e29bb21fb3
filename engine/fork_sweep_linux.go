package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/remote/disk"
	"golang.org/x/sys/unix"
)

// A sweeper removes what processes left in a state directory that were killed, and
// nothing that anybody uses or could miss:
//
//   - what tries of mounts and forks have mounted (TryMount, TryFork);
//   - entries of forks that were being made, or removed;
//   - mounts of snapshots over which no fork lies any more, and so their servers;
//   - locks that nobody has.
//
// Whoever is at work holds a lock on what they make, and is passed over.
type sweeper struct {
	g     *forkRegistry
	swept []string
	errs  []error
	table *mountTable // read when it is needed
}

// sweepPatience is how long a sweep waits for servers to end.
const sweepPatience = 10 * time.Second

// Sweep removes what snapctl processes left in a state directory that were killed. It
// says what that was, and what could not be removed. Fork begins with it, and ResumeFork,
// RemoveFork and Unmount end with it.
func Sweep(ctx context.Context, stateDir string) (swept []string, err error) {
	g, err := newForkRegistry(stateDir)
	if err != nil {
		return nil, err
	}
	return g.sweep(ctx)
}

func (g *forkRegistry) sweep(ctx context.Context) (swept []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, sweepPatience)
	defer cancel()
	s := &sweeper{g: g}
	s.tries()
	s.entries(ctx)
	s.lowers(ctx)
	s.locks()
	return s.swept, errors.Join(s.errs...)
}

// done notes what became of something that was to be swept.
func (s *sweeper) done(what string, err error) {
	if err != nil {
		s.errs = append(s.errs, fmt.Errorf("%s is left: %w", what, err))
		return
	}
	s.swept = append(s.swept, what)
	s.table = nil
}

// mounts is what is mounted now.
func (s *sweeper) mounts() (_ *mountTable, err error) {
	if s.table == nil {
		s.table, err = readMountTable()
	}
	return s.table, err
}

// tries removes what tries have left.
func (s *sweeper) tries() {
	names, _ := os.ReadDir(s.g.state) // there may be none yet
	for _, n := range names {
		path := filepath.Join(s.g.state, n.Name())
		switch {
		case strings.HasPrefix(n.Name(), oldTryPrefix):
			s.oldTry(path)
		case n.IsDir() && strings.HasPrefix(n.Name(), tryPrefix):
			fd, err := fsys.OpenDir(path)
			if err != nil {
				continue
			}
			t := &tryDir{path, fd}
			var st unix.Stat_t
			if unix.Fstat(fd, &st) != nil || int(st.Uid) != os.Geteuid() || disk.Lock(fd) != nil {
				unix.Close(fd)
				continue
			}
			s.done("a try in "+path, t.remove())
		}
	}
}

// oldTry removes a mount point of a try by an earlier version, which nobody locked: it
// was mounted for a moment.
func (s *sweeper) oldTry(path string) {
	table, err := s.mounts()
	if err != nil {
		s.errs = append(s.errs, err)
		return
	}
	if m := table.at(path); m != nil {
		if m.FSType != fusefs.FSType {
			return
		}
		err = fusefs.UnmountAt(path, true)
	}
	if err == nil {
		err = os.Remove(path)
	}
	s.done("a try in "+path, err)
}

// entries sweeps the registry of forks.
func (s *sweeper) entries(ctx context.Context) {
	names, _ := os.ReadDir(s.g.dir) // there may be none yet
	for _, n := range names {
		name := n.Name()
		key, making := strings.CutPrefix(name, makingPrefix)
		switch {
		case ctx.Err() != nil:
			return
		case making:
			s.unfinished(ctx, key)
		case n.IsDir() && (strings.HasPrefix(name, newPrefix) || strings.HasPrefix(name, goneForkPrefix)):
			s.gone(name)
		}
	}
}

// gone removes an entry that is no fork's yet, or any more.
func (s *sweeper) gone(name string) {
	plain, err := s.g.open(name)
	if err != nil {
		return // somebody removes it, or it is another user's
	}
	defer plain.close()
	if !plain.claim() {
		return
	}
	e := &forkEntry{entry: plain, g: s.g}
	b, err := readRecord(e.path(forkFileName))
	if err == nil {
		e.rec, err = decodeForkRecord(b)
	}
	what := "the entry " + e.folder()
	switch {
	case strings.HasPrefix(name, newPrefix), errors.Is(err, fs.ErrNotExist):
		// Of an entry that goes the record is the last that counts: without one the
		// rest has been done.
		if err = e.dropMemory(); err == nil {
			err = fsys.RemoveTree(e.folder())
		}
	case err == nil:
		what = fmt.Sprintf("what fork %s had, which was removed", e.rec.Name)
		err = e.finish()
	}
	s.done(what, err)
}

// unfinished removes a fork that was never mounted, and in which nothing can have been
// changed. What may be a fork to somebody stays.
func (s *sweeper) unfinished(ctx context.Context, key string) {
	e, err := s.g.load(key)
	if errors.Is(err, fs.ErrNotExist) {
		s.unmade(key)
		return
	}
	if err != nil {
		return // another user's, or damaged, which forks says
	}
	defer e.close()
	if e.tryOwn() != nil || e.reload() != nil {
		return // somebody is at it
	}
	if _, err := os.Lstat(s.g.making(key)); err != nil {
		return // it was finished since we saw the sign
	}
	s.table = nil // and what is mounted may be older than that
	table, err := s.mounts()
	if err != nil {
		s.errs = append(s.errs, err)
		return
	}
	m := e.rec.Mounted
	mounted := e.mountedIn(table)
	switch {
	case !mounted && m != nil && m.Boot == bootID() && !m.isHere():
		return // it is for who can see it to say
	case mounted && e.probe(statusPatience) != fusefs.ErrNoServer, !mounted && m != nil && !m.isHere(), !e.untouched():
		e.finished()
		return
	case mounted:
		err = fusefs.UnmountAt(e.where(), true)
	}
	if err == nil {
		err = e.undo(ctx)
	}
	s.done(fmt.Sprintf("fork %s, which was being made", e.rec.Name), err)
}

// untouched reports whether undo of a fork loses nothing.
func (e *forkEntry) untouched() bool {
	switch {
	case e.rec.Mode == ForkRestore:
		return e.rec.Copy.Inode == 0
	case e.rec.TookLayer:
		return true
	}
	empty, err := fsys.IsEmptyDir(e.upper())
	return empty || errors.Is(err, fs.ErrNotExist)
}

// unmade removes the sign that a fork is being made which is not there.
func (s *sweeper) unmade(key string) {
	naming, err := os.OpenFile(filepath.Join(s.g.dir, forksLock), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return
	}
	defer naming.Close()
	if disk.Lock(int(naming.Fd())) != nil {
		return // perhaps it is made just now
	}
	if _, err := os.Lstat(filepath.Join(s.g.dir, key)); errors.Is(err, fs.ErrNotExist) {
		os.Remove(s.g.making(key))
	}
}

// lowers unmounts snapshots over which no fork lies.
func (s *sweeper) lowers(ctx context.Context) {
	names, _ := os.ReadDir(filepath.Join(s.g.state, local.Lowers))
	seen := map[lowerKey]bool{}
	for _, n := range names {
		k, ok := parseLowerKey(strings.TrimSuffix(n.Name(), ".lock"))
		if !ok || seen[k] {
			continue
		}
		seen[k] = true
		table, err := s.mounts()
		if err != nil {
			s.errs = append(s.errs, err)
			return
		}
		// Before it is locked, for which whoever forks it would wait.
		if used, err := s.g.lowerUsed(table, k); used || err != nil {
			continue
		}
		released, err := s.g.tryReleaseLower(ctx, k)
		if released || err != nil {
			s.done(fmt.Sprintf("the mount of snapshot %v, over which no fork lies", k.id), err)
		}
	}
}

// locks removes files of locks that nobody has.
func (s *sweeper) locks() {
	dropLock(filepath.Join(s.g.state, resumeLock))
	mounts := registry{filepath.Join(s.g.state, local.Mounts)}
	names, _ := os.ReadDir(mounts.dir)
	for _, n := range names {
		name := n.Name()
		switch {
		case strings.HasSuffix(name, ".lock"):
			dropLock(filepath.Join(mounts.dir, name))
		case n.IsDir() && strings.HasPrefix(name, newPrefix):
			if e, err := mounts.open(name); err == nil {
				if e.claim() {
					e.remove()
				}
				e.close()
			}
		}
	}
}

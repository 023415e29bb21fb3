package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/uuid"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/ignore"
	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// Nothing that snapctl keeps on this machine is part of a snapshot, and nothing that
// writes to a directory deletes or replaces it. It is known by its inodes, whatever
// links and bind mounts lead to it, or by what is in it: see found.

// ownDirs are directories of snapctl's own that are there.
type ownDirs struct {
	byInode map[fsys.Inode]string // what each is
	paths   []string              // without symbolic links

	// What leads to them, and is not theirs alone: it is part of a snapshot, but is not
	// deleted or replaced. It is symbolic links, and directories that keep this user from
	// seeing what is in them.
	ways     map[fsys.Inode]string
	wayPaths []string

	recorded bool // only what is on record is ours, whatever found would find
}

func (o *ownDirs) add(what, dir string) {
	if dir == "" {
		return
	}
	if o.byInode == nil {
		o.byInode, o.ways = map[fsys.Inode]string{}, map[fsys.Inode]string{}
	}
	way := fsys.Follow(dir)
	for _, link := range way.Links {
		o.addWay("a symbolic link on the way to "+what, link)
	}
	if errors.Is(way.Err, unix.EACCES) {
		o.addWay("a directory that cannot be searched, on the way to "+what, way.Last)
	}
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return
	}
	at := fsys.Inode{Dev: uint64(st.Dev), Ino: st.Ino}
	if _, known := o.byInode[at]; known {
		return
	}
	o.byInode[at] = what
	if path, err := filepath.EvalSymlinks(dir); err == nil {
		o.paths = append(o.paths, path)
	}
}

func (o *ownDirs) addWay(what, path string) {
	var st unix.Stat_t
	if unix.Lstat(path, &st) == nil && o.ways[fsys.Inode{Dev: uint64(st.Dev), Ino: st.Ino}] == "" {
		o.ways[fsys.Inode{Dev: uint64(st.Dev), Ino: st.Ino}] = what
		o.wayPaths = append(o.wayPaths, path)
	}
}

// inodes are those of all that is not to be deleted or replaced.
func (o *ownDirs) inodes() map[fsys.Inode]string {
	all := maps.Clone(o.ways)
	maps.Copy(all, o.byInode)
	return all
}

// at says what the directory at a path is of ours, "" for nothing.
func (o *ownDirs) at(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return ""
	}
	return o.is(&st)
}

func (o *ownDirs) is(st *unix.Stat_t) string {
	at := fsys.Inode{Dev: uint64(st.Dev), Ino: st.Ino}
	return cmp.Or(o.byInode[at], o.ways[at])
}

// around gives what a path is of ours, or lies in; "" for nothing.
func (o *ownDirs) around(path string) string {
	in := "" // of dir, what the path goes through
	for dir := path; ; dir, in = filepath.Dir(dir), filepath.Base(dir) {
		if what := cmp.Or(o.at(dir), o.foundAround(dir, in)); what != "" {
			return what
		}
		if dir == filepath.Dir(dir) {
			return o.boundFrom(path)
		}
	}
}

// hiddenBy gives what of ours could not be reached any more if something were mounted
// at a path: its own path, "" for nothing.
func (o *ownDirs) hiddenBy(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return ""
	}
	if o.foundAt(path) != "" {
		return path
	}
	return o.within(&st)
}

// within gives the path of something of ours that is a directory, or lies in it, "" for
// nothing. It goes by the directories above what is ours, so that it needs no permission
// to list any of them.
func (o *ownDirs) within(want *unix.Stat_t) string {
	var st unix.Stat_t
	for _, p := range slices.Concat(o.paths, o.wayPaths) {
		for dir := p; ; dir = filepath.Dir(dir) {
			if unix.Stat(dir, &st) == nil && st.Dev == want.Dev && st.Ino == want.Ino {
				return p
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return ""
}

// below looks for what is ours, or leads to it, in an entry of an open directory, "." for
// that itself. It gives its path from the entry, and ok if there is something; else how many
// entries it looked at.
func (o *ownDirs) below(ctx context.Context, dir int, name string) (path string, ok bool, entries int64, err error) {
	entries = 1
	fd, err := fsys.OpenBelow(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
	var st unix.Stat_t
	if errors.Is(err, unix.EACCES) && fsys.StatAt(dir, name, &st) == nil {
		return "", o.within(&st) != "", entries, nil
	}
	if fsys.IsAny(err, unix.ENOTDIR, unix.ELOOP, unix.ENOENT) { // it is no directory
		return "", fsys.StatAt(dir, name, &st) == nil && o.is(&st) != "", entries, nil
	}
	if err == nil {
		defer unix.Close(fd)
		err = unix.Fstat(fd, &st)
	}
	if err != nil {
		return "", false, entries, err
	}
	if o.is(&st) != "" {
		return "", true, entries, nil
	}
	w := &walker{root: fd, dev: uint64(st.Dev), exclude: &ignore.Rules{}, skip: o.inodes()}
	err = w.walk(ctx, 1, func(n *dirNode) error {
		if len(n.own) > 0 {
			path, ok = manifest.Join(n.path, n.own[0]), true
			return repo.ErrFound
		}
		if showsShape(n.entries) && o.found(fd, cmp.Or(n.path, ".")) != "" {
			path, ok = n.path, true
			return repo.ErrFound
		}
		if n.err != nil && !isGone(n.err) && !fsys.IsAny(n.err, unix.EACCES) {
			return n.err // what cannot be looked into may hold anything
		}
		entries += int64(len(n.entries) + n.sockets)
		return nil
	})
	if ok {
		err = nil
	} else if err == nil {
		ok = o.within(&st) != "" // below a directory that cannot be listed
	}
	return path, ok, entries, err
}

// notIn fails with ErrOwn where a directory, which is to be deleted, holds one of ours.
func (o *ownDirs) notIn(ctx context.Context, dir string) error {
	fd, err := fsys.OpenDir(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	at, found, _, err := o.below(ctx, fd, ".")
	if found {
		err = fmt.Errorf("%w: %s would be deleted; move it elsewhere first", snapshot.ErrOwn, filepath.Join(dir, at))
	}
	return err
}

// ownDirs are what a snapshot leaves out, should it lie in what is snapshotted: the
// repository itself, the cache and the state of this machine.
func (r *Repository) ownDirs() *ownDirs {
	own := &ownDirs{}
	// What is about to be made needs an inode to go by.
	made := []string{r.repo.Cache.Root}
	if !r.repo.Local() {
		made = append(made, filepath.Join(r.CacheDir(), local.Packs))
	}
	for _, dir := range made {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			r.repo.Logger.Info("making the cache", "err", err)
		}
	}
	own.add("the repository", r.repo.Dir)
	own.addCache(r.CacheDir())
	own.addState(r.repo.State)
	own.addOverlays()
	return own
}

// addCache adds what is in the folder of caches: it may have other things in it.
func (o *ownDirs) addCache(base string) {
	if base == "" {
		return
	}
	names, _ := os.ReadDir(base)
	for _, n := range names {
		_, err := uuid.Parse(n.Name())
		if err == nil || slices.Contains([]string{local.Packs, local.Logs, local.Pins}, n.Name()) {
			o.add("the cache", filepath.Join(base, n.Name()))
		}
	}
}

// inState are the names of what is ours in a state folder: it may have other things in it.
func inState() []string {
	return []string{local.Mounts, local.Forks, local.Kept, local.Lowers, local.Restored, local.Used}
}

// addState adds what is in a state folder.
func (o *ownDirs) addState(dir string) {
	if dir == "" {
		return
	}
	for _, name := range inState() {
		o.add("the state of this machine", filepath.Join(dir, name))
	}
}

// protected are ownDirs, and those of the other repositories that this machine uses.
func (r *Repository) protected() *ownDirs {
	own := r.ownDirs()
	own.addUsed(r.repo.State)
	return own
}

// protectedBy is what a state folder knows of, without a repository.
func protectedBy(stateDir string) *ownDirs {
	own := &ownDirs{}
	own.addState(stateDir)
	own.addUsed(stateDir)
	return own
}

func (o *ownDirs) addUsed(stateDir string) {
	for _, u := range repo.UsedRepositories(stateDir) {
		o.add("the repository "+u.URL, string(u.Dir))
		o.addCache(string(u.Cache))
	}
	for _, dir := range forkLayers(stateDir) {
		o.add("what a fork changed", dir)
	}
	o.addOverlays()
}

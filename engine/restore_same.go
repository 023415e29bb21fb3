package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// Where a restore changes a directory in place, what is as the snapshot has it is left
// alone: not even its ctime changes.

// RestoreChanges count entries, directories and hard links included.
type RestoreChanges struct {
	Written   int64 `json:"written"`  // made, or made anew
	Adjusted  int64 `json:"adjusted"` // given another owner, mode, time or attributes, and nothing else
	Deleted   int64 `json:"deleted"`
	Unchanged int64 `json:"unchanged"`
}

// meetDir counts a directory that is there.
func (x *restorer) meetDir(e *manifest.Entry, st *unix.Stat_t, attrs fsys.XattrAccess) {
	onTheWay := x.chosen != nil && !x.chosen.Dirs[e.Path()]
	if onTheWay || x.sameMeta(e, st, attrs) {
		x.changes.Unchanged++
	} else {
		x.changes.Adjusted++ // which finishDir does
	}
}

// meetRoot counts the target itself.
func (x *restorer) meetRoot(e *manifest.Entry) {
	if !x.fresh {
		x.meetDir(e, &x.was, fsys.XattrsAt(x.root, "."))
	}
}

// sameMeta reports whether what is there has the metadata of an entry already.
func (x *restorer) sameMeta(e *manifest.Entry, st *unix.Stat_t, attrs fsys.XattrAccess) bool {
	d := fsys.DirentOf(e.Name, st)
	now := entryOf(e.Dir, &d)
	if now.Type != e.Type || now.Mtime != e.Mtime || x.owner.set && (now.UID != e.UID || now.GID != e.GID) {
		return false
	}
	mode := e.Mode
	if e.Type == manifest.File && (st.Uid != e.UID || st.Gid != e.GID) {
		mode &^= 0o6000 // see safeMode
	}
	if e.Type != manifest.Symlink && now.Mode != mode {
		return false
	}
	// Nearly no file has any: ask before anything is allocated.
	if n, err := attrs.List(nil); n == 0 && err == nil {
		return len(e.Xattrs) == 0
	}
	if new(reader).xattrs(&now, attrs) != nil {
		return false
	}
	has := func(a manifest.Xattr) bool {
		return slices.ContainsFunc(e.Xattrs, func(b manifest.Xattr) bool { return a.Name == b.Name && string(a.Value) == string(b.Value) })
	}
	here := 0
	for _, a := range now.Xattrs {
		switch {
		case has(a):
			here++
		case !fsys.LabelXattr(a.Name):
			return false
		}
	}
	return here == len(e.Xattrs)
}

// sameSpecial reports whether a symbolic link, FIFO or device is there already.
func (x *restorer) sameSpecial(parent int, e *manifest.Entry) bool {
	var st unix.Stat_t
	if fsys.StatAt(parent, e.Name, &st) != nil || !x.sameNames(e, &st) {
		return false
	}
	d := fsys.DirentOf(e.Name, &st)
	now := entryOf(e.Dir, &d)
	if now.Type != e.Type || now.Device != e.Device {
		return false
	}
	if e.Type == manifest.Symlink && !leadsAlike(parent, e) {
		return false
	}
	return x.sameMeta(e, &st, fsys.XattrsAt(parent, e.Name))
}

// sameNames reports whether the names of a file that is there are those that the snapshot
// has of an entry: then no other name, which may be somebody else's, changes with it.
func (x *restorer) sameNames(e *manifest.Entry, st *unix.Stat_t) bool {
	links := uint64(st.Nlink)
	if x.dry != nil {
		links -= x.dry.gone[fsys.Inode{Dev: uint64(st.Dev), Ino: st.Ino}]
	}
	if links == 1 {
		return true
	}
	names := x.names[e.Key()]
	if links != uint64(len(names)) {
		return false
	}
	dir := &openDir{root: x.root}
	defer dir.close()
	for _, k := range names {
		var o unix.Stat_t
		parent, err := dir.get(k.Dir)
		if err != nil || fsys.StatAt(parent, k.Name, &o) != nil || o.Dev != st.Dev || o.Ino != st.Ino {
			return false
		}
	}
	return true
}

// findNames finds the names of files that have several, by each of them.
func (x *restorer) findNames(ctx context.Context) error {
	if x.fresh || !x.m.HardLinks {
		return nil
	}
	groups := map[manifest.Key][]manifest.Key{} // by the first
	c, err := x.tree.Seek(ctx, manifest.Key{})
	if err != nil {
		return err
	}
	var e manifest.Entry
	for {
		more, err := c.Next(ctx, &e)
		if err != nil {
			return err
		}
		if !more {
			break
		}
		if e.Type == manifest.Link {
			first := cloneKey(e.First)
			groups[first] = append(groups[first], cloneKey(e.Key()))
		}
	}
	x.names = map[manifest.Key][]manifest.Key{}
	for first, others := range groups {
		names := append(others, first)
		for _, name := range names {
			x.names[name] = names
		}
	}
	return nil
}

// sameName is the error of making an entry.
func (x *restorer) sameName(err error) error {
	if x.fresh && errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%w (%w)", fsys.ErrSameName, err)
	}
	return err
}

// findFolding finds out whether names are folded in the target: by an entry that it has, or
// else by one that is made for it.
func (t *target) findFolding() error {
	names, err := fsys.NamesIn(t.old)
	if err != nil {
		return err
	}
	for _, name := range names {
		other := strings.Map(fsys.OtherCase, name)
		if other == name {
			continue
		}
		if slices.Contains(names, other) || fsys.StatAt(t.old, other, new(unix.Stat_t)) != nil {
			return nil
		}
		t.folding = &fsys.Folding{Made: map[fsys.Inode]string{}}
		return nil
	}
	if err := t.beginWork(); err != nil {
		return err
	}
	t.folding, err = fsys.NewFolding(t.work)
	return err
}

package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/ignore"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// wholeFork is a fork by fuse-overlayfs of which all is read that shows.
type wholeFork struct {
	tree  *manifest.Tree // of the snapshot
	root  int            // file descriptor of the fork, which is not this one's to close
	upper int            // file descriptor
}

func (f *wholeFork) close() {
	if f != nil {
		unix.Close(f.upper)
	}
}

// findWhole makes this the create of such a fork, if that is what the directory is, and says
// what then is not seen.
func (c *creator) findWhole(ctx context.Context) error {
	if c.fork != nil || c.byFuse == nil {
		return nil
	}
	m, tree, err := c.repo.LiveTree(ctx, c.byFuse.Lower)
	if ctx.Err() != nil {
		return err
	}
	fd, uerr := fsys.OpenDir(c.byFuse.Upper)
	if err := errors.Join(err, uerr); err != nil {
		c.warn(fmt.Errorf("%w: names of one file of the fork's snapshot are separate files in this one, as mode fuse-overlayfs shows them", err))
	}
	if uerr != nil {
		return nil
	}
	if err != nil || !m.HardLinks {
		defer unix.Close(fd)
	} else {
		c.whole = &wholeFork{tree, c.root, fd}
	}
	w := &walker{root: fd, exclude: &ignore.Rules{}, upper: &c.byFuse.Format}
	return w.walk(ctx, 1, func(n *dirNode) error {
		c.warnPosing(ctx, tree, &lowerDir{n.path}, n)
		return nil
	})
}

// join undoes what fusefs.View does for fuse-overlayfs: an entry that is as it was in the
// snapshot is the file again, by number and links, that it is a name of there. What
// something else shows that is mounted below the fork is not the snapshot's.
func (f *wholeFork) join(ctx context.Context, dir string, d *fsys.Dirent) *fsys.Dirent {
	if f == nil || d.IsDir() {
		return d
	}
	k := manifest.Key{Dir: dir, Name: d.Name}
	var e manifest.Entry
	rank, err := f.tree.Lookup(ctx, k, &e)
	if err != nil || !hasLinks(&e) || !sameMount(f.root, k.Path()) {
		return d
	}
	// No directory of it is redirected, so what is not in the upper one is the snapshot's.
	var st unix.Stat_t
	if !errors.Is(fsys.StatAt(f.upper, k.Path(), &st), unix.ENOENT) {
		return d
	}
	if rank, err = f.tree.Resolve(ctx, rank, &e); err != nil {
		return d
	}
	joined := *d
	joined.Ino, joined.Nlink = ^rank, e.Links // a number that no file system gives
	return &joined
}

// warnPosing names the files in an upper directory that fuse-overlayfs takes for marks of its
// own, if they hide something. lower is the snapshot's directory that shows there, nil for
// none; of a nil tree anything might be hidden.
func (c *creator) warnPosing(ctx context.Context, tree *manifest.Tree, lower *lowerDir, n *dirNode) {
	outcome := "is in this snapshot"
	if c.fork == nil { // and what shows is read
		outcome = "may be missing in this snapshot"
	}
	for _, name := range n.posing {
		gone := strings.TrimPrefix(name, fuseWhiteout)
		what := fmt.Sprintf("%q", manifest.Join(n.path, gone))
		hides := slices.ContainsFunc(n.entries, func(d fsys.Dirent) bool { return d.Name == gone })
		switch {
		case lower == nil || hides || slices.Contains(n.hidden, gone):
		case name == fuseOpaque:
			what, hides = fmt.Sprintf("all of the snapshot in %q", n.path), true
		case tree == nil:
			hides = true
		default:
			_, err := tree.Lookup(ctx, manifest.Key{Dir: lower.path, Name: gone}, &manifest.Entry{})
			hides = !errors.Is(err, manifest.ErrNotExist)
		}
		if hides {
			c.warn(fmt.Errorf("%q is a mark to fuse-overlayfs, and hides %s when the fork is mounted again, if not now; what it hides %s: "+
				"unmount the fork and rename %s", manifest.Join(n.path, name), what, outcome, filepath.Join(c.byFuse.Upper, n.path, name)))
		}
	}
}

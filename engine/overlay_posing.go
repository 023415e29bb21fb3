package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// warnWhole says what is not seen where all of a fork by fuse-overlayfs is read: hard links
// of its snapshot, of which each name shows as a file of its own (see fusefs.View), and
// what users' files hide.
func (c *creator) warnWhole(ctx context.Context) error {
	if c.fork != nil || c.byFuse == nil {
		return nil
	}
	m, tree, err := c.repo.liveTree(ctx, c.byFuse.Lower)
	if ctx.Err() != nil {
		return err
	}
	if err != nil || m.HardLinks {
		c.warn(errors.New("all of the fork is read, and mode fuse-overlayfs shows each name of a file as a file of its own: " +
			"hard links of its snapshot are separate files in this one; create without patterns and --parent keeps them"))
	}
	fd, err := openDirectory(c.byFuse.Upper)
	if err != nil {
		c.warn(fmt.Errorf("upper directory of the fork: %w", err))
		return nil
	}
	defer unix.Close(fd)
	w := &walker{root: fd, exclude: &excludes{}, upper: &c.byFuse.Format}
	return w.walk(ctx, 1, func(n *dirNode) error {
		c.warnPosing(ctx, tree, &lowerDir{n.path}, n)
		return nil
	})
}

// warnPosing names the files in an upper directory that hide something of a fork by
// fuse-overlayfs, which takes them for marks that it is removed, and does not say so. lower is the snapshot's
// directory that shows there, nil for none; of a nil tree anything might.
func (c *creator) warnPosing(ctx context.Context, tree *manifest.Tree, lower *lowerDir, n *dirNode) {
	outcome := "is in this snapshot"
	if c.fork == nil { // and what shows is read
		outcome = "may be missing in this snapshot"
	}
	for _, name := range n.posing {
		gone := strings.TrimPrefix(name, fuseWhiteout)
		what := fmt.Sprintf("%q", manifest.Join(n.path, gone))
		hides := slices.ContainsFunc(n.entries, func(d dirent) bool { return d.name == gone })
		switch {
		case lower == nil || hides:
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

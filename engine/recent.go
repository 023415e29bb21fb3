package engine

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"slices"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/access"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// recentFiles is what the times of a tree tell of its use: files that were read
// since they were last written or changed, as the kernel notes even with relatime.
// Before a snapshot has been mounted anywhere there is no access profile, so create
// makes one of that, if the tree tells enough.
type recentFiles struct {
	all   int64 // bytes of all files
	bytes int64 // of those that were read
	files []recentFile
}

type recentFile struct {
	key manifest.Key
	at  unix.Timespec
}

// maxRecent bounds the files. Who reads more than that reads all there is, such as
// a search, and the order in which it did says nothing of what comes first.
const maxRecent = 16 << 10

// see takes note of a file; r may be nil.
func (r *recentFiles) see(dir string, d *fsys.Dirent) {
	if r == nil || d.Kind() != unix.S_IFREG || d.Size == 0 {
		return
	}
	r.all += d.Size
	if d.Atime.Nano() <= d.Mtime.Nano() || d.Atime.Nano() <= d.Ctime.Nano() {
		return
	}
	r.bytes += d.Size
	if len(r.files) <= maxRecent {
		r.files = append(r.files, recentFile{manifest.Key{Dir: dir, Name: d.Name}, d.Atime})
	}
}

// telling reports whether some files stand out.
func (r *recentFiles) telling() bool {
	return r != nil && len(r.files) > 0 && len(r.files) <= maxRecent && r.bytes <= r.all/2
}

// saveRecent puts the profile that the files' times make. Nothing depends on it.
func (c *creator) saveRecent(ctx context.Context, m *manifest.Manifest) {
	if !c.recent.telling() {
		return
	}
	b, err := c.recentBundle(ctx, m)
	if err == nil && b != nil {
		err = access.Put(ctx, c.repo, &access.Profile{Snapshot: m.ID, Bundle: b})
	}
	if err != nil {
		c.repo.Logger.Info("access profile from the times of files", "err", err)
	}
}

// recentBundle bundles the files that were read, in that order, and the tree pages
// that lead to them.
func (c *creator) recentBundle(ctx context.Context, m *manifest.Manifest) ([]byte, error) {
	slices.SortStableFunc(c.recent.files, func(a, b recentFile) int { return cmp.Compare(a.at.Nano(), b.at.Nano()) })
	pages := &bundledPages{repo: c.repo, to: access.NewBundler(c.repo.Codec), room: access.MaxBundle}
	tree, err := m.Tree(pages)
	if err != nil {
		return nil, err
	}
	var e manifest.Entry
	var buf []byte
	for _, f := range c.recent.files {
		if _, err := tree.Lookup(ctx, f.key, &e); err != nil {
			return nil, err
		}
		if e.Type != manifest.File || e.Spill != nil || e.Size > uint64(pages.room) {
			continue
		}
		if err := c.bundleFile(&e, pages, &buf); err != nil {
			c.repo.Logger.Info("access profile from the times of files", "path", e.Path(), "err", err)
		}
	}
	return pages.to.Finish(), nil
}

// bundleFile adds a file's chunks, if it still holds what was stored.
func (c *creator) bundleFile(e *manifest.Entry, to *bundledPages, buf *[]byte) error {
	dir, err := fsys.OpenBelow(c.root, e.Dir, fsys.OpenPath|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	fd, err := openFile(dir, e.Name)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), e.Name)
	defer f.Close()
	offset := int64(0)
	for i := range e.Extents {
		x := &e.Extents[i]
		offset += int64(x.Hole)
		*buf = slices.Grow((*buf)[:0], int(x.Length))[:x.Length]
		if _, err := io.ReadFull(io.NewSectionReader(f, offset, int64(x.Length)), *buf); err != nil {
			return err
		}
		if c.repo.Hasher.Sum(*buf) != x.ID {
			return errors.New("it changed since it was stored")
		}
		to.add(x.ID, *buf, false)
		offset += int64(x.Length)
	}
	return nil
}

// bundledPages bundles what is read of a tree, and what else it is given, once.
type bundledPages struct {
	repo *repo.Repo
	to   *access.Bundler
	room int
	have map[chunk.ID]bool
}

// Page is manifest.PageSource.
func (p *bundledPages) Page(ctx context.Context, ref manifest.PageRef) ([]byte, error) {
	page, err := p.repo.Page(ctx, ref)
	if err == nil {
		p.add(ref.ID, page, true)
	}
	return page, err
}

func (p *bundledPages) add(id chunk.ID, data []byte, page bool) {
	if p.have[id] || len(data) > p.room {
		return
	}
	if p.have == nil {
		p.have = map[chunk.ID]bool{}
	}
	p.have[id] = true
	if p.to.Add(id, data, page) {
		p.room -= len(data)
	} else {
		p.room = 0
	}
}

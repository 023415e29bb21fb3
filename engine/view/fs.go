// Package view reads snapshots where they are: as a file system of io/fs, as a tar archive,
// by patterns, and by what differs from one to another.
//
// Its users are those of engine, which makes an [FS] by Repository.FS and has other names
// for these types; the functions of this package are engine's.
package view

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync/atomic"

	"github.com/snapctl/snapctl/engine/internal/read"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
)

// An FS is a snapshot as an [fs.FS], read from the repository as it is
// asked for, with nothing mounted: looking up a name takes the few pages of the
// tree on the way to it, and reading takes the frames that hold what is read. No
// byte is given that was not checked against the snapshot. It is safe for
// parallel use, and holds a bounded amount of memory.
//
// Names are those of io/fs: paths from the root of the snapshot, which is ".".
// Files of other names, which are not UTF-8, are listed but cannot be opened by
// Open and its like; [FS.OpenPath] takes any bytes. Symbolic links are
// followed inside the snapshot only: one that is absolute, or leads above the
// root, is an error. Lstat and ReadLink do not follow the last one.
//
// Regular files are also io.Seeker, io.ReaderAt and io.WriterTo, directories
// fs.ReadDirFile. One file's Read and Seek are not for parallel use; ReadAt is.
// FileInfo.Sys gives a [*FileAttr], and every fs.FileInfo and fs.DirEntry is a
// [*FileInfo].
//
// Errors are *fs.PathError, and ErrIntegrity where the repository is damaged.
type FS struct {
	Snapshot snapshot.Snapshot

	ctx    context.Context
	tree   *manifest.Tree
	source *source
}

var (
	_ fs.ReadDirFS  = (*FS)(nil)
	_ fs.ReadFileFS = (*FS)(nil)
	_ fs.StatFS     = (*FS)(nil)
	_ fs.ReadLinkFS = (*FS)(nil)
)

// Open is engine.Repository.FS.
func Open(ctx context.Context, r *repo.Repo, ref string) (*FS, error) {
	m, err := r.ManifestOf(ctx, ref)
	if err != nil {
		return nil, err
	}
	return newSource(ctx, r).fs(ctx, m)
}

// source reads chunks and pages, for any number of snapshots.
type source struct {
	chunks *read.Chunks
	// whole is set when all of a tree, or much of it, will be read.
	whole atomic.Bool
}

func newSource(ctx context.Context, r *repo.Repo) *source {
	return &source{chunks: read.New(ctx, r, r.PackStore(), read.Memory)}
}

// OpenWhole opens a snapshot of which the whole tree will be read.
func OpenWhole(ctx context.Context, r *repo.Repo, m *manifest.Manifest) (*FS, error) {
	c := newSource(ctx, r)
	c.whole.Store(true)
	return c.fs(ctx, m)
}

func (c *source) fs(ctx context.Context, m *manifest.Manifest) (*FS, error) {
	tree, err := m.Tree(c)
	if err != nil {
		return nil, fmt.Errorf("snapshot %v: %w", m.ID, repo.Integrity(err))
	}
	return &FS{Snapshot: *repo.SnapshotOf(&m.Info), ctx: ctx, tree: tree, source: c}, nil
}

// Page is manifest.PageSource. repo.Repo.Page has the rest of the pack follow,
// which whoever wants but one file has no use for.
func (c *source) Page(ctx context.Context, ref manifest.PageRef) ([]byte, error) {
	if c.whole.Load() {
		return c.chunks.Repo.Page(ctx, ref)
	}
	page, err := c.Chunk(ctx, &manifest.Extent{ID: ref.ID, Location: ref.Location()})
	if err != nil {
		return nil, fmt.Errorf("tree page: %w", err)
	}
	return page, nil
}

// inside is the path that the tree has for a name of io/fs.
func inside(name string) (string, error) {
	switch {
	case !fs.ValidPath(name):
		return "", fs.ErrInvalid
	case name == ".":
		return "", nil
	}
	return name, nil
}

// Tree is the snapshot's tree. It is read from the repository as it is gone through.
func (s *FS) Tree() *manifest.Tree { return s.tree }

// pathError is an error about a path, such as the methods of fs.FS give.
func pathError(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: name, Err: repo.Integrity(err)}
}

// Open opens a file, or a directory, and reads nothing of it yet.
func (s *FS) Open(name string) (fs.File, error) {
	p, err := inside(name)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return s.open(name, p)
}

// OpenPath is Open for a path of any bytes, as a shell has it: slashes at its
// ends and "." do not matter. Nothing but ".." is refused.
func (s *FS) OpenPath(name string) (fs.File, error) {
	p, err := CleanPath(name)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return s.open(name, p)
}

func (s *FS) open(name, p string) (fs.File, error) {
	info, err := s.find(p, true)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	if info.IsDir() {
		return &directory{handle: handle{fs: s, info: info}}, nil
	}
	return &file{handle: handle{fs: s, info: info}}, nil
}

// Stat describes what a name leads to.
func (s *FS) Stat(name string) (fs.FileInfo, error) { return s.stat("stat", name, true) }

// Lstat describes a name, and where that is a symbolic link, the link.
func (s *FS) Lstat(name string) (fs.FileInfo, error) { return s.stat("lstat", name, false) }

// LstatPath is Lstat for a path as OpenPath takes it.
func (s *FS) LstatPath(name string) (*FileInfo, error) {
	p, err := CleanPath(name)
	if err == nil {
		var info *FileInfo
		if info, err = s.find(p, false); err == nil {
			return info.small(), nil
		}
	}
	return nil, pathError("lstat", name, err)
}

func (s *FS) stat(op, name string, follow bool) (fs.FileInfo, error) {
	p, err := inside(name)
	if err == nil {
		var info *FileInfo
		if info, err = s.find(p, follow); err == nil {
			return info.small(), nil
		}
	}
	return nil, pathError(op, name, err)
}

// ReadLink gives what a symbolic link points to, as it was stored.
func (s *FS) ReadLink(name string) (string, error) {
	p, err := inside(name)
	if err == nil {
		var info *FileInfo
		if info, err = s.find(p, false); err == nil {
			if info.entry.Type == manifest.Symlink {
				return info.entry.Target, nil
			}
			err = fs.ErrInvalid
		}
	}
	return "", pathError("readlink", name, err)
}

// ReadDir lists a directory, sorted by name.
func (s *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	f, err := s.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	dir, ok := f.(fs.ReadDirFile)
	if !ok {
		return nil, pathError("readdir", name, errNotDir)
	}
	return dir.ReadDir(-1)
}

// ReadFile reads a whole file.
func (s *FS) ReadFile(name string) ([]byte, error) {
	f, err := s.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	reg, ok := f.(*file)
	if !ok {
		return nil, pathError("read", name, errIsDir)
	}
	if reg.info.entry.Size > maxWhole {
		return nil, pathError("read", name, errors.New("file too large to be read whole"))
	}
	b := make([]byte, reg.info.entry.Size)
	if _, err := reg.ReadAt(b, 0); err != nil && len(b) > 0 {
		return nil, err
	}
	return b, nil
}

// maxWhole is the largest file in bytes that ReadFile makes room for: a snapshot may say of
// a file that it has any size, and hold nothing but a hole.
const maxWhole = 4 << 30

// small is the info without what only reading needs.
func (i *FileInfo) small() *FileInfo {
	i.entry.Extents, i.entry.Spill = nil, nil
	return i
}

// Info describes an entry of a cursor over Tree, and takes copies of the slices that the
// cursor uses again.
func (s *FS) Info(rank uint64, e *manifest.Entry) (*FileInfo, error) {
	i := NewFileInfo(e.Path(), "", 0, e)
	var err error
	if e.Type == manifest.Link {
		// Not into the cursor's entry.
		i.entry.Extents, i.entry.Xattrs = nil, nil
		i.first = e.First.Path()
		rank, err = s.tree.Resolve(s.ctx, rank, &i.entry)
	} else {
		i.entry.Xattrs = slices.Clone(e.Xattrs)
	}
	i.inode = rank + 1
	return i.small(), err
}

// Chunk is manifest.ChunkSource.
func (c *source) Chunk(ctx context.Context, x *manifest.Extent) ([]byte, error) {
	return c.chunks.Chunk(ctx, x)
}

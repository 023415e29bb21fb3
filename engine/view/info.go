package view

import (
	"io/fs"
	"path"
	"time"

	"github.com/snapctl/snapctl/manifest"
)

// FileInfo describes a file of a snapshot. It is an fs.FileInfo and an
// fs.DirEntry.
type FileInfo struct {
	name  string
	path  string
	first string         // of a hard link, else ""
	inode uint64         // rank and 1
	entry manifest.Entry // of a hard link, that of the first name
}

// NewFileInfo describes an entry that is at a path, "" for the root of the snapshot. If it
// is a hard link, first is the path of the first name, else "".
func NewFileInfo(at, first string, inode uint64, e *manifest.Entry) *FileInfo {
	i := &FileInfo{path: at, name: path.Base(at), first: first, inode: inode, entry: *e}
	if at == "" {
		i.name = "."
	}
	return i
}

var (
	_ fs.FileInfo = (*FileInfo)(nil)
	_ fs.DirEntry = (*FileInfo)(nil)
)

// FileAttr is what FileInfo.Sys gives.
type FileAttr struct {
	// Path is from the root of the snapshot, without symbolic links on the way,
	// and "" for the root. It need not be UTF-8.
	Path string
	// Inode is one number for all names of a file, the one that a mount shows.
	Inode    uint64
	Links    uint32 // names that the file had, those outside of the snapshot too; of a directory 1
	First    string // where the name is a hard link to an earlier one, that one's path; else ""
	UID, GID uint32
	Target   string          // of a symbolic link
	Device   manifest.Device // of a device
	Xattrs   []manifest.Xattr
}

// Path is FileAttr.Path.
func (i *FileInfo) Path() string { return i.path }

// Name is the last element of the path that was asked for, or listed.
func (i *FileInfo) Name() string { return i.name }

// Size is in bytes, holes included; of a symbolic link, that of its target.
func (i *FileInfo) Size() int64 {
	if i.entry.Type == manifest.Symlink {
		return int64(len(i.entry.Target))
	}
	return int64(i.entry.Size)
}

// ModTime is to the nanosecond.
func (i *FileInfo) ModTime() time.Time { return i.entry.Mtime.Time() }

// IsDir is Mode().IsDir().
func (i *FileInfo) IsDir() bool { return i.entry.Type == manifest.Dir }

// Type is Mode().Type().
func (i *FileInfo) Type() fs.FileMode { return i.Mode().Type() }

// Info is the FileInfo itself.
func (i *FileInfo) Info() (fs.FileInfo, error) { return i, nil }

// String is for messages.
func (i *FileInfo) String() string { return fs.FormatFileInfo(i) }

// Sys gives a new *FileAttr.
func (i *FileInfo) Sys() any {
	e := &i.entry
	return &FileAttr{
		Path: i.path, Inode: i.inode, Links: max(e.Links, 1), First: i.first, UID: e.UID, GID: e.GID,
		Target: e.Target, Device: e.Device, Xattrs: e.Xattrs,
	}
}

// Mode is the type and the permission bits.
func (i *FileInfo) Mode() fs.FileMode {
	e := &i.entry
	m := fs.FileMode(e.Mode & 0o777)
	for _, b := range [...]struct {
		bit  uint32
		mode fs.FileMode
	}{{0o4000, fs.ModeSetuid}, {0o2000, fs.ModeSetgid}, {0o1000, fs.ModeSticky}} {
		if e.Mode&b.bit != 0 {
			m |= b.mode
		}
	}
	switch e.Type {
	case manifest.Dir:
		m |= fs.ModeDir
	case manifest.Symlink:
		m |= fs.ModeSymlink
	case manifest.Fifo:
		m |= fs.ModeNamedPipe
	case manifest.CharDevice:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case manifest.BlockDevice:
		m |= fs.ModeDevice
	}
	return m
}

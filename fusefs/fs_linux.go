package fusefs

import (
	"context"
	"errors"
	"math"
	"os"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// A Source gives the contents of files.
type Source = manifest.ChunkSource

// forever is how long the kernel may keep what it was told: as long as it can
// count, in whole seconds.
const forever = math.MaxInt32 * time.Second

// snapshotFS is the file system of one snapshot.
type snapshotFS struct {
	fuse.RawFileSystem // ENOSYS, or EROFS by the kernel, for what a reader never asks
	tree               *manifest.Tree
	src                Source
	info               *manifest.Info
	view               View
	denied             denied
	fail               func(op, path string, err error)
	errors             atomic.Int64

	serving context.Context // ends with the mount
	ahead   *ahead          // from Init on
	mounted atomic.Bool     // Mount has returned, or is about to
}

var _ fuse.RawFileSystem = (*snapshotFS)(nil)

func newFS(serving context.Context, m *manifest.Manifest, tree *manifest.Tree, src Source, o *Options) *snapshotFS {
	return &snapshotFS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), tree: tree, src: src, info: &m.Info, view: o.View, denied: deniedHere(), fail: o.Fail, serving: serving,
	}
}

// Init is called before the first request.
func (f *snapshotFS) Init(server *fuse.Server) {
	f.ahead = newAhead(f.serving, f, server.InodeNotifyStoreCache)
}

func (f *snapshotFS) String() string { return "snapctl" }

// entry reads the entry of an inode.
func (f *snapshotFS) entry(ctx context.Context, inode uint64, e *manifest.Entry) error {
	err := f.tree.At(ctx, inode-1, e)
	if err == nil {
		_, err = f.resolve(ctx, inode-1, e)
	}
	return err
}

// resolve makes a hard link the file that it is a name of, and tells the rank by which
// that is known. Where each name is a file, it is one of its own rank, directory and name.
func (f *snapshotFS) resolve(ctx context.Context, rank uint64, e *manifest.Entry) (uint64, error) {
	at := e.Key()
	first, err := f.tree.Resolve(ctx, rank, e)
	if !f.view.splits() {
		return first, err
	}
	e.Dir, e.Name = at.Dir, at.Name
	return rank, err
}

func (f *snapshotFS) Lookup(cancel <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	ctx := begin(cancel)
	defer ctx.end()
	if len(name) > manifest.MaxName { // the kernel's own limit is 1024
		return fuse.Status(unix.ENAMETOOLONG)
	}
	var e manifest.Entry
	if err := f.entry(ctx, header.NodeId, &e); err != nil {
		return f.status(ctx, "lookup", name, err)
	}
	dir := e.Path()
	rank, err := f.tree.Lookup(ctx, manifest.Key{Dir: dir, Name: name}, &e)
	if err == nil {
		rank, err = f.resolve(ctx, rank, &e)
	}
	if errors.Is(err, manifest.ErrNotExist) || err == nil && f.view.hides(name, &e) {
		// An entry without an inode: the kernel remembers that there is none.
		out.NodeId = 0
		out.SetEntryTimeout(forever)
		return fuse.OK
	}
	if err != nil {
		return f.status(ctx, "lookup", manifest.Join(dir, name), err)
	}
	f.fillEntry(out, rank, &e)
	return fuse.OK
}

func (f *snapshotFS) fillEntry(out *fuse.EntryOut, rank uint64, e *manifest.Entry) {
	out.NodeId = rank + 1
	out.Generation = 1
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	f.fillAttr(&out.Attr, rank, e)
}

var modes = [...]uint32{
	manifest.File: fuse.S_IFREG, manifest.Dir: fuse.S_IFDIR, manifest.Symlink: fuse.S_IFLNK, manifest.Fifo: fuse.S_IFIFO,
	manifest.CharDevice: 0o020000, manifest.BlockDevice: 0o060000, manifest.Link: fuse.S_IFREG,
}

func (f *snapshotFS) fillAttr(a *fuse.Attr, rank uint64, e *manifest.Entry) {
	a.Ino = f.view.inode(rank)
	a.Mode = modes[e.Type] | e.Mode
	a.Nlink = f.view.links(e)
	a.Uid, a.Gid = e.UID, e.GID
	a.Atime, a.Mtime, a.Ctime = uint64(e.Mtime.Sec), uint64(e.Mtime.Sec), uint64(e.Mtime.Sec)
	a.Atimensec, a.Mtimensec, a.Ctimensec = e.Mtime.Nsec, e.Mtime.Nsec, e.Mtime.Nsec
	a.Blksize = 4096
	switch e.Type {
	case manifest.File:
		a.Size = e.Size
		a.Blocks = (dataBytes(e) + 511) / 512
	case manifest.Symlink:
		a.Size = uint64(len(e.Target))
	case manifest.CharDevice, manifest.BlockDevice:
		a.Rdev = rdev(e.Device)
	}
}

// dataBytes is what a file's data take without its holes; with those, where only
// its pages of extents would tell.
func dataBytes(e *manifest.Entry) (n uint64) {
	if e.Spill != nil {
		return e.Size
	}
	for i := range e.Extents {
		n += uint64(e.Extents[i].Length)
	}
	return n
}

// rdev is a device number as the FUSE protocol has it, in 32 bits.
func rdev(d manifest.Device) uint32 {
	return d.Minor&0xff | d.Major<<8 | d.Minor&^0xff<<12
}

func (f *snapshotFS) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	ctx := begin(cancel)
	defer ctx.end()
	if in.NodeId == fuse.FUSE_ROOT_ID && !f.mounted.Load() {
		// It is go-fuse that asks, on behalf of a name that it made up, and Mount
		// waits: not for a page from far away. The kernel does not remember this.
		out.Attr = fuse.Attr{Ino: fuse.FUSE_ROOT_ID, Mode: fuse.S_IFDIR | 0o500, Nlink: 1, Blksize: 4096}
		out.Attr.Uid, out.Attr.Gid = uint32(os.Geteuid()), uint32(os.Getegid())
		return fuse.OK
	}
	var e manifest.Entry
	if err := f.entry(ctx, in.NodeId, &e); err != nil {
		return f.status(ctx, "stat", "", err)
	}
	f.fillAttr(&out.Attr, in.NodeId-1, &e)
	out.SetTimeout(forever)
	return fuse.OK
}

func (f *snapshotFS) Readlink(cancel <-chan struct{}, header *fuse.InHeader) ([]byte, fuse.Status) {
	ctx := begin(cancel)
	defer ctx.end()
	var e manifest.Entry
	if err := f.entry(ctx, header.NodeId, &e); err != nil {
		return nil, f.status(ctx, "readlink", "", err)
	}
	if e.Type != manifest.Symlink {
		return nil, fuse.EINVAL
	}
	return []byte(e.Target), fuse.OK
}

// Open and OpenDir answer ENOSYS: the kernel then opens without asking, and
// keeps pages and listings. There are no handles, and nothing to release.
func (f *snapshotFS) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

// OpenDir: see Open.
func (f *snapshotFS) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

// Flush answers ENOSYS, which saves a round trip for every close.
func (f *snapshotFS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Ioctl answers ENOTTY: overlayfs gives up a copy-up at any other error.
func (f *snapshotFS) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return fuse.Status(unix.ENOTTY)
}

func (f *snapshotFS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	const block = 4096
	out.Bsize, out.Frsize, out.NameLen = block, block, manifest.MaxName
	out.Blocks = (f.info.Bytes + block - 1) / block
	out.Files = f.tree.Len()
	return fuse.OK
}

// Errors is the number of requests that failed for want of data.
func (f *snapshotFS) Errors() int64 { return f.errors.Load() }

//go:build linux

package engine

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A powerDisk is a file system in memory, mounted by FUSE, that writes down every
// change that the kernel asks of it, and every sync. It lies below the file store:
// no call of the store's can change something and not be seen here.
type powerDisk struct {
	dir string

	mu      sync.Mutex
	journal []diskOp
	inodes  uint64
}

type diskOpKind int

const (
	diskLink   diskOpKind = iota // a name in a directory, of a new inode or of one that was renamed
	diskUnlink                   // a name in a directory
	diskWrite                    // bytes of a file
	diskResize                   // of a file
	diskSync                     // of a file or a directory
)

// A diskOp is one entry of a journal. Inode 1 is the root.
type diskOp struct {
	kind   diskOpKind
	ino    uint64 // the file, or the directory
	name   string // in the directory
	child  uint64 // that the name is of
	isDir  bool   // the child, or what is synced
	offset int64
	data   []byte
}

func (op diskOp) String() string {
	name := [...]string{"link", "unlink", "write", "resize", "sync"}[op.kind]
	return fmt.Sprintf("%s of %d (name %q of %d, %d bytes at %d)", name, op.ino, op.name, op.child, len(op.data), op.offset)
}

// newPowerDisk mounts one for the time of the test.
func newPowerDisk(t testing.TB) *powerDisk {
	t.Helper()
	d := &powerDisk{dir: t.TempDir(), inodes: 1}
	server, err := gofs.Mount(d.dir, &diskNode{disk: d, ino: 1, isDir: true}, &gofs.Options{
		MountOptions: fuse.MountOptions{DirectMount: true, FsName: "snapctl-power-test"},
	})
	if err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// now is how long the journal is.
func (d *powerDisk) now() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.journal)
}

// diskNode is a file or a directory. The names in it go-fuse keeps.
type diskNode struct {
	gofs.Inode
	disk  *powerDisk
	ino   uint64
	isDir bool

	// Under disk.mu:
	data  []byte
	mode  uint32
	mtime time.Time
}

var (
	_ gofs.NodeCreater   = (*diskNode)(nil)
	_ gofs.NodeMkdirer   = (*diskNode)(nil)
	_ gofs.NodeRenamer   = (*diskNode)(nil)
	_ gofs.NodeUnlinker  = (*diskNode)(nil)
	_ gofs.NodeGetattrer = (*diskNode)(nil)
	_ gofs.NodeSetattrer = (*diskNode)(nil)
	_ gofs.NodeOpener    = (*diskNode)(nil)
	_ gofs.NodeReader    = (*diskNode)(nil)
	_ gofs.NodeWriter    = (*diskNode)(nil)
	_ gofs.NodeFsyncer   = (*diskNode)(nil)
)

// do makes a change, and its entry in the journal.
func (n *diskNode) do(op diskOp, change func()) {
	n.disk.mu.Lock()
	defer n.disk.mu.Unlock()
	if change != nil {
		change()
	}
	n.disk.journal = append(n.disk.journal, op)
}

func (n *diskNode) newChild(ctx context.Context, name string, mode uint32) *gofs.Inode {
	isDir := mode&unix.S_IFMT == unix.S_IFDIR
	n.disk.mu.Lock()
	n.disk.inodes++
	child := &diskNode{disk: n.disk, ino: n.disk.inodes, isDir: isDir, mode: mode & 0o7777, mtime: time.Now()}
	n.disk.mu.Unlock()
	inode := n.NewPersistentInode(ctx, child, gofs.StableAttr{Mode: mode, Ino: child.ino})
	n.do(diskOp{kind: diskLink, ino: n.ino, name: name, child: child.ino, isDir: isDir}, nil)
	return inode
}

func (n *diskNode) Create(ctx context.Context, name string, _ uint32, mode uint32, out *fuse.EntryOut) (*gofs.Inode, gofs.FileHandle, uint32, syscall.Errno) {
	inode := n.newChild(ctx, name, unix.S_IFREG|mode)
	return inode, nil, 0, inode.Operations().(*diskNode).attr(&out.Attr)
}

func (n *diskNode) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	inode := n.newChild(ctx, name, unix.S_IFDIR|mode)
	return inode, inode.Operations().(*diskNode).attr(&out.Attr)
}

func (n *diskNode) Unlink(_ context.Context, name string) syscall.Errno {
	n.do(diskOp{kind: diskUnlink, ino: n.ino, name: name}, nil)
	return 0
}

func (n *diskNode) Rename(_ context.Context, name string, to gofs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	if flags&^unix.RENAME_NOREPLACE != 0 {
		return syscall.EINVAL
	}
	dir := to.(*diskNode)
	if flags != 0 && dir.GetChild(newName) != nil {
		return syscall.EEXIST
	}
	child := n.GetChild(name).Operations().(*diskNode)
	n.do(diskOp{kind: diskLink, ino: dir.ino, name: newName, child: child.ino, isDir: child.isDir}, nil)
	n.do(diskOp{kind: diskUnlink, ino: n.ino, name: name}, nil)
	return 0
}

func (n *diskNode) attr(out *fuse.Attr) syscall.Errno {
	n.disk.mu.Lock()
	defer n.disk.mu.Unlock()
	out.Ino, out.Nlink, out.Size = n.ino, 1, uint64(len(n.data))
	out.Mode = unix.S_IFREG | n.mode
	if n.isDir {
		out.Mode = unix.S_IFDIR | n.mode | 0o700
	}
	out.SetTimes(nil, &n.mtime, nil)
	return 0
}

func (n *diskNode) Getattr(_ context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	return n.attr(&out.Attr)
}

func (n *diskNode) Setattr(_ context.Context, _ gofs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if mode, ok := in.GetMode(); ok {
		n.disk.mu.Lock()
		n.mode = mode & 0o7777
		n.disk.mu.Unlock()
	}
	if size, ok := in.GetSize(); ok {
		n.do(diskOp{kind: diskResize, ino: n.ino, offset: int64(size)}, func() { n.data = resized(n.data, int(size)) })
	}
	return n.attr(&out.Attr)
}

func resized(b []byte, size int) []byte {
	if size <= len(b) {
		return slices.Clone(b[:size])
	}
	return append(slices.Clone(b), make([]byte, size-len(b))...)
}

func (n *diskNode) Open(context.Context, uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

func (n *diskNode) Read(_ context.Context, _ gofs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n.disk.mu.Lock()
	defer n.disk.mu.Unlock()
	if off >= int64(len(n.data)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(dest[:copy(dest, n.data[off:])]), 0
}

func (n *diskNode) Write(_ context.Context, _ gofs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	op := diskOp{kind: diskWrite, ino: n.ino, offset: off, data: slices.Clone(data)}
	n.do(op, func() { n.data, n.mtime = op.onto(n.data, len(data)), time.Now() })
	return uint32(len(data)), 0
}

// onto gives contents after the first kept bytes of a write.
func (op *diskOp) onto(b []byte, kept int) []byte {
	end := int(op.offset) + kept
	b = resized(b, max(end, len(b)))
	copy(b[op.offset:end], op.data)
	return b
}

func (n *diskNode) Fsync(context.Context, gofs.FileHandle, uint32) syscall.Errno {
	n.do(diskOp{kind: diskSync, ino: n.ino, isDir: n.isDir}, nil)
	return 0
}

// diskImage is what a disk holds after a power loss: files by path, and nil for
// directories.
type diskImage map[string][]byte

// A lossFate says what becomes of a change that no sync had made durable. Names are
// kept or not one by one, so that of a rename one half may be kept; of contents
// everything is, nothing, a part, or as many zeros.
type lossFate func(op *diskOp) (keep bool, bytes int, zeros bool)

func allSurvive(op *diskOp) (bool, int, bool) { return true, len(op.data), false }

func noneSurvives(*diskOp) (bool, int, bool) { return false, 0, false }

func someSurvive(r *rand.Rand) lossFate {
	return func(op *diskOp) (bool, int, bool) {
		n := len(op.data)
		switch r.IntN(4) {
		case 0:
			n = r.IntN(n + 1)
		case 1:
			return true, n, true
		}
		return r.IntN(2) == 0, n, false
	}
}

// cut gives what a disk holds if the power fails after the first n entries of a
// journal.
func cut(journal []diskOp, n int, survive lossFate) diskImage {
	// Going backwards: whether a later entry syncs what this one changes.
	settled := make([]bool, n)
	synced := map[uint64]bool{}
	for i := n - 1; i >= 0; i-- {
		if journal[i].kind == diskSync {
			synced[journal[i].ino] = true
		}
		settled[i] = synced[journal[i].ino]
	}
	files := map[uint64][]byte{}
	dirs := map[uint64]map[string]uint64{1: {}}
	for i := range n {
		op := journal[i]
		if op.kind == diskLink && op.isDir && dirs[op.child] == nil {
			dirs[op.child] = map[string]uint64{}
		}
		if op.kind == diskSync {
			continue
		}
		keep, kept, zeros := true, len(op.data), false
		if !settled[i] {
			keep, kept, zeros = survive(&op)
		}
		if !keep {
			continue
		}
		if zeros {
			op.data = make([]byte, len(op.data))
		}
		switch op.kind {
		case diskLink:
			dirs[op.ino][op.name] = op.child
		case diskUnlink:
			delete(dirs[op.ino], op.name)
		case diskWrite:
			files[op.ino] = op.onto(files[op.ino], kept)
		case diskResize:
			files[op.ino] = resized(files[op.ino], int(op.offset))
		}
	}
	img := diskImage{}
	var visit func(dir uint64, path string)
	visit = func(dir uint64, path string) {
		for name, child := range dirs[dir] {
			p := filepath.Join(path, name)
			if _, isDir := dirs[child]; isDir {
				img[p] = nil
				visit(child, p)
			} else {
				img[p] = append([]byte{}, files[child]...)
			}
		}
	}
	visit(1, "")
	return img
}

// key tells images apart.
func (img diskImage) key() string {
	var b strings.Builder
	for _, path := range slices.Sorted(maps.Keys(img)) {
		fmt.Fprintf(&b, "%q %t %q\n", path, img[path] == nil, img[path])
	}
	return b.String()
}

// write makes an image a directory.
func (img diskImage) write(dir string) error {
	for _, path := range slices.Sorted(maps.Keys(img)) {
		var err error
		if img[path] == nil {
			err = os.Mkdir(filepath.Join(dir, path), 0o700)
		} else {
			err = os.WriteFile(filepath.Join(dir, path), img[path], 0o400)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

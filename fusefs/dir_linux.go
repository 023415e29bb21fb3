package fusefs

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/snapctl/snapctl/manifest"
)

// A directory's entries are one run of the tree. The kernel's offset into a
// listing is 0 before ".", 1 before "..", and 2 plus the place in the run.

func (f *snapshotFS) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(cancel, in, out, false)
}

func (f *snapshotFS) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(cancel, in, out, true)
}

// list adds entries to out until it is full; with plus, their attributes too.
func (f *snapshotFS) list(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList, plus bool) fuse.Status {
	ctx := begin(cancel)
	defer ctx.end()
	var dir manifest.Entry
	if err := f.entry(ctx, in.NodeId, &dir); err != nil {
		return f.status(ctx, "readdir", "", err)
	}
	if dir.Type != manifest.Dir {
		return fuse.ENOTDIR
	}
	path := dir.Path()
	off := in.Offset
	for ; off < 2; off++ {
		dot := fuse.DirEntry{Mode: fuse.S_IFDIR, Name: ".", Ino: f.view.inode(in.NodeId - 1), Off: off + 1}
		if off == 1 {
			// Who the parent is the kernel knows itself.
			dot.Name = ".."
		}
		if !addEntry(out, dot, plus, func(*fuse.EntryOut) {}) {
			return fuse.OK
		}
	}
	err := f.listRun(ctx, path, off, out, plus)
	return f.status(ctx, "readdir", path, err)
}

func (f *snapshotFS) listRun(ctx context.Context, path string, off uint64, out *fuse.DirEntryList, plus bool) error {
	c, err := f.tree.Seek(ctx, manifest.Key{Dir: path, Name: firstName})
	if err != nil {
		return err
	}
	if skip := off - 2; skip > 0 {
		if rank := c.Rank() + skip; rank < f.tree.Len() {
			c, err = f.tree.SeekRank(ctx, rank)
		} else {
			return nil
		}
		if err != nil {
			return err
		}
	}
	var e manifest.Entry
	for {
		rank := c.Rank()
		more, err := c.Next(ctx, &e)
		if err != nil || !more || e.Dir != path {
			return err
		}
		name := e.Name
		if rank, err = f.resolve(ctx, rank, &e); err != nil {
			return err
		}
		if f.view.hides(name, &e) {
			off++
			continue
		}
		d := fuse.DirEntry{Mode: modes[e.Type], Name: name, Ino: f.view.inode(rank), Off: off + 1}
		if !addEntry(out, d, plus, func(o *fuse.EntryOut) { f.fillEntry(o, rank, &e) }) {
			return nil
		}
		off++
	}
}

// firstName comes before every name, and behind the root's own.
const firstName = "\x01"

func addEntry(out *fuse.DirEntryList, d fuse.DirEntry, plus bool, fill func(*fuse.EntryOut)) bool {
	if !plus {
		return out.AddDirEntry(d)
	}
	o := out.AddDirLookupEntry(d)
	if o == nil {
		return false
	}
	fill(o)
	return true
}

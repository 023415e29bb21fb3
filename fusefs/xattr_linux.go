package fusefs

import (
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

func (f *snapshotFS) GetXAttr(cancel <-chan struct{}, header *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	ctx := begin(cancel)
	defer ctx.end()
	var e manifest.Entry
	if err := f.entry(ctx, header.NodeId, &e); err != nil {
		return 0, f.status(ctx, "getxattr", "", err)
	}
	name = f.view.attrOf(name, header.NodeId == fuse.FUSE_ROOT_ID)
	if f.denied.withholds(f.view, name) {
		return 0, fuse.ENOATTR
	}
	i := slices.IndexFunc(e.Xattrs, func(x manifest.Xattr) bool { return x.Name == name })
	if i < 0 {
		return 0, fuse.ENOATTR
	}
	return fill(dest, e.Xattrs[i].Value)
}

func (f *snapshotFS) ListXAttr(cancel <-chan struct{}, header *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	ctx := begin(cancel)
	defer ctx.end()
	var e manifest.Entry
	if err := f.entry(ctx, header.NodeId, &e); err != nil {
		return 0, f.status(ctx, "listxattr", "", err)
	}
	var names []byte
	for _, x := range e.Xattrs {
		if shown := f.view.attr(x.Name, header.NodeId == fuse.FUSE_ROOT_ID); shown != "" && !f.denied.withholds(f.view, x.Name) {
			names = append(append(names, shown...), 0)
		}
	}
	return fill(dest, names)
}

// fill answers as getxattr(2): the size alone if nothing is to be filled.
func fill(dest, value []byte) (uint32, fuse.Status) {
	if len(dest) > 0 && len(dest) < len(value) {
		return uint32(len(value)), fuse.Status(unix.ERANGE)
	}
	copy(dest, value)
	return uint32(len(value)), fuse.OK
}

package fusefs

import (
	"context"
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// errDone ends a walk over extents.
var errDone = errors.New("done")

func (f *snapshotFS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	ctx := begin(cancel)
	defer ctx.end()
	var e manifest.Entry
	err := f.entry(ctx, in.NodeId, &e)
	if err != nil {
		return nil, f.status(ctx, "read", "", err)
	}
	if e.Type != manifest.File {
		return nil, fuse.EINVAL
	}
	f.ahead.read(in.NodeId-1, &e, in.Offset, in.Offset+uint64(in.Size))
	data, err := f.tree.Read(ctx, f.src, &e, in.Offset, buf[:min(len(buf), int(in.Size))])
	if err != nil {
		return nil, f.status(ctx, "read", e.Path(), err)
	}
	return fuse.ReadResultData(data), fuse.OK
}

// Lseek finds data and holes.
func (f *snapshotFS) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	ctx := begin(cancel)
	defer ctx.end()
	var e manifest.Entry
	if err := f.entry(ctx, in.NodeId, &e); err != nil {
		return f.status(ctx, "lseek", "", err)
	}
	if e.Type != manifest.File {
		return fuse.EINVAL
	}
	if in.Offset >= e.Size {
		return fuse.Status(unix.ENXIO)
	}
	at, err := f.seek(ctx, &e, in.Offset, in.Whence == unix.SEEK_DATA)
	if err != nil {
		return f.status(ctx, "lseek", e.Path(), err)
	}
	if at == e.Size && in.Whence == unix.SEEK_DATA {
		return fuse.Status(unix.ENXIO)
	}
	out.Offset = at
	return fuse.OK
}

// seek is the first byte of data, or of a hole, at or behind off; the file's
// size if there is none.
func (f *snapshotFS) seek(ctx context.Context, e *manifest.Entry, off uint64, data bool) (uint64, error) {
	at := off
	found := false
	err := f.tree.ExtentsFrom(ctx, e, off, func(start uint64, x *manifest.Extent) error {
		if data {
			at, found = max(at, start), true
			return errDone
		}
		if start > at { // the hole before the extent
			found = true
			return errDone
		}
		at = start + uint64(x.Length)
		return nil
	})
	if err != nil && !errors.Is(err, errDone) {
		return 0, err
	}
	if data && !found {
		return e.Size, nil
	}
	return min(at, e.Size), nil
}

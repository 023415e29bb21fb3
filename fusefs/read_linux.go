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
	data, err := f.read(ctx, &e, in.Offset, buf[:min(len(buf), int(in.Size))])
	if err != nil {
		return nil, f.status(ctx, "read", e.Path(), err)
	}
	return fuse.ReadResultData(data), fuse.OK
}

// read gives the bytes of a file from off on, as many as buf holds or the file
// has: of one chunk if they lie in it, and else copied into buf.
func (f *snapshotFS) read(ctx context.Context, e *manifest.Entry, off uint64, buf []byte) ([]byte, error) {
	if off >= e.Size {
		return nil, nil
	}
	buf = buf[:min(uint64(len(buf)), e.Size-off)]
	end := off + uint64(len(buf))
	var whole []byte
	done := off // up to here buf is filled
	err := f.tree.ExtentsFrom(ctx, e, off, func(at uint64, x *manifest.Extent) error {
		if at >= end {
			return errDone
		}
		chunk, err := f.src.Chunk(ctx, x)
		if err != nil {
			return err
		}
		if at <= off && end <= at+uint64(len(chunk)) {
			whole = chunk[off-at : end-at]
			return errDone
		}
		first := max(at, off)
		clear(buf[done-off : first-off]) // a hole
		done = first + uint64(copy(buf[first-off:], chunk[first-at:]))
		if done >= end {
			return errDone
		}
		return nil
	})
	if err != nil && !errors.Is(err, errDone) {
		return nil, err
	}
	if whole != nil {
		return whole, nil
	}
	clear(buf[done-off:])
	return buf, nil
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

package view

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"sync/atomic"

	"github.com/snapctl/snapctl/engine/internal/read"
	"github.com/snapctl/snapctl/manifest"
)

// handle is what all open files have.
type handle struct {
	fs     *FS
	info   *FileInfo
	closed atomic.Bool
}

func (f *handle) Stat() (fs.FileInfo, error) {
	if f.closed.Load() {
		return nil, f.error("stat", fs.ErrClosed)
	}
	info := *f.info
	return info.small(), nil
}

func (f *handle) Close() error {
	if f.closed.Swap(true) {
		return f.error("close", fs.ErrClosed)
	}
	return nil
}

func (f *handle) error(op string, err error) error {
	name := f.info.path
	if name == "" {
		name = "."
	}
	return pathError(op, name, err)
}

// A file is open, of any type but a directory. Others than regular files cannot
// be read.
type file struct {
	handle
	off int64
}

var (
	_ io.ReadSeeker = (*file)(nil)
	_ io.ReaderAt   = (*file)(nil)
	_ io.WriterTo   = (*file)(nil)
)

func (f *file) readable() error {
	switch {
	case f.closed.Load():
		return fs.ErrClosed
	case f.info.entry.Type != manifest.File:
		return errors.New("not a regular file")
	}
	return nil
}

func (f *file) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.off)
	f.off += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	err := f.readable()
	if err == nil && off < 0 {
		err = fs.ErrInvalid
	}
	var data []byte
	if err == nil {
		data, err = f.fs.tree.Read(f.fs.ctx, f.fs.source.chunks, &f.info.entry, uint64(off), p)
	}
	if err != nil {
		return 0, f.error("read", err)
	}
	if len(data) < len(p) {
		err = io.EOF
	}
	if len(data) > 0 && &data[0] != &p[0] {
		copy(p, data)
	}
	return len(data), err
}

func (f *file) Seek(offset int64, whence int) (int64, error) {
	if f.closed.Load() {
		return 0, f.error("seek", fs.ErrClosed)
	}
	switch whence {
	case io.SeekCurrent:
		offset += f.off
	case io.SeekEnd:
		offset += int64(f.info.entry.Size)
	}
	if offset < 0 || whence < io.SeekStart || whence > io.SeekEnd {
		return 0, f.error("seek", fs.ErrInvalid)
	}
	f.off = offset
	return offset, nil
}

// WriteTo writes what is left of the file, and reads ahead meanwhile.
func (f *file) WriteTo(w io.Writer) (n int64, err error) {
	if err := f.readable(); err != nil {
		return 0, f.error("read", err)
	}
	e := &f.info.entry
	begin := uint64(f.off)
	out := &read.FileWriter{W: w, At: begin}
	if begin < e.Size {
		err = f.fs.source.chunks.ReadAhead(f.fs.ctx, func(ctx context.Context, emit func(read.Piece) error) error {
			return f.fs.tree.ExtentsFrom(ctx, e, begin, func(at uint64, x *manifest.Extent) error {
				return emit(read.Piece{At: at, Extent: *x})
			})
		}, func(p *read.Piece) error {
			if p.Err != nil {
				return f.error("read", p.Err)
			}
			return out.Data(p.At, p.Data)
		})
		if err == nil {
			err = out.Zeros(e.Size)
		}
	}
	n = int64(out.At) - f.off
	f.off = int64(out.At)
	return n, err
}

// A directory is open.
type directory struct {
	handle
	cursor *manifest.Cursor // nil before the first read
	ended  bool
}

var _ fs.ReadDirFile = (*directory)(nil)

func (d *directory) Read([]byte) (int, error) { return 0, d.error("read", errIsDir) }

// ReadDir gives entries sorted by name, bytewise.
func (d *directory) ReadDir(n int) ([]fs.DirEntry, error) {
	all := []fs.DirEntry{}
	for n <= 0 || len(all) < n {
		info, err := d.next()
		if err != nil {
			return all, d.error("readdir", err)
		}
		if info == nil {
			if n > 0 && len(all) == 0 {
				return all, io.EOF
			}
			break
		}
		all = append(all, info)
	}
	return all, nil
}

// next gives the next entry, nil at the end.
func (d *directory) next() (*FileInfo, error) {
	switch {
	case d.closed.Load():
		return nil, fs.ErrClosed
	case d.ended:
		return nil, nil
	}
	ctx := d.fs.ctx
	if d.cursor == nil {
		c, err := d.fs.tree.Seek(ctx, manifest.Key{Dir: d.info.path})
		if err != nil {
			return nil, err
		}
		d.cursor = c
	}
	var e manifest.Entry
	for {
		rank := d.cursor.Rank()
		more, err := d.cursor.Next(ctx, &e)
		if err != nil {
			return nil, err
		}
		if !more || e.Dir != d.info.path {
			d.ended = true
			return nil, nil
		}
		if e.Name != "" { // the root is in no directory
			return d.fs.Info(rank, &e)
		}
	}
}

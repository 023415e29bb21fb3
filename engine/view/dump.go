package view

import (
	"archive/tar"
	"bufio"
	"context"
	"io"
	"strings"

	"github.com/snapctl/snapctl/engine/internal/read"
	"github.com/snapctl/snapctl/manifest"
)

// Dump writes a directory, or a file, as a tar archive: named as for OpenPath,
// with members named from there on, "./" for the directory itself. It is in the
// PAX format, with times to the nanosecond, numeric owners, extended attributes
// (SCHILY.xattr) with ACLs and capabilities, hard links, devices and FIFOs, and
// the same bytes every time. A hard link whose first name is not in the archive
// is a file. Holes become zeros.
//
// An archive that Dump could not finish has no end, and is cut short in such a
// way that tar fails too.
func (s *FS) Dump(w io.Writer, name string) error {
	p, err := CleanPath(name)
	if err != nil {
		return pathError("dump", name, err)
	}
	top, err := s.find(p, true)
	if err != nil {
		return pathError("dump", name, err)
	}
	if p == "" {
		s.source.whole.Store(true)
	}
	out := &sticky{w: w}
	buf := bufio.NewWriterSize(out, dumpBuffer)
	d := &dumper{fs: s, top: top, tar: tar.NewWriter(buf), firsts: map[manifest.Key]string{}}
	err = s.source.chunks.ReadAhead(s.ctx, d.members, d.write)
	if err == nil {
		err = d.endFile()
	}
	if err == nil {
		err = d.tar.Close()
	} else if out.err == nil && !d.inFile() && d.tar.Flush() == nil {
		// Between two members the archive would seem to be whole.
		_, _ = buf.Write(append([]byte(NoHeader), make([]byte, 512-len(NoHeader))...))
	}
	if ferr := buf.Flush(); ferr != nil {
		return ferr
	}
	return err
}

const (
	dumpBuffer = 256 << 10
	// NoHeader is what stands where the header of the next file would, in an archive that
	// ends because of an error: no reader of archives takes it for one.
	NoHeader = "snapctl: the archive ends here because of an error\n"
)

// sticky remembers that writing failed.
type sticky struct {
	w   io.Writer
	err error
}

func (s *sticky) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	if err != nil {
		s.err = err
	}
	return n, err
}

// dumper is one run of Dump. members runs beside the rest.
type dumper struct {
	fs  *FS
	top *FileInfo
	tar *tar.Writer

	// firsts are, of files whose first name is not in the archive, the names
	// that are first in it.
	firsts map[manifest.Key]string

	file *manifest.Entry // whose contents are being written
	out  read.FileWriter
}

// members emits what goes into the archive. Other than the tree has them, the
// contents of a directory follow it before those of the next, as tar expects:
// else it would set a directory's times before all is in it. Files come in the
// order of the tree, which is that of their packs.
func (d *dumper) members(ctx context.Context, emit func(read.Piece) error) error {
	if d.top.IsDir() {
		if err := d.member(ctx, "./", &d.top.entry, emit); err != nil {
			return err
		}
		return d.dir(ctx, d.top.path, emit)
	}
	return d.member(ctx, "./"+d.top.name, &d.top.entry, emit)
}

// dir emits the files of a directory, and then its directories, each with what
// is in it. It keeps nothing but paths on the way down.
func (d *dumper) dir(ctx context.Context, dir string, emit func(read.Piece) error) error {
	after := ""
	var subdirs bool
	for files := true; files || subdirs; files = false {
		c, err := d.fs.tree.Seek(ctx, manifest.Key{Dir: dir, Name: after})
		if err != nil {
			return err
		}
		sub := ""
		for sub == "" {
			var e manifest.Entry
			more, err := c.Next(ctx, &e)
			if err != nil {
				return err
			}
			if !more || e.Dir != dir {
				break
			}
			isDir := e.Type == manifest.Dir
			subdirs = subdirs || isDir
			if e.Name == "" || isDir == files {
				continue
			}
			name := "./" + strings.TrimPrefix(d.below(e.Path()), "/")
			if isDir {
				sub = e.Name
				name += "/"
			}
			if err := d.member(ctx, name, &e, emit); err != nil {
				return err
			}
		}
		switch {
		case files:
		case sub == "":
			return nil
		default:
			if err := d.dir(ctx, manifest.Join(dir, sub), emit); err != nil {
				return err
			}
			after = sub + "\x00"
		}
	}
	return nil
}

// below is a path from the directory that is dumped on.
func (d *dumper) below(path string) string {
	if d.top.path == "" {
		return path
	}
	return path[len(d.top.path):]
}

// member emits one entry under a name.
func (d *dumper) member(ctx context.Context, name string, e *manifest.Entry, emit func(read.Piece) error) error {
	p := read.Piece{Entry: e}
	if e.Type == manifest.Link {
		first := e.First
		if _, err := d.fs.tree.Resolve(ctx, 0, e); err != nil {
			return err
		}
		if to, ok := d.firsts[first]; ok {
			p.Link = to
		} else if manifest.Within(first.Path(), d.top.path) {
			p.Link = "./" + strings.TrimPrefix(d.below(first.Path()), "/")
		} else {
			d.firsts[first] = name
		}
	}
	e.Dir, e.Name = "", name
	if e.Type != manifest.File || p.Link != "" {
		return emit(p)
	}
	err := d.fs.tree.Extents(ctx, e, func(at uint64, x *manifest.Extent) error {
		p.At, p.Extent = at, *x
		err := emit(p)
		p.Entry = nil
		return err
	})
	if err == nil && p.Entry != nil { // no extents
		err = emit(p)
	}
	return err
}

// write writes a piece.
func (d *dumper) write(p *read.Piece) error {
	if p.Entry != nil {
		if err := d.endFile(); err != nil {
			return err
		}
		h := header(p.Entry, p.Link)
		if err := d.tar.WriteHeader(h); err != nil {
			return pathError("dump", p.Entry.Name, err)
		}
		if h.Typeflag == tar.TypeReg {
			d.file = p.Entry
			d.out = read.FileWriter{W: d.tar, Zero: d.out.Zero}
		}
	}
	switch {
	case p.Err != nil && d.file != nil:
		return pathError("dump", d.file.Name, p.Err)
	case p.Err != nil:
		return pathError("dump", "./", p.Err)
	case p.Extent.Length > 0:
		return d.out.Data(p.At, p.Data)
	}
	return nil
}

// endFile writes the hole at a file's end.
func (d *dumper) endFile() error {
	if d.file == nil {
		return nil
	}
	err := d.out.Zeros(d.file.Size)
	d.file = nil
	return err
}

// inFile reports whether a member's contents are not complete.
func (d *dumper) inFile() bool { return d.file != nil && d.out.At < d.file.Size }

// xattrPrefix is what tar programs agreed on. They also agreed on how a '=',
// which ends a keyword, is written in one.
const xattrPrefix = "SCHILY.xattr."

var xattrKeyword = strings.NewReplacer("%", "%25", "=", "%3D")

var tarTypes = [...]byte{
	manifest.File: tar.TypeReg, manifest.Dir: tar.TypeDir, manifest.Symlink: tar.TypeSymlink, manifest.Fifo: tar.TypeFifo,
	manifest.CharDevice: tar.TypeChar, manifest.BlockDevice: tar.TypeBlock,
}

// header is what the archive says of an entry, whose name is the member's.
func header(e *manifest.Entry, link string) *tar.Header {
	h := &tar.Header{
		Typeflag: tarTypes[e.Type], Format: tar.FormatPAX, Name: e.Name,
		Mode: int64(e.Mode), Uid: int(e.UID), Gid: int(e.GID), ModTime: e.Mtime.Time(),
	}
	switch {
	case link != "":
		h.Typeflag, h.Linkname = tar.TypeLink, link
		return h // the rest is with the first name
	case e.Type == manifest.File:
		h.Size = int64(e.Size)
	case e.Type == manifest.Symlink:
		h.Linkname = e.Target
	}
	h.Devmajor, h.Devminor = int64(e.Device.Major), int64(e.Device.Minor)
	if len(e.Xattrs) > 0 {
		h.PAXRecords = make(map[string]string, len(e.Xattrs))
		for _, x := range e.Xattrs {
			h.PAXRecords[xattrPrefix+xattrKeyword.Replace(x.Name)] = string(x.Value)
		}
	}
	return h
}

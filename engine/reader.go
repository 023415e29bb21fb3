package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/flow"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// readAttempts is how often a file is read that changes while it is read.
const readAttempts = 3

// reader settles the items of batches: it reads, splits and hashes files, and
// reads links and extended attributes. One reader serves many goroutines.
type reader struct {
	root     int
	splitter chunk.Splitter
	hasher   *chunk.Hasher
	lookup   func(chunk.ID) (chunk.Location, bool)
	problem  func(error) // of an item that is not in the snapshot as it should be
	vanished func(path string)
	started  int64 // when the walk started, in seconds
	buffers  *flow.Buffers
	bytes    func(n int64)  // progress
	fork     *overlayReader // of the upper directory of a fork; nil if it is not
}

// openDir keeps the directory open that the item before was in.
type openDir struct {
	root int
	fd   int
	path string
	open bool
}

func (d *openDir) get(path string) (int, error) {
	if d.open && d.path == path {
		return d.fd, nil
	}
	d.close()
	fd, err := fsys.OpenBelow(d.root, path, fsys.OpenPath|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	d.fd, d.path, d.open = fd, path, true
	return fd, nil
}

func (d *openDir) close() {
	if d.open {
		unix.Close(d.fd)
		d.open = false
	}
}

// settle reads what a batch needs. It closes the batch's parts.
func (r *reader) settle(ctx context.Context, b *batch) {
	defer close(b.parts)
	dir := &openDir{root: r.root}
	defer dir.close()
	var p *part
	for i := range b.items {
		it := &b.items[i]
		if !it.settle || ctx.Err() != nil {
			continue
		}
		var err error
		switch {
		case b.stream:
			err = r.streamFile(ctx, dir, b)
		case it.entry.Type == manifest.File:
			if p == nil {
				p = &part{buf: r.buffers.Get()}
			}
			err = r.readFile(ctx, dir, b, i, p)
		default:
			err = r.readMeta(dir, it)
		}
		if err != nil && ctx.Err() == nil {
			if r.fork != nil && r.fork.removed(dir, it) {
				err = unix.ENOENT
			}
			// A directory that is there stays: what is in it was read.
			it.drop = it.entry.Type != manifest.Dir || isGone(err)
			if r.fork == nil || !r.fork.fatal(err) {
				r.report(it, err)
			}
		}
	}
	if p != nil {
		flow.Send(ctx, b.parts, p)
	}
}

func (r *reader) report(it *item, err error) {
	if isGone(err) {
		r.vanished(it.entry.Path())
		return
	}
	r.problem(fmt.Errorf("reading %s %q: %w", it.entry.Type, it.entry.Path(), err))
}

// release gives a part's buffer back.
func (r *reader) release(p *part) {
	if p.buf != nil {
		r.buffers.Put(p.buf)
		p.buf = nil
	}
}

// openFile opens a regular file for reading, leaving its access time alone where
// that is allowed: the first mount of a snapshot goes by access times.
func openFile(dir int, name string) (int, error) {
	// O_NONBLOCK: a FIFO may have taken the file's place.
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY
	fd, err := fsys.OpenAt(dir, name, flags|fsys.OpenUnseen)
	if errors.Is(err, unix.EPERM) {
		fd, err = fsys.OpenAt(dir, name, flags)
	}
	return fd, err
}

var (
	errChanging   = errors.New("it kept changing while it was read; what was read last is kept")
	errNotRegular = errors.New("something else took its place while it was read")
)

// readFile reads a small file into p.
func (r *reader) readFile(ctx context.Context, dir *openDir, b *batch, i int, p *part) error {
	it := &b.items[i]
	parent, err := dir.get(it.entry.Dir)
	if err != nil {
		return err
	}
	fd, err := openFile(parent, it.entry.Name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if it.known {
		same, err := r.restat(fd, it)
		if err != nil {
			return err
		}
		if same {
			r.bytes(it.stat.Size)
			return r.fileXattrs(fd, it)
		}
		it.entry.Extents, it.entry.Spill = nil, nil
	}
	if done, err := r.lowerContents(ctx, fd, it); done || err != nil {
		return err
	}
	if it.bare && it.stat.Size > maxHoleless {
		it.outgrown = true // it may be all hole
		return nil
	}
	start, pieces := len(p.buf), len(p.pieces)
	for attempt := 1; ; attempt++ {
		p.buf, p.pieces = p.buf[:start], p.pieces[:pieces]
		if p.buf, err = readAll(fd, p.buf, int(it.stat.Size)); err != nil {
			return err
		}
		data := p.buf[start:]
		same, err := r.restat(fd, it)
		if err != nil {
			return err
		}
		if !same || int64(len(data)) != it.stat.Size {
			if it.stat.Size > 2*batchBytes {
				// It has outgrown a batch: the assembler has it read as a stream.
				p.buf, it.outgrown = p.buf[:start], true
				return nil
			}
			if attempt < readAttempts {
				continue
			}
			r.problem(fmt.Errorf("reading file %q: %w", it.entry.Path(), errChanging))
			it.print = 0
		}
		it.entry.Size = uint64(len(data))
		for len(data) > 0 {
			n := r.splitter.Next(data)
			p.pieces = append(p.pieces, r.piece(i, 0, data[:n]))
			data = data[n:]
		}
		return r.fileXattrs(fd, it)
	}
}

// readAll appends the file to buf: one read where its size is as expected.
func readAll(fd int, buf []byte, size int) ([]byte, error) {
	start := len(buf)
	for {
		// One byte more than expected, so that the end of the file shows.
		want := max(start+size+1-len(buf), 4<<10)
		buf = slices.Grow(buf, want)
		n, err := fsys.Pread(fd, buf[len(buf):len(buf)+want], int64(len(buf)-start))
		if err != nil {
			return buf, err
		}
		buf = buf[:len(buf)+n]
		if n < want || len(buf)-start > 2*batchBytes {
			return buf, nil
		}
	}
}

// restat looks at the open file again. It makes what it finds the item's
// metadata, and reports whether that is what was there before.
func (r *reader) restat(fd int, it *item) (same bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, err
	}
	now := fsys.DirentOf(it.stat.Name, &st)
	if now.Kind() != unix.S_IFREG {
		return false, errNotRegular
	}
	if it.stat.SameFile(&now) {
		return true, nil
	}
	it.renewed = it.renewed || it.joined || now.Ino != it.stat.Ino || now.Dev != it.stat.Dev
	it.stat = now
	size := it.entry.Size
	it.entry = entryOf(it.entry.Dir, &now)
	it.entry.Size = size
	it.print = fingerprint(&now, r.started)
	return false, nil
}

func (r *reader) piece(i int, hole uint64, data []byte) piece {
	pc := piece{item: i, hole: hole, id: r.hasher.Sum(data), data: data, length: uint32(len(data))}
	pc.loc, pc.known = r.lookup(pc.id)
	r.bytes(int64(len(data)))
	return pc
}

// streamFile reads the file that is a batch of its own, part by part.
func (r *reader) streamFile(ctx context.Context, dir *openDir, b *batch) error {
	it := &b.items[0]
	parent, err := dir.get(it.entry.Dir)
	if err != nil {
		return err
	}
	fd, err := openFile(parent, it.entry.Name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if done, err := r.lowerContents(ctx, fd, it); done || err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		size, err := r.streamOnce(ctx, fd, b)
		if err != nil {
			return err
		}
		same, err := r.restat(fd, it)
		if err != nil {
			return err
		}
		it.entry.Size = uint64(size)
		if same && size == it.stat.Size {
			break
		}
		if attempt == readAttempts {
			r.problem(fmt.Errorf("reading file %q: %w", it.entry.Path(), errChanging))
			it.print = 0
			break
		}
		if !flow.Send(ctx, b.parts, &part{restart: true}) {
			return ctx.Err()
		}
	}
	return r.fileXattrs(fd, it)
}

// streamOnce reads the file once, hole by hole and data by data, and tells how
// long it is.
func (r *reader) streamOnce(ctx context.Context, fd int, b *batch) (size int64, err error) {
	var hole uint64
	for {
		data, end, err := fsys.NextData(fd, size)
		if err != nil {
			return 0, err
		}
		hole += uint64(data - size)
		size = data
		if data == end {
			return size, nil
		}
		n, err := r.streamRun(ctx, fd, data, end, hole, b)
		if err != nil {
			return 0, err
		}
		size += n
		if n > 0 {
			hole = 0
		}
		if size < end {
			return size, nil // cut short meanwhile
		}
	}
}

// streamRun reads the data from off to end and sends its chunks. It tells how
// many bytes there were.
func (r *reader) streamRun(ctx context.Context, fd int, off, end int64, hole uint64, b *batch) (total int64, err error) {
	p := &part{buf: r.buffers.Get()}
	rest := 0 // where in the buffer what is not cut yet begins
	for {
		free := p.buf[len(p.buf):cap(p.buf)]
		free = free[:min(int64(len(free)), end-off)]
		n, err := fsys.Pread(fd, free, off)
		if err != nil {
			return 0, err
		}
		p.buf = p.buf[:len(p.buf)+n]
		off += int64(n)
		total += int64(n)
		done := n == 0 || off == end
		for len(p.buf)-rest >= r.splitter.MaxChunk() || done && rest < len(p.buf) {
			cut := r.splitter.Next(p.buf[rest:])
			p.pieces = append(p.pieces, r.piece(0, hole, p.buf[rest:rest+cut]))
			hole = 0
			rest += cut
		}
		if !done && len(p.buf) < cap(p.buf) {
			continue // a short read
		}
		next := &part{}
		if !done {
			next.buf = append(r.buffers.Get(), p.buf[rest:]...)
		}
		if !flow.Send(ctx, b.parts, p) {
			return 0, ctx.Err()
		}
		if done {
			return total, nil
		}
		p, rest = next, 0
	}
}

// readMeta settles what is not a regular file.
func (r *reader) readMeta(dir *openDir, it *item) error {
	e := &it.entry
	if e.Name == "" {
		return r.xattrs(e, fsys.XattrsAt(r.root, "."))
	}
	parent, err := dir.get(e.Dir)
	if err != nil {
		return err
	}
	if e.Type == manifest.Symlink {
		buf := make([]byte, manifest.MaxTarget+1)
		n, err := unix.Readlinkat(parent, e.Name, buf)
		if err != nil {
			return err
		}
		if n > manifest.MaxTarget {
			return fmt.Errorf("symbolic link of more than %d bytes", manifest.MaxTarget)
		}
		e.Target = string(buf[:n])
	}
	err = r.xattrs(e, fsys.XattrsAt(parent, e.Name))
	if errors.Is(err, unix.ENOENT) && fsys.StatAt(parent, e.Name, new(unix.Stat_t)) == nil {
		return fmt.Errorf("%v; is /proc mounted?", err)
	}
	return err
}

func (r *reader) fileXattrs(fd int, it *item) error {
	// Nearly no file has any: ask before anything is allocated.
	n, err := unix.Flistxattr(fd, nil)
	if n == 0 || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return r.xattrs(&it.entry, fsys.XattrAccess{
		List: func(dest []byte) (int, error) { return unix.Flistxattr(fd, dest) },
		Get:  func(name string, dest []byte) (int, error) { return unix.Fgetxattr(fd, name, dest) },
	})
}

func (r *reader) xattrs(e *manifest.Entry, x fsys.XattrAccess) error {
	names, err := fsys.GrowBuffer(x.List)
	if errors.Is(err, unix.ENOTSUP) || err == nil && len(names) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing extended attributes: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		shown := name
		if fsys.SystemXattr(name) {
			continue
		}
		if r.fork != nil {
			if shown = r.fork.format.shown(name); shown == "" {
				continue
			}
		}
		value, err := fsys.GrowBuffer(func(dest []byte) (int, error) { return x.Get(name, dest) })
		if fsys.IsAny(err, fsys.ErrNoXattr, unix.ENOTSUP) {
			continue // removed meanwhile, or a name that only says that it exists
		}
		if err != nil {
			return fmt.Errorf("extended attribute %q: %w", name, err)
		}
		e.Xattrs = append(e.Xattrs, manifest.Xattr{Name: shown, Value: value})
	}
	slices.SortFunc(e.Xattrs, func(a, b manifest.Xattr) int { return strings.Compare(a.Name, b.Name) })
	size := 0
	for _, a := range e.Xattrs {
		size += len(a.Name) + len(a.Value)
	}
	if len(e.Xattrs) > manifest.MaxXattrs || size > manifest.MaxXattrBytes {
		n := len(e.Xattrs)
		e.Xattrs = nil
		return fmt.Errorf("%d extended attributes of %d bytes: the most are %d and %d", n, size, manifest.MaxXattrs, manifest.MaxXattrBytes)
	}
	return nil
}

package manifest

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sort"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/wire"
)

// Flags of an entry, above the four bits of its type.
const (
	typeMask    = 0x0f
	flagXattrs  = 0x10 // extended attributes follow
	flagSpill   = 0x20 // File: the extents are in pages of their own
	flagHoles   = 0x40 // File: holes before extents are stored
	flagOneFull = 0x80 // File: one extent, as long as the file; number, hole and length are not stored
)

// appendEntry appends the encoding of an entry:
//
//	name         length-prefixed
//	type, flags  byte
//	             and, unless it is a Link:
//	mode         uvarint
//	uid, gid     uvarints
//	seconds      uvarint, zigzag
//	nanoseconds  uvarint
//	links        uvarint
//	             File: size uvarint; then either the spill: level, number and
//	             pages (frame, id, covered bytes); or the number of extents and
//	             extents: hole, frame, offset in the frame, length, id
//	             Symlink: target, length-prefixed
//	             CharDevice, BlockDevice: major, minor uvarints
//	             Link: directory and name of the first entry, length-prefixed
//	xattrs       number, then name and value, length-prefixed
func appendEntry(dst []byte, w *tableWriter, e *Entry) []byte {
	dst = wire.AppendBytes(dst, e.Name)
	if e.Type == Link {
		dst = append(dst, byte(Link))
		return wire.AppendBytes(wire.AppendBytes(dst, e.First.Dir), e.First.Name)
	}
	flags := byte(e.Type)
	if len(e.Xattrs) > 0 {
		flags |= flagXattrs
	}
	if e.Type == File {
		flags |= extentFlags(e)
	}
	dst = append(dst, flags)
	dst = binary.AppendUvarint(dst, uint64(e.Mode))
	dst = binary.AppendUvarint(dst, uint64(e.UID))
	dst = binary.AppendUvarint(dst, uint64(e.GID))
	dst = binary.AppendVarint(dst, e.Mtime.Sec)
	dst = binary.AppendUvarint(dst, uint64(e.Mtime.Nsec))
	dst = binary.AppendUvarint(dst, uint64(e.Links))
	switch e.Type {
	case File:
		dst = binary.AppendUvarint(dst, e.Size)
		dst = appendExtents(dst, w, e, flags)
	case Symlink:
		dst = wire.AppendBytes(dst, e.Target)
	case CharDevice, BlockDevice:
		dst = binary.AppendUvarint(dst, uint64(e.Device.Major))
		dst = binary.AppendUvarint(dst, uint64(e.Device.Minor))
	}
	if flags&flagXattrs != 0 {
		dst = binary.AppendUvarint(dst, uint64(len(e.Xattrs)))
		for _, x := range e.Xattrs {
			dst = wire.AppendBytes(wire.AppendBytes(dst, x.Name), x.Value)
		}
	}
	return dst
}

// extentFlags is the one way in which a file's extents are written.
func extentFlags(e *Entry) byte {
	switch {
	case e.Spill != nil:
		return flagSpill
	case len(e.Extents) == 1 && e.Extents[0].Hole == 0 && uint64(e.Extents[0].Length) == e.Size:
		return flagOneFull
	}
	for i := range e.Extents {
		if e.Extents[i].Hole > 0 {
			return flagHoles
		}
	}
	return 0
}

func appendExtents(dst []byte, w *tableWriter, e *Entry, flags byte) []byte {
	if flags&flagSpill != 0 {
		dst = append(dst, byte(e.Spill.Level))
		return appendSpillRefs(dst, w, e.Spill.Refs)
	}
	if flags&flagOneFull != 0 {
		x := &e.Extents[0]
		dst = binary.AppendUvarint(dst, w.frame(&x.Pack, x.Frame))
		dst = binary.AppendUvarint(dst, uint64(x.Offset))
		return append(dst, x.ID[:]...)
	}
	dst = binary.AppendUvarint(dst, uint64(len(e.Extents)))
	for i := range e.Extents {
		dst = w.appendExtent(dst, &e.Extents[i], flags&flagHoles != 0)
	}
	return dst
}

// entry reads an entry of the directory dir into e, reusing its slices. What it
// reads aliases the page.
func (r *pageReader) entry(e *Entry, dir string) {
	*e = Entry{Dir: dir, Name: r.str("name", MaxName), Extents: e.Extents[:0], Xattrs: e.Xattrs[:0]}
	flags := r.Byte("type")
	e.Type = Type(flags & typeMask)
	if e.Type == Link {
		if flags != byte(Link) {
			r.Failf("hard link with flags %#x", flags)
		}
		e.First.Dir = r.str("hard link directory", MaxPath)
		e.First.Name = r.str("hard link name", MaxName)
		return
	}
	e.Mode = uint32(r.Uvarint("mode", PermMask))
	e.UID = uint32(r.Uvarint("uid", 1<<32-1))
	e.GID = uint32(r.Uvarint("gid", 1<<32-1))
	sec := r.Uvarint("seconds", 1<<64-1)
	e.Mtime.Sec = int64(sec>>1) ^ -int64(sec&1)
	e.Mtime.Nsec = uint32(r.Uvarint("nanoseconds", 1e9-1))
	e.Links = uint32(r.Uvarint("links", 1<<32-1))
	switch e.Type {
	case File:
		e.Size = r.Uvarint("size", 1<<63-1)
		r.extents(e, flags)
	case Symlink:
		e.Target = r.str("target", MaxTarget)
	case CharDevice, BlockDevice:
		e.Device.Major = uint32(r.Uvarint("major", 1<<32-1))
		e.Device.Minor = uint32(r.Uvarint("minor", 1<<32-1))
	}
	if flags&flagXattrs != 0 {
		n := int(r.Uvarint("number of extended attributes", MaxXattrs))
		if n == 0 {
			r.Failf("no extended attributes")
		}
		for range n {
			x := Xattr{Name: r.str("attribute name", MaxXattrName), Value: r.Bytes("attribute value", MaxXattrValue)}
			if r.Err() != nil {
				return
			}
			e.Xattrs = append(e.Xattrs, x)
		}
	}
	want := byte(e.Type) | flags&flagXattrs
	if e.Type == File {
		want |= extentFlags(e)
	}
	if flags != want {
		r.Failf("entry with flags %#x, %#x expected", flags, want)
	}
}

func (r *pageReader) extents(e *Entry, flags byte) {
	switch {
	case flags&flagSpill != 0:
		s := &Spill{Level: int(r.Byte("spill level"))}
		if s.Level > maxLevel {
			r.Failf("spill level %d", s.Level)
		}
		s.Refs = r.spillRefs(MaxInline)
		e.Spill = s
	case flags&flagOneFull != 0:
		e.Extents = append(e.Extents, Extent{})
		x := &e.Extents[0]
		f := r.frame()
		if r.Err() != nil {
			return
		}
		x.Pack, x.Frame = r.packs[f.pack], f.frame
		x.Offset = uint32(r.Uvarint("offset in frame", chunk.MaxFrame))
		copy(x.ID[:], r.Fixed("chunk id", chunk.IDSize))
		if e.Size > chunk.MaxFrame {
			r.Failf("chunk of %d bytes", e.Size)
		}
		x.Length = uint32(e.Size)
	default:
		for range r.Uvarint("number of extents", MaxInline) {
			e.Extents = append(e.Extents, Extent{})
			r.extent(&e.Extents[len(e.Extents)-1], flags&flagHoles != 0)
			if r.Err() != nil {
				return
			}
		}
	}
}

// A Leaf is a decoded page of entries. It is immutable and safe for parallel
// use. Decoding checked all of it, so that reading an entry cannot fail.
type Leaf struct {
	page []byte
	tables
	dirs  []dirRun
	at    []uint32 // where each entry begins in the page
	last  Key
	flags byte
}

type dirRun struct {
	path  string
	first int // the run's first entry
}

// DecodeLeaf decodes and checks a page of entries. It keeps the page.
func DecodeLeaf(page []byte) (*Leaf, error) {
	r, kind, _ := newPageReader(page)
	if r.Err() == nil && kind != leafPage {
		r.Failf("page of kind %d, entries expected", kind)
	}
	l := &Leaf{page: page}
	l.readRuns(r)
	if err := r.close(); err != nil {
		return nil, fmt.Errorf("%w: page of entries: %w", ErrDamaged, err)
	}
	l.tables = r.tables
	return l, nil
}

func (l *Leaf) readRuns(r *pageReader) {
	var e Entry
	runs := r.Count("number of directories", 4)
	if runs == 0 {
		r.Failf("no entries")
	}
	l.dirs = make([]dirRun, 0, runs)
	for i := range runs {
		dir := r.str("directory", MaxPath)
		if err := CheckPath(dir); err != nil {
			r.Failf("%v", err)
		}
		if i > 0 && ComparePaths(dir, l.last.Dir) <= 0 {
			r.Failf("directories out of order")
		}
		l.dirs = append(l.dirs, dirRun{dir, len(l.at)})
		n := r.Count("number of entries", 3)
		if n == 0 {
			r.Failf("directory without entries")
		}
		l.at = slices.Grow(l.at, n)
		for j := range n {
			l.at = append(l.at, uint32(r.Offset()))
			r.entry(&e, dir)
			if r.Err() != nil {
				return
			}
			if e.Name != "" || dir != "" || j > 0 {
				if err := CheckName(e.Name); err != nil {
					r.Failf("%v", err)
				}
			}
			if j > 0 && e.Name <= l.last.Name {
				r.Failf("names out of order")
			}
			if err := e.check(); err != nil {
				r.Failf("entry %q: %v", e.Path(), err)
			}
			l.last = e.Key()
			l.flags |= e.flags()
		}
	}
}

// Len is the number of entries.
func (l *Leaf) Len() int { return len(l.at) }

// Entry reads entry i into e, reusing its slices. Strings and values alias the
// page, which is never changed.
func (l *Leaf) Entry(i int, e *Entry) {
	run := sort.Search(len(l.dirs), func(k int) bool { return l.dirs[k].first > i }) - 1
	l.entryIn(run, i, e)
}

func (l *Leaf) entryIn(run, i int, e *Entry) {
	r := pageReader{tables: l.tables}
	r.Reset(l.page, int(l.at[i]))
	r.entry(e, l.dirs[run].path)
	if r.Err() != nil {
		panic(r.Err()) // DecodeLeaf has read it before
	}
}

// name is the name of entry i, without reading the rest.
func (l *Leaf) name(i int) string {
	var r pageReader
	r.Reset(l.page, int(l.at[i]))
	return r.str("name", MaxName)
}

// search is the first entry whose key is k or later.
func (l *Leaf) search(k Key) int {
	run := sort.Search(len(l.dirs), func(i int) bool { return ComparePaths(l.dirs[i].path, k.Dir) >= 0 })
	if run == len(l.dirs) {
		return len(l.at)
	}
	first, end := l.dirs[run].first, len(l.at)
	if l.dirs[run].path != k.Dir {
		return first
	}
	if run+1 < len(l.dirs) {
		end = l.dirs[run+1].first
	}
	return first + sort.Search(end-first, func(i int) bool { return l.name(first+i) >= k.Name })
}

// first is the key of the first entry.
func (l *Leaf) first() Key { return Key{l.dirs[0].path, l.name(0)} }

// Use adds the bytes that the entries use of each pack to use: not what the
// pages below a Spill use.
func (l *Leaf) Use(use map[chunk.PackID]uint64) {
	u := useCount{m: use}
	defer u.sum()
	var e Entry
	for run := range l.dirs {
		end := len(l.at)
		if run+1 < len(l.dirs) {
			end = l.dirs[run+1].first
		}
		for i := l.dirs[run].first; i < end; i++ {
			l.entryIn(run, i, &e)
			e.use(&u)
		}
	}
}

func (e *Entry) use(u *useCount) {
	for i := range e.Extents {
		u.add(&e.Extents[i].Pack, uint64(e.Extents[i].Length))
	}
	if e.Spill != nil {
		for i := range e.Spill.Refs {
			u.add(&e.Spill.Refs[i].Pack, uint64(e.Spill.Refs[i].Frame.Raw))
		}
	}
}

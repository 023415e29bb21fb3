package manifest

import (
	"encoding/binary"
	"errors"
	"unsafe"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/wire"
)

// A page is the encoding of a run of entries (a leaf), of references to pages
// (an inner page), or of a part of a large file's extents. Every page begins
//
//	kind             byte: 1 leaf, 2 inner page, 3 extents, 4 references to pages of extents
//	level            byte: of an inner page, 1 above leaves; of kind 4, 1 above extents; else 0
//	number of packs  uvarint; then each pack's id, 32 bytes
//	number of frames uvarint; then for each frame
//	  pack           uvarint, place in the table of packs
//	  offset, stored length, plaintext length   uvarints
//
// Packs and frames stand in the order in which what follows first uses them,
// and each is used. What follows is, for a leaf, directory after directory
//
//	number of directories  uvarint; then for each
//	  path                 length-prefixed
//	  number of entries    uvarint, at least 1; then each entry, see appendEntry
//
// for an inner page
//
//	number of children  uvarint; then for each
//	  frame             uvarint, place in the table
//	  id                32 bytes
//	  entries below     uvarint
//	  flags             byte: 1 some entry below has extended attributes, 2 some is a hard link
//	  first key         path and name, length-prefixed
//
// for extents, a number and then each as in an entry with holes; for kind 4, a
// number and then frame, id and covered bytes of each page.
const (
	leafPage       = 1
	innerPage      = 2
	ExtentPage     = 3
	extentRefsPage = 4

	maxLevel = 16
)

// MaxPage is the longest page in bytes. The builder cuts at pageLimit; one
// entry with many extended attributes can make a page longer than that.
const MaxPage = chunk.MaxFrame

// ErrDamaged is wrapped by every error about a page or manifest that is not
// what a writer would have written.
var ErrDamaged = errors.New("damaged tree")

// tables are the packs and frames that a page names.
type tables struct {
	packs  []chunk.PackID
	frames []frameRef
}

type frameRef struct {
	pack  uint32
	frame chunk.Frame
}

// tableWriter gathers tables while a page's body is encoded.
type tableWriter struct {
	tables
	packAt  map[chunk.PackID]uint32
	frameAt map[frameRef]uint32
	last    struct { // the chunk before: neighbours share a frame
		pack  chunk.PackID
		frame chunk.Frame
		at    uint32
		ok    bool
	}
}

func (w *tableWriter) reset() {
	w.packs, w.frames = w.packs[:0], w.frames[:0]
	if w.packAt == nil {
		w.packAt, w.frameAt = map[chunk.PackID]uint32{}, map[frameRef]uint32{}
	}
	clear(w.packAt)
	clear(w.frameAt)
	w.last.ok = false
}

// frame is the frame's place in the table.
func (w *tableWriter) frame(pack *chunk.PackID, f chunk.Frame) uint64 {
	if w.last.ok && w.last.frame == f && w.last.pack == *pack {
		return uint64(w.last.at)
	}
	p, ok := w.packAt[*pack]
	if !ok {
		p = uint32(len(w.packs))
		w.packs = append(w.packs, *pack)
		w.packAt[*pack] = p
	}
	ref := frameRef{p, f}
	at, ok := w.frameAt[ref]
	if !ok {
		at = uint32(len(w.frames))
		w.frames = append(w.frames, ref)
		w.frameAt[ref] = at
	}
	w.last.pack, w.last.frame, w.last.at, w.last.ok = *pack, f, at, true
	return uint64(at)
}

// appendTables appends what a page begins with: kind, level and tables.
func (w *tableWriter) appendTables(dst []byte, kind, level byte) []byte {
	dst = append(dst, kind, level)
	dst = binary.AppendUvarint(dst, uint64(len(w.packs)))
	for i := range w.packs {
		dst = append(dst, w.packs[i][:]...)
	}
	dst = binary.AppendUvarint(dst, uint64(len(w.frames)))
	for _, f := range w.frames {
		dst = binary.AppendUvarint(dst, uint64(f.pack))
		dst = binary.AppendUvarint(dst, uint64(f.frame.Offset))
		dst = binary.AppendUvarint(dst, uint64(f.frame.Stored))
		dst = binary.AppendUvarint(dst, uint64(f.frame.Raw))
	}
	return dst
}

func (w *tableWriter) appendExtent(dst []byte, x *Extent, hole bool) []byte {
	if hole {
		dst = binary.AppendUvarint(dst, x.Hole)
	}
	dst = binary.AppendUvarint(dst, w.frame(&x.Pack, x.Frame))
	dst = binary.AppendUvarint(dst, uint64(x.Offset))
	dst = binary.AppendUvarint(dst, uint64(x.Length))
	return append(dst, x.ID[:]...)
}

func (w *tableWriter) appendRef(dst []byte, p *PageRef) []byte {
	dst = binary.AppendUvarint(dst, w.frame(&p.Pack, p.Frame))
	return append(dst, p.ID[:]...)
}

// pageReader reads a page: the tables, then the body.
type pageReader struct {
	wire.Reader
	tables
	used     uint32 // frames used so far: they must be used in order
	packUsed uint32
	strict   bool // check the order of use; entries that are read at random cannot
}

func newPageReader(page []byte) (r *pageReader, kind, level byte) {
	r = &pageReader{Reader: *wire.NewReader(page), strict: true}
	if len(page) > MaxPage {
		r.Failf("page of %d bytes, the most is %d", len(page), MaxPage)
	}
	kind, level = r.Byte("kind"), r.Byte("level")
	if kind < leafPage || kind > extentRefsPage {
		r.Failf("unknown kind of page %d", kind)
	}
	if above := kind == innerPage || kind == extentRefsPage; above != (level > 0) || level > maxLevel {
		r.Failf("page of kind %d at level %d", kind, level)
	}
	r.packs = make([]chunk.PackID, r.Count("number of packs", chunk.IDSize))
	for i := range r.packs {
		copy(r.packs[i][:], r.Fixed("pack id", chunk.IDSize))
	}
	seen := make(map[chunk.PackID]bool, len(r.packs))
	for _, p := range r.packs {
		if seen[p] {
			r.Failf("pack named twice")
		}
		seen[p] = true
	}
	r.frames = make([]frameRef, r.Count("number of frames", 4))
	frames := make(map[frameRef]bool, len(r.frames))
	for i := range r.frames {
		f := &r.frames[i]
		f.pack = uint32(r.Uvarint("pack of a frame", uint64(max(len(r.packs), 1)-1)))
		f.frame.Offset = uint32(r.Uvarint("frame offset", chunk.MaxPack))
		f.frame.Stored = uint32(r.Uvarint("frame stored length", chunk.MaxFrame+chunk.MaxOverhead))
		f.frame.Raw = uint32(r.Uvarint("frame length", chunk.MaxFrame))
		if r.Err() != nil {
			break
		}
		if len(r.packs) == 0 {
			r.Failf("frame without a pack")
			break
		}
		if err := f.frame.Check(); err != nil {
			r.Failf("%v", err)
		}
		if frames[*f] {
			r.Failf("frame named twice")
		}
		frames[*f] = true
		if f.pack > r.packUsed {
			r.Failf("packs out of order")
		}
		r.packUsed = max(r.packUsed, f.pack+1)
	}
	if int(r.packUsed) != len(r.packs) {
		r.Failf("unused pack")
	}
	return r, kind, level
}

// frame reads a frame's place in the table.
func (r *pageReader) frame() frameRef {
	if len(r.frames) == 0 {
		r.Failf("no frames")
		return frameRef{}
	}
	at := uint32(r.Uvarint("frame", uint64(len(r.frames)-1)))
	if r.strict {
		if at > r.used {
			r.Failf("frames out of order")
		}
		r.used = max(r.used, at+1)
	}
	return r.frames[at]
}

func (r *pageReader) extent(x *Extent, hole bool) {
	x.Hole = 0
	if hole {
		x.Hole = r.Uvarint("hole", 1<<62)
	}
	f := r.frame()
	if r.Err() != nil {
		return
	}
	x.Pack, x.Frame = r.packs[f.pack], f.frame
	x.Offset = uint32(r.Uvarint("offset in frame", chunk.MaxFrame))
	x.Length = uint32(r.Uvarint("chunk length", chunk.MaxFrame))
	copy(x.ID[:], r.Fixed("chunk id", chunk.IDSize))
}

func (r *pageReader) ref(p *PageRef) {
	f := r.frame()
	if r.Err() != nil {
		return
	}
	p.Pack, p.Frame = r.packs[f.pack], f.frame
	copy(p.ID[:], r.Fixed("page id", chunk.IDSize))
}

// str reads a length-prefixed string that aliases the page.
func (r *pageReader) str(what string, limit int) string {
	b := r.Bytes(what, limit)
	return unsafe.String(unsafe.SliceData(b), len(b))
}

// close checks that everything was read, and every frame used.
func (r *pageReader) close() error {
	if r.strict && int(r.used) != len(r.frames) {
		r.Failf("unused frame")
	}
	return r.Close()
}

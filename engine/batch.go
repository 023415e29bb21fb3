package engine

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// Create is a pipeline: the sequencer turns the walk into batches of items in
// tree order; readers read and hash the files of several batches at once; the
// assembler takes the batches in order again, puts new chunks into frames, and
// adds finished entries to the tree.

// Bounds of a batch. Together with the number of batches under way they bound
// the pipeline's memory.
const (
	batchItems = 256
	batchBytes = 1 << 20 // of file contents; a larger file is a batch of its own
	partSize   = 2 << 20 // of a buffer: a batch, with the file that made it full
	inFlight   = 6       // batches between sequencer and assembler
)

// batch is a run of items.
type batch struct {
	items []item
	bytes int64
	// stream: the only item is a file to be read piece by piece, because it is
	// large or may have holes.
	stream bool
	// parts carries what the reader found, and is closed by it when all items
	// are settled.
	parts chan *part
}

// item is an entry on its way into the tree.
type item struct {
	op       itemOp
	entry    manifest.Entry
	stat     fsys.Dirent
	settle   bool       // a reader has to look at it
	known    bool       // its contents are the parent's, if it has not changed since the walk
	linked   bool       // the walk saw that it has other names
	joined   bool       // it had them in the snapshot of the fork, see wholeFork
	renewed  bool       // another file took its place since then
	outgrown bool       // it is too large by now to be read with others
	drop     bool       // it is not there any more, or cannot be read
	print    uint64     // fingerprint for the stat cache, 0 for none
	lane     write.Lane // of its new chunks; the entry itself is the reader's while it is settled

	// Of a fork: the snapshot's directory that shows where the item is, and whether
	// a file takes up no room, so that its contents may be the snapshot's.
	lower *lowerDir
	bare  bool

	parts write.FileExtents // the assembler's: what the file's parts hold
}

// itemOp is what is done with an item's entry.
type itemOp uint8

const (
	opAdd         itemOp = iota
	opRemove             // it is removed from the fork's snapshot
	opRemoveBelow        // all below its Dir is
)

// part is a buffer full of chunks.
type part struct {
	buf    []byte
	pieces []piece
	// restart: the file changed while it was read, and is read again from its
	// beginning.
	restart bool
}

// piece is a chunk in a part.
type piece struct {
	item   int
	hole   uint64
	id     chunk.ID
	data   []byte
	length uint32
	known  bool // the repository has it, at loc
	loc    chunk.Location
}

// entryOf makes an entry without what only reading tells: extents, target,
// extended attributes.
func entryOf(dir string, d *fsys.Dirent) manifest.Entry {
	e := manifest.Entry{
		Dir: dir, Name: d.Name,
		Mode: d.Mode & manifest.PermMask, UID: d.Uid, GID: d.Gid,
		Mtime: manifest.Time{Sec: d.Mtime.Sec, Nsec: uint32(d.Mtime.Nsec)},
		Links: d.Nlink,
	}
	switch d.Kind() {
	case unix.S_IFREG:
		e.Type, e.Size = manifest.File, uint64(d.Size)
	case unix.S_IFDIR:
		// File systems disagree on what a directory's links are; 1 is what
		// those say that do not count.
		e.Type, e.Links = manifest.Dir, 1
	case unix.S_IFLNK:
		e.Type = manifest.Symlink
	case unix.S_IFIFO:
		e.Type = manifest.Fifo
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Type = manifest.CharDevice
		if d.Kind() == unix.S_IFBLK {
			e.Type = manifest.BlockDevice
		}
		e.Device = manifest.Device{Major: unix.Major(d.Rdev), Minor: unix.Minor(d.Rdev)}
	}
	return e
}

// racyWindow: a file that changed so shortly before it was looked at may change
// again without its times showing it, in the resolution that some file systems
// keep times in. It is read again next time.
const racyWindow = 2 // seconds

// fingerprint is what the stat cache keeps of a file, besides size and mtime
// which the tree has: its device, inode and ctime. 0 stands for none.
func fingerprint(d *fsys.Dirent, walkStarted int64) uint64 {
	if d.Ctime.Sec+racyWindow >= walkStarted {
		return 0
	}
	return statPrint(d)
}

func statPrint(d *fsys.Dirent) uint64 {
	var b [32]byte
	binary.LittleEndian.PutUint64(b[0:], d.Dev)
	binary.LittleEndian.PutUint64(b[8:], d.Ino)
	binary.LittleEndian.PutUint64(b[16:], uint64(d.Ctime.Sec))
	binary.LittleEndian.PutUint64(b[24:], uint64(d.Ctime.Nsec))
	return max(xxhash.Sum64(b[:]), 1)
}

package diskcache

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/remote/disk"
)

// A file of the disk cache mirrors one object, sparsely:
//
//	offset  size  field
//	0       8     magic "snapdisk"
//	8       4     format version, 1
//	12      4     block size, 16384
//	16      8     size of the object, 0 while it is unknown
//	24      4     CRC-32C of the object's name
//	28      4     CRC-32C of the bytes before
//	32      32    zero
//	64      8×n   map, an entry for every block of the object
//	1 MiB   ...   blocks; the object's last one may be shorter
//
// An entry is the block's CRC-32C and the block's number plus one, both 32 bits;
// anything else means that the block is absent. All numbers are little-endian.
//
// A block is written before its entry, which says what the block must be. So
// nothing needs to be synced: whatever a kill, a crash or a full disk leaves
// behind does not match and is absent.
const (
	magic   = "snapdisk"
	version = 1

	// A read takes whole blocks from the file, to check them: half a block more
	// at either end. Larger ones make small reads slow, smaller ones a long map.
	blockSize = 16 << 10

	headerSize = 32
	mapOffset  = 64
	entrySize  = 8
	dataOffset = 1 << 20
	maxBlocks  = (dataOffset - mapOffset) / entrySize
	maxObject  = maxBlocks * blockSize // what lies behind is not cached

	// stepSize is how much is read before it is checked: little enough to be
	// still in the processor's cache.
	stepSize = 256 << 10
)

// tmpDir is where files of the cache are made. It is no repository's: [remote.CheckName]
// refuses the name.
const tmpDir = "tmp"

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	// errGone: the file was evicted, or is damaged or another's.
	errGone = errors.New("not a usable file of the disk cache")
)

// mirror is an open file of the cache. It closes itself when the last
// reference is released.
type mirror struct {
	fd       int
	writable bool
	nameSum  uint32
	refs     atomic.Int32
	locks    fileLocks
}

// openMirror opens the mirror of an object; the caller has one reference.
func openMirror(path, name string) (*mirror, error) {
	flags := unix.O_RDWR | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK
	fd, err := disk.Open(path, flags)
	writable := err == nil
	if err == unix.EROFS || err == unix.EACCES || err == unix.EPERM {
		fd, err = disk.Open(path, flags&^unix.O_RDWR)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := &mirror{fd: fd, writable: writable, nameSum: crc32.Checksum([]byte(name), castagnoli)}
	f.refs.Store(1)
	var header [headerSize]byte
	n, err := disk.Pread(fd, header[:], 0)
	if err == nil {
		_, err = f.header(header[:n])
	} else {
		err = &fs.PathError{Op: "read", Path: path, Err: err}
	}
	if err != nil {
		f.release()
		return nil, err
	}
	return f, nil
}

// createMirror makes an empty mirror, which appears whole or not at all. If
// another process was faster, it is theirs that is opened.
func createMirror(tmp, path, name string) (*mirror, error) {
	for range 3 {
		err := publishMirror(tmp, path, name)
		var f *mirror
		if err == nil || errors.Is(err, fs.ErrExist) {
			f, err = openMirror(path, name)
		}
		// Another process may evict it at once, or somebody delete the folder.
		if !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
	return nil, errGone
}

func publishMirror(tmp, path, name string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return err
	}
	t, err := os.CreateTemp(tmp, "*")
	if err != nil {
		return err
	}
	defer t.Close()
	header := headerOf(crc32.Checksum([]byte(name), castagnoli), 0)
	_, err = t.Write(header[:])
	if err == nil {
		err = disk.RenameNew(t.Name(), path)
	}
	if err != nil {
		os.Remove(t.Name())
	}
	return err
}

func (f *mirror) release() {
	if f.refs.Add(-1) == 0 {
		unix.Close(f.fd)
	}
}

func headerOf(nameSum uint32, size int64) (h [headerSize]byte) {
	copy(h[:], magic)
	binary.LittleEndian.PutUint32(h[8:], version)
	binary.LittleEndian.PutUint32(h[12:], blockSize)
	binary.LittleEndian.PutUint64(h[16:], uint64(size))
	binary.LittleEndian.PutUint32(h[24:], nameSum)
	binary.LittleEndian.PutUint32(h[28:], crc32.Checksum(h[:28], castagnoli))
	return h
}

// header gives the object's size, or 0, from the file's first bytes.
func (f *mirror) header(b []byte) (size int64, err error) {
	if len(b) < headerSize {
		return 0, errGone
	}
	size = int64(binary.LittleEndian.Uint64(b[16:]))
	ok := string(b[:8]) == magic &&
		binary.LittleEndian.Uint32(b[8:]) == version &&
		binary.LittleEndian.Uint32(b[12:]) == blockSize &&
		size >= 0 &&
		binary.LittleEndian.Uint32(b[24:]) == f.nameSum &&
		binary.LittleEndian.Uint32(b[28:]) == crc32.Checksum(b[:28], castagnoli)
	if !ok {
		return 0, errGone
	}
	return size, nil
}

// linked tells whether the file is still where others find it.
func (f *mirror) linked() bool {
	var st unix.Stat_t
	return unix.Fstat(f.fd, &st) == nil && st.Nlink > 0
}

func entryOf(block int64, sum uint32) uint64 { return uint64(sum)<<32 | uint64(block+1) }

// scratch is the memory of one read from the disk.
type scratch struct {
	meta       [mapOffset + entrySize*scratchBlocks]byte
	head, tail [blockSize]byte
	iovs       [3][]byte
}

// scratchBlocks is how many entries a scratch has room for: those of a pack of
// 16 MiB come with its header in one read of 8 KiB.
const scratchBlocks = 1024

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// state gives the object's size (0: unknown) and the entries of the blocks from
// b0 to below b1, at most scratchBlocks.
func (f *mirror) state(s *scratch, b0, b1 int64) (size int64, entries []byte, err error) {
	if b1 <= scratchBlocks {
		n, err := disk.Pread(f.fd, s.meta[:mapOffset+b1*entrySize], 0)
		if err != nil {
			return 0, nil, err
		}
		size, err = f.header(s.meta[:n])
		if err != nil {
			return 0, nil, err
		}
		clear(s.meta[n : mapOffset+b1*entrySize])
		return size, s.meta[mapOffset+b0*entrySize : mapOffset+b1*entrySize], nil
	}
	n, err := disk.Pread(f.fd, s.meta[:headerSize], 0)
	if err != nil {
		return 0, nil, err
	}
	if size, err = f.header(s.meta[:n]); err != nil {
		return 0, nil, err
	}
	entries = s.meta[mapOffset : mapOffset+(b1-b0)*entrySize]
	if n, err = disk.Pread(f.fd, entries, mapOffset+b0*entrySize); err != nil {
		return 0, nil, err
	}
	clear(entries[n:])
	return size, entries, nil
}

func entryAt(entries []byte, i int64) uint64 {
	return binary.LittleEndian.Uint64(entries[i*entrySize:])
}

// present tells whether an entry says that the block is there.
func present(entry uint64, block int64) bool { return uint32(entry) == uint32(block+1) }

// errDamaged: a block is not what its entry says.
var errDamaged = errors.New("a block is damaged")

// read fills p from the front with the object's bytes from offset on, as far
// as they are here and sound, and returns how many those are. errDamaged is
// what it found behind them. It stops before a step that would go beyond the
// object's end.
func (f *mirror) read(p []byte, offset int64) (n int, err error) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	for n < len(p) {
		m, err := f.readStep(s, p[n:], offset+int64(n))
		n += m
		if m == 0 || err != nil {
			return n, err
		}
	}
	return n, nil
}

func (f *mirror) readStep(s *scratch, p []byte, offset int64) (n int, err error) {
	b0 := offset / blockSize
	b1 := min(ceilBlock(offset+int64(len(p))), b0+stepSize/blockSize, maxBlocks)
	if b0 >= b1 {
		return 0, nil
	}
	size, entries, err := f.state(s, b0, b1)
	if err != nil {
		return 0, err
	}
	for b := b0; b < b1; b++ {
		if !present(entryAt(entries, b-b0), b) {
			b1 = b
		}
	}
	if b0 >= b1 {
		return 0, nil
	}
	p = p[:min(int64(len(p)), b1*blockSize-offset)]
	end := b1 * blockSize // of the last block
	if size > 0 {
		end = min(end, size)
		if offset+int64(len(p)) > end {
			return 0, nil
		}
	}
	s.iovs = [3][]byte{s.head[:offset-b0*blockSize], p, s.tail[:end-offset-int64(len(p))]}
	defer func() { s.iovs[1] = nil }() // it is the caller's
	got, err := disk.Preadv(f.fd, s.iovs, dataOffset+b0*blockSize)
	if err != nil {
		return 0, err
	}
	for b := b0; b < b1; b++ {
		from := (b - b0) * blockSize
		to := min(from+blockSize, end-b0*blockSize)
		if int64(got) < to || entryOf(b, s.sum(from, to)) != entryAt(entries, b-b0) {
			return max(0, int(b*blockSize-offset)), errDamaged
		}
	}
	return len(p), nil
}

// scrub makes all blocks absent that are not what their entries say, and
// returns how many those were. One damaged block is seldom alone, and each
// that a read comes upon costs a request.
func (f *mirror) scrub() (damaged int64) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	last := int64(maxBlocks)
	for b0 := int64(0); b0 < last; b0 += scratchBlocks {
		size, entries, err := f.state(s, b0, min(last, b0+scratchBlocks))
		if err != nil {
			return damaged
		}
		if size > 0 {
			last = min(last, ceilBlock(size))
		}
		for b := b0; b < min(last, b0+scratchBlocks); b++ {
			entry := entryAt(entries, b-b0)
			if !present(entry, b) {
				continue
			}
			p := s.head[:]
			if size > 0 {
				p = p[:min(blockSize, size-b*blockSize)]
			}
			n, err := disk.Pread(f.fd, p, dataOffset+b*blockSize)
			if err == nil && (n < len(p) || entryOf(b, crc32.Checksum(p, castagnoli)) != entry) {
				f.forget(b, entry)
				damaged++
			}
		}
	}
	return damaged
}

// forget makes a damaged block absent, unless it was replaced meanwhile.
func (f *mirror) forget(b int64, entry uint64) {
	var now [entrySize]byte
	at := mapOffset + b*entrySize
	if n, err := disk.Pread(f.fd, now[:], at); err == nil && n == entrySize && binary.LittleEndian.Uint64(now[:]) == entry {
		_ = f.clear(b, b+1)
	}
}

// sum is the CRC of a part of what the three buffers hold, back to back.
func (s *scratch) sum(from, to int64) (sum uint32) {
	for _, v := range &s.iovs {
		size := int64(len(v))
		if from < size && to > 0 {
			sum = crc32.Update(sum, castagnoli, v[max(from, 0):min(to, size)])
		}
		from, to = from-size, to-size
	}
	return sum
}

// setSize notes how long the object is.
func (f *mirror) setSize(size int64) error {
	header := headerOf(f.nameSum, size)
	return disk.Pwrite(f.fd, header[:], 0)
}

// appendEntries appends the entries of the blocks that p holds.
func appendEntries(dst []byte, b0 int64, p []byte) []byte {
	for b := b0; len(p) > 0; b++ {
		n := min(len(p), blockSize)
		dst = binary.LittleEndian.AppendUint64(dst, entryOf(b, crc32.Checksum(p[:n], castagnoli)))
		p = p[n:]
	}
	return dst
}

// clear makes blocks absent.
func (f *mirror) clear(b0, b1 int64) error {
	return disk.Pwrite(f.fd, make([]byte, (b1-b0)*entrySize), mapOffset+b0*entrySize)
}

// blocks tells the object's size, or 0, and which blocks from b0 to below b1
// are here.
func (f *mirror) blocks(b0, b1 int64) (size int64, here []bool, err error) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	here = make([]bool, b1-b0)
	for b := b0; ; b += scratchBlocks {
		var entries []byte
		to := min(b1, b+scratchBlocks)
		if size, entries, err = f.state(s, b, to); err != nil {
			return 0, nil, err
		}
		for i := b; i < to; i++ {
			here[i-b0] = present(entryAt(entries, i-b), i)
		}
		if to == b1 {
			return size, here, nil
		}
	}
}

func ceilBlock(offset int64) int64 { return (offset + blockSize - 1) / blockSize }

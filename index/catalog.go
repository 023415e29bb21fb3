package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/wire"
	"github.com/zeebo/blake3"
)

// The catalog of a slot says what the slot holds and which files hold it:
//
//	offset  size  field
//	0       8     magic "snapcatl"
//	8       1     format version, 1: of the catalog and of what is in Badger
//	9       16    repository id
//	25      ...   boot id           length uvarint, bytes
//	              next pack number  uvarint
//	              dead entries      uvarint
//	              number of files   uvarint; then for each, by ascending name
//	                name              length uvarint, bytes
//	                size, inode       uvarint each
//	                mtime, ctime      8 bytes each, little-endian, ns
//	                BLAKE3-256        32 bytes
//	              number of packs   uvarint; then for each, by ascending number
//	                number            uvarint
//	                id                32 bytes
//	                size, chunks      uvarint each
//	              number of segments uvarint; then for each, by ascending id
//	                id                32 bytes
//	                number of packs   uvarint; then for each its number, uvarint
//	end-32  32    BLAKE3-256 of everything before
//
// Segments and packs are here and not in Badger because they are few, because
// all of them are needed whenever the slot is opened, and because one rename
// then changes all of them at once.
const (
	catalogMagic   = "snapcatl"
	catalogVersion = 1
	catalogSumSize = 32

	// maxCatalog bounds what is read into memory: a million packs.
	maxCatalog = 64 << 20
)

type catalog struct {
	repo     [16]byte
	boot     string
	next     uint32
	dead     int64
	files    []fingerprint
	packs    map[uint32]*pack // id, size, chunks and segments are set
	segments map[SegmentID][]uint32
}

func (c *catalog) encode() []byte {
	dst := append([]byte(catalogMagic), catalogVersion)
	dst = append(dst, c.repo[:]...)
	dst = wire.AppendBytes(dst, c.boot)
	dst = binary.AppendUvarint(dst, uint64(c.next))
	dst = binary.AppendUvarint(dst, uint64(c.dead))
	dst = binary.AppendUvarint(dst, uint64(len(c.files)))
	for _, f := range c.files {
		dst = f.appendTo(dst)
	}
	dst = binary.AppendUvarint(dst, uint64(len(c.packs)))
	for _, n := range slices.Sorted(maps.Keys(c.packs)) {
		p := c.packs[n]
		dst = binary.AppendUvarint(dst, uint64(n))
		dst = append(dst, p.id[:]...)
		dst = binary.AppendUvarint(dst, uint64(p.size))
		dst = binary.AppendUvarint(dst, uint64(p.chunks))
	}
	dst = binary.AppendUvarint(dst, uint64(len(c.segments)))
	for _, id := range slices.SortedFunc(maps.Keys(c.segments), func(a, b SegmentID) int { return bytes.Compare(a[:], b[:]) }) {
		dst = append(dst, id[:]...)
		dst = binary.AppendUvarint(dst, uint64(len(c.segments[id])))
		for _, n := range c.segments[id] {
			dst = binary.AppendUvarint(dst, uint64(n))
		}
	}
	sum := blake3.Sum256(dst)
	return append(dst, sum[:]...)
}

func decodeCatalog(data []byte) (*catalog, error) {
	if len(data) < catalogSumSize || len(data) > maxCatalog {
		return nil, fmt.Errorf("catalog of %d bytes", len(data))
	}
	body, sum := data[:len(data)-catalogSumSize], data[len(data)-catalogSumSize:]
	if blake3.Sum256(body) != [catalogSumSize]byte(sum) {
		return nil, errors.New("checksum of the catalog does not match")
	}
	r := wire.NewReader(body)
	if string(r.Fixed("magic", len(catalogMagic))) != catalogMagic {
		return nil, errors.New("catalog without magic")
	}
	if v := r.Byte("version"); v != catalogVersion {
		return nil, fmt.Errorf("catalog of format version %d", v)
	}
	c := &catalog{}
	copy(c.repo[:], r.Fixed("repository id", len(c.repo)))
	c.boot = string(r.Bytes("boot id", 128))
	c.next = uint32(r.Uvarint("next pack number", 1<<32-1))
	c.dead = int64(r.Uvarint("dead entries", 1<<62))
	c.files = make([]fingerprint, r.Count("number of files", 1+2+16+32))
	for i := range c.files {
		c.files[i] = readFingerprint(r)
	}
	readPacks(r, c)
	readSegments(r, c)
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("catalog: %w", err)
	}
	return c, nil
}

func readPacks(r *wire.Reader, c *catalog) {
	n := r.Count("number of packs", 1+chunk.IDSize+2)
	c.packs = make(map[uint32]*pack, n)
	for range n {
		number := uint32(r.Uvarint("pack number", 1<<32-1))
		p := &pack{}
		copy(p.id[:], r.Fixed("pack id", chunk.IDSize))
		p.size = int64(r.Uvarint("pack size", chunk.MaxPack))
		p.chunks = int(r.Uvarint("chunks", chunk.MaxPack))
		// A number that is handed out again would make old entries point
		// into a new pack.
		if number >= c.next || c.packs[number] != nil {
			r.Failf("pack number %d", number)
			return
		}
		c.packs[number] = p
	}
}

func readSegments(r *wire.Reader, c *catalog) {
	n := r.Count("number of segments", len(SegmentID{})+1)
	c.segments = make(map[SegmentID][]uint32, n)
	for range n {
		id := SegmentID(r.Fixed("segment id", len(SegmentID{})))
		numbers := make([]uint32, r.Count("packs of a segment", 1))
		for i := range numbers {
			numbers[i] = uint32(r.Uvarint("pack number", 1<<32-1))
			p := c.packs[numbers[i]]
			if p == nil {
				r.Failf("segment of an unknown pack %d", numbers[i])
				return
			}
			p.segments++
		}
		if r.Err() != nil {
			return
		}
		c.segments[id] = numbers
	}
}

// catalog is what the slot holds that the next process may believe: segments,
// and packs that are in one.
func (ix *Index) catalog() *catalog {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	c := &catalog{
		repo:     ix.repo,
		boot:     bootID(),
		next:     ix.next,
		dead:     ix.dead,
		files:    ix.files,
		packs:    make(map[uint32]*pack, len(ix.packs)),
		segments: make(map[SegmentID][]uint32, len(ix.segments)),
	}
	for n, p := range ix.packs {
		if p.segments > 0 {
			c.packs[n] = p
		}
	}
	for id, numbers := range ix.segments {
		kept := make([]uint32, 0, len(numbers))
		for _, n := range numbers {
			if c.packs[n] != nil { // nil if it was forgotten
				kept = append(kept, n)
			}
		}
		c.segments[id] = kept
	}
	return c
}

// writeCatalog makes the slot one that is believed. Nothing is synced to the
// disk: a killed process leaves what it wrote to the kernel, and after a loss
// of power the boot id is another one, so every byte is verified by its hash.
func (ix *Index) writeCatalog() error {
	temp := ix.slot.path(catalogName + tempSuffix)
	if err := os.WriteFile(temp, ix.catalog().encode(), 0o600); err != nil {
		return err
	}
	return os.Rename(temp, ix.slot.path(catalogName))
}

// bootID is the kernel's name for the time since it was started, "" where there
// is none, which never equals another.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

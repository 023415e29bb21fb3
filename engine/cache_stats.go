package engine

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/manifest"
	"github.com/zeebo/blake3"
)

const maxCachedDirs = 256 << 20

const maxCachedSegments = 256 << 20

const maxCachedTables = 64 << 20

// statCache is what a machine knows of the files of a directory, as they were
// when a snapshot was made of it or restored to it: one fingerprint for each
// entry of the tree, by rank. The file is
//
//	offset  size  field
//	0       8     magic "snapstat"
//	8       16    snapshot id
//	24      8n    fingerprints, little-endian, 0 for none
//	24+8n   8     the first bytes of the BLAKE3 of all before
type statCache struct {
	snapshot manifest.ID
	prints   []byte
}

const statMagic = "snapstat"

// print is the fingerprint of the entry of that rank.
func (s *statCache) print(rank uint64) uint64 {
	if rank >= uint64(len(s.prints)/8) {
		return 0
	}
	return binary.LittleEndian.Uint64(s.prints[8*rank:])
}

// dirKey names a directory's stat cache.
func dirKey(dir string) string {
	sum := blake3.Sum256([]byte(dir))
	return hex.EncodeToString(sum[:16])
}

// readStats gives the stat cache of a directory, nil where there is none.
func readStats(c local.Dir, dir string) *statCache {
	b := c.Read("dirs", dirKey(dir))
	head := len(statMagic) + len(manifest.ID{})
	if len(b) < head+8 || len(b)%8 != 0 || string(b[:len(statMagic)]) != statMagic {
		return nil
	}
	end := len(b) - 8
	if sum := blake3.Sum256(b[:end]); !bytes.Equal(sum[:8], b[end:]) {
		return nil
	}
	return &statCache{manifest.ID(b[len(statMagic):head]), b[head:end]}
}

func writeStats(c local.Dir, dir string, id manifest.ID, prints []uint64) error {
	b := make([]byte, 0, len(statMagic)+len(id)+8*len(prints)+8)
	b = append(append(b, statMagic...), id[:]...)
	for _, p := range prints {
		b = binary.LittleEndian.AppendUint64(b, p)
	}
	sum := blake3.Sum256(b)
	b = append(b, sum[:8]...)
	err := c.Write("dirs", dirKey(dir), b)
	c.Trim("dirs", maxCachedDirs)
	return err
}

const tableMagic = "snaptabl"

const tableEntry = chunk.IDSize + 8

// readTable gives the pack table of a snapshot, nothing where there is none.
func readTable(c local.Dir, key string, id manifest.ID) []sizedPack {
	b := c.Read("tables", key)
	head := len(tableMagic) + len(id)
	if len(b) < head+8 || (len(b)-head-8)%tableEntry != 0 || string(b[:head]) != tableMagic+string(id[:]) {
		return nil
	}
	end := len(b) - 8
	if sum := blake3.Sum256(b[:end]); !bytes.Equal(sum[:8], b[end:]) {
		return nil
	}
	packs := make([]sizedPack, 0, (end-head)/tableEntry)
	for b = b[head:end]; len(b) > 0; b = b[tableEntry:] {
		packs = append(packs, sizedPack{chunk.PackID(b[:chunk.IDSize]), int64(binary.LittleEndian.Uint64(b[chunk.IDSize:]))})
	}
	return packs
}

func writeTable(c local.Dir, key string, id manifest.ID, packs []sizedPack) error {
	b := make([]byte, 0, len(tableMagic)+len(id)+tableEntry*len(packs)+8)
	b = append(append(b, tableMagic...), id[:]...)
	for _, p := range packs {
		b = binary.LittleEndian.AppendUint64(append(b, p.id[:]...), uint64(p.size))
	}
	sum := blake3.Sum256(b)
	err := c.Write("tables", key, append(b, sum[:8]...))
	c.Trim("tables", maxCachedTables)
	return err
}

func cachedSegment(c local.Dir, id index.SegmentID) []byte { return c.Read("segments", id.String()) }

func writeSegment(c local.Dir, id index.SegmentID, b []byte) error {
	err := c.Write("segments", id.String(), b)
	c.Trim("segments", maxCachedSegments)
	return err
}

// sizedPack is a pack with its size in bytes, 0 where that is not known.
type sizedPack struct {
	id   chunk.PackID
	size int64
}

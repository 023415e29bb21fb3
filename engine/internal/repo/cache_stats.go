package repo

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

// Bounds of the cache in bytes.
const (
	MaxCachedDirs     = 256 << 20
	maxCachedSegments = 256 << 20
	maxCachedTables   = 64 << 20
)

// StatCache is what a machine knows of the files of a directory, as they were
// when a snapshot was made of it or restored to it: one fingerprint for each
// entry of the tree, by rank. The file is
//
//	offset  size  field
//	0       8     magic "snapstat"
//	8       16    snapshot id
//	24      8n    fingerprints, little-endian, 0 for none
//	24+8n   8     the first bytes of the BLAKE3 of all before
type StatCache struct {
	Snapshot manifest.ID
	prints   []byte
}

const statMagic = "snapstat"

// Print is the fingerprint of the entry of that rank.
func (s *StatCache) Print(rank uint64) uint64 {
	if rank >= uint64(len(s.prints)/8) {
		return 0
	}
	return binary.LittleEndian.Uint64(s.prints[8*rank:])
}

// DirKey names a directory's stat cache.
func DirKey(dir string) string {
	sum := blake3.Sum256([]byte(dir))
	return hex.EncodeToString(sum[:16])
}

// ReadStats gives the stat cache of a directory, nil where there is none.
func ReadStats(c local.Dir, dir string) *StatCache {
	b := c.Read("dirs", DirKey(dir))
	head := len(statMagic) + len(manifest.ID{})
	if len(b) < head+8 || len(b)%8 != 0 || string(b[:len(statMagic)]) != statMagic {
		return nil
	}
	end := len(b) - 8
	if sum := blake3.Sum256(b[:end]); !bytes.Equal(sum[:8], b[end:]) {
		return nil
	}
	return &StatCache{manifest.ID(b[len(statMagic):head]), b[head:end]}
}

// WriteStats remembers the fingerprints of a directory that is in a snapshot, for ReadStats.
func WriteStats(c local.Dir, dir string, id manifest.ID, prints []uint64) error {
	b := make([]byte, 0, len(statMagic)+len(id)+8*len(prints)+8)
	b = append(append(b, statMagic...), id[:]...)
	for _, p := range prints {
		b = binary.LittleEndian.AppendUint64(b, p)
	}
	sum := blake3.Sum256(b)
	b = append(b, sum[:8]...)
	err := c.Write("dirs", DirKey(dir), b)
	c.Trim("dirs", MaxCachedDirs)
	return err
}

// A pack table tells which packs the snapshot of a stat cache or an overlayMemo names, and
// how large they were when this machine last saw them. With it the next create asks for
// them side by side with the manifest. The file is
//
//	offset  size  field
//	0       8     magic "snaptabl"
//	8       16    snapshot id
//	24      40n   pack id, 32, and size in bytes, 8, little-endian, 0 for not known
//	24+40n  8     the first bytes of the BLAKE3 of all before
const (
	tableMagic = "snaptabl"
	tableEntry = chunk.IDSize + 8
)

// ReadTable gives the pack table of a snapshot, nothing where there is none.
func ReadTable(c local.Dir, key string, id manifest.ID) []SizedPack {
	b := c.Read("tables", key)
	head := len(tableMagic) + len(id)
	if len(b) < head+8 || (len(b)-head-8)%tableEntry != 0 || string(b[:head]) != tableMagic+string(id[:]) {
		return nil
	}
	end := len(b) - 8
	if sum := blake3.Sum256(b[:end]); !bytes.Equal(sum[:8], b[end:]) {
		return nil
	}
	packs := make([]SizedPack, 0, (end-head)/tableEntry)
	for b = b[head:end]; len(b) > 0; b = b[tableEntry:] {
		packs = append(packs, SizedPack{chunk.PackID(b[:chunk.IDSize]), int64(binary.LittleEndian.Uint64(b[chunk.IDSize:]))})
	}
	return packs
}

// WriteTable remembers which packs a snapshot takes, for ReadTable.
func WriteTable(c local.Dir, key string, id manifest.ID, packs []SizedPack) error {
	b := make([]byte, 0, len(tableMagic)+len(id)+tableEntry*len(packs)+8)
	b = append(append(b, tableMagic...), id[:]...)
	for _, p := range packs {
		b = binary.LittleEndian.AppendUint64(append(b, p.Id[:]...), uint64(p.Size))
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

// SizedPack is a pack with its size in bytes, 0 where that is not known.
type SizedPack struct {
	Id   chunk.PackID
	Size int64
}

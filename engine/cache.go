package engine

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/uuid"
	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/manifest"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

// cacheDir is what a machine remembers of one repository:
//
//	heads/ID         the head of a manifest: what a listing shows
//	notes/ID         notes, by their own ids
//	segments/ID      index segments of this machine's making, until the index has them
//	tombstones/ID    tombstones, as long as they are in the repository
//	dirs/HASH        stat caches, one for each directory that was snapshotted or restored
//	tables/HASH      the packs of the snapshots that those are of
//	index/           the index of chunks
//
// Packs are in a folder that all repositories share: see packCache.
//
// All of it is checked when it is read, and can be deleted at any time. Nothing
// of it is worth an error: what cannot be read is fetched, and what cannot be
// written is done without. Several processes use it at once.
type cacheDir struct{ dir string }

// Beside those of the repositories there are in Options.CacheDir packs of all of them, and
// the logs of mounts in the background.
const (
	packsFolder = "packs"
	logsFolder  = "logs"
)

func newCacheDir(base string, repo uuid.UUID) cacheDir {
	return cacheDir{filepath.Join(base, repo.String())}
}

func (c cacheDir) path(kind, name string) string { return filepath.Join(c.dir, kind, name) }

func (c cacheDir) indexDir() string { return filepath.Join(c.dir, "index") }

// read gives a file's content, nil where there is none.
func (c cacheDir) read(kind, name string) []byte {
	b, err := os.ReadFile(c.path(kind, name))
	if err != nil {
		return nil
	}
	return b
}

// write makes a file with this content, whole or not at all.
func (c cacheDir) write(kind, name string, content ...[]byte) error {
	dir := filepath.Join(c.dir, kind)
	f, err := os.CreateTemp(dir, tempPattern)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		f, err = os.CreateTemp(dir, tempPattern)
	}
	if err != nil {
		return err
	}
	for _, b := range content {
		if _, err = f.Write(b); err != nil {
			break
		}
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), c.path(kind, name))
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

const tempPattern = ".tmp-*"

func (c cacheDir) remove(kind, name string) { os.Remove(c.path(kind, name)) }

// names lists a kind.
func (c cacheDir) names(kind string) []string {
	entries, err := os.ReadDir(filepath.Join(c.dir, kind))
	if err != nil {
		return nil
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// trim deletes the files of a kind that were written longest ago, until those that
// are left have at most limit bytes.
func (c cacheDir) trim(kind string, limit int64) {
	entries, err := os.ReadDir(filepath.Join(c.dir, kind))
	if err != nil {
		return
	}
	var files []fs.FileInfo
	var total int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			files = append(files, info)
			total += info.Size()
		}
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, f := range files {
		if total <= limit {
			return
		}
		c.remove(kind, f.Name())
		total -= f.Size()
	}
}

// ownDirs are the folders that a snapshot leaves out, should they lie in what is
// snapshotted: the repository itself, what the cache has of it, and what is mounted
// now, which means nothing later, with what forks have changed.
func (r *Repository) ownDirs() map[inode]bool {
	own := map[inode]bool{}
	// It is about to be made: only then does it have an inode to go by.
	if err := os.MkdirAll(r.cache.dir, 0o700); err != nil {
		r.log.Info("making the cache", "err", err)
	}
	for _, dir := range r.ownPaths() {
		var st unix.Stat_t
		if unix.Stat(dir, &st) == nil {
			own[inode{uint64(st.Dev), st.Ino}] = true
		}
	}
	return own
}

// ownPaths are those folders by name.
func (r *Repository) ownPaths() []string {
	dirs := []string{r.cache.dir}
	if r.dir != "" {
		dirs = append(dirs, r.dir)
	}
	if r.registry != nil {
		for _, name := range []string{"mounts", "forks", "kept", "lower"} { // see registry, forkRegistry
			dirs = append(dirs, filepath.Join(filepath.Dir(r.registry.dir), name))
		}
	}
	return dirs
}

// Bounds of the cache in bytes.
const (
	maxCachedDirs     = 256 << 20
	maxCachedSegments = 256 << 20
	maxCachedTables   = 64 << 20
)

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
func (c cacheDir) readStats(dir string) *statCache {
	b := c.read("dirs", dirKey(dir))
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

func (c cacheDir) writeStats(dir string, id manifest.ID, prints []uint64) error {
	b := make([]byte, 0, len(statMagic)+len(id)+8*len(prints)+8)
	b = append(append(b, statMagic...), id[:]...)
	for _, p := range prints {
		b = binary.LittleEndian.AppendUint64(b, p)
	}
	sum := blake3.Sum256(b)
	b = append(b, sum[:8]...)
	err := c.write("dirs", dirKey(dir), b)
	c.trim("dirs", maxCachedDirs)
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

// readTable gives the pack table of a snapshot, nothing where there is none.
func (c cacheDir) readTable(key string, id manifest.ID) []sizedPack {
	b := c.read("tables", key)
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

func (c cacheDir) writeTable(key string, id manifest.ID, packs []sizedPack) error {
	b := make([]byte, 0, len(tableMagic)+len(id)+tableEntry*len(packs)+8)
	b = append(append(b, tableMagic...), id[:]...)
	for _, p := range packs {
		b = binary.LittleEndian.AppendUint64(append(b, p.id[:]...), uint64(p.size))
	}
	sum := blake3.Sum256(b)
	err := c.write("tables", key, append(b, sum[:8]...))
	c.trim("tables", maxCachedTables)
	return err
}

// Segments, as the cache keeps them.

func (c cacheDir) segment(id index.SegmentID) []byte { return c.read("segments", id.String()) }

func (c cacheDir) writeSegment(id index.SegmentID, b []byte) error {
	err := c.write("segments", id.String(), b)
	c.trim("segments", maxCachedSegments)
	return err
}

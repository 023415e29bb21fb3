// Package local is what a machine remembers: small files in the cache and the state directory.
package local

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/uuid"
)

// Dir is what a machine remembers of one repository:
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
type Dir struct{ Root string }

// Beside those of the repositories there are in Options.CacheDir packs of all of them, and
// the logs of mounts in the background.
const (
	Packs = "packs"
	Logs  = "logs"
)

func ForRepository(base string, repo uuid.UUID) Dir {
	return Dir{filepath.Join(base, repo.String())}
}

func (c Dir) Path(kind, name string) string { return filepath.Join(c.Root, kind, name) }

func (c Dir) IndexDir() string { return filepath.Join(c.Root, "index") }

// Read gives a file's content, nil where there is none.
func (c Dir) Read(kind, name string) []byte {
	b, err := os.ReadFile(c.Path(kind, name))
	if err != nil {
		return nil
	}
	return b
}

// Write makes a file with this content, whole or not at all.
func (c Dir) Write(kind, name string, content ...[]byte) error {
	dir := filepath.Join(c.Root, kind)
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
		err = os.Rename(f.Name(), c.Path(kind, name))
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

const tempPattern = ".tmp-*"

func (c Dir) Remove(kind, name string) { os.Remove(c.Path(kind, name)) }

// Names lists a kind.
func (c Dir) Names(kind string) []string {
	entries, err := os.ReadDir(filepath.Join(c.Root, kind))
	if err != nil {
		return nil
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// Trim deletes the files of a kind that were written longest ago, until those that
// are left have at most limit bytes.
func (c Dir) Trim(kind string, limit int64) {
	entries, err := os.ReadDir(filepath.Join(c.Root, kind))
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
		c.Remove(kind, f.Name())
		total -= f.Size()
	}
}

// Bounds of the cache in bytes.
const ()

// A pack table tells which packs the snapshot of a stat cache or an overlayMemo names, and
// how large they were when this machine last saw them. With it the next create asks for
// them side by side with the manifest. The file is
//
//	offset  size  field
//	0       8     magic "snaptabl"
//	8       16    snapshot id
//	24      40n   pack id, 32, and size in bytes, 8, little-endian, 0 for not known
//	24+40n  8     the first bytes of the BLAKE3 of all before
const ()

// Segments, as the cache keeps them.

const Pins = "encrypted" // see pin

const Mounts = "mounts" // see registry

const Forks = "forks" // see forkRegistry, as the next two

const Kept = "kept" //

const Lowers = "lower" //

const Restored = "restored" // see restoredRecord

const Used = "used" // see usedRepository

// KeepNewest deletes the files of a kind that were written longest ago, but for so many,
// if there are twice as many.
func (c Dir) KeepNewest(kind string, most int) {
	names := c.Names(kind)
	if len(names) < 2*most {
		return
	}
	written := map[string]int64{}
	for _, name := range names {
		if info, err := os.Lstat(filepath.Join(c.Root, kind, name)); err == nil {
			written[name] = info.ModTime().UnixNano()
		}
	}
	slices.SortFunc(names, func(a, b string) int { return int(min(1, max(-1, written[b]-written[a]))) })
	for _, name := range names[most:] {
		c.Remove(kind, name)
	}
}

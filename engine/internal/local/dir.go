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

// What is in a state directory, and in that of caches beside a directory for each
// repository.
const (
	Pins = "encrypted" // see crypt.Pin

	Mounts   = "mounts"   // see engine's registry
	Forks    = "forks"    // see engine's forkRegistry, as the next two
	Kept     = "kept"     //
	Lowers   = "lower"    //
	Restored = "restored" // see engine's restoredRecord
	Used     = "used"     // see repo's usedRepository
)

// ForRepository gives the directory of a repository in a directory of caches.
func ForRepository(base string, repo uuid.UUID) Dir {
	return Dir{filepath.Join(base, repo.String())}
}

// Path is where the file of that kind and name is.
func (c Dir) Path(kind, name string) string { return filepath.Join(c.Root, kind, name) }

// IndexDir is the directory of the index of chunks.
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

// Remove deletes the file of that kind and name, if it is there.
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

package engine

import (
	"encoding/json"
	"io"
	"os"
	"slices"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// What was moved since this machine last used it, or was never used here, is on no record.
// It is known by what is in it. That is looked at only where something is about to be
// deleted, replaced or written to, and costs nothing where the names are not there.
//
// A cache has no such sign and needs none: all that is in it can be made again.

// layerFile is the record beside the upper directory of a fork, and layerUpper that.
const (
	layerFile  = "layer.json"
	layerUpper = "upper"
)

const stateShape = "the state of a machine"

// ownShapes are the names that tell a directory of ours.
var ownShapes = []struct {
	name string
	what string
	is   func(dir int) bool // of the directory that holds the name
}{
	{repo.ConfigName, "a repository", isRepository},
	{local.Used, stateShape, isState},
	{layerFile, "what a fork changed", isLayer},
}

// found gives what an entry of an open directory is of ours by what is in it, "." for that
// directory itself, and "" for nothing. From then on is knows it.
func (o *ownDirs) found(dir int, name string) string {
	if o.recorded {
		return ""
	}
	fd, err := fsys.OpenBelow(dir, name, fsys.OpenPath|unix.O_DIRECTORY)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var st, in unix.Stat_t
	for _, s := range ownShapes {
		// A name that is on record is no sign: beside it may be others' files.
		if fsys.StatAt(fd, s.name, &in) != nil || o.is(&in) != "" || !s.is(fd) || unix.Fstat(fd, &st) != nil {
			continue
		}
		if o.byInode == nil {
			o.byInode, o.ways = map[fsys.Inode]string{}, map[fsys.Inode]string{}
		}
		o.byInode[fsys.Inode{Dev: uint64(st.Dev), Ino: st.Ino}] = s.what
		return s.what
	}
	return ""
}

// foundAt is found for a path.
func (o *ownDirs) foundAt(path string) string {
	fd, err := unix.Open(path, fsys.OpenPath|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	return o.found(fd, ".")
}

// foundAround is foundAt for a directory that a path lies in, through the name in; "" for the
// path itself. What lies in a state directory beside what is ours there is not ours.
func (o *ownDirs) foundAround(dir, in string) string {
	what := o.foundAt(dir)
	if what == stateShape && in != "" && !slices.Contains(inState(), in) {
		return ""
	}
	return what
}

// showsShape reports whether found should look at a directory with these entries.
func showsShape(entries []fsys.Dirent) bool {
	for i := range entries {
		for _, s := range ownShapes {
			if entries[i].Name == s.name {
				return true
			}
		}
	}
	return false
}

// isRepository goes by config. One that cannot be read tells by what is beside it.
func isRepository(dir int) bool {
	b, err := readShort(dir, repo.ConfigName)
	if fsys.IsAny(err, unix.EACCES) {
		return unix.Faccessat(dir, "packs", unix.F_OK, 0) == nil && unix.Faccessat(dir, "manifests", unix.F_OK, 0) == nil
	}
	return err == nil && repo.IsConfig(b)
}

// isState goes by the records of used repositories, whose names are hashes of what they say.
func isState(dir int) bool {
	fd, err := fsys.OpenBelow(dir, local.Used, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	names, err := fsys.NamesIn(fd)
	if err != nil {
		return false
	}
	for _, name := range names {
		if b, err := readShort(fd, name); err == nil && repo.IsUsed(name, b) {
			return true
		}
	}
	return false
}

func isLayer(dir int) bool {
	b, err := readShort(dir, layerFile)
	if err != nil {
		return false
	}
	var l struct {
		Version  int         `json:"version"`
		Snapshot manifest.ID `json:"snapshot"`
	}
	var st unix.Stat_t
	return json.Unmarshal(b, &l) == nil && l.Version > 0 && !l.Snapshot.IsZero() &&
		fsys.StatAt(dir, layerUpper, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// maxShort is how much readShort reads of a file: more than our records have.
const maxShort = 64 << 10

// readShort reads a regular file of an open directory.
func readShort(dir int, name string) ([]byte, error) {
	var st unix.Stat_t
	if err := fsys.StatAt(dir, name, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, unix.EINVAL // to open it might wait
	}
	fd, err := fsys.OpenBelow(dir, name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxShort))
}

package manifest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/snapctl/snapctl/chunk"
)

// Bounds of what a tree can hold. Names and links are those of Linux.
const (
	MaxName       = 255      // bytes
	MaxPath       = 32 << 10 // bytes of a path from the root of the snapshot
	MaxTarget     = 4095     // bytes of a symbolic link
	MaxXattrName  = 255      // bytes
	MaxXattrValue = 64 << 10 // bytes
	MaxXattrs     = 1024     // of one entry
	MaxXattrBytes = 1 << 20  // of the names and values of one entry together
	PermMask      = 0o7777   // permission bits with setuid, setgid, sticky

	// MaxInline is the most extents that an entry holds itself, those of a file
	// of about 128 MiB. The extents of larger files go to pages of their own.
	MaxInline = 512
)

// Type is what kind of file an entry is.
type Type uint8

// The types. A Link is a further name of an earlier entry: a hard link.
const (
	File Type = 1 + iota
	Dir
	Symlink
	Fifo
	CharDevice
	BlockDevice
	Link
)

var typeNames = [...]string{File: "file", Dir: "directory", Symlink: "symlink", Fifo: "fifo", CharDevice: "character device", BlockDevice: "block device", Link: "hard link"}

// String is a word for people.
func (t Type) String() string {
	if t.valid() {
		return typeNames[t]
	}
	return fmt.Sprintf("type %d", uint8(t))
}

func (t Type) valid() bool { return t >= File && t <= Link }

// An Entry is one name in a snapshot. Strings are bytes as the file system has
// them, not necessarily UTF-8.
type Entry struct {
	Dir  string // path of the directory that holds it, "" for the root; no leading slash
	Name string // "" only for the root directory itself

	Type  Type
	Mode  uint32 // within PermMask
	UID   uint32
	GID   uint32
	Mtime Time
	// Links is the number of links that the file had, its names outside of the
	// snapshot included; of a directory 1, for file systems disagree.
	Links  uint32
	Size   uint64  // File: bytes, holes included
	Target string  // Symlink: what it points to
	Device Device  // CharDevice, BlockDevice
	First  Key     // Link: the earlier entry that has the rest; all else is zero
	Xattrs []Xattr // sorted by name

	// Extents cover the data of a File in order. A file with more than
	// MaxInline of them has them in pages below Spill instead.
	Extents []Extent
	Spill   *Spill
}

// Path is the entry's path from the root of the snapshot, "" for the root.
func (e *Entry) Path() string { return Join(e.Dir, e.Name) }

// Key is where the entry stands in the order.
func (e *Entry) Key() Key { return Key{e.Dir, e.Name} }

// Clone copies an entry of a cursor, which uses its slices again.
func (e *Entry) Clone() *Entry {
	c := *e
	c.Extents, c.Xattrs = slices.Clone(e.Extents), slices.Clone(e.Xattrs)
	return &c
}

// Time is a time as file systems keep it: seconds since 1970 UTC, which may be
// negative, and nanoseconds, 0 to 999,999,999. Its range is larger than that of
// time.Time's UnixNano.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Time converts.
func (t Time) Time() time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }

// TimeOf converts.
func TimeOf(t time.Time) Time { return Time{t.Unix(), uint32(t.Nanosecond())} }

// Device is a device number.
type Device struct{ Major, Minor uint32 }

// Xattr is an extended attribute; ACLs and file capabilities are some.
type Xattr struct {
	Name  string
	Value []byte
}

// An Extent is a chunk of a file.
type Extent struct {
	Hole uint64 // bytes of hole before the chunk
	ID   chunk.ID
	chunk.Location
}

// A Spill is where the extents of a large file are: in pages of kind
// [ExtentPage] at the bottom, level 0, and of references to pages above.
type Spill struct {
	Level int // of the pages that Refs name
	Refs  []SpillRef
}

// SpillRef is a page of extents.
type SpillRef struct {
	PageRef
	Length uint64 // bytes of the file that the page covers, holes included
}

// A PageRef says where a page lies: it is the one chunk of its frame.
type PageRef struct {
	ID    chunk.ID
	Pack  chunk.PackID
	Frame chunk.Frame
}

// Location is the page as a chunk.
func (p PageRef) Location() chunk.Location {
	return chunk.Location{Pack: p.Pack, Frame: p.Frame, Length: p.Frame.Raw}
}

// A Key is where an entry stands in the order: the path of its directory, and
// its name.
type Key struct{ Dir, Name string }

// Compare orders keys: negative if k comes before other.
func (k Key) Compare(other Key) int {
	if c := ComparePaths(k.Dir, other.Dir); c != 0 {
		return c
	}
	return strings.Compare(k.Name, other.Name)
}

// Path is the key as one path.
func (k Key) Path() string { return Join(k.Dir, k.Name) }

// KeyOf is the key of a path from the root of a snapshot, "" for the root.
func KeyOf(path string) Key {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return Key{path[:i], path[i+1:]}
	}
	return Key{"", path}
}

// Join puts a directory's path and a name together.
func Join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// ComparePaths orders paths component by component, so that a directory comes
// right before what is below it: "a" < "a/b" < "a.b", unlike as strings.
func ComparePaths(a, b string) int {
	n := min(len(a), len(b))
	i := 0
	for i < n && a[i] == b[i] {
		i++
	}
	switch {
	case i == len(a) && i == len(b):
		return 0
	case i == len(a):
		return -1
	case i == len(b):
		return 1
	case a[i] == '/':
		return -1
	case b[i] == '/':
		return 1
	case a[i] < b[i]:
		return -1
	}
	return 1
}

// Within reports whether path is dir or below it.
func Within(path, dir string) bool {
	return dir == "" || path == dir || len(path) > len(dir) && path[:len(dir)] == dir && path[len(dir)] == '/'
}

// CheckName reports names that no directory can hold.
func CheckName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("%q is no file name", name)
	case len(name) > MaxName:
		return fmt.Errorf("file name of %d bytes, the most is %d", len(name), MaxName)
	case strings.IndexByte(name, '/') >= 0 || strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("%q is no file name", name)
	}
	return nil
}

// CheckPath reports what is no path from the root of a snapshot.
func CheckPath(path string) error {
	if len(path) > MaxPath {
		return fmt.Errorf("path of %d bytes, the most is %d", len(path), MaxPath)
	}
	for rest := path; rest != ""; {
		name, more, found := strings.Cut(rest, "/")
		if err := CheckName(name); err != nil {
			return fmt.Errorf("path %q: %w", path, err)
		}
		if found && more == "" {
			return fmt.Errorf("path %q ends in a slash", path)
		}
		rest = more
	}
	return nil
}

// check reports what a page may not hold, apart from the key's place in it.
func (e *Entry) check() error {
	switch {
	case !e.Type.valid():
		return fmt.Errorf("unknown %v", e.Type)
	case e.Mode&^PermMask != 0:
		return fmt.Errorf("mode %#o", e.Mode)
	case e.Mtime.Nsec >= 1e9:
		return errors.New("time of a second or more of nanoseconds")
	case e.Type == Symlink && (e.Target == "" || len(e.Target) > MaxTarget || strings.IndexByte(e.Target, 0) >= 0):
		return errors.New("symbolic link with an impossible target")
	case e.Type == Dir && len(e.Dir)+1+len(e.Name) > MaxPath:
		return errors.New("path is too long")
	case e.Name == "" && (e.Dir != "" || e.Type != Dir):
		return errors.New("only the root directory has no name")
	case e.Type == Link:
		if err := e.First.check(); err != nil {
			return fmt.Errorf("hard link: %w", err)
		}
		if e.First.Compare(e.Key()) >= 0 {
			return errors.New("hard link to a later entry")
		}
	}
	if len(e.Xattrs) > 0 {
		if err := checkXattrs(e.Xattrs); err != nil {
			return err
		}
	}
	return e.checkExtents()
}

// check reports what is not the key of an entry below the root.
func (k Key) check() error {
	if err := CheckName(k.Name); err != nil {
		return err
	}
	return CheckPath(k.Dir)
}

func checkXattrs(all []Xattr) error {
	size := 0
	for i, x := range all {
		switch {
		case x.Name == "" || len(x.Name) > MaxXattrName || strings.IndexByte(x.Name, 0) >= 0:
			return fmt.Errorf("extended attribute with the impossible name %q", x.Name)
		case i > 0 && x.Name <= all[i-1].Name:
			return errors.New("extended attributes out of order")
		case len(x.Value) > MaxXattrValue:
			return fmt.Errorf("extended attribute %q of %d bytes, the most is %d", x.Name, len(x.Value), MaxXattrValue)
		}
		size += len(x.Name) + len(x.Value)
	}
	if len(all) > MaxXattrs || size > MaxXattrBytes {
		return fmt.Errorf("%d extended attributes of %d bytes, the most are %d of %d", len(all), size, MaxXattrs, MaxXattrBytes)
	}
	return nil
}

// checkNew reports what check does not because no page can hold it.
func (e *Entry) checkNew() error {
	switch {
	case e.Type != File && (len(e.Extents) > 0 || e.Spill != nil):
		return fmt.Errorf("%v with extents", e.Type)
	case e.Spill != nil && len(e.Extents) > 0:
		return errors.New("extents both here and in pages of their own")
	case e.Spill != nil && (len(e.Spill.Refs) == 0 || len(e.Spill.Refs) > MaxInline || e.Spill.Level < 0 || e.Spill.Level > maxLevel):
		return fmt.Errorf("%d pages of extents at level %d", len(e.Spill.Refs), e.Spill.Level)
	case e.Type == Link && len(e.Xattrs) > 0:
		return errors.New("hard link with extended attributes")
	case e.Type == File && e.Size > 1<<63-1:
		return fmt.Errorf("file of %d bytes", e.Size)
	}
	for i := range e.Extents {
		if err := e.Extents[i].Frame.Check(); err != nil {
			return err
		}
	}
	return e.check()
}

func (e *Entry) checkExtents() error {
	if e.Type != File {
		return nil
	}
	var covered uint64
	if e.Spill != nil {
		for _, r := range e.Spill.Refs {
			if r.Length == 0 || covered+r.Length < covered {
				return errors.New("extents of impossible length")
			}
			covered += r.Length
		}
	} else {
		n, err := checkExtents(e.Extents)
		if err != nil {
			return err
		}
		covered = n
	}
	if covered > e.Size {
		return fmt.Errorf("extents of %d bytes in a file of %d", covered, e.Size)
	}
	return nil
}

// checkExtents gives the length that extents cover, holes between them included.
func checkExtents(all []Extent) (covered uint64, err error) {
	for i := range all {
		x := &all[i]
		end := covered + x.Hole + uint64(x.Length)
		switch {
		case x.Length == 0:
			return 0, errors.New("empty extent")
		case end < covered || x.Hole > 1<<62:
			return 0, errors.New("extents of impossible length")
		case uint64(x.Offset)+uint64(x.Length) > uint64(x.Frame.Raw):
			return 0, errors.New("extent reaches out of its frame")
		}
		covered = end
	}
	return covered, nil
}

package remote

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/remote/disk"
)

// File is a [Store] in a folder: an object is a file of the same name. Any
// number of processes may use one folder at once, over NFS too.
//
// Objects are read-only files (0400) in folders of 0700, whatever the umask:
// what is backed up is often more private than the place that it is backed up
// to. Where the store's own folder is open to its group (0770), so is
// everything in it, so that a shared repository needs no more than
// `chmod 2770`.
type File struct {
	dir     string
	dirMode uint32 // of the folders made in it, the setgid bit included
	synced  sync.Map
}

var (
	_ Store    = (*File)(nil)
	_ Replacer = (*File)(nil)
	_ Resumer  = (*File)(nil)
	_ Clock    = (*File)(nil)
)

// MakeDir makes the folder of a file store, and its parents, durably. That it
// exists already is no error. [OpenFile] then opens it.
func MakeDir(dir string) error {
	dir, err := Abs(dir)
	if err != nil {
		return err
	}
	if err := makeDir(dir); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	return nil
}

func makeDir(dir string) error {
	if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		if fi, serr := os.Stat(dir); serr != nil || !fi.IsDir() {
			return err
		} // another process made it meanwhile
	}
	return disk.SyncDir(parent)
}

// OpenFile opens the store in a folder, which must exist, or it fails with
// [ErrNoBucket]. It removes what writers that were killed have left in the
// folder's tmp.
func OpenFile(dir string) (*File, error) {
	dir, err := Abs(dir) // the program may change its own folder later
	if err != nil {
		return nil, err
	}
	fi, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open %s: %w", dir, ErrNoBucket)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("open %s: %w", dir, ErrAccess)
	case err != nil:
		return nil, err
	case !fi.IsDir():
		return nil, fmt.Errorf("open %s: %w: it is not a folder", dir, ErrNoBucket)
	}
	s := &File{dir: dir, dirMode: 0o700}
	if group := uint32(fi.Mode().Perm()) & 0o070; group != 0 {
		s.dirMode |= group
		if fi.Mode()&fs.ModeSetgid != 0 {
			s.dirMode |= unix.S_ISGID
		}
	}
	s.clean(time.Now())
	return s, nil
}

// Dir is the store's folder, an absolute path.
func (s *File) Dir() string { return s.dir }

func (s *File) path(name string) string { return s.dir + "/" + name }

// begin is what every operation on one object does first.
func begin(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return CheckName(name)
}

// fileErr turns the system's errors into the package's. The folder itself may
// have gone, or never have been mounted: that must not look like an object
// that does not exist.
func (s *File) fileErr(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		if _, serr := os.Stat(s.dir); errors.Is(serr, fs.ErrNotExist) {
			return fmt.Errorf("%w: %s", ErrNoBucket, s.dir)
		}
		return ErrNotExist
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w in %s", ErrAccess, s.dir)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%s is full: %w", s.dir, err)
	}
	return err
}

func (s *File) open(name string) (int, error) { return disk.Open(s.path(name), unix.O_RDONLY) }

// errShortFile tells that a file ended; it is not unix.Errno.
var errShortFile = errors.New("end of file")

// pread fills p from offset on.
func pread(fd int, p []byte, offset int64) error {
	n, err := disk.Pread(fd, p, offset)
	if err == nil && n < len(p) {
		err = errShortFile
	}
	return err
}

// Get is [Store.Get].
func (s *File) Get(ctx context.Context, name string) ([]byte, error) {
	data, err := s.get(ctx, name)
	return data, OpGet.Wrap(name, err)
}

func (s *File) get(ctx context.Context, name string) ([]byte, error) {
	if err := begin(ctx, name); err != nil {
		return nil, err
	}
	fd, err := s.open(name)
	if err != nil {
		return nil, s.fileErr(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, ErrNotExist // a folder: names begin with this one
	}
	data, err := room(st.Size)
	if err != nil {
		return nil, err
	}
	if err := pread(fd, data, 0); err != nil {
		return nil, s.readErr(err)
	}
	return data, nil
}

// ReadAt is [Store.ReadAt]. It opens the file every time: on tmpfs that and
// closing take 5 µs where reading 128 KiB takes 26, which a cache of
// descriptors, with its lock, is not worth.
func (s *File) ReadAt(ctx context.Context, name string, offset int64, p []byte) error {
	return OpReadAt.Wrap(name, s.readAt(ctx, name, offset, p))
}

func (s *File) readAt(ctx context.Context, name string, offset int64, p []byte) error {
	if err := begin(ctx, name); err != nil {
		return err
	}
	if offset < 0 {
		return errNegative
	}
	if len(p) == 0 {
		return nil
	}
	fd, err := s.open(name)
	if err != nil {
		return s.fileErr(err)
	}
	defer unix.Close(fd)
	return s.readErr(pread(fd, p, offset))
}

func (s *File) readErr(err error) error {
	switch err {
	case nil:
		return nil
	case errShortFile:
		return ErrShort
	case unix.EISDIR:
		return ErrNotExist
	}
	return s.fileErr(err)
}

// Stat is [Store.Stat].
func (s *File) Stat(ctx context.Context, name string) (Info, error) {
	if err := begin(ctx, name); err != nil {
		return Info{}, OpStat.Wrap(name, err)
	}
	fi, err := os.Stat(s.path(name))
	if err == nil && !fi.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return Info{}, OpStat.Wrap(name, s.fileErr(err))
	}
	return Info{Name: name, Size: fi.Size(), ModTime: fi.ModTime()}, nil
}

// List is [Store.List].
func (s *File) List(ctx context.Context, prefix string, yield func(Info) error) error {
	return s.ListAfter(ctx, prefix, "", yield)
}

// ListAfter is [Resumer.ListAfter]. Files whose names are not an object's
// (and tmp) are passed over: they are not ours.
func (s *File) ListAfter(ctx context.Context, prefix, after string, yield func(Info) error) error {
	if err := errors.Join(ctx.Err(), CheckPrefix(prefix)); err != nil {
		return OpList.Wrap(prefix, err)
	}
	l := lister{s: s, ctx: ctx, prefix: prefix, after: after, yield: yield}
	// Only folders that the prefix leads to are read.
	dir := prefix[:strings.LastIndexByte(prefix, '/')+1]
	return l.list(dir)
}

type lister struct {
	s             *File
	ctx           context.Context
	prefix, after string
	yield         func(Info) error
}

// list lists a folder; dir is "" or ends in '/'.
func (l *lister) list(dir string) error {
	entries, err := os.ReadDir(l.s.path(dir))
	if err != nil {
		err = l.s.fileErr(err)
		if dir != "" && errors.Is(err, ErrNotExist) {
			return nil
		}
		return OpList.Wrap(dir, err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		name := dir + e.Name()
		if CheckName(name) != nil {
			continue
		}
		isDir := e.IsDir()
		if e.Type()&fs.ModeSymlink != 0 { // packs may have been moved to another disk
			fi, err := os.Stat(l.s.path(name))
			isDir = err == nil && fi.IsDir()
		}
		if isDir {
			name += "/" // so that a-b sorts before a/b
		}
		if l.wants(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if err := l.ctx.Err(); err != nil {
			return OpList.Wrap(l.prefix, err)
		}
		if strings.HasSuffix(name, "/") {
			err = l.list(name)
		} else {
			err = l.file(name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *lister) file(name string) error {
	fi, err := os.Stat(l.s.path(name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // deleted while we list
	case err != nil:
		return OpList.Wrap(name, l.s.fileErr(err))
	case !fi.Mode().IsRegular():
		return nil
	}
	return l.yield(Info{Name: name, Size: fi.Size(), ModTime: fi.ModTime()})
}

// wants tells whether an object (or, with a '/' at the end, anything in a
// folder) may begin with the prefix and come after l.after.
func (l *lister) wants(name string) bool {
	if !strings.HasSuffix(name, "/") {
		return strings.HasPrefix(name, l.prefix) && name > l.after
	}
	return name != tmpDir+"/" &&
		(strings.HasPrefix(name, l.prefix) || strings.HasPrefix(l.prefix, name)) &&
		(name > l.after || strings.HasPrefix(l.after, name))
}

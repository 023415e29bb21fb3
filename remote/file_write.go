package remote

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/remote/disk"
)

// Put is [Store.Put]. The object appears whole or not at all: it is written
// under another name, synced, renamed, and its folder is synced.
func (s *File) Put(ctx context.Context, name string, data []byte) error {
	err := s.write(ctx, name, data, disk.RenameNew)
	if errors.Is(err, fs.ErrExist) {
		err = s.compare(name, data)
	}
	return OpPut.Wrap(name, err)
}

// Replace is [Replacer.Replace], whole or not at all.
func (s *File) Replace(ctx context.Context, name string, data []byte) error {
	return OpReplace.Wrap(name, s.write(ctx, name, data, unix.Rename))
}

func (s *File) write(ctx context.Context, name string, data []byte, rename renamer) error {
	if err := begin(ctx, name); err != nil {
		return err
	}
	// If a writer is stopped for long, another's clean may take its temporary
	// file away: that costs a second attempt.
	for range 3 {
		err := s.writeOnce(ctx, name, data, rename)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if _, serr := os.Stat(s.dir); serr != nil {
			return s.fileErr(serr)
		}
	}
	return errVanish(s.path(tmpDir))
}

func errVanish(dir string) error { return fmt.Errorf("temporary files vanish from %s", dir) }

// now is when a file is made that is made now, by the clock of whoever keeps the files.
func (s *File) now(ctx context.Context) (time.Time, error) {
	for range 3 { // as in write
		if err := ctx.Err(); err != nil {
			return time.Time{}, err
		}
		f, err := s.createTemp()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return time.Time{}, err
		}
		fi, err := f.Stat()
		f.Close()
		os.Remove(f.Name())
		if err != nil {
			return time.Time{}, s.fileErr(err)
		}
		return fi.ModTime(), nil
	}
	return time.Time{}, errVanish(s.path(tmpDir))
}

func (s *File) writeOnce(ctx context.Context, name string, data []byte, rename renamer) (err error) {
	f, err := s.createTemp()
	if err != nil {
		return err
	}
	renamed := false
	defer func() {
		f.Close()
		if !renamed {
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(data); err != nil {
		return s.fileErr(err)
	}
	if err := f.Chmod(fs.FileMode(s.dirMode & 0o440)); err != nil {
		return s.fileErr(err)
	}
	// Only after this may the name appear: a file system may otherwise keep
	// the name, and not the content, when the power fails.
	if err := f.Sync(); err != nil {
		return s.fileErr(err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	dir := filepath.Dir(s.path(name))
	err = s.publish(f.Name(), s.path(name), dir, rename)
	if errors.Is(err, fs.ErrNotExist) { // somebody tidied up empty folders
		s.synced.Clear()
		err = s.publish(f.Name(), s.path(name), dir, rename)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrExist):
		return err // write and Put know what to do
	case err != nil:
		return s.fileErr(err)
	}
	renamed = true
	return s.fileErr(disk.SyncDir(dir))
}

// publish gives a synced temporary file its name.
func (s *File) publish(temp, path, dir string, rename renamer) error {
	if err := s.syncedDir(dir); err != nil {
		return err
	}
	return rename(temp, path)
}

// A renamer gives a file another name.
type renamer func(from, to string) error

// compare is Put's answer when there is an object of that name already.
func (s *File) compare(name string, data []byte) error {
	fd, err := s.open(name)
	if err != nil {
		return s.fileErr(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != int64(len(data)) {
		return ErrExist
	}
	buf := make([]byte, min(len(data), 256<<10))
	for off := 0; off < len(data); off += len(buf) {
		b := buf[:min(len(buf), len(data)-off)]
		if err := pread(fd, b, int64(off)); err != nil {
			return s.readErr(err)
		}
		if !bytes.Equal(b, data[off:off+len(b)]) {
			return ErrExist
		}
	}
	// Whoever renamed it may not have come to sync the folder yet.
	return s.fileErr(disk.SyncDir(filepath.Dir(s.path(name))))
}

// Delete is [Store.Delete]. Folders are left, even empty ones: another
// process may be about to write into them.
func (s *File) Delete(ctx context.Context, names ...string) error {
	var errs []error
	dirs := make(map[string]string) // path to a name in it
	for _, name := range names {
		if err := begin(ctx, name); err != nil {
			errs = append(errs, OpDelete.Wrap(name, err))
			continue
		}
		err := unix.Unlink(s.path(name))
		switch err {
		case nil:
			dirs[filepath.Dir(s.path(name))] = name
		case unix.EISDIR: // not an object
		case unix.EPERM: // which darwin says of a folder
			if fi, serr := os.Lstat(s.path(name)); serr != nil || !fi.IsDir() {
				errs = append(errs, OpDelete.Wrap(name, s.fileErr(err)))
			}
		default:
			if err := s.fileErr(err); !errors.Is(err, ErrNotExist) {
				errs = append(errs, OpDelete.Wrap(name, err))
			}
		}
	}
	for dir, name := range dirs {
		errs = append(errs, OpDelete.Wrap(name, s.fileErr(disk.SyncDir(dir))))
	}
	return deleteErrors(errs)
}

// syncedDir makes a folder beneath s.dir if need be, and sees to it that its
// name, and those of the folders that lead to it, are on disk. Another process
// may have made them and died before its sync, so this is done once for every
// folder in the life of the store, also for those that exist.
func (s *File) syncedDir(dir string) error {
	if _, ok := s.synced.Load(dir); ok || dir == s.dir {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := s.syncedDir(parent); err != nil {
		return err
	}
	if err := s.mkdir(dir); err != nil {
		return err
	}
	if err := disk.SyncDir(parent); err != nil {
		return err
	}
	s.synced.Store(dir, nil)
	return nil
}

func (s *File) mkdir(dir string) error {
	err := unix.Mkdir(dir, 0o700)
	if err == unix.EEXIST {
		return nil
	}
	if err == nil && s.dirMode != 0o700 {
		err = unix.Chmod(dir, s.dirMode)
	}
	if err != nil {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	return nil
}

// Temporary files are named as tmpForm says, and locked by their writer
// for as long as it lives.
const tmpPrefix = "put-"

var tmpForm = regexp.MustCompile(`^` + tmpPrefix + `[a-z2-7]{26}$`)

// tmpAge is far longer than a writer needs from making a temporary file to
// locking it.
const tmpAge = time.Minute

func (s *File) createTemp() (*os.File, error) {
	dir := s.path(tmpDir)
	name := dir + "/" + tmpPrefix + strings.ToLower(rand.Text())
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := s.mkdir(dir); err != nil {
			return nil, s.fileErr(err)
		}
		f, err = os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err // write tries again
	}
	if err != nil {
		return nil, s.fileErr(err)
	}
	// Without locks (an NFS mount with nolock), clean only goes by its own
	// lock, which then always succeeds, and by the age.
	_ = disk.Lock(int(f.Fd()))
	return f, nil
}

// clean removes temporary files whose writer was killed: those that bear our
// kind of name, are older than tmpAge, and are locked by nobody. It is a
// courtesy, so its errors do not matter.
func (s *File) clean(now time.Time) {
	dir := s.path(tmpDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !tmpForm.MatchString(e.Name()) || !e.Type().IsRegular() {
			continue
		}
		fi, err := e.Info()
		if err != nil || now.Sub(fi.ModTime()) < tmpAge {
			continue
		}
		removeIfUnlocked(dir + "/" + e.Name())
	}
}

func removeIfUnlocked(path string) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if disk.Lock(int(f.Fd())) == nil {
		os.Remove(path)
	}
}

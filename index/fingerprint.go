package index

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/snapctl/snapctl/chunk/wire"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

// A fingerprint tells whether a file of Badger's is what it was when the
// catalog was written. Badger must not be handed anything else: a damaged table
// makes it end the process (log.Fatal, or a panic in a goroutine of its own),
// or ignore the table without a word.
//
// If the kernel has been up since, and says that the file is the same and was
// not touched, it is not read: the page cache holds what was written, whatever
// has reached the disk. Otherwise, after a reboot, which may have been a loss
// of power, or when the folder was copied, the hash decides.
type fingerprint struct {
	name  string
	size  int64
	inode uint64
	mtime int64 // ns since 1970
	ctime int64 // ns since 1970; nothing can set it back
	hash  [32]byte
}

func (f *fingerprint) appendTo(dst []byte) []byte {
	dst = wire.AppendBytes(dst, f.name)
	dst = binary.AppendUvarint(dst, uint64(f.size))
	dst = binary.AppendUvarint(dst, f.inode)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(f.mtime))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(f.ctime))
	return append(dst, f.hash[:]...)
}

func readFingerprint(r *wire.Reader) (f fingerprint) {
	f.name = string(r.Bytes("file name", 255))
	f.size = int64(r.Uvarint("file size", 1<<62))
	f.inode = r.Uvarint("inode", 1<<64-1)
	if b := r.Fixed("times", 16); b != nil {
		f.mtime = int64(binary.LittleEndian.Uint64(b))
		f.ctime = int64(binary.LittleEndian.Uint64(b[8:]))
	}
	copy(f.hash[:], r.Fixed("file hash", len(f.hash)))
	return f
}

// sameStat reports whether the two are one file that was not touched.
func (f *fingerprint) sameStat(g *fingerprint) bool {
	return f.name == g.name && f.size == g.size && f.inode == g.inode && f.mtime == g.mtime && f.ctime == g.ctime
}

// fingerprints describes the files of dir, by ascending name; none where dir
// does not exist. Where a file is in known, with the same stat, the hash is
// taken from there. read is how many had to be read.
func fingerprints(dir string, known []fingerprint) (files []fingerprint, read int, err error) {
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	trusted := make(map[string]*fingerprint, len(known))
	for i := range known {
		trusted[known[i].name] = &known[i]
	}
	for _, e := range entries {
		f, err := statFile(dir, e.Name())
		if err != nil {
			return nil, 0, err
		}
		if t := trusted[f.name]; t != nil && f.sameStat(t) {
			f.hash = t.hash
		} else {
			if f.hash, err = hashFile(filepath.Join(dir, f.name)); err != nil {
				return nil, 0, err
			}
			read++
		}
		files = append(files, f)
	}
	return files, read, nil
}

func statFile(dir, name string) (fingerprint, error) {
	path := filepath.Join(dir, name)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fingerprint{}, fmt.Errorf("stat %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || !badgerFile.MatchString(name) {
		return fingerprint{}, fmt.Errorf("%s: %w", path, errNotOurs)
	}
	return fingerprint{name: name, size: st.Size, inode: st.Ino, mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano()}, nil
}

func hashFile(path string) (sum [32]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := blake3.New()
	if _, err := io.CopyBuffer(h, f, make([]byte, 256<<10)); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}

//go:build !portable

package fsys

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

var direntBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// ReadNames gives the names in an open directory, unordered. They share memory.
func ReadNames(fd int) ([]string, error) {
	buf := direntBuffers.Get().(*[64 << 10]byte)
	defer direntBuffers.Put(buf)
	var all strings.Builder
	var ends []int
	for {
		n, err := unix.Getdents(fd, buf[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		for rec := buf[:n]; len(rec) > 0; {
			// struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name.
			size := int(binary.NativeEndian.Uint16(rec[16:]))
			name := rec[19:size]
			if end := slices.Index(name, 0); end >= 0 {
				name = name[:end]
			}
			rec = rec[size:]
			if s := string(name); s == "." || s == ".." {
				continue
			}
			all.Write(name)
			ends = append(ends, all.Len())
		}
	}
	names := make([]string, len(ends))
	start := 0
	for i, end := range ends {
		names[i] = all.String()[start:end]
		start = end
	}
	return names, nil
}

//go:build !linux

package engine

import (
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"golang.org/x/sys/unix"
)

func attributesOf(dir int, name string) (a fileAttributes, err error) {
	var st unix.Stat_t
	err = fsys.StatAt(dir, name, &st)
	return fileAttributes{mount: uint64(st.Dev)}, err
}

package fsys

import (
	"errors"

	"golang.org/x/sys/unix"
)

// XattrAccess is a file whose extended attributes are read.
type XattrAccess struct {
	List func(dest []byte) (int, error)
	Get  func(name string, dest []byte) (int, error)
}

// GrowBuffer calls get with larger and larger memory until all fits.
func GrowBuffer(get func(dest []byte) (int, error)) ([]byte, error) {
	for range 8 {
		n, err := get(nil)
		if err != nil || n == 0 {
			return nil, err
		}
		buf := make([]byte, n)
		n, err = get(buf)
		if errors.Is(err, unix.ERANGE) {
			continue // it grew in between
		}
		return buf[:max(n, 0)], err
	}
	return nil, unix.ERANGE
}

package disk

import "golang.org/x/sys/unix"

// Open opens a file as a bare descriptor, which the caller closes. os.Open adds system
// calls that try the file with the poller, and a finalizer: 9 µs, not 5.
func Open(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// Pread fills p with what stands from offset on. It returns fewer bytes only where the
// file ends, or with an error.
func Pread(fd int, p []byte, offset int64) (int, error) {
	return Preadv(fd, [3][]byte{p}, offset)
}

// Preadv is [Pread] into several buffers, of which any may be empty.
func Preadv(fd int, bufs [3][]byte, offset int64) (int, error) {
	n := 0
	left := bufs[:]
	for {
		for len(left) > 0 && len(left[0]) == 0 {
			left = left[1:]
		}
		if len(left) == 0 {
			return n, nil
		}
		var m int
		var err error
		if len(left) == 1 {
			m, err = unix.Pread(fd, left[0], offset+int64(n)) // twice as fast as preadv for small ones
		} else {
			m, err = unix.Preadv(fd, left, offset+int64(n))
		}
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return n, err
		case m == 0:
			return n, nil
		}
		n += m
		for len(left) > 0 && m >= len(left[0]) {
			m -= len(left[0])
			left = left[1:]
		}
		if len(left) > 0 {
			left[0] = left[0][m:]
		}
	}
}

// Pwrite writes all of p at offset.
func Pwrite(fd int, p []byte, offset int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, offset)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		p, offset = p[n:], offset+int64(n)
	}
	return nil
}

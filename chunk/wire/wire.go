// Package wire is the canonical binary encoding that every format of snapctl
// is written in: minimal uvarints, length-prefixed byte strings, fixed-size
// fields, nothing optional and nothing left over.
//
// Writing is appending: encoding/binary's AppendUvarint and [AppendBytes].
// Reading is a [Reader], which refuses whatever a writer would not have
// written, so that what decodes also re-encodes to the same bytes.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrMalformed is wrapped by every error of a [Reader].
var ErrMalformed = errors.New("malformed")

// AppendBytes appends the length of s as a uvarint, then s.
func AppendBytes[T ~string | ~[]byte](dst []byte, s T) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

// A Reader decodes a byte slice from front to back. The first failure sticks:
// later calls return zero values, and [Reader.Err] tells what went wrong.
// Byte slices that it returns alias the input. The zero Reader is empty.
type Reader struct {
	buf []byte
	off int
	err error
}

// NewReader reads buf, which must not change while what was read is in use.
func NewReader(buf []byte) *Reader { return &Reader{buf: buf} }

// Reset makes r read buf from offset on.
func (r *Reader) Reset(buf []byte, offset int) { *r = Reader{buf: buf, off: offset} }

// Err is the first failure, nil while there was none.
func (r *Reader) Err() error { return r.err }

// Offset is the number of bytes read.
func (r *Reader) Offset() int { return r.off }

// Len is the number of bytes left, 0 after a failure.
func (r *Reader) Len() int {
	if r.err != nil {
		return 0
	}
	return len(r.buf) - r.off
}

// Failf records a failure at the present offset, unless there was one before.
func (r *Reader) Failf(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w at byte %d: %s", ErrMalformed, r.off, fmt.Sprintf(format, args...))
	}
}

// Close reports the first failure, or bytes that nobody read.
func (r *Reader) Close() error {
	if n := r.Len(); n > 0 {
		r.Failf("%d bytes too many", n)
	}
	return r.err
}

// Uvarint reads a minimally encoded uvarint that is no larger than limit.
func (r *Reader) Uvarint(what string, limit uint64) uint64 {
	if r.err != nil {
		return 0
	}
	var v uint64
	for i, b := range r.buf[r.off:] {
		if i == binary.MaxVarintLen64-1 && b > 1 {
			break // more than 64 bits
		}
		v |= uint64(b&0x7f) << (7 * i)
		if b >= 0x80 {
			continue
		}
		switch {
		case b == 0 && i > 0:
			r.Failf("%s: number is not minimal", what)
			return 0
		case v > limit:
			r.Failf("%s is %d, the most is %d", what, v, limit)
			return 0
		}
		r.off += i + 1
		return v
	}
	r.Failf("%s: no valid number", what)
	return 0
}

// Count reads the number of items that follow, each of at least itemSize
// bytes: a count that the rest of the input cannot hold is refused before
// anybody allocates for it.
func (r *Reader) Count(what string, itemSize int) int {
	n := int(r.Uvarint(what, uint64(r.Len()/itemSize)))
	if n > r.Len()/itemSize { // its own bytes are gone now
		r.Failf("%s is %d, more than follow", what, n)
		return 0
	}
	return n
}

// Byte reads one byte.
func (r *Reader) Byte(what string) byte {
	if b := r.Fixed(what, 1); b != nil {
		return b[0]
	}
	return 0
}

// Fixed reads n bytes, nil after a failure.
func (r *Reader) Fixed(what string, n int) []byte {
	if r.err != nil {
		return nil
	}
	if len(r.buf)-r.off < n {
		r.Failf("%s: %d bytes wanted, %d left", what, n, len(r.buf)-r.off)
		return nil
	}
	b := r.buf[r.off : r.off+n : r.off+n]
	r.off += n
	return b
}

// Bytes reads a length-prefixed byte string of at most limit bytes.
func (r *Reader) Bytes(what string, limit int) []byte {
	n := r.Uvarint(what, uint64(limit)) // naming it "length of" would allocate, each time
	return r.Fixed(what, int(n))
}

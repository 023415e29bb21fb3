package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/remote/disk"
)

// A RangeReader is a Store that reads up to an object's end in one request,
// and gives bytes while others are still on their way.
type RangeReader interface {
	// ReadRange fills p from the front with the object's bytes from offset on.
	// It returns how many there are: fewer than len(p) only where the object
	// ends, or with an error. Where offset is at the end or behind it, that is
	// ErrShort. While it works it calls arrived with the n for which p[:n] is
	// final; not necessarily for the last ones, and never after it has returned.
	// arrived may be nil.
	ReadRange(ctx context.Context, name string, offset int64, p []byte, arrived func(n int)) (int, error)
}

var (
	_ RangeReader = (*File)(nil)
	_ RangeReader = (*S3)(nil)
	_ RangeReader = (*retrier)(nil)
)

// ReadRange is [RangeReader.ReadRange] on any store. One that is no
// RangeReader takes two requests more where the object ends within p.
func ReadRange(ctx context.Context, s Store, name string, offset int64, p []byte, arrived func(n int)) (int, error) {
	if r, ok := s.(RangeReader); ok {
		return r.ReadRange(ctx, name, offset, p, arrived)
	}
	err := s.ReadAt(ctx, name, offset, p)
	if err == nil {
		return len(p), nil
	}
	if !errors.Is(err, ErrShort) {
		return 0, err
	}
	info, serr := s.Stat(ctx, name)
	if serr != nil {
		return 0, serr
	}
	if offset >= info.Size || info.Size-offset >= int64(len(p)) {
		return 0, err
	}
	p = p[:info.Size-offset]
	if err := s.ReadAt(ctx, name, offset, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// rangeStep is how much of a body is read between two calls of arrived.
const rangeStep = 128 << 10

// ReadRange is [RangeReader.ReadRange], one request.
func (s *S3) ReadRange(ctx context.Context, name string, offset int64, p []byte, arrived func(n int)) (int, error) {
	n, err := s.readRange(ctx, name, offset, p, arrived)
	return n, OpReadAt.Wrap(name, err)
}

func (s *S3) readRange(ctx context.Context, name string, offset int64, p []byte, arrived func(n int)) (int, error) {
	if err := begin(ctx, name); err != nil {
		return 0, err
	}
	if offset < 0 {
		return 0, errNegative
	}
	if len(p) == 0 {
		return 0, nil // no range can say this
	}
	var opts minio.GetObjectOptions
	if err := opts.SetRange(offset, offset+int64(len(p))-1); err != nil {
		return 0, err
	}
	ctx, answer := withAnswer(ctx)
	body, _, header, err := s.core.GetObject(ctx, s.bucket, s.prefix+name, opts)
	if err != nil {
		return 0, s.mapErr(ctx, answer, err)
	}
	defer body.Close()
	first, last, size, ok := parseContentRange(header.Get("Content-Range"))
	if !ok || first != offset || last >= offset+int64(len(p)) {
		return 0, fmt.Errorf("the server ignored the range that was asked for (Content-Range: %q)", header.Get("Content-Range"))
	}
	n := int(last - first + 1)
	if n < len(p) && size >= 0 && last != size-1 {
		// Believing this would make the object shorter than it is.
		return 0, &TransientError{Err: fmt.Errorf("the server gave only a part of the range (Content-Range: %q)", header.Get("Content-Range"))}
	}
	for got := 0; got < n; {
		step := p[got:min(n, got+rangeStep)]
		m, err := io.ReadFull(body, step)
		got += m
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return got, ctx.Err()
		default:
			return got, &TransientError{Err: fmt.Errorf("the answer broke off after %d of %d bytes: %w", got, n, err)}
		}
		if arrived != nil {
			arrived(got)
		}
	}
	return n, nil
}

// parseContentRange takes "bytes 0-99/1234" apart; the size is -1 for "*".
func parseContentRange(v string) (first, last, size int64, ok bool) {
	v, ok = strings.CutPrefix(v, "bytes ")
	bounds, total, ok2 := strings.Cut(v, "/")
	from, to, ok3 := strings.Cut(bounds, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, 0, false
	}
	first, err1 := strconv.ParseInt(from, 10, 64)
	last, err2 := strconv.ParseInt(to, 10, 64)
	size = -1
	var err3 error
	if total != "*" {
		size, err3 = strconv.ParseInt(total, 10, 64)
	}
	ok = err1 == nil && err2 == nil && err3 == nil && 0 <= first && first <= last && (size < 0 || last < size)
	return first, last, size, ok
}

// ReadRange is [RangeReader.ReadRange].
func (s *File) ReadRange(ctx context.Context, name string, offset int64, p []byte, _ func(n int)) (int, error) {
	n, err := s.readRange(ctx, name, offset, p)
	return n, OpReadAt.Wrap(name, err)
}

func (s *File) readRange(ctx context.Context, name string, offset int64, p []byte) (int, error) {
	if err := begin(ctx, name); err != nil {
		return 0, err
	}
	if offset < 0 {
		return 0, errNegative
	}
	if len(p) == 0 {
		return 0, nil
	}
	fd, err := s.open(name)
	if err != nil {
		return 0, s.fileErr(err)
	}
	defer unix.Close(fd)
	n, err := disk.Pread(fd, p, offset)
	if err == nil && n == 0 {
		err = errShortFile
	}
	return n, s.readErr(err)
}

// ReadRange is [RangeReader.ReadRange]. It goes on where an attempt broke off.
func (r *retrier) ReadRange(ctx context.Context, name string, offset int64, p []byte, arrived func(n int)) (int, error) {
	got := 0
	err := r.do(ctx, OpReadAt, name, len(p), func(ctx context.Context) error {
		before := got
		var progress func(n int)
		if arrived != nil {
			progress = func(n int) { arrived(before + n) }
		}
		n, err := ReadRange(ctx, r.store, name, offset+int64(before), p[before:], progress)
		got += n
		if before > 0 && errors.Is(err, ErrShort) {
			return nil // it broke off just before the end was seen
		}
		if got == len(p) {
			return nil
		}
		return err
	})
	return got, err
}

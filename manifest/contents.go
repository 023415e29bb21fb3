package manifest

import (
	"context"
	"errors"
	"fmt"
)

// A ChunkSource gives the contents of files. It must be safe for parallel use.
type ChunkSource interface {
	// Chunk gives the plaintext of an extent's chunk, checked against its id,
	// which is not changed as long as it is in use.
	Chunk(ctx context.Context, x *Extent) ([]byte, error)
}

// errRead ends a walk over extents: what was wanted is there.
var errRead = errors.New("read")

// Read gives the bytes of a file from off on, as many as buf holds or the file
// has: of one chunk, which must not be changed, if they lie in it, and else
// copied into buf.
func (t *Tree) Read(ctx context.Context, src ChunkSource, e *Entry, off uint64, buf []byte) ([]byte, error) {
	if off >= e.Size {
		return nil, nil
	}
	buf = buf[:min(uint64(len(buf)), e.Size-off)]
	end := off + uint64(len(buf))
	var whole []byte
	done := off // up to here buf is filled
	err := t.ExtentsFrom(ctx, e, off, func(at uint64, x *Extent) error {
		if at >= end {
			return errRead
		}
		chunk, err := src.Chunk(ctx, x)
		if err != nil {
			return err
		}
		if at <= off && end <= at+uint64(len(chunk)) {
			whole = chunk[off-at : end-at]
			return errRead
		}
		first := max(at, off)
		clear(buf[done-off : first-off]) // a hole
		done = first + uint64(copy(buf[first-off:], chunk[first-at:]))
		if done >= end {
			return errRead
		}
		return nil
	})
	if err != nil && !errors.Is(err, errRead) {
		return nil, err
	}
	if whole != nil {
		return whole, nil
	}
	clear(buf[done-off:])
	return buf, nil
}

// Resolve makes a hard link the entry that it is a name of, and tells that
// entry's rank. Any other entry stays as it is.
func (t *Tree) Resolve(ctx context.Context, rank uint64, e *Entry) (uint64, error) {
	if e.Type != Link {
		return rank, nil
	}
	name := e.Key()
	rank, err := t.Lookup(ctx, e.First, e)
	if errors.Is(err, ErrNotExist) || err == nil && (e.Type == Link || e.Type == Dir) {
		// Never ErrNotExist: the name is there, and the tree is wrong.
		err = fmt.Errorf("%w: hard link %q leads to no file", ErrDamaged, name.Path())
	}
	return rank, err
}

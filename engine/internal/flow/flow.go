// Package flow is what runs between the stages of a pipeline: sends that end with their
// context, and buffers that are used again.
package flow

import "context"

// Send sends v, and reports false if the context ended before.
func Send[T any](ctx context.Context, to chan<- T, v T) bool {
	select {
	case to <- v:
		return true
	case <-ctx.Done():
		return false
	}
}

// Buffers keeps memory for reuse: at most as many as its capacity, so that what
// an operation holds is bounded, and does not depend on when garbage is
// collected. It is safe for parallel use.
type Buffers struct {
	free chan []byte
	size int
}

// NewBuffers keeps up to n buffers, each of size bytes when new.
func NewBuffers(n, size int) *Buffers {
	return &Buffers{make(chan []byte, n), size}
}

// Get gives an empty buffer.
func (b *Buffers) Get() []byte {
	select {
	case buf := <-b.free:
		return buf[:0]
	default:
		return make([]byte, 0, b.size)
	}
}

// Put takes a buffer back, which may have grown.
func (b *Buffers) Put(buf []byte) {
	select {
	case b.free <- buf:
	default:
	}
}

package engine

// buffers keeps memory for reuse: at most as many as its capacity, so that what
// an operation holds is bounded, and does not depend on when garbage is
// collected. It is safe for parallel use.
type buffers struct {
	free chan []byte
	size int
}

// newBuffers keeps up to n buffers, each of size bytes when new.
func newBuffers(n, size int) *buffers {
	return &buffers{make(chan []byte, n), size}
}

// get gives an empty buffer.
func (b *buffers) get() []byte {
	select {
	case buf := <-b.free:
		return buf[:0]
	default:
		return make([]byte, 0, b.size)
	}
}

// put takes a buffer back, which may have grown.
func (b *buffers) put(buf []byte) {
	select {
	case b.free <- buf:
	default:
	}
}

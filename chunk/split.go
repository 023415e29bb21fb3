package chunk

import (
	"fmt"

	"github.com/restic/chunker"
)

// A Splitter cuts streams into chunks. It keeps no state between calls and is
// safe for parallel use.
type Splitter interface {
	// Next is the length of the first chunk of data. data begins at a chunk
	// boundary and holds either the whole rest of the stream or at least
	// MaxChunk bytes of it.
	Next(data []byte) int
	// MinChunk is a length up to which a whole stream is one chunk.
	MinChunk() int
	// MaxChunk is the longest chunk.
	MaxChunk() int
}

// CDCParams are the parameters of content-defined chunking. All snapshots of a
// repository share them, or nothing would be shared.
type CDCParams struct {
	Polynomial  uint64 `json:"polynomial"`  // irreducible, of degree 53
	Min         int    `json:"min"`         // bytes
	AverageBits int    `json:"averageBits"` // the mean chunk is about Min + 2^AverageBits bytes
	Max         int    `json:"max"`         // bytes, at most MaxFrame
}

// DefaultCDCParams is what a new repository uses. The polynomial is fixed, not
// random, so that two repositories cut alike and a copy between them shares
// chunks: a secret polynomial is no confidentiality.
var DefaultCDCParams = CDCParams{Polynomial: 0x3DA3358B4DC173, Min: 256 << 10, AverageBits: 16, Max: 1 << 20}

// NewSplitter checks the parameters and gives the splitter that they describe:
// the Rabin fingerprint of github.com/restic/chunker.
func NewSplitter(p CDCParams) (Splitter, error) {
	pol := chunker.Pol(p.Polynomial)
	switch {
	case pol.Deg() != 53 || !pol.Irreducible():
		return nil, fmt.Errorf("chunker polynomial %#x is not irreducible of degree 53", p.Polynomial)
	// Below 64 bytes, the window, the minimum underflows in the library.
	case p.Min < 4<<10 || p.Min > p.Max || p.Max > MaxFrame:
		return nil, fmt.Errorf("chunker bounds %d to %d are not within %d to %d", p.Min, p.Max, 4<<10, MaxFrame)
	case p.AverageBits < 10 || p.AverageBits > 24:
		return nil, fmt.Errorf("chunker average of 2^%d is not within 2^10 to 2^24", p.AverageBits)
	}
	c := chunker.NewBase(pol, chunker.WithBaseBoundaries(uint(p.Min), uint(p.Max)), chunker.WithBaseAverageBits(p.AverageBits))
	return &rabin{pristine: *c, min: p.Min, max: p.Max}, nil
}

type rabin struct {
	// pristine is copied for each chunk that is cut: the library's own reset
	// does not happen at the end of a stream, and goes through a process-wide
	// mutex where it does.
	pristine chunker.BaseChunker
	min, max int
}

func (r *rabin) MinChunk() int { return r.min }
func (r *rabin) MaxChunk() int { return r.max }

func (r *rabin) Next(data []byte) int {
	if len(data) <= r.min {
		return len(data)
	}
	c := r.pristine
	if n := c.NextSplitPoint(data[:min(len(data), r.max)]); n > 0 {
		return n
	}
	return min(len(data), r.max)
}

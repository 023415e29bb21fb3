package read

import (
	"context"
	"io"
	"runtime"
	"sync"

	"github.com/snapctl/snapctl/chunk/lru"
	"github.com/snapctl/snapctl/engine/internal/access"
	"github.com/snapctl/snapctl/engine/internal/flow"
	"github.com/snapctl/snapctl/manifest"
)

// Whoever reads files one after the other, as Dump does, has their chunks
// decoded and checked ahead, by as many goroutines as there are processors:
//
//	produce ──▶ batches ──▶ verified ──▶ consume, in order
//	    └─────▶ frames that are new ──▶ decoded into the cache
//
// A batch is bounded by its bytes and by the frames that it touches, since a
// piece keeps its frame in memory, and so is the number of batches.
const (
	aheadBatches = 8
	aheadBytes   = 1 << 20
	aheadPieces  = 512
	aheadFrames  = 4
	verifiers    = 2
	// recentFrames are not asked for again: they are in the cache, or on the way.
	recentFrames = 64
)

// A Piece is the beginning of a file, a chunk of one, or both.
type Piece struct {
	Entry  *manifest.Entry // of the file that begins; nil where one goes on
	Link   string          // what the file is a further name of, for Dump
	Copied any             // the *copiedEntry whose next chunk it is, for Copy
	At     uint64          // of the chunk in the file
	Extent manifest.Extent // of length 0 for none
	Data   []byte
	Err    error // there is no data, or nothing more at all
}

type aheadBatch struct {
	pieces []Piece
	bytes  int
	frames int
	ready  chan struct{}
}

// ReadAhead calls consume for the pieces that produce emits, in order, with
// their data or an error, at the first of which consume should return one.
// produce runs in a goroutine of its own.
func (c *Chunks) ReadAhead(ctx context.Context, produce func(ctx context.Context, emit func(Piece) error) error, consume func(*Piece) error) error {
	ctx, cancel := context.WithCancel(ctx)
	a := &ahead{
		chunks:  c,
		ordered: make(chan *aheadBatch, aheadBatches),
		verify:  make(chan *aheadBatch, aheadBatches),
		frames:  make(chan manifest.Extent, aheadBatches*aheadFrames),
		recent:  lru.New[access.FrameKey, struct{}](recentFrames),
	}
	loaders := runtime.GOMAXPROCS(0)
	if !c.Repo.Local() {
		loaders = max(loaders, RemoteFetches)
	}
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	work.Go(func() { a.produce(ctx, produce) })
	for range loaders {
		work.Go(func() {
			for x := range a.frames {
				if ctx.Err() == nil {
					_, _ = c.Chunk(ctx, &x) // whoever wants it sees why
				}
			}
		})
	}
	for range verifiers {
		work.Go(func() {
			for b := range a.verify {
				b.read(ctx, c)
			}
		})
	}
	for b := range a.ordered {
		select {
		case <-b.ready:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		for i := range b.pieces {
			if err := consume(&b.pieces[i]); err != nil {
				return err
			}
		}
	}
	return context.Cause(ctx)
}

// ahead is one run of ReadAhead.
type ahead struct {
	chunks  *Chunks
	ordered chan *aheadBatch
	verify  chan *aheadBatch
	frames  chan manifest.Extent
	recent  *lru.Cache[access.FrameKey, struct{}]
	batch   *aheadBatch
}

func (a *ahead) produce(ctx context.Context, produce func(context.Context, func(Piece) error) error) {
	defer close(a.ordered)
	defer close(a.verify)
	defer close(a.frames)
	err := produce(ctx, func(p Piece) error { return a.add(ctx, p) })
	if err != nil {
		err = a.add(ctx, Piece{Err: err})
	}
	if err == nil {
		_ = a.flush(ctx) // fails if nobody waits for it
	}
}

func (a *ahead) add(ctx context.Context, p Piece) error {
	if a.batch == nil {
		a.batch = &aheadBatch{ready: make(chan struct{})}
	}
	b := a.batch
	if p.Extent.Length > 0 {
		key := access.FrameKey{Pack: p.Extent.Pack, Offset: p.Extent.Frame.Offset}
		if _, known := a.recent.Get(key); !known {
			a.recent.Add(key, struct{}{})
			b.frames++
			if !flow.Send(ctx, a.frames, p.Extent) {
				return context.Cause(ctx)
			}
		}
	}
	b.pieces = append(b.pieces, p)
	b.bytes += int(p.Extent.Length)
	if b.bytes >= aheadBytes || len(b.pieces) >= aheadPieces || b.frames >= aheadFrames {
		return a.flush(ctx)
	}
	return nil
}

func (a *ahead) flush(ctx context.Context) error {
	b := a.batch
	if a.batch = nil; b == nil {
		return nil
	}
	if !flow.Send(ctx, a.ordered, b) || !flow.Send(ctx, a.verify, b) {
		return context.Cause(ctx)
	}
	return nil
}

// read gets the data of a batch, as far as there is any.
func (b *aheadBatch) read(ctx context.Context, src manifest.ChunkSource) {
	defer close(b.ready)
	for i := range b.pieces {
		p := &b.pieces[i]
		if p.Extent.Length > 0 {
			p.Data, p.Err = src.Chunk(ctx, &p.Extent)
		}
		if p.Err != nil {
			return
		}
	}
}

// FileWriter writes a file's data, and zeros where it has holes.
type FileWriter struct {
	W    io.Writer
	At   uint64
	Zero []byte
}

// Data writes a chunk that is at that place in the file, or what of it lies
// behind what was written.
func (f *FileWriter) Data(at uint64, b []byte) error {
	if at < f.At {
		b = b[min(f.At-at, uint64(len(b))):]
	} else if err := f.Zeros(at); err != nil {
		return err
	}
	n, err := f.W.Write(b)
	f.At += uint64(n)
	return err
}

// Zeros fills the file up to there.
func (f *FileWriter) Zeros(to uint64) error {
	for f.At < to {
		if f.Zero == nil {
			f.Zero = make([]byte, 128<<10)
		}
		n, err := f.W.Write(f.Zero[:min(to-f.At, uint64(len(f.Zero)))])
		f.At += uint64(n)
		if err != nil {
			return err
		}
	}
	return nil
}

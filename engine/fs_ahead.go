package engine

import (
	"context"
	"io"
	"runtime"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
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

// A filePiece is the beginning of a file, a chunk of one, or both.
type filePiece struct {
	entry  *manifest.Entry // of the file that begins; nil where one goes on
	link   string          // what the file is a further name of, for Dump
	copied *copiedEntry    // whose next chunk it is, for Copy
	at     uint64          // of the chunk in the file
	extent manifest.Extent // of length 0 for none
	data   []byte
	err    error // there is no data, or nothing more at all
}

type aheadBatch struct {
	pieces []filePiece
	bytes  int
	frames int
	ready  chan struct{}
}

// readAhead calls consume for the pieces that produce emits, in order, with
// their data or an error, at the first of which consume should return one.
// produce runs in a goroutine of its own.
func (c *chunkReader) readAhead(ctx context.Context, produce func(ctx context.Context, emit func(filePiece) error) error, consume func(*filePiece) error) error {
	ctx, cancel := context.WithCancel(ctx)
	a := &ahead{
		chunks:  c,
		ordered: make(chan *aheadBatch, aheadBatches),
		verify:  make(chan *aheadBatch, aheadBatches),
		frames:  make(chan manifest.Extent, aheadBatches*aheadFrames),
		recent:  newLRU[access.FrameKey, struct{}](recentFrames),
	}
	loaders := runtime.GOMAXPROCS(0)
	if !c.repo.repo.Local() {
		loaders = max(loaders, remoteFetches)
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

// ahead is one run of readAhead.
type ahead struct {
	chunks  *chunkReader
	ordered chan *aheadBatch
	verify  chan *aheadBatch
	frames  chan manifest.Extent
	recent  *simplelru.LRU[access.FrameKey, struct{}]
	batch   *aheadBatch
}

func (a *ahead) produce(ctx context.Context, produce func(context.Context, func(filePiece) error) error) {
	defer close(a.ordered)
	defer close(a.verify)
	defer close(a.frames)
	err := produce(ctx, func(p filePiece) error { return a.add(ctx, p) })
	if err != nil {
		err = a.add(ctx, filePiece{err: err})
	}
	if err == nil {
		_ = a.flush(ctx) // fails if nobody waits for it
	}
}

func (a *ahead) add(ctx context.Context, p filePiece) error {
	if a.batch == nil {
		a.batch = &aheadBatch{ready: make(chan struct{})}
	}
	b := a.batch
	if p.extent.Length > 0 {
		key := access.FrameKey{Pack: p.extent.Pack, Offset: p.extent.Frame.Offset}
		if _, known := a.recent.Get(key); !known {
			a.recent.Add(key, struct{}{})
			b.frames++
			if !flow.Send(ctx, a.frames, p.extent) {
				return context.Cause(ctx)
			}
		}
	}
	b.pieces = append(b.pieces, p)
	b.bytes += int(p.extent.Length)
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
		if p.extent.Length > 0 {
			p.data, p.err = src.Chunk(ctx, &p.extent)
		}
		if p.err != nil {
			return
		}
	}
}

// fileWriter writes a file's data, and zeros where it has holes.
type fileWriter struct {
	w    io.Writer
	at   uint64
	zero []byte
}

// data writes a chunk that is at that place in the file, or what of it lies
// behind what was written.
func (f *fileWriter) data(at uint64, b []byte) error {
	if at < f.at {
		b = b[min(f.at-at, uint64(len(b))):]
	} else if err := f.zeros(at); err != nil {
		return err
	}
	n, err := f.w.Write(b)
	f.at += uint64(n)
	return err
}

// zeros fills the file up to there.
func (f *fileWriter) zeros(to uint64) error {
	for f.at < to {
		if f.zero == nil {
			f.zero = make([]byte, 128<<10)
		}
		n, err := f.w.Write(f.zero[:min(to-f.at, uint64(len(f.zero)))])
		f.at += uint64(n)
		if err != nil {
			return err
		}
	}
	return nil
}

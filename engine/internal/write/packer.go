package write

import (
	"context"
	"fmt"
	"path"
	"sync"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/flow"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/index"
	"github.com/snapctl/snapctl/remote"
	"golang.org/x/sync/errgroup"
)

// Sizes of what is written. See ARCHITECTURE.md, "Frame size", for the
// measurement behind the first.
const (
	FrameTarget = 1 << 20  // plaintext bytes of a frame
	PackTarget  = 8 << 20  // stored bytes of a pack
	PackChunks  = 32 << 10 // chunks of a pack: bounds its index
	flushEvery  = 32 << 20 // plaintext bytes between two times that all lanes are emptied
	Uploads     = 4        // packs uploaded at once
	localPuts   = 2        // the same where the repository is a folder: there is nothing to wait for
)

// Lane is a run of frames of its own. What a program loads at start and what it
// never loads lie side by side in the tree, in different lanes in the pack: a
// frame that is fetched for one file then brings files that are needed too, and
// like compresses with like.
type Lane int

const lanes = 4

// LaneOf goes by the name alone. It decides where bytes lie, nothing else.
func LaneOf(name string) Lane {
	switch ext := path.Ext(name); ext {
	case ".map":
		return 1
	case ".ts", ".mts", ".cts", ".tsx", ".flow":
		return 2
	case ".md", ".txt", ".html", ".yml", ".yaml", "":
		return 3
	}
	return 0
}

// Frame is a run of chunks on its way into a pack.
type Frame struct {
	raw        []byte
	chunks     []chunk.SizedID
	stored     []byte
	compressed chan struct{} // closed when stored is there

	// The frame's place, when the pack that it is in is closed.
	sealed chan struct{}
	Pack   chunk.PackID
	At     chunk.Frame
}

// settled reports whether the frame's place is known.
func (f *Frame) settled() bool {
	select {
	case <-f.sealed:
		return true
	default:
		return false
	}
}

// Framer gathers new chunks into frames. It belongs to the assembler.
type Framer struct {
	Pack  *packer
	open  [lanes]*Frame
	since int // plaintext bytes since all lanes were emptied
}

// Add appends a chunk to a frame, and tells the frame and the chunk's place in it.
func (fr *Framer) Add(ctx context.Context, l Lane, id chunk.ID, data []byte) (*Frame, uint32, error) {
	if f := fr.open[l]; f != nil && len(f.raw)+len(data) > FrameTarget {
		if err := fr.emptyLane(ctx, l); err != nil {
			return nil, 0, err
		}
	}
	if fr.since >= flushEvery {
		if err := fr.Flush(ctx); err != nil {
			return nil, 0, err
		}
	}
	f := fr.open[l]
	if f == nil {
		f = fr.Pack.newFrame()
		fr.open[l] = f
	}
	off := uint32(len(f.raw))
	f.raw = append(f.raw, data...)
	f.chunks = append(f.chunks, chunk.SizedID{ID: id, Length: uint32(len(data))})
	fr.since += len(data)
	if len(f.chunks) >= PackChunks/lanes {
		return f, off, fr.emptyLane(ctx, l)
	}
	return f, off, nil
}

func (fr *Framer) emptyLane(ctx context.Context, l Lane) error {
	f := fr.open[l]
	fr.open[l] = nil
	if f == nil {
		return nil
	}
	return fr.Pack.compress(ctx, f)
}

// Flush has the frames that are open compressed, full or not.
func (fr *Framer) Flush(ctx context.Context) error {
	fr.since = 0
	for l := range Lane(lanes) {
		if err := fr.emptyLane(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// packer compresses frames in parallel, puts them into packs in the order in
// which they came, and hands packs to the uploader.
type packer struct {
	codec  *chunk.Codec
	up     *Uploader
	group  *errgroup.Group
	slots  chan struct{} // frames being compressed
	frames chan *Frame
	raw    *flow.Buffers
	stored *flow.Buffers
}

// NewPacker starts a packer, which compresses as many frames at once as there are workers.
func NewPacker(ctx context.Context, group *errgroup.Group, codec *chunk.Codec, up *Uploader, workers int) *packer {
	p := &packer{
		codec: codec, up: up, group: group,
		slots: make(chan struct{}, workers), frames: make(chan *Frame, 2*workers),
	}
	p.raw = flow.NewBuffers(lanes+4*workers, FrameTarget)
	p.stored = flow.NewBuffers(4*workers, FrameTarget/2)
	group.Go(func() error { return p.run(ctx) })
	return p
}

func (p *packer) newFrame() *Frame {
	return &Frame{raw: p.raw.Get(), compressed: make(chan struct{}), sealed: make(chan struct{})}
}

// compress queues a frame. It waits while enough are being compressed.
func (p *packer) compress(ctx context.Context, f *Frame) error {
	if !flow.Send(ctx, p.slots, struct{}{}) {
		return ctx.Err()
	}
	p.group.Go(func() error {
		f.stored = p.codec.Encode(p.stored.Get(), f.raw)
		p.raw.Put(f.raw)
		f.raw = nil
		close(f.compressed)
		<-p.slots
		return nil
	})
	if !flow.Send(ctx, p.frames, f) {
		return ctx.Err()
	}
	return nil
}

// seal closes the pack with the frames that came before.
func (p *packer) seal(ctx context.Context) error {
	if !flow.Send(ctx, p.frames, nil) {
		return ctx.Err()
	}
	return nil
}

// Finish says that no frame will come. What came is in packs when the group is done.
func (p *packer) Finish() { close(p.frames) }

func (p *packer) run(ctx context.Context) error {
	var b *packBuild
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case f, more := <-p.frames:
			if !more {
				if b == nil {
					return nil
				}
				_, err := b.seal(ctx, p.up)
				return err
			}
			if f != nil {
				<-f.compressed
				if b == nil {
					b = p.up.newPack(p.codec, chunk.DataPack)
				}
				b.add(f)
				p.stored.Put(f.stored)
				f.stored = nil
			}
			if b != nil && (f == nil || b.full()) {
				if _, err := b.seal(ctx, p.up); err != nil {
					return err
				}
				b = nil
			}
		}
	}
}

// packBuild is a pack being filled.
type packBuild struct {
	*chunk.PackBuilder
	codec  *chunk.Codec
	frames []*Frame
	chunks int
}

func (b *packBuild) add(f *Frame) {
	f.At = b.Add(f.stored, f.chunks)
	b.frames = append(b.frames, f)
	b.chunks += len(f.chunks)
}

func (b *packBuild) full() bool { return b.Size() >= PackTarget || b.chunks >= PackChunks }

// seal ends the pack, tells its frames where they are, and queues its upload.
func (b *packBuild) seal(ctx context.Context, up *Uploader) (chunk.PackID, error) {
	id, data, idx := b.Finish(b.codec)
	for _, f := range b.frames {
		f.Pack = id
		f.chunks = nil
		close(f.sealed)
	}
	return id, up.put(ctx, index.Pack{ID: id, Size: int64(len(data)), Index: idx}, data)
}

// Uploader puts packs into the repository, several at once.
type Uploader struct {
	store remote.Store
	group *errgroup.Group
	slots chan struct{}
	bufs  *flow.Buffers

	mu      sync.Mutex
	landed  []index.Pack // in the repository, and in no segment yet
	inPacks int          // chunks of landed
	stored  int64        // bytes put

	onPut  func(pack index.Pack, data []byte) // may be nil; called before data is reused
	OnLand func(ctx context.Context) error    // called when a pack has landed
	Busy   func(delta int, moved int64)       // for progress
}

// NewUploader makes an uploader of at most uploads packs at once.
func NewUploader(store remote.Store, group *errgroup.Group, uploads int) *Uploader {
	return &Uploader{
		store: store, group: group, slots: make(chan struct{}, uploads),
		bufs: flow.NewBuffers(uploads+1, PackTarget+PackTarget/4),
	}
}

func (up *Uploader) newPack(codec *chunk.Codec, kind chunk.PackKind) *packBuild {
	return &packBuild{PackBuilder: chunk.NewPackBuilder(kind, up.bufs.Get()), codec: codec}
}

// put uploads a pack in the background. It waits while enough are on their way,
// and owns data from then on.
func (up *Uploader) put(ctx context.Context, pack index.Pack, data []byte) error {
	if !flow.Send(ctx, up.slots, struct{}{}) {
		return ctx.Err()
	}
	up.Busy(1, 0)
	up.group.Go(func() error {
		size := int64(len(data))
		defer func() { <-up.slots; up.Busy(-1, size) }()
		if err := up.store.Put(ctx, repo.PackName(pack.ID), data); err != nil {
			return fmt.Errorf("uploading a pack: %w", err)
		}
		if up.onPut != nil {
			up.onPut(pack, data)
		}
		up.land(pack, size)
		up.bufs.Put(data)
		return up.OnLand(ctx)
	})
	return nil
}

func (up *Uploader) land(pack index.Pack, size int64) {
	up.mu.Lock()
	defer up.mu.Unlock()
	up.stored += size
	up.landed = append(up.landed, pack)
	up.inPacks += ChunksIn(pack)
}

// ChunksIn counts the chunks of a pack.
func ChunksIn(pack index.Pack) (n int) {
	for _, f := range pack.Index.Frames {
		n += len(f.Chunks)
	}
	return n
}

// Take gives what has landed since it was called last.
func (up *Uploader) Take() []index.Pack {
	up.mu.Lock()
	defer up.mu.Unlock()
	packs := up.landed
	up.landed, up.inPacks = nil, 0
	return packs
}

// giveBack undoes take for packs of which no segment was written.
func (up *Uploader) giveBack(packs []index.Pack) {
	up.mu.Lock()
	defer up.mu.Unlock()
	up.landed = append(up.landed, packs...)
	for _, p := range packs {
		up.inPacks += ChunksIn(p)
	}
}

// waiting counts the chunks and packs that have landed and are in no segment.
func (up *Uploader) waiting() (packs, chunks int) {
	up.mu.Lock()
	defer up.mu.Unlock()
	return len(up.landed), up.inPacks
}

// StoredBytes is how much was put.
func (up *Uploader) StoredBytes() int64 {
	up.mu.Lock()
	defer up.mu.Unlock()
	return up.stored
}

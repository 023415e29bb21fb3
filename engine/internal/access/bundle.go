package access

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
)

// A Bundle is the part of an access profile that holds contents: copies of chunks
// and tree pages that were touched, in the order in which they were, in the form of
// a pack. What a program reads when it starts lies scattered: the start of node that
// prefetcher tells of touches 13 MB in 65 frames of 65 MB, which are 14 MB stored.
// In a bundle that is 2.2 MB with the pages, and one request. Since chunks are found
// by their ids, it serves snapshots made from this one as well.
type Bundle struct {
	object string // the profile
	base   int64  // of the pack in it, in bytes
	pack   chunk.PackID
	Chunks map[chunk.ID]chunk.Location
}

const (
	// MaxBundle bounds the plaintext of a bundle in bytes, and maxBundled the pack.
	MaxBundle  = 24 << 20
	maxBundled = 12 << 20

	// BundleFrame is where a frame of a bundle ends: smaller than others, since a
	// reader waits for the first of them.
	BundleFrame = 512 << 10
)

// Bundler makes a bundle.
type Bundler struct {
	codec *chunk.Codec
	pack  *chunk.PackBuilder
	open  [2]struct { // pages and chunks compress better among themselves
		raw    []byte
		chunks []chunk.SizedID
	}
}

// NewBundler returns an empty bundle, whose frames c encodes.
func NewBundler(c *chunk.Codec) *Bundler {
	return &Bundler{codec: c, pack: chunk.NewPackBuilder(chunk.DataPack, nil)}
}

// Add adds a chunk, and reports whether there was room for it.
func (b *Bundler) Add(id chunk.ID, data []byte, page bool) bool {
	if b.pack.Size() >= maxBundled {
		return false
	}
	kind := 0
	if page {
		kind = 1
	}
	o := &b.open[kind]
	if len(o.raw) > 0 && len(o.raw)+len(data) > BundleFrame {
		b.flush(kind)
	}
	o.raw = append(o.raw, data...)
	o.chunks = append(o.chunks, chunk.SizedID{ID: id, Length: uint32(len(data))})
	return true
}

func (b *Bundler) flush(kind int) {
	o := &b.open[kind]
	if len(o.raw) > 0 {
		b.pack.Add(b.codec.Encode(nil, o.raw), o.chunks)
	}
	o.raw, o.chunks = o.raw[:0], nil
}

// Finish gives the pack; nil if nothing was added.
func (b *Bundler) Finish() []byte {
	for kind := range b.open {
		b.flush(kind)
	}
	if b.pack.Empty() {
		return nil
	}
	_, pack, _ := b.pack.Finish(b.codec)
	return pack
}

// OpenBundle reads what a profile's bundle holds. Chunks are checked when they are
// used, as any others.
func OpenBundle(c *chunk.Codec, object string, base int64, pack []byte) (*Bundle, error) {
	if len(pack) < chunk.PackFooterSize {
		return nil, fmt.Errorf("%w: bundle of %d bytes", ErrDamaged, len(pack))
	}
	n, err := chunk.PackIndexSize(pack[len(pack)-chunk.PackFooterSize:])
	if err == nil && n > len(pack) {
		err = fmt.Errorf("index of %d bytes", n)
	}
	var x *chunk.PackIndex
	if err == nil {
		x, err = chunk.DecodePackTail(c, pack[len(pack)-n:], int64(len(pack)))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: bundle: %w", ErrDamaged, err)
	}
	b := &Bundle{object, base, chunk.SumPack(pack), map[chunk.ID]chunk.Location{}}
	for id, at := range x.All(b.pack) {
		b.Chunks[id] = at
	}
	return b, nil
}

// HotSet is the bundles that a mount reads from. They arrive while it serves
// already; who needs something from far away waits for them, but not for long.
type HotSet struct {
	late    *time.Timer
	given   chan struct{} // closed when nobody waits any more
	ready   chan struct{} // closed when all is set
	bundles []*Bundle
}

// NewHotSet gives one that readers wait for, from now on, as long as that.
func NewHotSet(patience time.Duration) *HotSet {
	h := &HotSet{given: make(chan struct{}), ready: make(chan struct{})}
	h.late = time.AfterFunc(patience, func() { close(h.given) })
	return h
}

// Set is called once, when it is known what there is.
func (h *HotSet) Set(all []*Bundle) {
	h.late.Stop()
	h.bundles = all
	close(h.ready)
}

// here gives the bundles, if they have arrived.
func (h *HotSet) here() []*Bundle {
	if h == nil {
		return nil
	}
	select {
	case <-h.ready:
		return h.bundles
	default:
		return nil
	}
}

// Settled reports whether there is nothing to wait for.
func (h *HotSet) Settled() bool {
	select {
	case <-h.ready:
	case <-h.given:
	default:
		return false
	}
	return true
}

// Wait waits for the bundles as long as that may help.
func (h *HotSet) Wait(ctx context.Context) {
	select {
	case <-h.ready:
	case <-h.given:
	case <-ctx.Done():
	}
}

// Find tells where a bundle has a chunk.
func (h *HotSet) Find(id chunk.ID) (chunk.Location, bool) {
	for _, b := range h.here() {
		if at, ok := b.Chunks[id]; ok {
			return at, true
		}
	}
	return chunk.Location{}, false
}

// Place tells which object holds a pack, and where in it.
func (h *HotSet) Place(pack chunk.PackID) (object string, base int64) {
	all := h.here()
	if i := slices.IndexFunc(all, func(b *Bundle) bool { return b.pack == pack }); i >= 0 {
		return all[i].object, all[i].base
	}
	return repo.PackName(pack), 0
}

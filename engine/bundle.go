package engine

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
)

// A bundle is the part of an access profile that holds contents: copies of chunks
// and tree pages that were touched, in the order in which they were, in the form of
// a pack. What a program reads when it starts lies scattered: the start of node that
// prefetcher tells of touches 13 MB in 65 frames of 65 MB, which are 14 MB stored.
// In a bundle that is 2.2 MB with the pages, and one request. Since chunks are found
// by their ids, it serves snapshots made from this one as well.
type bundle struct {
	object string // the profile
	base   int64  // of the pack in it, in bytes
	pack   chunk.PackID
	chunks map[chunk.ID]chunk.Location
}

const (
	// maxBundle bounds the plaintext of a bundle in bytes, and maxBundled the pack.
	maxBundle  = 24 << 20
	maxBundled = 12 << 20

	// bundleFrame is where a frame of a bundle ends: smaller than others, since a
	// reader waits for the first of them.
	bundleFrame = 512 << 10
)

// bundler makes a bundle.
type bundler struct {
	codec *chunk.Codec
	pack  *chunk.PackBuilder
	open  [2]struct { // pages and chunks compress better among themselves
		raw    []byte
		chunks []chunk.SizedID
	}
}

func newBundler(c *chunk.Codec) *bundler {
	return &bundler{codec: c, pack: chunk.NewPackBuilder(chunk.DataPack, nil)}
}

// add adds a chunk, and reports whether there was room for it.
func (b *bundler) add(id chunk.ID, data []byte, page bool) bool {
	if b.pack.Size() >= maxBundled {
		return false
	}
	kind := 0
	if page {
		kind = 1
	}
	o := &b.open[kind]
	if len(o.raw) > 0 && len(o.raw)+len(data) > bundleFrame {
		b.flush(kind)
	}
	o.raw = append(o.raw, data...)
	o.chunks = append(o.chunks, chunk.SizedID{ID: id, Length: uint32(len(data))})
	return true
}

func (b *bundler) flush(kind int) {
	o := &b.open[kind]
	if len(o.raw) > 0 {
		b.pack.Add(b.codec.Encode(nil, o.raw), o.chunks)
	}
	o.raw, o.chunks = o.raw[:0], nil
}

// finish gives the pack; nil if nothing was added.
func (b *bundler) finish() []byte {
	for kind := range b.open {
		b.flush(kind)
	}
	if b.pack.Empty() {
		return nil
	}
	_, pack, _ := b.pack.Finish(b.codec)
	return pack
}

// openBundle reads what a profile's bundle holds. Chunks are checked when they are
// used, as any others.
func openBundle(c *chunk.Codec, object string, base int64, pack []byte) (*bundle, error) {
	if len(pack) < chunk.PackFooterSize {
		return nil, fmt.Errorf("%w: bundle of %d bytes", errProfile, len(pack))
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
		return nil, fmt.Errorf("%w: bundle: %w", errProfile, err)
	}
	b := &bundle{object, base, chunk.SumPack(pack), map[chunk.ID]chunk.Location{}}
	for id, at := range x.All(b.pack) {
		b.chunks[id] = at
	}
	return b, nil
}

// hotSet is the bundles that a mount reads from. They arrive while it serves
// already; who needs something from far away waits for them, but not for long.
type hotSet struct {
	late    *time.Timer
	given   chan struct{} // closed when nobody waits any more
	ready   chan struct{} // closed when all is set
	bundles []*bundle
}

// newHotSet gives one that readers wait for, from now on, as long as that.
func newHotSet(patience time.Duration) *hotSet {
	h := &hotSet{given: make(chan struct{}), ready: make(chan struct{})}
	h.late = time.AfterFunc(patience, func() { close(h.given) })
	return h
}

// set is called once, when it is known what there is.
func (h *hotSet) set(all []*bundle) {
	h.late.Stop()
	h.bundles = all
	close(h.ready)
}

// here gives the bundles, if they have arrived.
func (h *hotSet) here() []*bundle {
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

// settled reports whether there is nothing to wait for.
func (h *hotSet) settled() bool {
	select {
	case <-h.ready:
	case <-h.given:
	default:
		return false
	}
	return true
}

// wait waits for the bundles as long as that may help.
func (h *hotSet) wait(ctx context.Context) {
	select {
	case <-h.ready:
	case <-h.given:
	case <-ctx.Done():
	}
}

// find tells where a bundle has a chunk.
func (h *hotSet) find(id chunk.ID) (chunk.Location, bool) {
	for _, b := range h.here() {
		if at, ok := b.chunks[id]; ok {
			return at, true
		}
	}
	return chunk.Location{}, false
}

// place tells which object holds a pack, and where in it.
func (h *hotSet) place(pack chunk.PackID) (object string, base int64) {
	all := h.here()
	if i := slices.IndexFunc(all, func(b *bundle) bool { return b.pack == pack }); i >= 0 {
		return all[i].object, all[i].base
	}
	return repo.PackName(pack), 0
}

package engine

import (
	"sync"
	"time"

	"github.com/snapctl/snapctl/chunk"
)

// touch is a chunk or a tree page that readers of a mount asked for.
type touch struct {
	id   chunk.ID
	loc  chunk.Location
	page bool
}

func (t *touch) frame() frameKey { return frameKey{t.loc.Pack, t.loc.Frame.Offset} }

// maxTouched is how many of them a recorder notes, some 200 bytes each; behind
// that it notes frames alone.
const maxTouched = 16 << 10

// recorder notes what the readers of a mount touch, in the order in which they
// first do. It is safe for parallel use.
type recorder struct {
	mu      sync.Mutex
	touched []touch
	seen    map[chunk.ID]bool
	frames  []touchedFrame // of what is behind maxTouched
	framed  map[frameKey]bool
	last    time.Time // when something was noted
	saved   int       // touched, by this mount

	// By the profiles that there are.
	knownChunks map[chunk.ID]bool
	knownFrames map[frameKey]bool
}

func (r *recorder) note(id chunk.ID, loc *chunk.Location, page bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen[id] {
		return
	}
	if len(r.touched) == maxTouched {
		r.noteFrame(loc)
		return
	}
	if r.seen == nil {
		r.seen = map[chunk.ID]bool{}
	}
	r.seen[id] = true
	r.touched = append(r.touched, touch{id, *loc, page})
	r.last = time.Now()
}

func (r *recorder) noteFrame(loc *chunk.Location) {
	key := frameKey{loc.Pack, loc.Frame.Offset}
	if r.framed[key] || len(r.frames) == maxProfileFrames {
		return
	}
	if r.framed == nil {
		r.framed = map[frameKey]bool{}
	}
	r.framed[key] = true
	r.frames = append(r.frames, touchedFrame{loc.Pack, loc.Frame.Offset, loc.Frame.Stored})
	r.last = time.Now()
}

// know takes note of a profile that there is.
func (r *recorder) know(frames []touchedFrame, bundles []*bundle) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.knownFrames, r.knownChunks = map[frameKey]bool{}, map[chunk.ID]bool{}
	for _, f := range frames {
		r.knownFrames[frameKey{f.pack, f.offset}] = true
	}
	for _, b := range bundles {
		for id := range b.chunks {
			r.knownChunks[id] = true
		}
	}
}

// quiet reports whether something was noted, and nothing for a while.
func (r *recorder) quiet(d time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.last.IsZero() && time.Since(r.last) >= d
}

// A profile is worth saving when this much is new: guesses of what a reader wants
// next are noted as well, and differ from mount to mount.
const (
	newsBytes = 512 << 10
	newsShare = 16 // of all that was touched, one part in so many
)

// unsaved gives what to save, if there is enough that neither this mount has saved
// nor another one had: chunks for a bundle, and frames. markSaved is to be told n.
func (r *recorder) unsaved() (bundled []touch, frames []touchedFrame, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all, news uint64
	for i := range r.touched {
		t := &r.touched[i]
		all += uint64(t.loc.Length)
		if i >= r.saved && !r.knownChunks[t.id] && !r.knownFrames[t.frame()] {
			news += uint64(t.loc.Length)
		}
	}
	for _, f := range r.frames {
		all += uint64(f.stored)
		if !r.knownFrames[frameKey{f.pack, f.offset}] {
			news += uint64(f.stored)
		}
	}
	if news == 0 || news < newsBytes && news < all/newsShare {
		return nil, nil, 0
	}
	bundled, frames = split(r.touched, r.frames)
	return bundled, frames, len(r.touched)
}

// split decides what of a profile is bundled: tree pages, and the chunks of frames
// of which less than half was touched. The others, and more, are fetched where they
// are.
func split(touched []touch, more []touchedFrame) (bundled []touch, frames []touchedFrame) {
	used, listed := map[frameKey]uint64{}, map[frameKey]bool{}
	for i := range touched {
		used[touched[i].frame()] += uint64(touched[i].loc.Length)
	}
	list := func(f touchedFrame) {
		if key := (frameKey{f.pack, f.offset}); !listed[key] && len(frames) < maxProfileFrames {
			listed[key] = true
			frames = append(frames, f)
		}
	}
	room := uint64(maxBundle)
	for i := range touched {
		t := &touched[i]
		key, f, n := t.frame(), &t.loc.Frame, uint64(t.loc.Length)
		if sparse := t.page || 2*used[key] < uint64(f.Raw); sparse && n <= room {
			room -= n
			bundled = append(bundled, *t)
		} else {
			list(touchedFrame{key.pack, f.Offset, f.Stored})
		}
	}
	for _, f := range more {
		list(f)
	}
	return bundled, frames
}

// markSaved takes note that the first n of what was touched are saved.
func (r *recorder) markSaved(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.saved = max(r.saved, n)
}

package access

import (
	"sync"
	"time"

	"github.com/snapctl/snapctl/chunk"
)

// Touch is a chunk or a tree page that readers of a mount asked for.
type Touch struct {
	Id   chunk.ID
	Loc  chunk.Location
	Page bool
}

func (t *Touch) frame() FrameKey { return FrameKey{t.Loc.Pack, t.Loc.Frame.Offset} }

// MaxTouched is how many of them a recorder notes, some 200 bytes each; behind
// that it notes frames alone.
const MaxTouched = 16 << 10

// Recorder notes what the readers of a mount touch, in the order in which they
// first do. It is safe for parallel use.
type Recorder struct {
	Mu      sync.Mutex
	Touched []Touch
	seen    map[chunk.ID]bool
	frames  []Frame // of what is behind MaxTouched
	framed  map[FrameKey]bool
	last    time.Time // when something was noted
	saved   int       // touched, by this mount

	// By the profiles that there are.
	knownChunks map[chunk.ID]bool
	knownFrames map[FrameKey]bool
}

// Note notes that a chunk was touched, once; behind MaxTouched only the frame that it is in.
func (r *Recorder) Note(id chunk.ID, loc *chunk.Location, page bool) {
	r.Mu.Lock()
	defer r.Mu.Unlock()
	if r.seen[id] {
		return
	}
	if len(r.Touched) == MaxTouched {
		r.noteFrame(loc)
		return
	}
	if r.seen == nil {
		r.seen = map[chunk.ID]bool{}
	}
	r.seen[id] = true
	r.Touched = append(r.Touched, Touch{id, *loc, page})
	r.last = time.Now()
}

func (r *Recorder) noteFrame(loc *chunk.Location) {
	key := FrameKey{loc.Pack, loc.Frame.Offset}
	if r.framed[key] || len(r.frames) == MaxProfileFrames {
		return
	}
	if r.framed == nil {
		r.framed = map[FrameKey]bool{}
	}
	r.framed[key] = true
	r.frames = append(r.frames, Frame{loc.Pack, loc.Frame.Offset, loc.Frame.Stored})
	r.last = time.Now()
}

// Know takes note of a profile that there is.
func (r *Recorder) Know(frames []Frame, bundles []*Bundle) {
	r.Mu.Lock()
	defer r.Mu.Unlock()
	r.knownFrames, r.knownChunks = map[FrameKey]bool{}, map[chunk.ID]bool{}
	for _, f := range frames {
		r.knownFrames[FrameKey{f.Pack, f.Offset}] = true
	}
	for _, b := range bundles {
		for id := range b.Chunks {
			r.knownChunks[id] = true
		}
	}
}

// Quiet reports whether something was noted, and nothing for a while.
func (r *Recorder) Quiet(d time.Duration) bool {
	r.Mu.Lock()
	defer r.Mu.Unlock()
	return !r.last.IsZero() && time.Since(r.last) >= d
}

// A profile is worth saving when this much is new: guesses of what a reader wants
// next are noted as well, and differ from mount to mount.
const (
	NewsBytes = 512 << 10
	newsShare = 16 // of all that was touched, one part in so many
)

// Unsaved gives what to save, if there is enough that neither this mount has saved
// nor another one had: chunks for a bundle, and frames. MarkSaved is to be told n.
func (r *Recorder) Unsaved() (bundled []Touch, frames []Frame, n int) {
	r.Mu.Lock()
	defer r.Mu.Unlock()
	var all, news uint64
	for i := range r.Touched {
		t := &r.Touched[i]
		all += uint64(t.Loc.Length)
		if i >= r.saved && !r.knownChunks[t.Id] && !r.knownFrames[t.frame()] {
			news += uint64(t.Loc.Length)
		}
	}
	for _, f := range r.frames {
		all += uint64(f.Stored)
		if !r.knownFrames[FrameKey{f.Pack, f.Offset}] {
			news += uint64(f.Stored)
		}
	}
	if news == 0 || news < NewsBytes && news < all/newsShare {
		return nil, nil, 0
	}
	bundled, frames = split(r.Touched, r.frames)
	return bundled, frames, len(r.Touched)
}

// split decides what of a profile is bundled: tree pages, and the chunks of frames
// of which less than half was touched. The others, and more, are fetched where they
// are.
func split(touched []Touch, more []Frame) (bundled []Touch, frames []Frame) {
	used, listed := map[FrameKey]uint64{}, map[FrameKey]bool{}
	for i := range touched {
		used[touched[i].frame()] += uint64(touched[i].Loc.Length)
	}
	list := func(f Frame) {
		if key := (FrameKey{f.Pack, f.Offset}); !listed[key] && len(frames) < MaxProfileFrames {
			listed[key] = true
			frames = append(frames, f)
		}
	}
	room := uint64(MaxBundle)
	for i := range touched {
		t := &touched[i]
		key, f, n := t.frame(), &t.Loc.Frame, uint64(t.Loc.Length)
		if sparse := t.Page || 2*used[key] < uint64(f.Raw); sparse && n <= room {
			room -= n
			bundled = append(bundled, *t)
		} else {
			list(Frame{key.Pack, f.Offset, f.Stored})
		}
	}
	for _, f := range more {
		list(f)
	}
	return bundled, frames
}

// MarkSaved takes note that the first n of what was touched are saved.
func (r *Recorder) MarkSaved(n int) {
	r.Mu.Lock()
	defer r.Mu.Unlock()
	r.saved = max(r.saved, n)
}

// FrameKey says where a frame begins.
type FrameKey struct {
	Pack   chunk.PackID
	Offset uint32
}

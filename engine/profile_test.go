package engine

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/wire/wiretest"
	"github.com/snapctl/snapctl/engine/internal/access"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/manifest"
)

func someProfile(id manifest.ID) *access.Profile {
	a, b := chunk.PackID{1}, chunk.PackID{2}
	return &access.Profile{Snapshot: id, Frames: []access.Frame{{Pack: b, Offset: 500_000, Stored: 1000}, {Pack: a, Offset: 16, Stored: 100_000}, {Pack: b, Offset: 16, Stored: 200_000}, {Pack: a, Offset: 400_000, Stored: 5}}, Bundle: []byte("a pack")}
}

func TestProfileEncoding(t *testing.T) {
	id := manifest.NewID(0)
	for name, p := range map[string]*access.Profile{"some": someProfile(id), "empty": {Snapshot: id, Frames: []access.Frame{}}} {
		b := p.EncodeHead()
		got, err := access.DecodeHead(b, p.Bundle)
		if err != nil || got.Snapshot != p.Snapshot || !slices.Equal(got.Frames, p.Frames) || !bytes.Equal(got.Bundle, p.Bundle) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		for i := range b {
			if _, err := access.DecodeHead(b[:i], p.Bundle); !errors.Is(err, access.ErrDamaged) {
				t.Errorf("%s: cut at %d: %v", name, i, err)
			}
		}
	}
	twice := &access.Profile{Snapshot: id, Frames: []access.Frame{{Pack: chunk.PackID{1}, Offset: 16, Stored: 5}, {Pack: chunk.PackID{1}, Offset: 16, Stored: 6}}, Bundle: nil}
	outside := &access.Profile{Snapshot: id, Frames: []access.Frame{{Pack: chunk.PackID{1}, Offset: chunk.MaxPack, Stored: 5}}, Bundle: nil}
	nothing := &access.Profile{Snapshot: id, Frames: []access.Frame{{Pack: chunk.PackID{1}, Offset: 16, Stored: 0}}, Bundle: nil}
	long := &access.Profile{Snapshot: id, Frames: make([]access.Frame, access.MaxProfileFrames+1), Bundle: nil}
	for i := range long.Frames {
		long.Frames[i] = access.Frame{Pack: chunk.PackID{1}, Offset: uint32(i), Stored: 1}
	}
	for name, p := range map[string]*access.Profile{"twice": twice, "outside": outside, "nothing": nothing, "long": long} {
		if _, err := access.DecodeHead(p.EncodeHead(), nil); !errors.Is(err, access.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzProfile(f *testing.F) {
	r := &Repository{repo: &repo.Repo{}}
	f.Add(access.Encode(r.repo, someProfile(manifest.NewID(0))))
	f.Add(access.Encode(r.repo, &access.Profile{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var id manifest.ID
		if len(b) > 4+access.ProfileHead+len(id) {
			copy(id[:], b[4+access.ProfileHead:])
		}
		var p *access.Profile
		var err error
		wiretest.Bounded(t, 64*len(b), func() { p, err = access.Decode(r.repo, id, b) })
		if err == nil && !bytes.Equal(access.Encode(r.repo, p), b) {
			t.Errorf("%+v is encoded in another way", p)
		}
	})
}

func TestMergeFrames(t *testing.T) {
	a, b := chunk.PackID{1}, chunk.PackID{2}
	got := mergeFrames([]access.Frame{{Pack: b, Offset: 5 << 20, Stored: 1000}, {Pack: a, Offset: 300, Stored: 100}, {Pack: b, Offset: 16, Stored: 1000}, {Pack: a, Offset: 0, Stored: 300}, {Pack: b, Offset: 2000, Stored: 10}, {Pack: a, Offset: 1 << 20, Stored: 1}})
	want := []packRange{{repo.PackName(b), 5 << 20, 1000}, {repo.PackName(a), 0, 400}, {repo.PackName(b), 16, 1994}, {repo.PackName(a), 1 << 20, 1}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// touchOf is a chunk of that length in a frame of 1 MiB.
func touchOf(i int, pack byte, frame, length uint32) (chunk.ID, *chunk.Location) {
	at := chunk.Frame{Offset: frame, Stored: 1000, Raw: 1 << 20}
	return hasher.Sum([]byte(fmt.Sprint(i))), &chunk.Location{Pack: chunk.PackID{pack}, Frame: at, Length: length}
}

var hasher chunk.Hasher

// TestRecorder: what is touched is noted once, and saved when enough of it is new.
func TestRecorder(t *testing.T) {
	var r access.Recorder
	if _, _, n := r.Unsaved(); n != 0 {
		t.Error("there is nothing to save")
	}
	for range 2 {
		for i := range 5 {
			id, at := touchOf(i, 1, uint32(16+i/4), 200<<10)
			r.Note(id, at, false)
		}
	}
	id, at := touchOf(100, 2, 16, 50_000)
	r.Note(id, at, true)
	// Four chunks of the first frame, one of the second, and a page.
	bundled, frames, n := r.Unsaved()
	if len(bundled) != 2 || !bundled[1].Page || len(frames) != 1 || frames[0].Offset != 16 || n != 6 {
		t.Errorf("%v, %v, %d", bundled, frames, n)
	}
	known := &access.Bundle{Chunks: map[chunk.ID]chunk.Location{id: {}, bundled[0].Id: {}}}
	r.Know(frames, []*access.Bundle{known})
	if _, _, n := r.Unsaved(); n != 0 {
		t.Error("it is known")
	}
	id, at = touchOf(101, 2, 500, 1000)
	r.Note(id, at, false)
	if _, _, n := r.Unsaved(); n != 0 {
		t.Error("too little is new")
	}
	id, at = touchOf(102, 2, 600, access.NewsBytes)
	r.Note(id, at, false)
	if bundled, frames, n = r.Unsaved(); len(bundled) != 3 || len(frames) != 2 || n != 8 {
		t.Errorf("%v, %v, %d", bundled, frames, n)
	}
	r.MarkSaved(n)
	if _, _, n := r.Unsaved(); n != 0 {
		t.Error("it is saved")
	}
}

// TestRecorderBounds: of very much, what came first is bundled, and frames are noted
// of the rest.
func TestRecorderBounds(t *testing.T) {
	var r access.Recorder
	for i := range access.MaxTouched + 10 {
		id, at := touchOf(i, byte(i%7), uint32(16+i), 10_000)
		r.Note(id, at, false)
	}
	bundled, frames, _ := r.Unsaved()
	if len(bundled) != access.MaxBundle/10_000 || len(frames) != access.MaxTouched+10-len(bundled) {
		t.Errorf("%d bundled, %d frames", len(bundled), len(frames))
	}
}

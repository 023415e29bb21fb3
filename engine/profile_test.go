package engine

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/chunk/wire/wiretest"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/manifest"
)

func someProfile(id manifest.ID) *profile {
	a, b := chunk.PackID{1}, chunk.PackID{2}
	return &profile{id, []touchedFrame{{b, 500_000, 1000}, {a, 16, 100_000}, {b, 16, 200_000}, {a, 400_000, 5}}, []byte("a pack")}
}

func TestProfileEncoding(t *testing.T) {
	id := manifest.NewID(0)
	for name, p := range map[string]*profile{"some": someProfile(id), "empty": {snapshot: id, frames: []touchedFrame{}}} {
		b := p.encodeHead()
		got, err := decodeHead(b, p.bundle)
		if err != nil || got.snapshot != p.snapshot || !slices.Equal(got.frames, p.frames) || !bytes.Equal(got.bundle, p.bundle) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		for i := range b {
			if _, err := decodeHead(b[:i], p.bundle); !errors.Is(err, errProfile) {
				t.Errorf("%s: cut at %d: %v", name, i, err)
			}
		}
	}
	twice := &profile{id, []touchedFrame{{chunk.PackID{1}, 16, 5}, {chunk.PackID{1}, 16, 6}}, nil}
	outside := &profile{id, []touchedFrame{{chunk.PackID{1}, chunk.MaxPack, 5}}, nil}
	nothing := &profile{id, []touchedFrame{{chunk.PackID{1}, 16, 0}}, nil}
	long := &profile{id, make([]touchedFrame, maxProfileFrames+1), nil}
	for i := range long.frames {
		long.frames[i] = touchedFrame{chunk.PackID{1}, uint32(i), 1}
	}
	for name, p := range map[string]*profile{"twice": twice, "outside": outside, "nothing": nothing, "long": long} {
		if _, err := decodeHead(p.encodeHead(), nil); !errors.Is(err, errProfile) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzProfile(f *testing.F) {
	r := &Repository{}
	f.Add(r.encodeProfile(someProfile(manifest.NewID(0))))
	f.Add(r.encodeProfile(&profile{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var id manifest.ID
		if len(b) > 4+profileHead+len(id) {
			copy(id[:], b[4+profileHead:])
		}
		var p *profile
		var err error
		wiretest.Bounded(t, 64*len(b), func() { p, err = r.decodeProfile(id, b) })
		if err == nil && !bytes.Equal(r.encodeProfile(p), b) {
			t.Errorf("%+v is encoded in another way", p)
		}
	})
}

func TestMergeFrames(t *testing.T) {
	a, b := chunk.PackID{1}, chunk.PackID{2}
	got := mergeFrames([]touchedFrame{{b, 5 << 20, 1000}, {a, 300, 100}, {b, 16, 1000}, {a, 0, 300}, {b, 2000, 10}, {a, 1 << 20, 1}})
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
	var r recorder
	if _, _, n := r.unsaved(); n != 0 {
		t.Error("there is nothing to save")
	}
	for range 2 {
		for i := range 5 {
			id, at := touchOf(i, 1, uint32(16+i/4), 200<<10)
			r.note(id, at, false)
		}
	}
	id, at := touchOf(100, 2, 16, 50_000)
	r.note(id, at, true)
	// Four chunks of the first frame, one of the second, and a page.
	bundled, frames, n := r.unsaved()
	if len(bundled) != 2 || !bundled[1].page || len(frames) != 1 || frames[0].offset != 16 || n != 6 {
		t.Errorf("%v, %v, %d", bundled, frames, n)
	}
	known := &bundle{chunks: map[chunk.ID]chunk.Location{id: {}, bundled[0].id: {}}}
	r.know(frames, []*bundle{known})
	if _, _, n := r.unsaved(); n != 0 {
		t.Error("it is known")
	}
	id, at = touchOf(101, 2, 500, 1000)
	r.note(id, at, false)
	if _, _, n := r.unsaved(); n != 0 {
		t.Error("too little is new")
	}
	id, at = touchOf(102, 2, 600, newsBytes)
	r.note(id, at, false)
	if bundled, frames, n = r.unsaved(); len(bundled) != 3 || len(frames) != 2 || n != 8 {
		t.Errorf("%v, %v, %d", bundled, frames, n)
	}
	r.markSaved(n)
	if _, _, n := r.unsaved(); n != 0 {
		t.Error("it is saved")
	}
}

// TestRecorderBounds: of very much, what came first is bundled, and frames are noted
// of the rest.
func TestRecorderBounds(t *testing.T) {
	var r recorder
	for i := range maxTouched + 10 {
		id, at := touchOf(i, byte(i%7), uint32(16+i), 10_000)
		r.note(id, at, false)
	}
	bundled, frames, _ := r.unsaved()
	if len(bundled) != maxBundle/10_000 || len(frames) != maxTouched+10-len(bundled) {
		t.Errorf("%d bundled, %d frames", len(bundled), len(frames))
	}
}

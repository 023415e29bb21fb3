package engine

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/snapctl/snapctl/chunk/wire/wiretest"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/manifest"
)

func someProfile(id manifest.ID) *profile {
	a, b := chunk.PackID{1}, chunk.PackID{2}
	return &profile{id, []touchedFrame{{b, 500_000, 1000}, {a, 16, 100_000}, {b, 16, 200_000}, {a, 400_000, 5}}}
}

func TestProfileEncoding(t *testing.T) {
	id := manifest.NewID(0)
	for name, p := range map[string]*profile{"some": someProfile(id), "empty": {snapshot: id, frames: []touchedFrame{}}} {
		b := p.encode()
		got, err := decodeProfile(b)
		if err != nil || got.snapshot != p.snapshot || !slices.Equal(got.frames, p.frames) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		for i := range b {
			if _, err := decodeProfile(b[:i]); !errors.Is(err, errProfile) {
				t.Errorf("%s: cut at %d: %v", name, i, err)
			}
		}
	}
	twice := &profile{id, []touchedFrame{{chunk.PackID{1}, 16, 5}, {chunk.PackID{1}, 16, 6}}}
	outside := &profile{id, []touchedFrame{{chunk.PackID{1}, chunk.MaxPack, 5}}}
	nothing := &profile{id, []touchedFrame{{chunk.PackID{1}, 16, 0}}}
	long := &profile{id, make([]touchedFrame, maxProfileFrames+1)}
	for i := range long.frames {
		long.frames[i] = touchedFrame{chunk.PackID{1}, uint32(i), 1}
	}
	for name, p := range map[string]*profile{"twice": twice, "outside": outside, "nothing": nothing, "long": long} {
		if _, err := decodeProfile(p.encode()); !errors.Is(err, errProfile) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzProfile(f *testing.F) {
	f.Add(someProfile(manifest.NewID(0)).encode())
	f.Add((&profile{}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		var p *profile
		var err error
		wiretest.Bounded(t, 64*len(b), func() { p, err = decodeProfile(b) })
		if err == nil && !bytes.Equal(p.encode(), b) {
			t.Errorf("%+v is encoded in another way", p)
		}
	})
}

func TestMergeFrames(t *testing.T) {
	a, b := chunk.PackID{1}, chunk.PackID{2}
	got := mergeFrames([]touchedFrame{{b, 5 << 20, 1000}, {a, 300, 100}, {b, 16, 1000}, {a, 0, 300}, {b, 2000, 10}, {a, 1 << 20, 1}})
	want := []packRange{{packName(b), 5 << 20, 1000}, {packName(a), 0, 400}, {packName(b), 16, 1994}, {packName(a), 1 << 20, 1}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestRecorder: frames are noted once, and saved when another mount has not.
func TestRecorder(t *testing.T) {
	var r recorder
	at := func(i int) chunk.Frame { return chunk.Frame{Offset: uint32(i), Stored: 1, Raw: 1} }
	if r.unsaved() != nil {
		t.Error("there is nothing to save")
	}
	for range 2 {
		for i := range 5 {
			r.touched(chunk.PackID{1}, at(i))
		}
	}
	if n := len(r.unsaved()); n != 5 {
		t.Errorf("%d frames", n)
	}
	r.known = map[frameKey]bool{}
	for i := range 5 {
		r.known[frameKey{chunk.PackID{1}, uint32(i)}] = true
	}
	if r.unsaved() != nil {
		t.Error("it is known")
	}
	r.touched(chunk.PackID{2}, at(0))
	if n := len(r.unsaved()); n != 6 {
		t.Errorf("%d frames", n)
	}
	for i := range maxProfileFrames + 10 {
		r.touched(chunk.PackID{3}, at(i))
	}
	if n := len(r.frames); n != maxProfileFrames {
		t.Errorf("%d frames", n)
	}
}

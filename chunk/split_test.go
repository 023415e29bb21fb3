package chunk

import (
	"bytes"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/restic/chunker"
)

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{byte(seed)})
	src.Read(b)
	return b
}

func newSplitter(t testing.TB, p CDCParams) Splitter {
	t.Helper()
	s, err := NewSplitter(p)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// smallParams make many chunks of little data.
var smallParams = CDCParams{Polynomial: DefaultCDCParams.Polynomial, Min: 4 << 10, AverageBits: 12, Max: 32 << 10}

func split(s Splitter, data []byte) (pieces [][]byte) {
	for len(data) > 0 {
		n := s.Next(data)
		pieces = append(pieces, data[:n])
		data = data[n:]
	}
	return pieces
}

func inputs() map[string][]byte {
	text := bytes.Repeat([]byte("the quick brown fox\n"), 60_000)
	return map[string][]byte{
		"random": randomBytes(1, 3<<20), "zeros": make([]byte, 3<<20), "text": text,
		"minimum": randomBytes(2, 4<<10), "more than the minimum": randomBytes(2, 4<<10+1), "one byte": {1},
		"maximum of zeros": make([]byte, 32<<10), "more than that": make([]byte, 32<<10+1),
	}
}

// The cuts are those of restic's chunker, which reads a stream.
func TestSplitsAsResticDoes(t *testing.T) {
	for _, p := range []CDCParams{smallParams, DefaultCDCParams} {
		s := newSplitter(t, p)
		for name, data := range inputs() {
			c := chunker.New(bytes.NewReader(data), chunker.Pol(p.Polynomial),
				chunker.WithBoundaries(uint(p.Min), uint(p.Max)), chunker.WithAverageBits(p.AverageBits))
			at := 0
			for i, piece := range split(s, data) {
				want, err := c.Next(nil)
				if err != nil || !bytes.Equal(want.Data, piece) {
					t.Fatalf("%s: piece %d at %d has %d bytes, expected %d, %v", name, i, at, len(piece), want.Length, err)
				}
				at += len(piece)
				if last := at == len(data); len(piece) > s.MaxChunk() || len(piece) < s.MinChunk() && !last {
					t.Fatalf("%s: piece of %d bytes", name, len(piece))
				}
			}
			if _, err := c.Next(nil); err != io.EOF {
				t.Fatalf("%s: restic cuts further: %v", name, err)
			}
		}
	}
}

// What is given beyond the longest chunk does not matter: a window suffices.
func TestSplitNeedsOneWindow(t *testing.T) {
	s := newSplitter(t, smallParams)
	for name, data := range inputs() {
		for rest := data; len(rest) > 0; {
			n := s.Next(rest)
			if m := s.Next(rest[:min(len(rest), s.MaxChunk())]); m != n {
				t.Fatalf("%s: %d bytes with a window, %d with all", name, m, n)
			}
			rest = rest[n:]
		}
	}
}

func TestSplitResistsShifts(t *testing.T) {
	s := newSplitter(t, smallParams)
	data := randomBytes(3, 4<<20)
	known := map[string]bool{}
	before := split(s, data)
	for _, p := range before {
		known[string(p)] = true
	}
	for _, n := range []int{1, 100, 5000, 100_000} {
		fresh := 0
		for _, p := range split(s, append(randomBytes(4, n), data...)) {
			if !known[string(p)] {
				fresh++
			}
		}
		if most := 5 + n/smallParams.Min; fresh > most {
			t.Errorf("%d bytes in front: %d new chunks of %d", n, fresh, len(before))
		}
	}
}

func TestSplitInParallel(t *testing.T) {
	s := newSplitter(t, smallParams)
	data := randomBytes(5, 1<<20)
	want := split(s, data)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			got := split(s, data)
			for i := range want {
				if i >= len(got) || len(got[i]) != len(want[i]) {
					t.Error("other cuts in parallel")
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestCDCParams(t *testing.T) {
	for name, change := range map[string]func(p *CDCParams){
		"good":                   nil,
		"no polynomial":          func(p *CDCParams) { p.Polynomial = 0 },
		"reducible":              func(p *CDCParams) { p.Polynomial++ },
		"of another degree":      func(p *CDCParams) { p.Polynomial = 0x7 },
		"all bits":               func(p *CDCParams) { p.Polynomial = 1<<64 - 1 },
		"minimum below a window": func(p *CDCParams) { p.Min = 63 },
		"negative minimum":       func(p *CDCParams) { p.Min = -1 },
		"minimum over maximum":   func(p *CDCParams) { p.Min = p.Max + 1 },
		"maximum over a frame":   func(p *CDCParams) { p.Max = MaxFrame + 1 },
		"average too small":      func(p *CDCParams) { p.AverageBits = 9 },
		"average too large":      func(p *CDCParams) { p.AverageBits = 25 },
	} {
		p := DefaultCDCParams
		if change != nil {
			change(&p)
		}
		if _, err := NewSplitter(p); (err == nil) != (change == nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A repository keeps them for ever.
	if DefaultCDCParams != (CDCParams{0x3DA3358B4DC173, 256 << 10, 16, 1 << 20}) {
		t.Error("new repositories cut differently from old ones")
	}
}

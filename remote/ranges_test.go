package remote_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"
	"testing"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// testRanges is what every RangeReader must do.
func testRanges(t *testing.T, s remote.Store) {
	const size = 300_007
	data := remotetest.Random(1, size)
	if err := s.Put(t.Context(), "packs/aa/ranges", data); err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct{ off, n, want int }{
		{0, 1, 1}, {0, size, size}, {0, size + 1, size}, {5, 1 << 20, size - 5}, {size - 1, 1, 1}, {size - 1, 100, 1}, {7, 0, 0},
	} {
		p := make([]byte, r.n)
		last := 0
		n, err := remote.ReadRange(t.Context(), s, "packs/aa/ranges", int64(r.off), p, func(n int) {
			if n < last || n > r.want || !bytes.Equal(p[:n], data[r.off:r.off+n]) {
				t.Errorf("%d bytes at %d: %d arrived after %d, or they are wrong", r.n, r.off, n, last)
			}
			last = n
		})
		if err != nil || n != r.want || !bytes.Equal(p[:n], data[r.off:r.off+n]) {
			t.Errorf("%d bytes at %d: got %d, %v", r.n, r.off, n, err)
		}
	}
	for _, off := range []int64{size, size + 1, 10 * size} {
		if n, err := remote.ReadRange(t.Context(), s, "packs/aa/ranges", off, make([]byte, 10), nil); n != 0 || !errors.Is(err, remote.ErrShort) {
			t.Errorf("at %d: got %d, %v", off, n, err)
		}
	}
	if _, err := remote.ReadRange(t.Context(), s, "packs/aa/none", 0, make([]byte, 10), nil); !errors.Is(err, remote.ErrNotExist) {
		t.Error(err)
	}
	if _, err := remote.ReadRange(t.Context(), s, "packs/aa/ranges", -1, make([]byte, 10), nil); err == nil {
		t.Error("no error for a negative offset")
	}
	if _, err := remote.ReadRange(t.Context(), s, "../x", 0, make([]byte, 10), nil); err == nil {
		t.Error("no error for a bad name")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := remote.ReadRange(ctx, s, "packs/aa/ranges", 0, make([]byte, 10), nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestReadRange(t *testing.T) {
	stores := map[string]remote.Store{
		"memory": remotetest.NewMemory(),
		"file":   remotetest.OpenFile(t, t.TempDir()),
		"plain":  remotetest.Plain{Store: remotetest.NewMemory()},
		"decorated": remote.Retry(new(remote.Counter).Wrap(remotetest.NewFaulty(remotetest.NewMemory(),
			func(remote.Op, string) remotetest.Fault { return remotetest.Fault{} })), nil),
		"decorated plain": remote.Retry(new(remote.Counter).Wrap(remotetest.Plain{Store: remotetest.NewMemory()}), nil),
	}
	for name, s := range stores {
		t.Run(name, func(t *testing.T) { testRanges(t, s) })
	}
}

func TestReadRangeS3(t *testing.T) {
	strict := remotetest.StartStrictR2(t, remotetest.StartVersityGW(t), false)
	s := openS3(t, strict.Config("ranges"))
	testRanges(t, s)

	const size = 600_000
	data := remotetest.Random(2, size)
	if err := s.Put(t.Context(), "packs/a", data); err != nil {
		t.Fatal(err)
	}
	strict.Requests()

	// An answer that breaks off is gone on with, not begun again.
	strict.Next(remotetest.Trouble{Truncate: 400_000})
	p := make([]byte, size+100)
	var arrived []int
	n, err := remote.ReadRange(t.Context(), quick(s), "packs/a", 0, p, func(n int) { arrived = append(arrived, n) })
	if err != nil || n != size || !bytes.Equal(p[:n], data) {
		t.Errorf("got %d, %v", n, err)
	}
	if !slices.IsSorted(arrived) || len(arrived) < 4 {
		t.Errorf("arrived: %v", arrived)
	}
	requests := strict.Requests()
	if len(requests) != 2 || requests[1].Header.Get("Range") == requests[0].Header.Get("Range") {
		t.Errorf("got %d requests: %v", len(requests), requests)
	}

	// A proxy that gives another range, or the whole object, is not believed.
	for _, rng := range []string{"", "bytes 1-10/600000", "bytes 0-99/600000", "bytes 0-999/600000", "bytes x", "bytes 9-0/600000", "bytes 0-599999/100"} {
		bad := strict.Config("ranges")
		bad.Transport = contentRange{rng}
		if n, err := remote.ReadRange(t.Context(), openS3(t, bad), "packs/a", 0, make([]byte, 200), nil); err == nil {
			t.Errorf("%q: got %d bytes", rng, n)
		}
	}
}

// contentRange has the server say that it gave another range.
type contentRange struct{ value string }

func (c contentRange) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err == nil {
		resp.Header.Set("Content-Range", c.value)
	}
	return resp, err
}

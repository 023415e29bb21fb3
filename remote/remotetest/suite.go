package remotetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/snapctl/snapctl/remote"
)

// Run tests whether a store keeps what [remote.Store] promises, and
// [remote.Replacer], [remote.Resumer] and [remote.Clock] if it is one. open gives an empty
// store; it is called for every subtest.
func Run(t *testing.T, open func(t *testing.T) remote.Store) {
	for _, test := range []struct {
		name string
		f    func(*testing.T, remote.Store)
	}{
		{"PutGet", testPutGet},
		{"PutTwice", testPutTwice},
		{"OwnBytes", testOwnBytes},
		{"ReadAt", testReadAt},
		{"Stat", testStat},
		{"NotExist", testNotExist},
		{"Names", testNames},
		{"ListOrder", testListOrder},
		{"ListPrefix", testListPrefix},
		{"ListAfter", testListAfter},
		{"ListYield", testListYield},
		{"Many", testMany},
		{"Delete", testDelete},
		{"Replace", testReplace},
		{"OneWins", testOneWins},
		{"SameContentAtOnce", testSameContentAtOnce},
		{"WholeOrNot", testWholeOrNot},
		{"Cancelled", testCancelled},
		{"Clock", testClock},
	} {
		t.Run(test.name, func(t *testing.T) { test.f(t, open(t)) })
	}
}

// Random gives bytes that are the same for the same seed.
func Random(seed uint64, size int) []byte {
	p := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = r.Read(p)
	return p
}

func put(t testing.TB, s remote.Store, name string, data []byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, data); err != nil {
		t.Fatal(err)
	}
}

func expect(t testing.TB, s remote.Store, name string, want []byte) {
	t.Helper()
	got, err := s.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s has %d bytes, and other ones than the %d that it should", name, len(got), len(want))
	}
}

func expectErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got error %v, want one that is %v", err, want)
	}
}

func list(t testing.TB, s remote.Store, prefix string) []string {
	t.Helper()
	names := []string{}
	err := s.List(t.Context(), prefix, func(i remote.Info) error {
		names = append(names, i.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func testPutGet(t *testing.T, s remote.Store) {
	for i, size := range []int{0, 1, 100, 1 << 20, 20<<20 + 1} {
		name := fmt.Sprintf("packs/%d/x", i)
		data := Random(uint64(i), size)
		put(t, s, name, data)
		expect(t, s, name, data)
	}
}

func testPutTwice(t *testing.T, s remote.Store) {
	for i, size := range []int{0, 1, 3 << 20} {
		name := fmt.Sprintf("twice/%d", i)
		data := Random(uint64(i), size)
		put(t, s, name, data)
		put(t, s, name, bytes.Clone(data))
		expectErr(t, s.Put(t.Context(), name, append(bytes.Clone(data), 'x')), remote.ErrExist)
		if size > 0 {
			other := bytes.Clone(data)
			other[size-1] ^= 1
			expectErr(t, s.Put(t.Context(), name, other), remote.ErrExist)
			expectErr(t, s.Put(t.Context(), name, nil), remote.ErrExist)
		}
		expect(t, s, name, data)
	}
}

func testOwnBytes(t *testing.T, s remote.Store) {
	data := []byte("content")
	put(t, s, "a", data)
	data[0] = 'X'
	got, err := s.Get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	got[1] = 'X'
	expect(t, s, "a", []byte("content"))
}

func testReadAt(t *testing.T, s remote.Store) {
	const size = 3<<20 + 7
	data := Random(1, size)
	put(t, s, "packs/aa/object", data)
	for _, r := range []struct{ off, n int }{
		{0, 1}, {0, size}, {1, 100}, {size - 1, 1}, {size - 70000, 70000}, {1<<20 - 1, 2 << 20}, {5, 0}, {size, 0},
	} {
		p := make([]byte, r.n)
		if err := s.ReadAt(t.Context(), "packs/aa/object", int64(r.off), p); err != nil {
			t.Errorf("%d bytes at %d: %v", r.n, r.off, err)
		} else if !bytes.Equal(p, data[r.off:r.off+r.n]) {
			t.Errorf("%d bytes at %d: wrong bytes", r.n, r.off)
		}
	}
	for _, r := range []struct{ off, n int }{{0, size + 1}, {size - 1, 2}, {size, 1}, {10 * size, 10}} {
		expectErr(t, s.ReadAt(t.Context(), "packs/aa/object", int64(r.off), make([]byte, r.n)), remote.ErrShort)
	}
	if err := s.ReadAt(t.Context(), "packs/aa/object", -1, make([]byte, 1)); err == nil {
		t.Error("no error for a negative offset")
	}
	put(t, s, "empty", nil)
	expectErr(t, s.ReadAt(t.Context(), "empty", 0, make([]byte, 1)), remote.ErrShort)

	var g errgroup.Group
	for i := range 32 {
		g.Go(func() error {
			off := i * (size / 32)
			p := make([]byte, size/32)
			if err := s.ReadAt(t.Context(), "packs/aa/object", int64(off), p); err != nil {
				return err
			}
			if !bytes.Equal(p, data[off:off+len(p)]) {
				return fmt.Errorf("wrong bytes at %d", off)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

func testStat(t *testing.T, s remote.Store) {
	put(t, s, "dir/a-b", make([]byte, 1234))
	info, err := s.Stat(t.Context(), "dir/a-b")
	if err != nil {
		t.Fatal(err)
	}
	if info.Name != "dir/a-b" || info.Size != 1234 {
		t.Errorf("got %+v", info)
	}
	if age := time.Since(info.ModTime); age < -time.Minute || age > time.Hour {
		t.Errorf("written %s ago", age)
	}
	// The same by List.
	err = s.List(t.Context(), "", func(i remote.Info) error {
		if i.Name != info.Name || i.Size != info.Size || i.ModTime.Sub(info.ModTime).Abs() > time.Second {
			t.Errorf("List gives %+v, Stat %+v", i, info)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func testNotExist(t *testing.T, s remote.Store) {
	put(t, s, "dir/object", nil)
	ctx := t.Context()
	for _, name := range []string{"object", "dir", "dir/none", "none/object"} {
		_, err := s.Get(ctx, name)
		expectErr(t, err, remote.ErrNotExist)
		_, err = s.Stat(ctx, name)
		expectErr(t, err, remote.ErrNotExist)
		expectErr(t, s.ReadAt(ctx, name, 0, make([]byte, 1)), remote.ErrNotExist)
		if err != nil && !strings.Contains(err.Error(), name) {
			t.Errorf("the error does not name the object: %v", err)
		}
	}
}

func testNames(t *testing.T, s remote.Store) {
	ctx := t.Context()
	for _, name := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "A", "a b", "a.b", "a_b", "é", "a\x00", "tmp", "tmp/a",
	} {
		if s.Put(ctx, name, nil) == nil {
			t.Errorf("Put takes the name %q", name)
		}
		if _, err := s.Get(ctx, name); err == nil || errors.Is(err, remote.ErrNotExist) {
			t.Errorf("Get of %q: %v", name, err)
		}
		if _, err := s.Stat(ctx, name); err == nil || errors.Is(err, remote.ErrNotExist) {
			t.Errorf("Stat of %q: %v", name, err)
		}
		if err := s.ReadAt(ctx, name, 0, make([]byte, 1)); err == nil || errors.Is(err, remote.ErrNotExist) {
			t.Errorf("ReadAt of %q: %v", name, err)
		}
		if s.Delete(ctx, name) == nil {
			t.Errorf("Delete takes the name %q", name)
		}
	}
	for _, prefix := range []string{"/", "/a", "a//", "../", "A", "a.b", "tmp/"} {
		if s.List(ctx, prefix, func(remote.Info) error { return nil }) == nil {
			t.Errorf("List takes the prefix %q", prefix)
		}
	}
	if got := list(t, s, ""); len(got) > 0 {
		t.Errorf("there are %q", got)
	}
}

func testDelete(t *testing.T, s remote.Store) {
	ctx := t.Context()
	for _, name := range []string{"a", "b/c", "b/d", "e"} {
		put(t, s, name, []byte(name))
	}
	for _, names := range [][]string{nil, {"none"}, {"none", "b/none", "none/none"}, {"b/c"}, {"b/c", "a", "a"}} {
		if err := s.Delete(ctx, names...); err != nil {
			t.Errorf("Delete(%q): %v", names, err)
		}
	}
	if got := list(t, s, ""); !slices.Equal(got, []string{"b/d", "e"}) {
		t.Errorf("left: %q", got)
	}
	_, err := s.Get(ctx, "a")
	expectErr(t, err, remote.ErrNotExist)
	put(t, s, "a", []byte("other")) // the name is free again

	// An error keeps it from none of the others.
	if s.Delete(ctx, "NOT-A-NAME", "a", "e") == nil {
		t.Error("no error")
	}
	if got := list(t, s, ""); !slices.Equal(got, []string{"b/d"}) {
		t.Errorf("left: %q", got)
	}
}

func testReplace(t *testing.T, s remote.Store) {
	r, ok := s.(remote.Replacer)
	if !ok {
		t.Skip("the store is no Replacer")
	}
	for _, content := range []string{"one", "", "three, and longer than before", "three, and longer than before", "4"} {
		if err := r.Replace(t.Context(), "leases/x/y", []byte(content)); err != nil {
			t.Fatal(err)
		}
		expect(t, s, "leases/x/y", []byte(content))
	}
	expectErr(t, s.Put(t.Context(), "leases/x/y", []byte("5")), remote.ErrExist)
	if err := r.Replace(t.Context(), "NOT-A-NAME", nil); err == nil {
		t.Error("Replace takes a bad name")
	}
}

func testCancelled(t *testing.T, s remote.Store) {
	put(t, s, "there", []byte("content"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	check := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got error %v, want one that is %v", what, err, context.Canceled)
		}
	}
	check("Put", s.Put(ctx, "new", nil))
	_, err := s.Get(ctx, "there")
	check("Get", err)
	check("ReadAt", s.ReadAt(ctx, "there", 0, make([]byte, 1)))
	_, err = s.Stat(ctx, "there")
	check("Stat", err)
	check("List", s.List(ctx, "", func(remote.Info) error { return nil }))
	check("List of nothing", s.List(ctx, "none/", func(remote.Info) error { return nil }))
	check("Delete", s.Delete(ctx, "there"))
	check("Delete of many", s.Delete(ctx, "there", "new"))
	if r, ok := s.(remote.Replacer); ok {
		check("Replace", r.Replace(ctx, "there", nil))
	}
	expect(t, s, "there", []byte("content"))

	// Cancelled in the middle, a list must not look complete.
	for i := range 5 {
		put(t, s, fmt.Sprintf("list/%d", i), nil)
	}
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	n := 0
	err = s.List(ctx, "list/", func(remote.Info) error {
		if n++; n == 2 {
			cancel()
		}
		return nil
	})
	check("List, cancelled in the middle", err)
}

// testClock: the time that the store tells is that of its objects.
func testClock(t *testing.T, s remote.Store) {
	if _, ok := s.(remote.Clock); !ok {
		t.Skip("it has no clock")
	}
	at := func(name string) time.Time {
		t.Helper()
		put(t, s, name, []byte(name))
		info, err := s.Stat(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return info.ModTime
	}
	before := at("before")
	now, err := remote.Time(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	after := at("after")
	// The store may round times down, and may be early by a few seconds, but not late.
	if now.Before(before.Add(-5*time.Second)) || now.Truncate(time.Second).After(after) {
		t.Errorf("it says that it is %v between %v and %v", now, before, after)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := remote.Time(ctx, s); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

package remotetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/snapctl/snapctl/remote"
)

// ordered is in byte order, in which '-' is before '/', and that before '0'.
var ordered = []string{
	"a-b/x", "a/b-c", "a/b/c", "a/b0", "a/c", "a0", "ab/0", "b", "manifests/01", "manifests/ttl-30d/02", "manifests/ttl-7d/01", "z-", "z-/0",
}

// putOrdered leaves out the one name that is another's folder.
func putOrdered(t *testing.T, s remote.Store) []string {
	names := slices.DeleteFunc(slices.Clone(ordered), func(n string) bool { return n == "z-" })
	for _, i := range rand.Perm(len(names)) {
		put(t, s, names[i], []byte(names[i]))
	}
	return names
}

func testListOrder(t *testing.T, s remote.Store) {
	if got := list(t, s, ""); len(got) != 0 {
		t.Errorf("an empty store lists %q", got)
	}
	want := putOrdered(t, s)
	if got := list(t, s, ""); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func testListPrefix(t *testing.T, s remote.Store) {
	names := putOrdered(t, s)
	for _, prefix := range []string{"a", "a/", "a/b", "a/b/", "a-", "a/b-", "manifests/", "manifests/ttl-", "manifests/ttl-30d/", "b", "b/", "x", "a/b/c/d", "z-/"} {
		want := []string{}
		for _, n := range names {
			if strings.HasPrefix(n, prefix) {
				want = append(want, n)
			}
		}
		if got := list(t, s, prefix); !slices.Equal(got, want) {
			t.Errorf("prefix %q: got %q, want %q", prefix, got, want)
		}
	}
}

func testListAfter(t *testing.T, s remote.Store) {
	names := putOrdered(t, s)
	for _, prefix := range []string{"", "a/"} {
		for _, after := range append([]string{"0", "a", "a/b", "zz"}, names...) {
			want := []string{}
			for _, n := range names {
				if n > after && strings.HasPrefix(n, prefix) {
					want = append(want, n)
				}
			}
			got := []string{}
			err := remote.ListAfter(t.Context(), s, prefix, after, func(i remote.Info) error {
				got = append(got, i.Name)
				return nil
			})
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("prefix %q after %q: got %q, want %q, error %v", prefix, after, got, want, err)
			}
		}
	}
}

func testListYield(t *testing.T, s remote.Store) {
	names := putOrdered(t, s)
	mine := errors.New("enough")
	calls := 0
	err := s.List(t.Context(), "", func(i remote.Info) error {
		if calls++; calls == 3 {
			return mine
		}
		return nil
	})
	if err != mine || calls != 3 {
		t.Errorf("got %v after %d calls, want yield's error after 3", err, calls)
	}
	// yield may use the store, and take away what is about to be listed.
	var got []string
	err = s.List(t.Context(), "", func(i remote.Info) error {
		got = append(got, i.Name)
		if _, err := s.Get(t.Context(), i.Name); err != nil {
			return err
		}
		return s.Delete(t.Context(), i.Name)
	})
	if err != nil || !slices.Equal(got, names) {
		t.Errorf("got %q, want %q, error %v", got, names, err)
	}
	if got := list(t, s, ""); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}

// testMany has more objects than an S3 server lists, or deletes, in one request.
func testMany(t *testing.T, s remote.Store) {
	var g errgroup.Group
	g.SetLimit(16)
	var want []string
	for i := range 1010 {
		name := fmt.Sprintf("many/%02x/%04d", i%7, i)
		want = append(want, name)
		g.Go(func() error { return s.Put(t.Context(), name, []byte(name)) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	if got := list(t, s, "many/"); !slices.Equal(got, want) {
		t.Errorf("got %d names, want %d", len(got), len(want))
	}
	last := want[len(want)-1]
	if err := s.Delete(t.Context(), want[:len(want)-1]...); err != nil {
		t.Error(err)
	}
	if got := list(t, s, ""); !slices.Equal(got, []string{last}) {
		t.Errorf("left after the deletion: %d names, want only %s", len(got), last)
	}
}

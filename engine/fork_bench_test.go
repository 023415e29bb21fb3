//go:build linux

package engine

import (
	"fmt"
	"testing"
)

// BenchmarkFork forks a snapshot that is mounted already, and removes the fork; the
// time is that of forking.
func BenchmarkFork(b *testing.B) {
	needFUSE(b)
	p := newPlace(b)
	r := p.init()
	src := p.files("src", map[string]string{"a": "1", "dir/b": "2"})
	id := complete(b, r, src, nil).ID.String()
	r, err := Open(b.Context(), p.repo, &Options{CacheDir: p.cache, StateDir: p.path("state")})
	must(b, err)
	defer r.Close()
	first, err := r.Fork(b.Context(), id, p.path("first"), nil)
	must(b, err)
	n := 0
	for b.Loop() {
		n++
		f, err := r.Fork(b.Context(), id, p.path(fmt.Sprint("f", n)), nil)
		must(b, err)
		b.StopTimer()
		_, err = f.Remove(b.Context(), nil)
		must(b, err)
		b.StartTimer()
	}
	_, err = first.Remove(b.Context(), nil)
	must(b, err)
}

//go:build linux

package engine

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"golang.org/x/sys/unix"
)

// smallChunks is a repository that cuts files into chunks of a few KiB, so that a
// small file has as many as a huge one.
func (p *place) smallChunks() *Repository {
	p.Helper()
	r := p.init()
	cfg := *r.repo.Cfg
	cfg.Chunker = chunk.CDCParams{Polynomial: cfg.Chunker.Polynomial, Min: 4 << 10, AverageBits: 10, Max: 8 << 10}
	if r.repo.Encrypted() {
		cfg.Encrypt(r.repo.Key())
	}
	must(p, os.Remove(p.repo+"/"+repo.ConfigName))
	must(p, os.WriteFile(p.repo+"/"+repo.ConfigName, cfg.Encode(), 0o400))
	return p.open("cache")
}

// TestManyExtents: files whose extents fill pages of their own.
func TestManyExtents(t *testing.T) {
	plainOnly(t)
	p := newPlace(t)
	r := p.smallChunks()
	large := random(1, 8<<20)
	src := p.files("src", map[string]string{"large": string(large), "zeros": string(make([]byte, 4<<20)), "small": "1", "again": string(large)})
	first := complete(t, r, src, nil)
	p.check(first.ID, scan(t, src))
	out := p.path("out")
	restore(t, r, first.ID.String(), out, &RestoreOptions{Verify: true})
	if again := complete(t, r, out, nil); again.NewBytes != 0 {
		t.Errorf("%d new bytes of what was restored", again.NewBytes)
	}

	// A change in the middle: little is new, and the rest is where it was.
	f, err := os.OpenFile(out+"/large", os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("a change"), 4<<20)
	must(t, err)
	must(t, f.Close())
	second := complete(t, r, out, nil)
	if second.NewBytes > 100_000 {
		t.Errorf("%d new bytes for a change of eight", second.NewBytes)
	}
	p.check(second.ID, scan(t, out))
	equalEntries(t, entriesOf(t, r, complete(t, p.open("empty"), out, nil).ID), entriesOf(t, r, second.ID))

	// Bytes that were put in shift all that comes after them.
	writeFile(t, out+"/large", bytes.Join([][]byte{large[:3<<20], []byte("some bytes more"), large[3<<20:]}, nil))
	third := complete(t, r, out, nil)
	if third.NewBytes > 100_000 {
		t.Errorf("%d new bytes for some bytes more", third.NewBytes)
	}
	p.check(third.ID, scan(t, out))
}

// TestXattrsSinceParent: a parent that the caller names, and that the machine
// knows no fingerprints of, tells contents by size and time, and nothing else.
func TestXattrsSinceParent(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{"a": "1", "b": "2", "c": "3", "d/e": "4"})
	must(t, unix.Setxattr(src+"/b", "user.old", []byte("1"), 0))
	must(t, unix.Setxattr(src+"/c", "user.gone", []byte("1"), 0))
	first := complete(t, r, src, nil)
	must(t, unix.Setxattr(src+"/a", "user.new", []byte("1"), 0))
	must(t, unix.Setxattr(src+"/b", "user.old", []byte("2"), 0))
	must(t, unix.Removexattr(src+"/c", "user.gone"))
	must(t, unix.Setxattr(src+"/d", "user.new", []byte("1"), 0))
	must(t, os.Chmod(src+"/d/e", 0o600))
	res := complete(t, p.open("empty"), src, &CreateOptions{Parent: first.ID.String()})
	p.check(res.ID, scan(t, src))
}

// TestLargeDirectory: more entries in one directory than are listed ahead.
func TestLargeDirectory(t *testing.T) {
	if !*long {
		t.Skip("only with -long")
	}
	p := newPlace(t)
	r := p.init()
	src := p.files("src", map[string]string{})
	for i := range 3 {
		for j := range 40_000 {
			writeFile(t, fmt.Sprintf("%s/%d/%d", src, i, j), []byte{byte(j)})
		}
		for j := range 3000 {
			must(t, os.Mkdir(fmt.Sprintf("%s/%d/dir-%d", src, i, j), 0o755))
		}
	}
	p.check(complete(t, r, src, nil).ID, scan(t, src))
}

// TestModeZeroInPieces: a file that nobody may read has that mode after a restore that
// wrote it in pieces.
func TestModeZeroInPieces(t *testing.T) {
	needRoot(t)
	p := newPlace(t)
	r := p.smallChunks()
	src := p.files("src", map[string]string{"closed": string(random(1, 100_000))})
	must(t, os.Chmod(src+"/closed", 0))
	p.check(complete(t, r, src, nil).ID, scan(t, src))
}

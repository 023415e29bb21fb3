//go:build linux

package engine

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/chunk/wire/wiretest"
	"github.com/snapctl/snapctl/engine/internal/ignore"
	"github.com/snapctl/snapctl/engine/internal/repo"
)

func FuzzConfig(f *testing.F) {
	c, err := repo.NewConfig(nil)
	must(f, err)
	b := c.Encode()
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Add(bytes.ReplaceAll(b, []byte("zstd"), []byte("none")))
	f.Add([]byte(`{"version": 2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		// With the right checksum, or nearly nothing would come through.
		var sealed repo.Config
		if json.Unmarshal(b, &sealed) == nil && sealed.Encryption != nil {
			b = sealed.Encode()
		}
		wiretest.Bounded(t, 100*len(b), func() {
			c, err := repo.DecodeConfig(b)
			if err == nil && !bytes.Equal(c.Encode(), b) {
				t.Errorf("%s re-encodes to\n%s", b, c.Encode())
			}
		})
	})
}

// FuzzPattern: whatever a line says, it is a pattern that can be matched, nothing, or
// an error.
func FuzzPattern(f *testing.F) {
	for _, line := range []string{"*.o", "!a/", "/a/**/b", "[]a]", "[!a-z]*", `\!a\ `, "a//b", "**", "{a,b}", "[", `\`, "[[:alpha:]]"} {
		f.Add(line, "a/b.o")
	}
	f.Fuzz(func(t *testing.T, line, path string) {
		p, ok, err := ignore.ParsePattern(line)
		if err != nil && !strings.Contains(err.Error(), "pattern") {
			t.Fatalf("%t, %v", ok, err)
		}
		if !ok {
			return
		}
		name := path[strings.LastIndexByte(path, '/')+1:]
		asDir, asFile := p.Match(path, name, true), p.Match(path, name, false)
		if asFile != (asDir && !p.DirOnly) {
			t.Errorf("a directory matches: %t, a file: %t", asDir, asFile)
		}
	})
}

// FuzzRecords: the registries of mounts and forks believe no file.
func FuzzRecords(f *testing.F) {
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		wiretest.Bounded(t, 100*len(b), func() {
			if r, err := decodeRecord(b); (r == nil) == (err == nil) {
				t.Error(r, err)
			}
			if r, err := decodeForkRecord(b); (r == nil) == (err == nil) {
				t.Error(r, err)
			}
		})
	})
}

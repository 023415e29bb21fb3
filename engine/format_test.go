//go:build linux

package engine

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/snapctl/snapctl/engine/snapshot"
)

// TestFormatV1 restores a repository that an earlier version wrote: whatever
// changes in the code, what is on people's disks must stay readable.
func TestFormatV1(t *testing.T) {
	p := newPlace(t)
	repo := p.path("golden")
	must(t, os.CopyFS(repo, os.DirFS("../testdata/repository-v1"))) // opening it writes
	r, err := Open(t.Context(), repo, &Options{CacheDir: p.path("cache-of-golden")})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out := p.path("out")
	rec, err := r.Restore(t.Context(), "golden", out, &RestoreOptions{Verify: true, NoOwner: true})
	if err != nil {
		t.Fatal(err)
	}
	if s := rec.Snapshot; s.Tags["format"] != "1" || s.Files != 5 || s.Dirs != 2 {
		t.Errorf("the snapshot is %+v", s)
	}
	for name, want := range map[string]string{
		"index.js":      "d223b78a13c314c518f5b3025065c5a73660432c3caa58aade066de7cc03b0af",
		"package.json":  "b9c453a57e76be09e074b942f57bdeb2ebe1d9bf29185ef58eddd8f1889c8e68",
		"lib/large.txt": "a7a2f712bc41f3628e954e8bacffa744c49c5837e449947e8fb49369a2bc3806",
		"lib/same.js":   "d223b78a13c314c518f5b3025065c5a73660432c3caa58aade066de7cc03b0af",
		"lib/main.js":   "d223b78a13c314c518f5b3025065c5a73660432c3caa58aade066de7cc03b0af", // a symbolic link to it
	} {
		b, err := os.ReadFile(filepath.Join(out, name))
		if err != nil {
			t.Error(err)
		} else if got := fmt.Sprintf("%x", sha256.Sum256(b)); got != want {
			t.Errorf("%s is %s", name, got)
		}
	}
	st, err := os.Lstat(filepath.Join(out, "package.json"))
	if err != nil {
		t.Fatal(err)
	}
	if want := time.Date(2020, 2, 2, 2, 2, 2, 20202020, time.UTC); !st.ModTime().Equal(want) || st.Mode() != 0o600 {
		t.Errorf("package.json has %v and %v", st.ModTime(), st.Mode())
	}
}

// What opens testdata/repository-v1-encrypted.
const (
	goldenIdentity   = "AGE-SECRET-KEY-1MLRN9HEUMQ4EJJQ8DEK9HEQ3TVTJGF3T6AZGYSF5L5TS3NK2CZ7SCLX9Z4"
	goldenPassphrase = "golden"
)

// TestFormatV1Encrypted is the same for an encrypted one, by each of its keys.
func TestFormatV1Encrypted(t *testing.T) {
	id, err := age.ParseX25519Identity(goldenIdentity)
	must(t, err)
	for name, opts := range map[string]*Options{
		"identity":   {Identities: []age.Identity{id}},
		"passphrase": {Passphrase: func(context.Context, string) (string, error) { return goldenPassphrase, nil }},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			repo := p.path("golden")
			must(t, os.CopyFS(repo, os.DirFS("../testdata/repository-v1-encrypted")))
			opts.CacheDir = p.cache
			r, err := Open(t.Context(), repo, opts)
			must(t, err)
			defer r.Close()
			out := p.path("out")
			rec, err := r.Restore(t.Context(), "golden", out, &RestoreOptions{Verify: true, NoOwner: true})
			must(t, err)
			if s := rec.Snapshot; s.Tags["format"] != "1" || s.Files != 403 {
				t.Errorf("the snapshot is %+v", s)
			}
			sameFile(t, out+"/package.json", []byte("{\"name\":\"golden\"}\n"))
			sameFile(t, out+"/index.js", []byte("module.exports = 1\n"))
			sameFile(t, out+"/lib/large.bin", random(42, 300_000))
			keys, err := r.Keys(t.Context())
			must(t, err)
			if len(keys) != 2 || !slices.ContainsFunc(keys, func(k *snapshot.KeyInfo) bool { return k.Label == "golden" }) {
				t.Errorf("%d keys", len(keys))
			}
			// The index and the ids in it are as they were: nothing is new.
			again, err := r.Create(t.Context(), out, nil)
			must(t, err)
			if again.NewBytes != 0 {
				t.Errorf("%d bytes are new", again.NewBytes)
			}
		})
	}
}

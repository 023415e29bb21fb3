package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// manifestOf is every path below dir, with what is there.
func manifestOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	m := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel := strings.TrimPrefix(path, dir+"/")
		if d.Type() == fs.ModeSymlink {
			m[rel], err = os.Readlink(path)
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		sum := sha256.Sum256(b)
		m[rel] = fmt.Sprintf("%d %s", info.ModTime().Unix(), hex.EncodeToString(sum[:]))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func writeTree(t *testing.T, s treeSpec) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	if err := s.write(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestTreeIsTheSameEveryTime(t *testing.T) {
	spec := treeSpec{Files: 1000, Mean: 900}
	dir := writeTree(t, spec)
	first, again := manifestOf(t, dir), manifestOf(t, writeTree(t, spec))
	if len(first) != len(again) {
		t.Fatalf("%d files, then %d", len(first), len(again))
	}
	all := sha256.New()
	for _, rel := range sortedKeys(first) {
		if first[rel] != again[rel] {
			t.Errorf("%s differs", rel)
		}
		fmt.Fprintf(all, "%s %s\n", rel, first[rel])
	}
	// Figures of different machines, and of last year, are of one tree: when
	// this changes, they are not comparable.
	const want = "916ed91e03056fb8"
	if got := hex.EncodeToString(all.Sum(nil)[:8]); got != want {
		t.Errorf("the tree has changed: %s, was %s", got, want)
	}

	c, err := contentOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	if c.Files != 1000 {
		t.Errorf("%d files", c.Files)
	}
	if mean := c.Bytes / c.Files; mean < 400 || mean > 2000 {
		t.Errorf("mean size %d, want about 900", mean)
	}
}

func TestSecondVersionChangesSomePackages(t *testing.T) {
	v1 := manifestOf(t, writeTree(t, treeSpec{Files: 3000, Mean: 300}))
	v2 := manifestOf(t, writeTree(t, treeSpec{Files: 3000, Mean: 300, Version: 1}))
	if len(v1) != len(v2) {
		t.Fatalf("%d files, then %d", len(v1), len(v2))
	}
	changed := 0
	for rel, what := range v1 {
		if v2[rel] != what {
			changed++
		}
	}
	if changed < len(v1)/25 || changed > len(v1)/8 {
		t.Errorf("%d files of %d differ, want about one in twelve", changed, len(v1))
	}
}

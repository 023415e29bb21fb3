package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
)

func TestParseTTL(t *testing.T) {
	const day = 24 * time.Hour
	for s, want := range map[string]time.Duration{
		"72h":         72 * time.Hour,
		"90m":         90 * time.Minute,
		"1h30m":       90 * time.Minute,
		"1500ms":      1500 * time.Millisecond,
		"1ns":         1,
		"7d":          7 * day,
		"2w":          14 * day,
		"1w2d12h":     9*day + 12*time.Hour,
		"12h1d":       36 * time.Hour,
		"0.5d":        12 * time.Hour,
		".5w":         84 * time.Hour,
		"0d1s":        time.Second,
		"106751d":     106751 * day,
		"2562047h47m": 2562047*time.Hour + 47*time.Minute,
	} {
		if got, err := parseTTL(s); got != want || err != nil {
			t.Errorf("parseTTL(%q) = %v, %v; want %v", s, got, err, want)
		}
	}
	for _, s := range []string{
		"", "0", "0s", "0d", "-1h", "+1h", "-7d", "1d-1h", "7", "d", "7 d", " 7d", "7d ", "1..5d", "1.2.3h", ".d", ".",
		"1y", "7D", "7dd", "d7", "1e3d", "106752d", "15251w", "106751d24h", "2562048h", "99999999999999999999d", "1d\n", "७d",
	} {
		if got, err := parseTTL(s); err == nil {
			t.Errorf("parseTTL(%q) = %v", s, got)
		}
	}
}

func TestTagsFlag(t *testing.T) {
	tags := make(tagsFlag)
	for _, s := range []string{"a=1", "b=", "c=x=y", "d=p,q"} {
		if err := tags.Set(s); err != nil {
			t.Errorf("Set(%q): %v", s, err)
		}
	}
	if got := ui.TagList(tags, ";"); got != "a=1;b=;c=x=y;d=p,q" {
		t.Error(got)
	}
	for _, s := range []string{"", "k", "=v", "a=2"} {
		if tags.Set(s) == nil {
			t.Errorf("Set(%q) is no error", s)
		}
	}
}

func TestExcludesKeepTheirOrder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "patterns")
	if err := os.WriteFile(file, []byte("\uFEFF# comment\r\n*.tmp\r\n\n  \n!keep.tmp\n\\#literal\nlast"), 0o600); err != nil {
		t.Fatal(err)
	}
	var all excludes
	for _, err := range []error{
		excludeFlag{&all}.Set("first"),
		excludeFromFlag{&all}.Set(file),
		excludeFlag{&all}.Set("!*.tmp"),
		excludeFromFlag{&all}.Set("-"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got, err := all.patterns(strings.NewReader("from stdin\n"))
	want := []string{"first", "*.tmp", "!keep.tmp", `\#literal`, "last", "!*.tmp", "from stdin"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}

	missing := excludes{{file: filepath.Join(t.TempDir(), "missing")}}
	if _, err := missing.patterns(nil); err == nil {
		t.Error("a missing file is no error")
	}
}

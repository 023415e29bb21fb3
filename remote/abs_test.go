package remote

import (
	"os"
	"path/filepath"
	"testing"
)

// TestAbs: what the system makes of a path, with and without a link before "..".
func TestAbs(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"far/real", "far/t", "t"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("far/real", dir+"/lk"); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for path, want := range map[string]string{
		"t":                      "/t",
		"./t/":                   "/t",
		"lk":                     "/lk",
		"lk/../t":                "/far/t",
		dir + "/lk/../t":         "/far/t",
		"lk/../new":              "/far/new",
		"lk/../new/newer/":       "/far/new/newer",
		"far/../t":               "/t",
		"lk/..":                  "/far",
		"far/real/../../lk/../t": "/far/t",
		"nosuch/../t":            "/t",
	} {
		if got, err := Abs(path); err != nil || got != dir+want {
			t.Errorf("%s: %s, %v; want %s", path, got, err, dir+want)
		}
	}
	t.Chdir(dir + "/lk") // and so $PWD
	if got, err := Abs("../t"); err != nil || got != dir+"/far/t" {
		t.Errorf("%s, %v", got, err)
	}
}

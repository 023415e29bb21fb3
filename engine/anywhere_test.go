package engine_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine"
)

// TestAnywhere uses what there is on every system, on whatever file system temporary
// folders are on.
func TestAnywhere(t *testing.T) {
	ctx := t.Context()
	temp := t.TempDir()
	opts := &engine.Options{CacheDir: filepath.Join(temp, "cache"), StateDir: filepath.Join(temp, "state")}
	repo, err := engine.Init(ctx, filepath.Join(temp, "repo"), nil, opts)
	check(t, err)
	defer repo.Close()

	src := filepath.Join(temp, "src")
	large := make([]byte, 3<<20)
	for i := range large {
		large[i] = byte(i * i >> 7)
	}
	for name, content := range map[string][]byte{"a": []byte("one"), "dir/b": nil, "dir/sub/large": large, "ünï": []byte("two")} {
		path := filepath.Join(src, name)
		check(t, os.MkdirAll(filepath.Dir(path), 0o755))
		check(t, os.WriteFile(path, content, 0o640))
	}
	check(t, os.Symlink("a", filepath.Join(src, "link")))
	check(t, os.Link(filepath.Join(src, "a"), filepath.Join(src, "hard")))
	at := time.Date(2020, 1, 2, 3, 4, 5, 678_901_234, time.UTC)
	check(t, os.Chtimes(filepath.Join(src, "a"), at, at))

	first, err := repo.Create(ctx, src, &engine.CreateOptions{Name: "first"})
	check(t, err)
	if first.Incomplete {
		t.Fatal(first.Problems)
	}
	dst := filepath.Join(temp, "dst")
	same := func(ref string) {
		t.Helper()
		_, err := repo.VerifyDir(ctx, ref, dst, nil, func(c *engine.Change) error {
			t.Errorf("%s: %v: %+v", ref, c.Path, c)
			return nil
		})
		check(t, err)
	}
	for _, o := range []*engine.RestoreOptions{nil, {Into: true, Verify: true}, {Delete: true}, {Into: true, Delete: true}} {
		if o != nil { // something to be mended
			check(t, os.WriteFile(filepath.Join(dst, "a"), []byte("spoilt"), 0o600))
			check(t, os.RemoveAll(filepath.Join(dst, "dir/sub")))
		}
		_, err := repo.Restore(ctx, "first", dst, o)
		check(t, err)
		same("first")
	}

	check(t, os.WriteFile(filepath.Join(dst, "dir/b"), []byte("three"), 0o640))
	check(t, os.Remove(filepath.Join(dst, "link")))
	_, err = repo.Create(ctx, dst, &engine.CreateOptions{Name: "second"})
	check(t, err)
	same("second")
	fsys, err := repo.FS(ctx, "second")
	check(t, err)
	if text, err := fsys.ReadFile("dir/b"); string(text) != "three" || err != nil {
		t.Errorf("got %q, %v", text, err)
	}
	if _, err := fsys.Stat("link"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	report, err := repo.Verify(ctx, nil, &engine.VerifyOptions{ReadData: 1})
	check(t, err)
	if len(report.Findings) > 0 {
		t.Errorf("%+v", report.Findings)
	}
	if runtime.GOOS != "linux" {
		_, err := repo.Mount(ctx, "first", t.TempDir(), nil)
		if !errors.Is(err, engine.ErrNeedsLinux) || !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("got %v", err)
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

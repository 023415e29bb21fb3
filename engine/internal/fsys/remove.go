package fsys

import (
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sync/errgroup"
)

// RemoveTree removes a directory that is ours, and all below it.
func RemoveTree(path string) error {
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer root.Close()
	return RemoveIn(root, filepath.Base(path))
}

// RemoveIn removes an entry of root and all below it, whatever the modes of its
// directories, and without ever leaving root by a link.
func RemoveIn(root *os.Root, name string) error {
	st, err := root.Lstat(name)
	if err != nil || !st.IsDir() {
		return root.RemoveAll(name) // a link must not be followed
	}
	removeBelow(root, name, 2)
	if root.RemoveAll(name) == nil {
		return nil
	}
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	return RemoveWhole(int(dir.Fd()), name)
}

// removeBelow removes most of a large tree in parallel: what lies a few levels
// below name. What it fails to remove is left to the caller.
func removeBelow(root *os.Root, name string, levels int) {
	dir, err := root.OpenRoot(name)
	if err != nil {
		return
	}
	defer dir.Close()
	entries, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return
	}
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, e := range entries {
		switch {
		case !e.IsDir():
		case levels > 1:
			removeBelow(dir, e.Name(), levels-1)
		default:
			g.Go(func() error { return dir.RemoveAll(e.Name()) })
		}
	}
	g.Wait()
}

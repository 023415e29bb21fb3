package main

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// someFiles picks files of a tree, always the same ones, in no order: what a
// program that starts may read. The paths are relative to the tree.
func someFiles(root string, n int) ([]string, error) {
	var files []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		files = append(files, rel)
		return err
	})
	rng := rand.New(rand.NewPCG(1, 1))
	rng.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	return files[:min(n, len(files))], err
}

// writeBig writes a file of which about half can be compressed away,
// everywhere.
func writeBig(ctx context.Context, path string, size int64) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	noise, text := rand.NewChaCha8([32]byte{1}), rand.New(rand.NewPCG(3, 4))
	const piece = 4 << 10
	buf := make([]byte, piece)
	for left := size; left > 0 && ctx.Err() == nil; left -= 2 * piece {
		noise.Read(buf)
		w.Write(buf) // its error is Flush's
		buf = appendText(buf[:0], text, piece)
		w.Write(buf)
	}
	return errors.Join(w.Flush(), f.Truncate(size), ctx.Err())
}

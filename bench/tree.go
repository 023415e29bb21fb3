package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// A treeSpec describes a made-up node_modules tree: the same specification
// gives the same tree, byte for byte, on every machine.
type treeSpec struct {
	Files   int // regular files, exactly
	Mean    int // bytes of a file, about
	Version int // each but 0 changes the contents of one package in twelve
}

const (
	packageFiles = 60 // as in the tree that sizes were taken from
	nestedEvery  = 10 // packages; one of them lies below another
	changedEvery = 12 // packages; one of them has a second version
)

// sizes says how large files are: such a part of them, of a thousand, are no
// larger than so many thousandths of the mean. It was taken from a tree of
// 110,535 files, and is in whole numbers so that every machine draws the same.
var sizes = [][2]int{
	{0, 0}, {50, 6}, {150, 11}, {200, 16}, {250, 29}, {300, 41}, {400, 62}, {500, 81}, {600, 100}, {700, 137},
	{750, 170}, {800, 227}, {850, 321}, {900, 560}, {950, 1358}, {970, 2567}, {980, 4340}, {990, 10931}, {999, 115193}, {1000, 115193},
}

// sizesMean is the mean of sizes, which are not quite what they were taken from.
var sizesMean = func() int {
	sum := 0
	for i, s := range sizes[1:] {
		sum += (s[0] - sizes[i][0]) * (s[1] + sizes[i][1]) / 2
	}
	return sum / 1000
}()

// treeTime is every file's, as npm has one time for all that it unpacks.
var treeTime = time.Date(1985, 10, 26, 8, 15, 0, 0, time.UTC)

// write makes the tree in dir.
func (s treeSpec) write(ctx context.Context, dir string) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i := 0; i*packageFiles < s.Files && gctx.Err() == nil; i++ {
		g.Go(func() error {
			return s.writePackage(dir, i, min(packageFiles, s.Files-i*packageFiles))
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// packageDir is where package i lies: names with and without a scope, and
// some packages inside others.
func packageDir(i int) string {
	if i%nestedEvery == nestedEvery-1 {
		return filepath.Join(packageDir(i-i%nestedEvery), "node_modules", fmt.Sprintf("dep-%d", i))
	}
	if i%3 == 1 {
		return fmt.Sprintf("node_modules/@scope%d/pkg-%d", i%37, i)
	}
	return fmt.Sprintf("node_modules/pkg-%d", i)
}

func (s treeSpec) writePackage(root string, i, files int) error {
	version := 0
	if i%changedEvery == 5 {
		version = s.Version
	}
	rng := rand.New(rand.NewPCG(uint64(i), uint64(version)))
	dir := filepath.Join(root, packageDir(i))
	made := map[string]bool{}
	for n := range files {
		name := fileName(n)
		path := filepath.Join(dir, name)
		if parent := filepath.Dir(path); !made[parent] {
			if err := os.MkdirAll(parent, 0o755); err != nil {
				return err
			}
			made[parent] = true
		}
		text := rng
		size := s.size(rng)
		if name == "LICENSE" { // the same in most packages
			text = rand.New(rand.NewPCG(uint64(i%5), 0))
			size = s.Mean
		}
		if err := os.WriteFile(path, appendText(nil, text, size), 0o644); err != nil {
			return err
		}
		if err := os.Chtimes(path, treeTime, treeTime); err != nil {
			return err
		}
	}
	bin := filepath.Join(root, "node_modules", ".bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	target, err := filepath.Rel(bin, filepath.Join(dir, "package.json"))
	if err != nil {
		return err
	}
	return os.Symlink(target, filepath.Join(bin, fmt.Sprintf("pkg-%d", i)))
}

// fileName is the n-th file of a package.
func fileName(n int) string {
	switch n {
	case 0:
		return "package.json"
	case 1:
		return "README.md"
	case 2:
		return "LICENSE"
	}
	folder := [...]string{"dist", "dist/esm", "lib", "src/internal", "types"}[n/12]
	ext := [...]string{".js", ".d.ts", ".js.map"}[n%3]
	return fmt.Sprintf("%s/module-%d%s", folder, n, ext)
}

// size draws a file's size.
func (s treeSpec) size(rng *rand.Rand) int {
	at := rng.IntN(1000)
	i := slices.IndexFunc(sizes, func(s [2]int) bool { return s[0] > at })
	low, high := sizes[i-1], sizes[i]
	// Somewhere between the two, as if all between them were as likely.
	part := low[1] + rng.IntN(high[1]-low[1]+1)
	return part * s.Mean / sizesMean
}

// words are what texts are made of; they repeat as often as those of source
// code do, so that zstd makes about a quarter of them.
var words = func() []string {
	rng := rand.New(rand.NewPCG(1, 2))
	w := make([]string, 4000)
	for i := range w {
		b := make([]byte, 3+rng.IntN(8))
		for j := range b {
			b[j] = "etaoinshrdlucmfwypvbgkjqxz"[min(rng.IntN(26), rng.IntN(26))]
		}
		w[i] = string(b) + [...]string{" ", "(", ") ", " = ", ".", ";\n", ",\n  ", " {\n\t"}[i%8]
	}
	return w
}()

// appendText appends size bytes of made-up source code.
func appendText(b []byte, rng *rand.Rand, size int) []byte {
	end := len(b) + size
	for len(b) < end {
		// The product of two draws prefers the first words, as a language does.
		b = append(b, words[rng.IntN(len(words))*rng.IntN(len(words))/len(words)]...)
	}
	return b[:end]
}

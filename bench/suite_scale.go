package main

import (
	"context"
	"fmt"
	"path/filepath"
)

// scaleMean is the mean size of a file of suite scale, in bytes: small, so
// that what grows is the number of entries.
const scaleMean = 400

// suiteScale measures how time and memory grow with the number of files. tar
// goes along, to tell what part of that is the kernel's.
func suiteScale(ctx context.Context, b *bench) error {
	const suite = "scale"
	tools := []tool{b.ours}
	for _, t := range b.peers {
		if _, ok := t.(tarZstd); ok {
			tools = append(tools, t)
		}
	}
	for _, n := range b.o.scale {
		// A small file takes a page and an inode, both in the tree and in what
		// is restored.
		need := int64(n)*2*6<<10 + 1<<30
		_, free, err := fileSystem(b.work)
		if err != nil {
			return err
		}
		if free < need {
			b.notef("suite scale: no tree of %d files, which needs %s where %s are free", n, bytesText(need), bytesText(free))
			continue
		}
		if err := b.scale(ctx, suite, n, tools); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) scale(ctx context.Context, suite string, n int, tools []tool) error {
	dir := filepath.Join(b.work, "scale")
	defer removeAll(dir)
	made, err := b.generate(ctx, treeSpec{Files: n, Mean: scaleMean}, dir)
	if err != nil {
		return err
	}
	made.Label = fmt.Sprintf("%d files", n)
	// Generating the tree has warmed up what there is to warm up.
	return do(ctx, b, rounds{suite, 0, b.o.runs}, tools, func(t tool, run int, p place) error {
		v, err := t.Open(ctx, p)
		if err != nil {
			return err
		}
		stored := func() (int64, error) { return storedBytes(p.store()) }
		return visit{bench: b, suite: suite, trees: []tree{made}, tool: t, run: run, place: p, vault: v, stored: stored}.do(ctx)
	})
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

const suiteNameWorkloads = "workloads"

// A workload is a kind of tree, in two versions: before and after something
// was done to it. Both are the same on every machine that has the same
// programs, byte for byte.
type workload struct {
	name     string
	programs []string // that make it
	// bytes is about how many a version takes on a file system.
	bytes func(o *options) int64
	// write makes the two folders.
	write func(ctx context.Context, b *bench, before, after string) error
}

// workloads are all of them, in the order of the tables.
func workloads() []workload {
	return []workload{deepWorkload, insertWorkload, tinyWorkload, binariesWorkload, sqliteWorkload, gitWorkload}
}

func workloadNames() []string {
	var names []string
	for _, w := range workloads() {
		names = append(names, w.name)
	}
	return names
}

// chosenWorkloads are those that a run is to make.
func (o *options) chosenWorkloads() []workload {
	return slices.DeleteFunc(workloads(), func(w workload) bool { return !slices.Contains(o.workloads, w.name) })
}

// suiteWorkloads takes all tools through each workload, as suite local does
// through a tree.
func suiteWorkloads(ctx context.Context, b *bench) error {
	for _, w := range b.o.chosenWorkloads() {
		if i := slices.IndexFunc(w.programs, func(p string) bool { _, err := exec.LookPath(p); return err != nil }); i >= 0 {
			b.notef("suite workloads: left out: %s (no %s)", w.name, w.programs[i])
			continue
		}
		// Two versions, one that is restored, and one that a tool may store as it is.
		need := 4*w.bytes(b.o) + 1<<28
		_, free, err := fileSystem(b.work)
		if err != nil {
			return err
		}
		if free < need {
			b.notef("suite workloads: left out: %s, which needs %s where %s are free: see -work, -tiny", w.name, bytesText(need), bytesText(free))
			continue
		}
		if err := b.workload(ctx, w); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) workload(ctx context.Context, w workload) error {
	dir := filepath.Join(b.work, "workload")
	defer removeAll(dir)
	trees, err := b.makeWorkload(ctx, w, dir)
	if err != nil {
		return fmt.Errorf("making workload %s: %w", w.name, err)
	}
	b.trees = append(b.trees, trees...)
	for _, p := range w.programs {
		b.versions[p] = version(ctx, b.runner, command{Args: []string{p, "--version"}})
	}
	r := rounds{suiteNameWorkloads, b.o.warmup, b.o.runs}
	tools := b.tools()
	if b.o.smoke && b.o.peers == nil {
		tools = slices.DeleteFunc(tools, func(t tool) bool { return slowToStart(t.Name()) })
	}
	return do(ctx, b, r, tools, func(t tool, run int, p place) error {
		v, err := t.Open(ctx, p)
		if err != nil {
			return err
		}
		stored := func() (int64, error) { return storedBytes(p.store()) }
		return visit{bench: b, suite: suiteNameWorkloads, trees: trees, tool: t, run: run, place: p, vault: v, stored: stored}.do(ctx)
	})
}

// makeWorkload makes the two versions, and waits until they are no longer new.
func (b *bench) makeWorkload(ctx context.Context, w workload, dir string) ([]tree, error) {
	b.logf("making workload %s", w.name)
	before, after := filepath.Join(dir, "before"), filepath.Join(dir, "after")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if err := w.write(ctx, b, before, after); err != nil {
		return nil, err
	}
	if err := b.waitUntilSettled(ctx); err != nil {
		return nil, err
	}
	var trees []tree
	for i, path := range []string{before, after} {
		t, err := newTree(path)
		if err != nil {
			return nil, err
		}
		t.Label = w.name
		if i > 0 {
			t.Label += ", after"
		}
		trees = append(trees, t)
	}
	return trees, nil
}

// appendNoise appends bytes of which nothing can be compressed away.
func appendNoise(b []byte, rng *rand.Rand, size int) []byte {
	end := len(b) + size
	b = slices.Grow(b, size)
	for len(b) < end {
		v := rng.Uint64()
		for range min(8, end-len(b)) {
			b = append(b, byte(v))
			v >>= 8
		}
	}
	return b
}

// copyFile copies a file's bytes.
func copyFile(from, to string) error {
	return copyBy(from, to, func(out io.Writer, in io.Reader) error {
		_, err := io.Copy(out, in)
		return err
	})
}

// copyBy has copy make a file of another.
func copyBy(from, to string, copy func(out io.Writer, in io.Reader) error) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	return copy(out, in)
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

// A change is something that a sandbox does in its copy of a tree, and that is
// then saved. It differs from round to round, so that no tool has the contents
// from an earlier one.
type change struct {
	work  string
	apply func(ctx context.Context, root string, run int) (entries int, err error) // in which the tree then differs
}

// changesIn chooses what to change in a tree: lists of changes that are made one
// after the other in one copy. moved is how many entries the folder has that is
// moved.
func (b *bench) changesIn(t tree) (lists [][]change, moved int, err error) {
	small, folder, moved, err := chooseChanged(t)
	if err != nil {
		return nil, 0, err
	}
	lists = [][]change{{{workSaveLine, changeLine(small[0])}, {workSaveAgain, changeLine(small[1])}}, {{workSavePackage, addPackage}}}
	if folder != "" {
		lists = append(lists, []change{{workSaveMove, b.moveFolder(folder, moved)}})
	}
	return lists, moved, nil
}

// movedEntries is how many entries the folder that is moved should have.
const movedEntries = 5000

// chooseChanged picks two small files, and the folder that is nearest to the
// size of the one to move, unless it is most of the tree.
func chooseChanged(t tree) (small [2]string, folder string, entries int, err error) {
	var candidates []string
	below := map[string]int{}
	err = filepath.WalkDir(t.Path, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == t.Path {
			return err
		}
		rel, err := filepath.Rel(t.Path, path)
		if err != nil {
			return err
		}
		for dir := filepath.Dir(rel); dir != "."; dir = filepath.Dir(dir) {
			below[dir]++
		}
		if d.Type().IsRegular() {
			info, err := d.Info()
			if err != nil {
				return err
			}
			if 100 <= info.Size() && info.Size() <= 16<<10 {
				candidates = append(candidates, rel)
			}
		}
		return nil
	})
	if err == nil && len(candidates) < 2 {
		err = fmt.Errorf("%s has no two files of 100 B to 16 KiB to change", t.Path)
	}
	if err != nil {
		return small, "", 0, err
	}
	rng := rand.New(rand.NewPCG(5, 6))
	first := rng.IntN(len(candidates) - 1)
	second := first + 1 + rng.IntN(len(candidates)-1-first)
	small = [2]string{candidates[first], candidates[second]}

	far := func(n int) int { return max(n, movedEntries) * 1000 / max(1, min(n, movedEntries)) } // how many times as many
	for dir, n := range below {
		if int64(n) > t.Entries/2 || strings.HasPrefix(small[0], dir+"/") || strings.HasPrefix(small[1], dir+"/") {
			continue
		}
		if d, best := far(n), far(entries); folder == "" || d < best || d == best && dir < folder {
			folder, entries = dir, n
		}
	}
	return small, folder, entries, nil
}

// changeLine puts another first line into a file, in place.
func changeLine(file string) func(context.Context, string, int) (int, error) {
	return func(_ context.Context, root string, run int) (int, error) {
		path := filepath.Join(root, file)
		b, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		_, rest, _ := bytes.Cut(b, []byte("\n"))
		return 1, os.WriteFile(path, fmt.Appendf(nil, "// changed in round %d\n%s", run, rest), 0o644)
	}
}

// newFiles is how many files the new package has.
const newFiles = 100

// addPackage adds a package with files that the tree does not have.
func addPackage(_ context.Context, root string, run int) (int, error) {
	const half = newFiles / 2
	rng := rand.New(rand.NewPCG(7, uint64(run+1000)))
	for n := range newFiles {
		path := filepath.Join(root, "node_modules", fmt.Sprintf("new-package-%d", run), fmt.Sprintf("part-%d", n/half), fileName(n%half))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, appendText(nil, rng, 500+rng.IntN(8000)), 0o644)); err != nil {
			return 0, err
		}
	}
	return newFiles, nil
}

// moveFolder gives a folder another name, by mv, which copies where the file
// system cannot.
func (b *bench) moveFolder(folder string, entries int) func(context.Context, string, int) (int, error) {
	return func(ctx context.Context, root string, run int) (int, error) {
		from := filepath.Join(root, folder)
		_, err := b.runner.run(ctx, command{Args: []string{"mv", from, fmt.Sprintf("%s-moved-%d", from, run)}})
		return 2 * (entries + 1), err
	}
}

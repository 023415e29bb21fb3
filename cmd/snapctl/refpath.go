package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

// A refPath is a file or directory in a snapshot: REF or REF:PATH.
type refPath struct {
	ref     string
	path    string
	hasPath bool
}

// splitRefPath splits at the first colon: what a snapshot is called elsewhere does
// not change what an argument means. A handle, which holds some, ends with its JSON.
func splitRefPath(arg string) refPath {
	if strings.HasPrefix(arg, "{") {
		var handle json.RawMessage
		d := json.NewDecoder(strings.NewReader(arg))
		if d.Decode(&handle) == nil {
			end := int(d.InputOffset())
			if rest, ok := strings.CutPrefix(arg[end:], ":"); ok {
				return refPath{arg[:end], rest, true}
			}
		}
		return refPath{ref: arg}
	}
	ref, path, ok := strings.Cut(arg, ":")
	return refPath{ref, path, ok}
}

// refPath is what an argument stands for.
func (a *app) refPath(cmd *cobra.Command, arg string) (refPath, error) {
	p := splitRefPath(arg)
	if strings.ContainsRune(p.path, 0) {
		return p, usagef(cmd, "%s: a NUL in a path", cmd.Name())
	}
	var err error
	p.ref, err = a.ref(cmd, p.ref)
	return p, err
}

// inSnapshot says which snapshot and which path an error is about.
func inSnapshot(ref string, err error) error {
	var pe *fs.PathError
	var output *ui.OutputError
	if errors.As(err, &output) || !errors.As(err, &pe) {
		return err
	}
	if pe.Path == "" {
		return fmt.Errorf("snapshot %s: %w", ui.Quoted(ref), pe.Err)
	}
	return fmt.Errorf("snapshot %s: %s: %w", ui.Quoted(ref), ui.Quoted(pe.Path), pe.Err)
}

// withFS calls f with a snapshot.
func (a *app) withFS(ctx context.Context, p refPath, f func(*engine.SnapshotFS) error) error {
	repo, err := a.openFor(ctx, p.ref)
	if err != nil {
		return about(p.ref, err)
	}
	defer a.closeRepo(repo)
	s, err := repo.FS(ctx, p.ref)
	if err != nil {
		return p.hint(err)
	}
	return inSnapshot(p.ref, f(s))
}

// hint tells of the colon where that may be why there is no such snapshot.
func (p refPath) hint(err error) error {
	if p.hasPath && errors.Is(err, engine.ErrNotFound) {
		return &hintError{err: err, hint: "see what there is: snapctl list; a snapshot with a colon in its name is named by its id here"}
	}
	return err
}

// maxCompletions bounds what is offered of a directory.
const maxCompletions = 1000

// completeRefPath offers references, and behind one and a colon what is in the
// snapshot.
func (a *app) completeRefPath(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	p := splitRefPath(typed)
	if !p.hasPath || p.ref == "-" {
		return a.completeRef(cmd, args, typed)
	}
	dir, base := path.Split(p.path)
	ctx, cancel := context.WithTimeout(cmd.Context(), a.menuPatience)
	defer cancel()
	a.ui.Quiet = true
	var all []cobra.Completion
	directive := cobra.ShellCompDirectiveNoFileComp
	_ = a.withFS(ctx, p, func(s *engine.SnapshotFS) error { // an error has no place in a shell's menu
		f, err := s.OpenPath(dir)
		if err != nil {
			return err
		}
		defer f.Close()
		d, ok := f.(fs.ReadDirFile)
		if !ok {
			return nil
		}
		for len(all) < maxCompletions {
			entries, err := d.ReadDir(maxCompletions)
			for _, e := range entries {
				if !strings.HasPrefix(e.Name(), base) || !ui.IsPrintable(e.Name()) {
					continue
				}
				word := p.ref + ":" + dir + e.Name()
				if e.IsDir() {
					word += "/"
					directive |= cobra.ShellCompDirectiveNoSpace
				}
				all = append(all, word)
			}
			if err != nil {
				break
			}
		}
		return nil
	})
	return all, directive
}

func (a *app) completeFirstRefPath(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeRefPath(cmd, args, typed)
}

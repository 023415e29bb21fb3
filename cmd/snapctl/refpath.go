package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
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

// path is what an argument stands for.
func (r *references) path(cmd *cobra.Command, arg string) (refPath, error) {
	p := splitRefPath(arg)
	if strings.ContainsRune(p.path, 0) {
		return p, usagef(cmd, "%s: a NUL in a path", cmd.Name())
	}
	var err error
	p.ref, err = r.ref(cmd, p.ref)
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
func (r *repositories) withFS(ctx context.Context, p refPath, f func(*engine.SnapshotFS) error) error {
	repo, err := r.openFor(ctx, p.ref)
	if err != nil {
		return about(p.ref, err)
	}
	defer r.close(repo)
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

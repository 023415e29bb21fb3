package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

func catCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "cat REF:PATH...",
		Short: "Print files of a snapshot",
		Long: `Prints files of snapshots one after the other, without mounting anything. How to
write REF:PATH: snapctl help references.

Only what the files hold is fetched. Every byte is checked against the snapshot
before it is printed, and an error ends the output.`,
		Example: `  snapctl cat app:package.json
  snapctl cat app~1:src/main.go | diff - src/main.go`,
		Args:              takes("REF:PATH..."),
		ValidArgsFunction: a.complete.refPath,
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.ui.JSON {
				return usagef(cmd, "cat: there is no JSON of it")
			}
			var all []refPath
			for _, arg := range args {
				p, err := a.refs.path(cmd, arg)
				if err != nil {
					return err
				}
				if !p.hasPath {
					return usagef(cmd, "cat: no path in %q, which should be REF:PATH", arg)
				}
				all = append(all, p)
			}
			return runCat(cmd.Context(), a, all)
		},
	}
}

func runCat(ctx context.Context, a *app, all []refPath) error {
	repo, err := a.repos.openFor(ctx, all[0].ref)
	if err != nil {
		return about(all[0].ref, err)
	}
	defer a.repos.close(repo)
	open := map[string]*engine.SnapshotFS{}
	for _, p := range all {
		s := open[p.ref]
		if s == nil {
			if s, err = repo.FS(ctx, p.ref); err != nil {
				return p.hint(err)
			}
			open[p.ref] = s
		}
		if err := catFile(a.ui, s, p.path); err != nil {
			return inSnapshot(p.ref, err)
		}
	}
	return nil
}

func catFile(out *ui.Streams, s *engine.SnapshotFS, path string) error {
	f, err := s.OpenPath(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(out.Out, f)
	return err
}

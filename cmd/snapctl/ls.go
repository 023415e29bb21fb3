package main

import (
	"errors"
	"io"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/listing"
	"github.com/snapctl/snapctl/engine"
)

func lsCommand(a *app) *cobra.Command {
	var long, recursive bool
	cmd := &cobra.Command{
		Use:   "ls REF[:PATH]",
		Short: "List a directory of a snapshot",
		Long: `Lists a directory of a snapshot, its root if there is no PATH, without mounting
it; or shows a file. How to write REF:PATH: snapctl help references. A symbolic
link to a directory counts as the directory.

Prints one name a line, sorted bytewise; with -R paths from the directory on,
the entries of a directory before those of the directories in it. With -l: mode,
links, uid, gid, size (of a device, major:minor), time of modification, name,
and what a symbolic link points to. Where standard output is no terminal, times
are in UTC as 2026-11-23T15:04:05Z. Names are as they are; on a terminal, and
with -l, those with special characters are quoted.

With --json, prints an array of objects with the fields
` + listing.FileFields + `.`,
		Example: `  snapctl ls -l app:node_modules/react
  snapctl ls -R latest
  snapctl ls --json app~1:src`,
		Args:              takes("REF[:PATH]"),
		ValidArgsFunction: a.complete.firstRefPath,
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.refs.path(cmd, args[0])
			if err != nil {
				return err
			}
			return a.repos.withFS(cmd.Context(), p, func(s *engine.SnapshotFS) error {
				l := listing.NewFiles(a.ui, long, false)
				return l.Finish(listDir(l, s, p.path, recursive))
			})
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVarP(&long, "long", "l", false, "show more than names")
	flags.BoolVarP(&recursive, "recursive", "R", false, "also what is in the directories below")
	return cmd
}

// listDir lists what ls was asked for.
func listDir(l *listing.Files, s *engine.SnapshotFS, path string, recursive bool) error {
	f, err := s.OpenPath(path)
	if err == nil {
		defer f.Close()
	}
	dir, ok := f.(fs.ReadDirFile)
	switch {
	case !ok: // a link that leads nowhere is one to show
		info, lerr := s.LstatPath(path)
		if err != nil && (lerr != nil || info.Type() != fs.ModeSymlink) {
			return err
		}
		if lerr != nil {
			return lerr
		}
		return l.Print("", path, info)
	case recursive:
		top, err := dir.Stat()
		if err != nil {
			return err
		}
		above := top.(*engine.FileInfo).Path()
		return s.Walk(path, func(i *engine.FileInfo) error {
			return l.Print("", strings.TrimPrefix(i.Path()[len(above):], "/"), i)
		})
	}
	for {
		entries, err := dir.ReadDir(1000)
		for _, e := range entries {
			if err := l.Print("", e.Name(), e.(*engine.FileInfo)); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

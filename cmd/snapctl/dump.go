package main

import (
	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/engine"
)

func dumpCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "dump REF[:PATH]",
		Short: "Write a snapshot to standard output as a tar archive",
		Long: `Writes a directory of a snapshot, its root if there is no PATH, or a file, to
standard output as a tar archive, without mounting anything. How to write
REF:PATH: snapctl help references. Members are named from the directory on.

The archive is in the PAX format: nanosecond times, numeric owners, setuid bits,
hard links, devices, FIFOs, and extended attributes with ACLs and capabilities
(SCHILY.xattr, for tar --xattrs --xattrs-include='*'). Holes are written as
zeros. The same snapshot gives the same bytes.

Every byte is checked against the snapshot before it is written. When something
fails half way, the archive is left without an end, so that tar fails too.`,
		Example: `  snapctl dump app | tar -x -C /tmp/copy
  snapctl dump app:dist | zstd >dist.tar.zst
  snapctl dump latest | docker import -`,
		Args:              takes("REF[:PATH]"),
		ValidArgsFunction: a.complete.firstRefPath,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case a.ui.JSON:
				return usagef(cmd, "dump: there is no JSON of it")
			case a.ui.Out.Terminal():
				return usagef(cmd, "dump: standard output is a terminal")
			}
			p, err := a.refs.path(cmd, args[0])
			if err != nil {
				return err
			}
			return a.repos.withFS(cmd.Context(), p, func(s *engine.SnapshotFS) error {
				return s.Dump(a.ui.Out, p.path)
			})
		},
	}
}

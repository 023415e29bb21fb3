package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

func tagCommand(a *app) *cobra.Command {
	var remove []string
	cmd := &cobra.Command{
		Use:   "tag REF... KEY=VALUE...",
		Short: "Set and remove tags of snapshots",
		Long: `Sets tags of snapshots, and removes those that --remove names; all others stay.
Prints the ids; with --json, an array of the objects that show --json prints.
Unless every REF names one snapshot, none is changed.

An argument with a "=" is a tag: a snapshot whose name holds one is named by its
id here.`,
		Example: `  snapctl tag app release=yes
  snapctl tag app~1 app~2 --remove release
  snapctl list --json --name app | snapctl tag - reviewed=`,
		Args:              takes("REF..."),
		ValidArgsFunction: a.complete.ref,
		RunE: func(cmd *cobra.Command, args []string) error {
			tags := tagsFlag{}
			var refs []string
			for _, arg := range args {
				if strings.HasPrefix(arg, "{") || !strings.Contains(arg, "=") {
					refs = append(refs, arg)
				} else if err := tags.Set(arg); err != nil {
					return usagef(cmd, "tag: %s: %w", ui.Quoted(arg), err)
				}
			}
			switch {
			case len(refs) == 0:
				return usagef(cmd, "tag: REF is missing")
			case len(tags)+len(remove) == 0:
				return usagef(cmd, "tag: neither a KEY=VALUE nor --remove")
			}
			return changeSnapshots(a, cmd, refs, &engine.Changes{SetTags: tags, RemoveTags: remove}, "tagged")
		},
	}
	cmd.Flags().StringArrayVar(&remove, "remove", nil, "remove the tag `KEY`; may be repeated")
	noCompletions(cmd, "remove")
	return cmd
}

package main

import (
	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/engine"
)

func renameCommand(a *app) *cobra.Command {
	var remove bool
	cmd := &cobra.Command{
		Use:   "rename REF NAME",
		Short: "Give a snapshot another name",
		Long: `Gives a snapshot another name, or with --remove none. The name then leads to it,
if no newer snapshot has it, and the old one to the newest of those that still
have that. Prints the id; with --json, an array of the object that show --json
prints.`,
		Example: `  snapctl rename latest before-the-upgrade
  snapctl rename app~2 --remove`,
		Args:              takes("REF", "[NAME]"),
		ValidArgsFunction: a.complete.firstRef,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) == 2 {
				name = args[1]
			}
			switch {
			case remove && len(args) == 2:
				return usagef(cmd, "rename: a NAME, and --remove")
			case !remove && len(args) < 2:
				return usagef(cmd, "rename: NAME is missing; to take the name away: --remove")
			case !remove && name == "":
				return usagef(cmd, "rename: NAME is empty; to take the name away: --remove")
			}
			ref, err := a.refs.ref(cmd, args[0])
			if err != nil {
				return err
			}
			return changeSnapshots(a, cmd, []string{ref}, &engine.Changes{Name: &name}, "renamed")
		},
	}
	cmd.Flags().BoolVar(&remove, "remove", false, "take the name away")
	return cmd
}

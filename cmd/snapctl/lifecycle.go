package main

import (
	"context"
	"errors"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

func lifecycleCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lifecycle",
		Short: "Have the bucket itself remove what has expired",
		Long: `Snapshots with a TTL lie in the bucket under the prefix of their lifetime class:
1, 2, 3, 7, 14, 30, 60, 90, 180 or 365 days, the shortest that outlives them.
So a lifecycle rule of the bucket can remove them, a day after the class has
ended, even if snapctl never runs again. snapctl gc is what removes them in
time, and what frees the room.

The rules of a repository have its id in theirs; no other rule of the bucket is
touched. Nobody else should change rules at the same moment: S3 keeps them in
one piece. The credentials must be allowed to: with R2, a token of "Admin Read
& Write". A folder has no such rules.

With --json, prints an object with rules, an array of objects with id, prefix,
days and state, and others, the number of the bucket's other rules. A state is
applied, missing, or altered: somebody changed the rule.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("lifecycle: show, apply or remove is missing")
			}
			return errors.New("lifecycle: not show, apply or remove: " + ui.Quoted(args[0]))
		},
		Example: `  snapctl lifecycle show
  snapctl lifecycle apply
  snapctl lifecycle remove`,
		RunE: func(cmd *cobra.Command, _ []string) error { return nil }, // Args has refused
	}
	for _, sub := range []struct {
		name, short, long string
		do                func(*engine.Repository, context.Context) (*engine.Lifecycle, error)
	}{
		{"show", "Show the rules", "Shows which rules of this repository the bucket has.", (*engine.Repository).Lifecycle},
		{"apply", "Set the rules", "Has the bucket have the rules of this repository, and shows them.", (*engine.Repository).ApplyLifecycle},
		{"remove", "Remove the rules", "Removes the rules of this repository from the bucket. Snapshots stay.", (*engine.Repository).RemoveLifecycle},
	} {
		cmd.AddCommand(&cobra.Command{
			Use: sub.name, Short: sub.short, Long: sub.long + " More: snapctl help lifecycle",
			Example:           "  snapctl lifecycle " + sub.name,
			Args:              takesNothing("lifecycle " + sub.name),
			ValidArgsFunction: cobra.NoFileCompletions,
			RunE:              func(cmd *cobra.Command, _ []string) error { return runLifecycle(cmd.Context(), a, sub.do) },
		})
	}
	return cmd
}

func takesNothing(command string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return errors.New(command + ": unexpected argument " + strconv.Quote(args[0]))
		}
		return nil
	}
}

func runLifecycle(ctx context.Context, a *app, do func(*engine.Repository, context.Context) (*engine.Lifecycle, error)) error {
	repo, err := a.repos.open(ctx)
	if err != nil {
		return err
	}
	defer a.repos.close(repo)
	l, err := do(repo, ctx)
	if errors.Is(err, errors.ErrUnsupported) {
		return &hintError{err: err, hint: "what has expired is removed by snapctl gc"}
	}
	if err != nil {
		return err
	}
	if a.ui.JSON {
		return a.ui.PrintJSON(l)
	}
	t := ui.Table{Right: []bool{1: true, 3: false}}
	t.Add("PREFIX", "DAYS", "STATE", "ID")
	for _, r := range l.Rules {
		t.Add(r.Prefix, strconv.Itoa(r.Days), string(r.State), r.ID)
	}
	if err := a.ui.Print(t.String()); err != nil {
		return err
	}
	a.ui.Say(ui.Plural(int64(l.Others), "other rule") + " in the bucket")
	return nil
}

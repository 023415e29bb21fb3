package main

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

func pruneCommand(a *app) *cobra.Command {
	opts := engine.PruneOptions{}
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove snapshots that no rule keeps",
		Long: `Removes the snapshots that none of the given rules keeps, at least one of which
is needed. With --dry-run it only tells which. Pinned snapshots are always kept,
and those that have expired are left to snapctl gc, which also frees the room of
what is removed here.

The snapshots of a group are counted together: those of one name, or, without a
name, of one directory; or what --group-by says. Rules look at them from the
newest to the oldest, each by itself, as restic's do:
  --keep-last N     the newest N
  --keep-daily N    of the last N days that have any, the newest; so do the
                    others for hours, weeks (from Monday), months and years, all
                    of them in the local time zone. A rule that has not kept N
                    keeps the oldest snapshot of the group too
  --keep-within D   what was made less than D ago, and in any case the newest of
                    the group
  --keep-tag K=V    what has the tag, or with several of them, one of the tags
N may be "all".

What time it is the repository's clock says, not this machine's. A snapshot that
is from the future, made by a machine whose clock was ahead, is kept for
"future" until its time has come, and no rule counts it.

Prints a line for each snapshot: action (keep or remove), id, created, name, dir
and what it is kept for. With --json, prints an object with dryRun and groups:
objects with name, dir or host, which they have in common, and snapshots, an
array of objects with snapshot, as show --json prints it, keep, and reasons. If
any manifest or note is damaged, nothing is removed: exit code 6. So of groups
of which something is to go the manifests of what stays are read: a request
each.`,
		Example: `  snapctl prune --keep-last 10 --keep-daily 7 --keep-weekly 4 --dry-run
  snapctl prune --name app --keep-within 30d --keep-tag release=yes
  snapctl prune --group-by dir,host --keep-last 3`,
		Args:              takes(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runPrune(a, cmd, &opts) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.Var((*keepFlag)(&opts.KeepLast), "keep-last", "keep the newest `N`")
	for _, p := range []struct {
		n    *int
		name string
		unit string
	}{
		{&opts.KeepHourly, "hourly", "hours"}, {&opts.KeepDaily, "daily", "days"}, {&opts.KeepWeekly, "weekly", "weeks"},
		{&opts.KeepMonthly, "monthly", "months"}, {&opts.KeepYearly, "yearly", "years"},
	} {
		flags.Var((*keepFlag)(p.n), "keep-"+p.name, "keep the newest of the last `N` "+p.unit+" that have any")
		noCompletions(cmd, "keep-"+p.name)
	}
	flags.Var((*ttlFlag)(&opts.KeepWithin), "keep-within", "keep what was made less than `DURATION` ago, and the newest")
	flags.Var((*keepTagFlag)(&opts.KeepTags), "keep-tag", "keep what is tagged `KEY=VALUE`; may be repeated")
	flags.StringArrayVar(&opts.Names, "name", nil, "only snapshots called `NAME`; may be repeated")
	flags.Var((*groupFlag)(&opts.GroupBy), "group-by", "count together what has this in common: name, dir, host,\nseveral of them with commas, or all for one group (default name)")
	flags.BoolVarP(&opts.DryRun, "dry-run", "n", false, "remove nothing, tell what would be")
	noCompletions(cmd, "keep-last", "keep-within", "keep-tag")
	mustComplete(cmd, "name", a.complete.name)
	mustComplete(cmd, "group-by", cobra.FixedCompletions([]cobra.Completion{"name", "dir", "host", "all"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func runPrune(a *app, cmd *cobra.Command, opts *engine.PruneOptions) error {
	groups, err := pruneGroups(cmd.Context(), a.repos, opts)
	if errors.Is(err, engine.ErrInvalid) {
		return usagef(cmd, "%w", err)
	}
	if err != nil && groups == nil {
		return err
	}
	if a.ui.JSON {
		if groups == nil {
			groups = []engine.PruneGroup{}
		}
		return errors.Join(err, a.ui.PrintJSON(struct {
			DryRun bool                `json:"dryRun"`
			Groups []engine.PruneGroup `json:"groups"`
		}{opts.DryRun, groups}))
	}
	kept, gone, table := pruneTable(a.ui, groups)
	if kept+gone > 0 {
		err = errors.Join(err, a.ui.Print(table.String()))
	}
	removed := ", removed "
	if opts.DryRun {
		removed = ", would remove "
	}
	if n := fromFuture(groups); n > 0 {
		a.ui.Say(ui.Plural(n, "snapshot") + " from the future, made by a machine whose clock was ahead: kept, and not counted, until then")
	}
	if err == nil {
		a.ui.Say("kept " + ui.Plural(kept, "snapshot") + removed + strconv.FormatInt(gone, 10))
	}
	return err
}

// fromFuture is how many snapshots are kept for being from the future.
func fromFuture(groups []engine.PruneGroup) (n int64) {
	for _, g := range groups {
		for _, d := range g.Snapshots {
			if slices.Contains(d.Reasons, engine.Future) {
				n++
			}
		}
	}
	return n
}

func pruneGroups(ctx context.Context, repos *repositories, opts *engine.PruneOptions) ([]engine.PruneGroup, error) {
	repo, err := repos.openToList(ctx)
	if errors.Is(err, errNothingYet) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer repos.close(repo)
	return repo.Prune(ctx, opts)
}

func pruneTable(out *ui.Streams, groups []engine.PruneGroup) (kept, gone int64, t *ui.Table) {
	when := out.When()
	t = &ui.Table{Right: []bool{5: false}}
	t.Add("ACTION", "ID", "CREATED", "NAME", "DIR", "KEPT FOR")
	for _, g := range groups {
		for _, d := range g.Snapshots {
			what := "remove"
			if d.Keep {
				what = "keep"
				kept++
			} else {
				gone++
			}
			t.Add(what, d.Snapshot.ID.String(), when(d.Snapshot.CreatedAt), ui.Cell(d.Snapshot.Name), ui.Cell(d.Snapshot.Dir), ui.Cell(strings.Join(d.Reasons, ",")))
		}
	}
	return kept, gone, t
}

// A keepFlag is how many are kept: a number, or all.
type keepFlag int

var _ pflag.Value = (*keepFlag)(nil)

func (f *keepFlag) String() string { return "" }
func (f *keepFlag) Type() string   { return "number" }
func (f *keepFlag) Set(s string) error {
	if s == "all" {
		*f = engine.KeepAll
		return nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return errors.New(`not a positive number, nor "all"`)
	}
	*f = keepFlag(n)
	return nil
}

// A keepTagFlag collects --keep-tag key=value.
type keepTagFlag []engine.Tag

var _ pflag.Value = (*keepTagFlag)(nil)

func (f *keepTagFlag) String() string { return "" }
func (f *keepTagFlag) Type() string   { return "key=value" }
func (f *keepTagFlag) Set(s string) error {
	key, value, ok := strings.Cut(s, "=")
	if !ok || key == "" {
		return errors.New("not KEY=VALUE")
	}
	*f = append(*f, engine.Tag{Key: key, Value: value})
	return nil
}

// A groupFlag is what snapshots of a group have in common.
type groupFlag []engine.GroupBy

var _ pflag.Value = (*groupFlag)(nil)

func (f *groupFlag) String() string { return "" }
func (f *groupFlag) Type() string   { return "list" }
func (f *groupFlag) Set(s string) error {
	for word := range strings.SplitSeq(s, ",") {
		switch g := engine.GroupBy(word); g {
		case engine.GroupName, engine.GroupDir, engine.GroupHost, engine.GroupAll:
			*f = append(*f, g)
		default:
			return errors.New("not name, dir, host or all: " + ui.Quoted(word))
		}
	}
	return nil
}

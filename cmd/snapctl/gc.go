package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

// gcOutput is what gc --json prints: the fields of the report and this.
type gcOutput struct {
	*engine.GCReport
	DurationMs int64 `json:"durationMs"`
}

func gcCommand(a *app) *cobra.Command {
	var opts engine.GCOptions
	repack := 25
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Free what no snapshot needs",
		Long: `Removes snapshots that have expired, and frees what no snapshot and no mount
needs. Prints the ids of the snapshots that it removed; with --json one object,
the report.

What is of no use is announced first, and deleted by a gc that comes a grace
later, so that no create that runs meanwhile counts on it. The grace is a day,
unless the repository was made with init --gc-grace. So gc is run regularly, by
cron or a timer; the report says from when on there is something to free.

It takes no lock: create, restore, mount and other gcs may run at the same time,
here and on other machines, and it may be interrupted at any moment. While a
snapshot needs something that is missing or damaged, nothing is deleted, and the
exit code is 6.`,
		Example: `  snapctl gc
  snapctl gc --dry-run`,
		Args:              takes(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if repack < 0 || repack > 90 {
				return usagef(cmd, "gc: --repack is %d, not within 0 to 90", repack)
			}
			opts.Repack = float64(repack) / 100
			if repack == 0 {
				opts.Repack = -1
			}
			return runGC(cmd.Context(), a, &opts)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVarP(&opts.DryRun, "dry-run", "n", false, "write and delete nothing; tell what would be done")
	flags.IntVar(&repack, "repack", repack, "write anew what is needed of packs of which less than `PERCENT` is, 90 at most; 0 for none")
	noCompletions(cmd, "repack")
	return cmd
}

func runGC(ctx context.Context, a *app, opts *engine.GCOptions) error {
	repo, err := a.repos.open(ctx)
	if err != nil {
		return err
	}
	defer a.repos.close(repo)
	p := a.ui.StartProgress()
	opts.Progress = p
	report, err := repo.GC(ctx, opts)
	p.Stop(nil)
	if errors.Is(err, engine.ErrIntegrity) {
		return &hintError{err: err, hint: "see what can be done: snapctl repair"}
	}
	if err != nil {
		return err
	}
	if a.ui.JSON {
		return a.ui.PrintJSON(gcOutput{report, report.Duration.Milliseconds()})
	}
	var ids strings.Builder
	for _, id := range report.Removed {
		ids.WriteString(id.String() + "\n")
	}
	err = a.ui.Print(ids.String())
	for _, line := range gcSummary(report) {
		a.ui.Say(line)
	}
	return err
}

// gcSummary is a report in words.
func gcSummary(r *engine.GCReport) []string {
	did := func(done, would string) string {
		if r.DryRun {
			return "would " + would
		}
		return done
	}
	var lines []string
	if n := len(r.Removed); n > 0 {
		lines = append(lines, did("removed", "remove")+" "+ui.Plural(int64(n), "expired snapshot"))
	}
	if n := len(r.Withdrawn); n > 0 {
		lines = append(lines, did("removed", "remove")+" "+ui.Plural(int64(n), "snapshot")+" of creates that were stopped for too long and killed")
	}
	freed := "nothing to free yet"
	if r.Freed.Packs > 0 {
		freed = did("freed", "free") + " " + packs(r.Freed)
	}
	lines = append(lines, freed+"; "+need(r.Snapshots)+" "+packs(r.Live)+"; took "+ui.Round(r.Duration).String())
	for _, w := range r.Waiting {
		lines = append(lines, packs(w.GCPacks)+" of no use: a gc after "+ui.LocalTime(w.From)+" frees them")
	}
	if r.Repacked.Packs > 0 {
		lines = append(lines, fmt.Sprintf("%s %s, of which %s were needed, in %s",
			did("wrote anew", "write anew"), packs(r.Repacked.GCPacks), ui.Size(r.Repacked.NewBytes), ui.Plural(int64(r.Repacked.NewPacks), "pack")))
	}
	if r.Leased.Packs > 0 {
		lines = append(lines, packs(r.Leased)+" kept for mounts of snapshots that were removed")
	}
	if r.SegmentsBefore != r.SegmentsAfter {
		lines = append(lines, fmt.Sprintf("index: %s, %s %d", ui.Plural(int64(r.SegmentsBefore), "segment"), did("now", "be"), r.SegmentsAfter))
	}
	return lines
}

// need says of so many snapshots that they need what follows.
func need(snapshots int) string {
	if snapshots == 1 {
		return "1 snapshot needs"
	}
	return ui.Plural(int64(snapshots), "snapshot") + " need"
}

// packs is a number of packs and their size.
func packs(p engine.GCPacks) string {
	return ui.Size(p.Bytes) + " in " + ui.Plural(int64(p.Packs), "pack")
}

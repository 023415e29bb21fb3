package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

func repairCommand(a *app) *cobra.Command {
	var opts engine.RepairOptions
	dryRun := false
	cmd := &cobra.Command{
		Use:   "repair",
		Short: "Mend what can be mended of a damaged repository",
		Long: `Finds out what is damaged, as verify does, and tells what can be done about it.
Nothing is changed without --apply. With it

- index segments that are damaged, or lead to packs which are, are made anew
  from the packs, as are those that are missing;
- of each snapshot that lost something a new one is made of all that can still
  be read: out of the damaged packs, or from others with the same contents. If
  files are lost it is marked incomplete, and each of them is named here. It has
  time, name, tags, expiry and pin of the old one, which is its parent, and
  comes right behind it in the history: a name goes on leading to its newest
  snapshot. Where it cannot be known when it expires, it does not;
- the old ones stay, since another machine may have more of them in its cache.
  With --remove-damaged they are removed, also those of which nothing is left.
  Until then snapctl gc refuses to run if packs are missing;
- damaged packs are doomed: nothing refers to them any more, and snapctl gc
  deletes them once no snapshot does.

Whatever is new is there before anything old goes, and it can be run again at
any time. The exit code is 0 if nothing was damaged or, with --apply, no file is
lost; 3 if files are lost that --apply could not save; 6 if there is damage and
--apply is not given.

With --json, prints one object with the fields applied, doomed (packs), indexed
(packs that are listed anew), badSegments, savedChunks, savedBytes,
bytesWritten, durationMs, findings (as verify --json prints), and snapshots, an
array of objects: id, name, dir, new, before (an earlier repair made it), files,
lost (paths), ranges (of entries whose names are lost too), made (directories of
which nothing but the path is known), nothing, why, removed.`,
		Example: `  snapctl repair                     # what is wrong, and what would be done
  snapctl repair --read-data --apply
  snapctl repair --apply --remove-damaged`,
		Args:              takes(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dryRun && opts.Apply {
				return usagef(cmd, "repair: --dry-run and --apply do not go together")
			}
			if opts.RemoveDamaged && !opts.Apply {
				return usagef(cmd, "repair: --remove-damaged goes with --apply")
			}
			return runRepair(cmd.Context(), a, opts)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVar(&dryRun, "dry-run", false, "change nothing, and tell what would be done: the default")
	flags.BoolVar(&opts.Apply, "apply", false, "do it")
	flags.BoolVar(&opts.ReadData, "read-data", false, "look for damage in what files hold too: reads every byte")
	flags.BoolVar(&opts.RemoveDamaged, "remove-damaged", false, "with --apply: remove the snapshots that lost something, when what is left is safe")
	return cmd
}

func runRepair(ctx context.Context, a *app, opts engine.RepairOptions) error {
	repo, err := a.repos.open(ctx)
	if err != nil {
		return err
	}
	defer a.repos.close(repo)
	p := a.ui.StartProgress()
	opts.Progress = p
	report, err := repo.Repair(ctx, &opts)
	p.Stop(nil)
	if err != nil {
		return err
	}
	if a.ui.JSON {
		err = a.ui.PrintJSON(newRepairOutput(report))
	} else {
		err = a.ui.Print(repairText(report))
		a.ui.Say(repairSummary(report))
	}
	if err != nil {
		return err
	}
	lost := int64(0)
	for i := range report.Snapshots {
		if s := &report.Snapshots[i]; s.Nothing || s.LostEntries() > 0 {
			lost++
		}
	}
	switch {
	case !report.Applied && report.Found.Err() != nil:
		return &hintError{err: fmt.Errorf("repair: %w", report.Found.Err()), hint: "to do what is told above: snapctl repair --apply"}
	case lost > 0:
		return fmt.Errorf("repair: what is left of %s is %w; what is lost is named above", ui.Plural(lost, "snapshot"), errIncomplete)
	}
	return nil
}

func repairText(r *engine.RepairReport) string {
	var b strings.Builder
	would := "would be "
	if r.Applied {
		would = ""
	}
	for i := range r.Found.Findings {
		if f := &r.Found.Findings[i]; !f.Note {
			fmt.Fprintf(&b, "damaged %s: %s\n", ui.Quoted(f.Object), ui.Printable(f.Problem.Error()))
		}
	}
	for _, name := range r.Doomed {
		fmt.Fprintf(&b, "%sdoomed %s\n", would, name)
	}
	for _, name := range r.BadSegments {
		fmt.Fprintf(&b, "%sreplaced %s\n", would, name)
	}
	if r.Indexed > 0 {
		fmt.Fprintf(&b, "%sindexed %s\n", would, ui.Plural(int64(r.Indexed), "pack"))
	}
	for i := range r.Snapshots {
		b.WriteString(repairedText(&r.Snapshots[i], would))
	}
	return b.String()
}

func repairedText(s *engine.RepairedSnapshot, would string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "snapshot %s", s.ID)
	if s.Name != "" {
		b.WriteString(" " + ui.Quoted(s.Name))
	}
	if s.Dir != "" {
		b.WriteString(" of " + ui.Quoted(s.Dir))
	}
	switch {
	case s.Nothing:
		b.WriteString(": nothing is left: " + ui.Printable(s.Why.Error()))
	case s.Before:
		fmt.Fprintf(&b, ": what is left is %s already", s.New)
	case s.New.IsZero():
		fmt.Fprintf(&b, ": a new one %smade of the %s that are left", would, ui.Plural(s.Files, "file"))
	default:
		fmt.Fprintf(&b, ": %s is made of the %s that are left", s.New, ui.Plural(s.Files, "file"))
	}
	if s.Removed {
		b.WriteString("; removed")
	}
	b.WriteString("\n")
	for _, path := range s.Lost {
		b.WriteString("  lost " + ui.Quoted(path) + "\n")
	}
	for _, r := range s.Ranges {
		b.WriteString("  lost " + rangeText(&r) + "\n")
	}
	for _, path := range s.Made {
		b.WriteString("  only the path is known of directory " + ui.Quoted(path) + "\n")
	}
	return b.String()
}

func repairSummary(r *engine.RepairReport) string {
	if r.Nothing() {
		s := "nothing to repair"
		if n := r.Found.Damaged(); n > 0 {
			s = "nothing can be done about it; no snapshot needs what is damaged"
		}
		return s + "; took " + ui.Round(r.Duration).String()
	}
	s := "nothing was changed"
	if r.Applied {
		s = fmt.Sprintf("wrote %s", ui.Size(r.BytesWritten))
	}
	return s + "; took " + ui.Round(r.Duration).String()
}

// repairOutput is what repair --json prints.
type repairOutput struct {
	Applied      bool             `json:"applied"`
	Doomed       []string         `json:"doomed"`
	Indexed      int              `json:"indexed"`
	BadSegments  []string         `json:"badSegments"`
	SavedChunks  int              `json:"savedChunks"`
	SavedBytes   int64            `json:"savedBytes"`
	BytesWritten int64            `json:"bytesWritten"`
	DurationMs   int64            `json:"durationMs"`
	Findings     []findingOutput  `json:"findings"`
	Snapshots    []repairedOutput `json:"snapshots"`
}

type repairedOutput struct {
	ID      string        `json:"id"`
	Name    string        `json:"name,omitempty"`
	Dir     string        `json:"dir,omitempty"`
	New     string        `json:"new,omitempty"`
	Before  bool          `json:"before"`
	Files   int64         `json:"files"`
	Lost    []string      `json:"lost,omitempty"`
	Ranges  []rangeOutput `json:"ranges,omitempty"`
	Made    []string      `json:"made,omitempty"`
	Nothing bool          `json:"nothing"`
	Why     string        `json:"why,omitempty"`
	Removed bool          `json:"removed"`
}

func newRepairOutput(r *engine.RepairReport) *repairOutput {
	o := &repairOutput{
		Applied: r.Applied, Doomed: slices.Concat([]string{}, r.Doomed), Indexed: r.Indexed, BadSegments: slices.Concat([]string{}, r.BadSegments), SavedChunks: r.SavedChunks, SavedBytes: r.SavedBytes,
		BytesWritten: r.BytesWritten, DurationMs: r.Duration.Milliseconds(),
		Findings: newVerifyOutput(r.Found).Findings, Snapshots: []repairedOutput{},
	}
	for i := range r.Snapshots {
		s := &r.Snapshots[i]
		out := repairedOutput{ID: s.ID.String(), Name: s.Name, Dir: textOrQuoted(s.Dir), Before: s.Before, Files: s.Files, Ranges: rangeOutputs(s.Ranges), Nothing: s.Nothing, Removed: s.Removed}
		if !s.New.IsZero() {
			out.New = s.New.String()
		}
		if s.Why != nil {
			out.Why = s.Why.Error()
		}
		for _, path := range s.Lost {
			out.Lost = append(out.Lost, textOrQuoted(path))
		}
		for _, path := range s.Made {
			out.Made = append(out.Made, textOrQuoted(path))
		}
		o.Snapshots = append(o.Snapshots, out)
	}
	return o
}

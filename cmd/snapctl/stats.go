package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

func statsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "stats [REF...]",
		Short: "Tell what a repository holds and what it costs",
		Long: `Tells how much the repository holds, and how much each snapshot does that is
named, or every one. How to write a REF: snapctl help references. No contents
are read: manifests and the index say it.

  logical   the sizes of all snapshots' files: what restoring them all writes
  unique    contents that snapshots refer to, each once
  stored    what these take, compressed
  trees     what the directories take
  unused    packs that no snapshot refers to: what snapctl gc frees, once they
            are old enough
  cost      of keeping all that at R2's price of storage, $0.015 a GB and month;
            requests come on top, which snapctl -v tells of every command

ONLY is what snapctl rm of that snapshot alone, and snapctl gc, would free: the
packs that no other snapshot refers to, and its manifest, notes and access
profiles. REFERRED is what all packs take that it refers to, those that others
do too included. "together" is what removing all of the named snapshots would
free.

With --json, prints one object with the fields snapshots, logical, unique,
stored, trees, unused, total, deduplication, compression, dollarsPerMonth,
objects (an array of kind, count, bytes), together, and of: an array of the
objects that show --json prints, with only and referred. Sizes are in bytes.`,
		Example: `  snapctl stats
  snapctl stats app app~1 app~2
  snapctl stats --json | jq .dollarsPerMonth`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: a.complete.ref,
		RunE: func(cmd *cobra.Command, args []string) error {
			refs, err := a.refs.all(cmd, args)
			if err != nil {
				return err
			}
			return runStats(cmd.Context(), a, refs)
		},
	}
}

// statsOutput is what stats --json prints.
type statsOutput struct {
	Snapshots       int                   `json:"snapshots"`
	Logical         int64                 `json:"logical"`
	Unique          int64                 `json:"unique"`
	Stored          int64                 `json:"stored"`
	Trees           int64                 `json:"trees"`
	Unused          int64                 `json:"unused"`
	Total           int64                 `json:"total"`
	Deduplication   float64               `json:"deduplication"` // logical / unique, 0 where there is nothing
	Compression     float64               `json:"compression"`   // unique / stored
	DollarsPerMonth float64               `json:"dollarsPerMonth"`
	Objects         []objectStats         `json:"objects"`
	Together        int64                 `json:"together"`
	Of              []snapshotStatsOutput `json:"of"`
}

type objectStats struct {
	Kind  string `json:"kind"`
	Count int    `json:"count"`
	Bytes int64  `json:"bytes"`
}

type snapshotStatsOutput struct {
	*engine.Snapshot
	Only     int64 `json:"only"`
	Referred int64 `json:"referred"`
}

func newStatsOutput(u *engine.Usage) *statsOutput {
	o := &statsOutput{
		Snapshots: u.Snapshots, Logical: u.Logical, Unique: u.Unique, Stored: u.Stored, Trees: u.Trees, Unused: u.Unused,
		Total: u.Total(), Deduplication: ratio(u.Logical, u.Unique), Compression: ratio(u.Unique, u.Stored),
		DollarsPerMonth: float64(u.Total()) / 1e9 * gbMonth, Together: u.Together,
		Objects: []objectStats{}, Of: []snapshotStatsOutput{},
	}
	for _, k := range u.Objects {
		o.Objects = append(o.Objects, objectStats(k))
	}
	for i := range u.Of {
		s := &u.Of[i]
		o.Of = append(o.Of, snapshotStatsOutput{&s.Snapshot, s.Only, s.Referred})
	}
	return o
}

func ratio(a, b int64) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

func runStats(ctx context.Context, a *app, refs []string) error {
	repo, err := a.repos.open(ctx)
	if err != nil {
		if len(refs) > 0 {
			err = about(refs[0], err)
		}
		return err
	}
	defer a.repos.close(repo)
	u, err := repo.Usage(ctx, refs...)
	if u == nil {
		return err
	}
	// A damaged snapshot is an error, which does not hide the others.
	if a.ui.JSON {
		return errors.Join(a.ui.PrintJSON(newStatsOutput(u)), err)
	}
	return errors.Join(a.ui.Print(statsText(a.ui, u, len(refs) > 0)), err)
}

func statsText(out *ui.Streams, u *engine.Usage, named bool) string {
	o := newStatsOutput(u)
	t := &ui.Table{Right: []bool{false, true, false}}
	t.Add("snapshots", humanize.Comma(int64(u.Snapshots)), "")
	t.Add("logical", ui.Size(u.Logical), "")
	t.Add("unique", ui.Size(u.Unique), times("deduplicated", o.Deduplication))
	t.Add("stored", ui.Size(u.Stored), times("compressed", o.Compression))
	t.Add("trees", ui.Size(u.Trees), "")
	t.Add("unused", ui.Size(u.Unused), "")
	t.Add("total", ui.Size(o.Total), times("smaller in all", ratio(u.Logical, o.Total)))
	t.Add("cost", fmt.Sprintf("$%.2f", o.DollarsPerMonth), "a month, at R2's price of storage")
	if named {
		t.Add("together", ui.Size(u.Together), "would be freed with these snapshots:")
	}
	objects := &ui.Table{Right: []bool{false, true, true}}
	objects.Add("OBJECTS", "COUNT", "SIZE")
	for _, k := range u.Objects {
		objects.Add(ui.Cell(k.Kind), humanize.Comma(int64(k.Count)), ui.Size(k.Bytes))
	}
	text := trimLines(t.String())
	if !named {
		text += "\n" + objects.String()
	}
	if len(u.Of) == 0 {
		return text
	}
	return text + "\n" + usageTable(out, u.Of).String()
}

// times is a ratio in words.
func times(word string, ratio float64) string {
	if ratio == 0 {
		return ""
	}
	return fmt.Sprintf("%s %.1f times", word, ratio)
}

// trimLines drops the spaces that a table has where its last field is empty.
func trimLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

func usageTable(out *ui.Streams, all []engine.SnapshotUsage) *ui.Table {
	when := out.When()
	t := &ui.Table{Right: []bool{3: true, 4: true, 5: true, 6: false}}
	t.Add("ID", "CREATED", "NAME", "SIZE", "REFERRED", "ONLY", "DIR")
	for i := range all {
		s := &all[i]
		t.Add(s.ID.String(), when(s.CreatedAt), ui.Cell(s.Name), ui.Size(s.Bytes), ui.Size(s.Referred), ui.Size(s.Only), ui.Cell(s.Dir))
	}
	return t
}

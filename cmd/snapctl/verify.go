package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/listing"
	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
)

func verifyCommand(a *app) *cobra.Command {
	var opts engine.VerifyOptions
	var dirOpts engine.VerifyDirOptions
	cmd := &cobra.Command{
		Use:   "verify [REF...] | REF DIR",
		Short: "Look for damage, or compare a directory with a snapshot",
		Long: `Looks for damage in what the snapshots need that are named or, without a REF, in
all of the repository. How to write a REF: snapctl help references.

Reads config, keys, manifests, index segments, leases and every page of trees,
and finds out whether every pack is there, with all that the trees refer to. The
contents of files are read with --read-data: then every byte of every pack is
checked. What was read in a run that is stopped, the next run passes over with
--resume. A snapshot that has expired is looked at with all of the repository,
until gc removes it; as a REF it is exit code 5, as for every command.

Prints a line for each object that is damaged, and below it the snapshots and
files that cannot be read because of it, the first ten of each. A "note" is no
damage. Damage is exit code 6; snapctl repair tells what can be done.

With --json, prints one object with the fields snapshots, entries, pages,
segments, packs, packBytes, read, readBytes, skipped, skippedBytes, durationMs,
and findings, an array of objects: object, problem, note, and affected, an array
of objects: id, name, dir, whole (all of the snapshot is lost), files (how many
are lost), paths (all of them), and ranges of entries whose names are lost too:
entries, from, before. A path that is not UTF-8 is a Go string literal.

With DIR, compares that directory with the snapshot, and prints what differs
from the snapshot to the directory as diff does (snapctl help diff): content,
type, mode, owner, times, xattrs and hard links. Every file is read. If anything
differs the exit code is 1, without an error. DIR must have a slash in it, or be
"." or "..", so that it is none of several REFs: ./build.`,
		Example: `  snapctl verify
  snapctl verify --read-data                # every byte
  snapctl verify --read-data=5% --resume    # a random sample
  snapctl verify app app~1
  snapctl verify app ~/work/app`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: a.complete.verify,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 && isDirArgument(args[1]) {
				return verifyDirCommand(a, cmd, args, &dirOpts)
			}
			for _, name := range []string{"no-owner", "no-times"} {
				if cmd.Flags().Changed(name) {
					return usagef(cmd, "verify: --%s goes with REF DIR", name)
				}
			}
			if opts.Resume && opts.ReadData == 0 {
				return usagef(cmd, "verify: --resume goes with --read-data")
			}
			if n := len(args); n > 0 && opts.ReadData > 0 && new(shareFlag).Set(args[n-1]) == nil {
				return usagef(cmd, "verify: a share goes right behind its flag: --read-data=%s", args[n-1])
			}
			refs, err := a.refs.all(cmd, args)
			if err != nil {
				return err
			}
			return runVerify(cmd.Context(), a, refs, opts)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.Var((*shareFlag)(&opts.ReadData), "read-data", "read what files hold too: all of it, or a random sample, `SHARE` of the bytes such as 5%")
	flags.Lookup("read-data").NoOptDefVal = "100%"
	flags.BoolVar(&opts.Resume, "resume", false, "with --read-data: pass over what the run before read, if it was stopped")
	flags.BoolVar(&dirOpts.NoOwner, "no-owner", false, "with DIR: users and groups do not count")
	flags.BoolVar(&dirOpts.NoTimes, "no-times", false, "with DIR: times of modification do not count")
	noCompletions(cmd, "read-data")
	return cmd
}

// isDirArgument reports whether an argument behind a REF is a directory.
func isDirArgument(arg string) bool {
	return strings.Contains(arg, "/") && !strings.HasPrefix(arg, "{") || arg == "." || arg == ".."
}

func (c *completer) verify(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 1 && isDirArgument(typed) {
		return completeDir(true)
	}
	return c.ref(cmd, args, typed)
}

// A shareFlag is a share in per cent, more than 0%.
type shareFlag float64

var _ pflag.Value = (*shareFlag)(nil)

func (f *shareFlag) String() string { return "" }
func (f *shareFlag) Type() string   { return "share" }
func (f *shareFlag) Set(s string) error {
	number, ok := strings.CutSuffix(s, "%")
	share, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || !(share > 0 && share <= 100) {
		return errors.New("not a share such as 5%, up to 100%")
	}
	*f = shareFlag(share / 100)
	return nil
}

func runVerify(ctx context.Context, a *app, refs []string, opts engine.VerifyOptions) error {
	repo, err := a.repos.open(ctx)
	if err != nil {
		if len(refs) > 0 {
			err = about(refs[0], err)
		}
		return err
	}
	defer a.repos.close(repo)
	if a.ui.JSON {
		opts.MaxFiles = -1
	}
	p := a.ui.StartProgress()
	opts.Progress = p
	report, err := repo.Verify(ctx, refs, &opts)
	p.Stop(nil)
	switch {
	case errors.Is(context.Cause(ctx), errInterrupted) && opts.ReadData > 0 && err != nil:
		return &hintError{err: err, hint: "go on with the same command and --resume"}
	case len(refs) == 2 && errors.Is(err, engine.ErrNotFound):
		if st, serr := os.Stat(refs[1]); serr == nil && st.IsDir() {
			return &hintError{err: err, hint: "to compare with that directory: snapctl verify " + ui.ShellQuote(refs[0]) + " " + ui.ShellQuote("./"+refs[1])}
		}
	}
	if err != nil {
		return err
	}
	if a.ui.JSON {
		err = a.ui.PrintJSON(newVerifyOutput(report))
	} else {
		err = a.ui.Print(findingsText(report.Findings))
		a.ui.Say(verifySummary(report, &opts))
	}
	if err == nil {
		err = report.Err()
	}
	if err != nil && errors.Is(err, engine.ErrIntegrity) {
		err = &hintError{err: fmt.Errorf("verify: %w", err), hint: "see what can be done: snapctl repair"}
	}
	return err
}

func verifySummary(r *engine.VerifyReport, opts *engine.VerifyOptions) string {
	s := fmt.Sprintf("verified %s: %s, %s, %s of %s", ui.Plural(int64(r.Snapshots), "snapshot"),
		ui.Plural(r.Entries, "entry"), ui.Plural(r.Pages, "page"), ui.Plural(int64(r.Packs), "pack"), ui.Size(r.PackBytes))
	if opts.ReadData > 0 {
		s += fmt.Sprintf(", %s of data read", ui.Size(r.ReadBytes))
	}
	if r.Skipped > 0 {
		s += fmt.Sprintf(", %s passed over that the run of %s had read", ui.Size(r.SkippedBytes), ui.LocalTime(r.SkippedSince))
	}
	if r.Damaged() == 0 {
		s += "; nothing is damaged"
	}
	return s + "; took " + ui.Round(r.Duration).String()
}

// findingsText is what verify prints for people.
func findingsText(all []engine.Finding) string {
	var b strings.Builder
	for i := range all {
		f := &all[i]
		kind := "damaged"
		if f.Note {
			kind = "note"
		}
		fmt.Fprintf(&b, "%s %s: %s\n", kind, ui.Quoted(f.Object), ui.Printable(f.Problem.Error()))
		for j := range f.Affected {
			b.WriteString(affectedText(&f.Affected[j]))
		}
	}
	return b.String()
}

func affectedText(a *engine.Affected) string {
	var b strings.Builder
	fmt.Fprintf(&b, "  snapshot %s", a.ID)
	if a.Name != "" {
		b.WriteString(" " + ui.Quoted(a.Name))
	}
	if a.Dir != "" {
		b.WriteString(" of " + ui.Quoted(a.Dir))
	}
	lost := int64(0)
	for _, r := range a.Ranges {
		lost += r.Entries
	}
	switch {
	case a.Whole:
		b.WriteString(" cannot be read\n")
		return b.String()
	case a.Files > 0 && lost > 0:
		fmt.Fprintf(&b, ": %s cannot be read, and %s not be found\n", ui.Plural(a.Files, "file"), ui.Plural(lost, "entry"))
	case lost > 0:
		fmt.Fprintf(&b, ": %s cannot be found\n", ui.Plural(lost, "entry"))
	default:
		fmt.Fprintf(&b, ": %s cannot be read\n", ui.Plural(a.Files, "file"))
	}
	for _, path := range a.Paths {
		b.WriteString("    " + ui.Quoted(path) + "\n")
	}
	if more := a.Files - int64(len(a.Paths)); more > 0 {
		fmt.Fprintf(&b, "    and %s more\n", humanize.Comma(more))
	}
	for _, r := range a.Ranges {
		b.WriteString("    " + rangeText(&r) + "\n")
	}
	return b.String()
}

func rangeText(r *engine.LostRange) string {
	from, to := r.From, "to the end"
	if from == "" {
		from = "."
	}
	if r.Before != "" {
		to = "and before " + ui.Quoted(r.Before)
	}
	return fmt.Sprintf("%s from %s on %s", ui.Plural(r.Entries, "entry"), ui.Quoted(from), to)
}

// verifyOutput is what verify --json prints.
type verifyOutput struct {
	Snapshots    int             `json:"snapshots"`
	Entries      int64           `json:"entries"`
	Pages        int64           `json:"pages"`
	Segments     int             `json:"segments"`
	Packs        int             `json:"packs"`
	PackBytes    int64           `json:"packBytes"`
	Read         int             `json:"read"`
	ReadBytes    int64           `json:"readBytes"`
	Skipped      int             `json:"skipped"`
	SkippedBytes int64           `json:"skippedBytes"`
	DurationMs   int64           `json:"durationMs"`
	Findings     []findingOutput `json:"findings"`
}

type findingOutput struct {
	Object   string           `json:"object"`
	Problem  string           `json:"problem"`
	Note     bool             `json:"note"`
	Affected []affectedOutput `json:"affected,omitempty"`
}

type affectedOutput struct {
	ID     string        `json:"id"`
	Name   string        `json:"name,omitempty"`
	Dir    string        `json:"dir,omitempty"`
	Whole  bool          `json:"whole"`
	Files  int64         `json:"files"`
	Paths  []string      `json:"paths,omitempty"`
	Ranges []rangeOutput `json:"ranges,omitempty"`
}

type rangeOutput struct {
	Entries int64  `json:"entries"`
	From    string `json:"from"`
	Before  string `json:"before,omitempty"`
}

func newVerifyOutput(r *engine.VerifyReport) *verifyOutput {
	o := &verifyOutput{
		Snapshots: r.Snapshots, Entries: r.Entries, Pages: r.Pages, Segments: r.Segments,
		Packs: r.Packs, PackBytes: r.PackBytes, Read: r.Read, ReadBytes: r.ReadBytes,
		Skipped: r.Skipped, SkippedBytes: r.SkippedBytes, DurationMs: r.Duration.Milliseconds(),
		Findings: []findingOutput{},
	}
	for i := range r.Findings {
		f := &r.Findings[i]
		o.Findings = append(o.Findings, findingOutput{f.Object, f.Problem.Error(), f.Note, affectedOutputs(f.Affected)})
	}
	return o
}

func affectedOutputs(all []engine.Affected) (out []affectedOutput) {
	for i := range all {
		a := &all[i]
		o := affectedOutput{ID: a.ID.String(), Name: a.Name, Dir: textOrQuoted(a.Dir), Whole: a.Whole, Files: a.Files}
		for _, path := range a.Paths {
			o.Paths = append(o.Paths, textOrQuoted(path))
		}
		o.Ranges = rangeOutputs(a.Ranges)
		out = append(out, o)
	}
	return out
}

func rangeOutputs(all []engine.LostRange) (out []rangeOutput) {
	for _, r := range all {
		out = append(out, rangeOutput{r.Entries, textOrQuoted(r.From), textOrQuoted(r.Before)})
	}
	return out
}

// textOrQuoted is a path as JSON can hold it.
func textOrQuoted(path string) string {
	if utf8.ValidString(path) {
		return path
	}
	return strconv.Quote(path)
}

func verifyDirCommand(a *app, cmd *cobra.Command, args []string, opts *engine.VerifyDirOptions) error {
	for _, name := range []string{"read-data", "resume"} {
		if cmd.Flags().Changed(name) {
			return usagef(cmd, "verify: --%s and DIR do not go together", name)
		}
	}
	ref, err := a.refs.ref(cmd, args[0])
	if err != nil {
		return err
	}
	return runVerifyDir(cmd.Context(), a, ref, args[1], opts)
}

// runVerifyDir compares a directory with a snapshot.
func runVerifyDir(ctx context.Context, a *app, ref, dir string, opts *engine.VerifyDirOptions) error {
	repo, err := a.repos.openFor(ctx, ref)
	if err != nil {
		return about(ref, err)
	}
	defer a.repos.close(repo)
	progress := a.ui.StartProgress()
	opts.Progress = progress
	p := listing.NewChanges(a.ui, false)
	report, err := repo.VerifyDir(ctx, ref, dir, opts, p.Print)
	progress.Stop(nil)
	if err = p.Finish(err, nil); err != nil {
		return err
	}
	a.ui.Say(fmt.Sprintf("%s; compared %s, %s, with snapshot %s", p.Summary(), ui.Plural(report.Files, "entry"), ui.Size(report.Bytes), report.Snapshot.ID))
	switch n := len(report.Problems); {
	case n > 0:
		return fmt.Errorf("verify: the comparison of %s is %w: %s, named above", ui.Quoted(dir), errIncomplete, ui.Plural(int64(n), "problem"))
	case p.Any():
		return errDifferences
	}
	return nil
}

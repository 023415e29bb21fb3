package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// A report is what a run writes: all of it as JSON, the medians as tables.
type report struct {
	Started  time.Time         `json:"started"`
	Machine  machine           `json:"machine"`
	Versions map[string]string `json:"versions"`
	Missing  []string          `json:"missing,omitempty"` // tools not on the machine
	Trees    []tree            `json:"trees"`
	Options  reportOptions     `json:"options"`
	Figures  []figure          `json:"figures"`
	Samples  samples           `json:"samples"`
	Commands []commandRow      `json:"commands,omitempty"`
	Failures []failure         `json:"failures,omitempty"`
	Notes    []string          `json:"notes,omitempty"`
}

type reportOptions struct {
	Runs       int     `json:"runs"`
	Warmup     int     `json:"warmup"`
	RTTSeconds float64 `json:"rttSeconds"`
	Bandwidth  int     `json:"bandwidthMBs,omitempty"`
	List       int     `json:"listed"`
	Forks      int     `json:"forks"`
}

func (b *bench) report() *report {
	o := b.o
	return &report{
		Started: b.started, Machine: b.machine, Versions: b.versions, Missing: b.missing, Trees: b.trees,
		Options: reportOptions{o.runs, o.warmup, o.rtt.Seconds(), o.bandwidth, o.list, o.forks},
		Figures: figures(b.samples, o.rtt.Seconds()),
		Samples: b.samples, Commands: b.commands, Failures: b.failures, Notes: b.notes,
	}
}

func (r *report) writeJSON(file string) error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}

func (r *report) writeTables(w io.Writer) error {
	p := &printer{w: w}
	p.f("%s, %d cores, %s; Linux %s; work on %s\n", r.Machine.CPU, r.Machine.Cores, bytesText(r.Machine.Memory), r.Machine.Kernel, r.Machine.FileSystem)
	for _, t := range r.Trees {
		p.f("%s: %d entries, %d files, %s\n", t.Label, t.Entries, t.Files, bytesText(t.Bytes))
	}
	p.f("medians; rounds: %d, before them to warm up: %d; S3 at %.0f ms", r.Options.Runs, r.Options.Warmup, r.Options.RTTSeconds*1e3)
	if r.Options.Bandwidth > 0 {
		p.f(" and %d MB/s a connection", r.Options.Bandwidth)
	}
	p.f("; peak memory is told from %s up\n", bytesText(r.Machine.PeakFloor))
	for _, name := range slices.Sorted(maps.Keys(r.Versions)) {
		p.f("  %s: %s\n", name, r.Versions[name])
	}
	if len(r.Missing) > 0 {
		p.f("  not on this machine: %s\n", strings.Join(r.Missing, ", "))
	}

	for _, g := range r.Samples.groups() {
		p.f("\n%s, %s", g.suite, g.work)
		if g.tree != "" {
			p.f(", %s", g.tree)
		}
		of := r.Samples.where(g.has)
		if tool, ratio := againstBest(of); tool != "" && g.work != workStart && g.work != workOpen {
			p.f(": snapctl takes %.2f of the time of the best peer, %s", ratio, tool)
			if tool, ratio := againstLeast(of); tool != "" {
				p.f(", and adds %.2f of what the least adds, %s", ratio, tool)
			}
		}
		p.f("\n")
		p.table(workTable(of))
	}

	if len(r.Commands) > 0 {
		p.f("\ns3, what commands ask of a bucket, and what a thousand of each cost at R2's prices\n")
		p.table(commandTable(r.Commands))
	}

	p.f("\nwhat snapctl is held to\n")
	p.table(figureTable(r.Figures))
	for _, f := range r.Failures {
		p.f("\nFAILED in suite %s: %s: %s\n", f.Suite, f.Tool, f.Error)
	}
	for _, n := range r.Notes {
		p.f("\nnote: %s\n", n)
	}
	return p.err
}

// by selects a tool.
func (s samples) by(tool string) samples {
	return s.where(func(x sample) bool { return x.Tool == tool })
}

func (s samples) tools() []string {
	return s.distinct(func(x sample) string { return x.Tool })
}

// againstBest finds the fastest peer at a work, and how snapctl's time
// compares. The yardsticks are no peers.
func againstBest(of samples) (peer string, ratio float64) { return againstLowest(of, wall) }

// againstLeast finds the peer that adds the fewest bytes, and how what snapctl
// adds compares.
func againstLeast(of samples) (peer string, ratio float64) { return againstLowest(of, added) }

func againstLowest(of samples, q quantity) (peer string, ratio float64) {
	us, ok := of.by(ours).median(q)
	if !ok {
		return "", 0
	}
	best := math.Inf(1)
	for _, t := range of.tools() {
		if t == ours || t == local || t == yardstick || t == onlyRead || t == byProfile {
			continue
		}
		if m, _ := of.by(t).median(q); m > 0 && m < best {
			peer, best = t, m
		}
	}
	return peer, us / best
}

// workTable has a row for each tool that did a work. Columns in which no tool
// has anything are left out.
func workTable(of samples) [][]string {
	rows := [][]string{{"tool", "median", "from - to", "x snapctl", "cpu", "peak memory", "adds", "moves", "requests", "servers' cpu"}}
	tools := of.tools()
	slices.SortStableFunc(tools, func(a, b string) int { return toolOrder(a) - toolOrder(b) })
	for _, t := range tools {
		mine := of.by(t)
		text := func(q quantity) string {
			m, _ := mine.median(q)
			if m <= 0 {
				return ""
			}
			return q.unit.text(m)
		}
		times := mine.values(wall)
		m, _ := median(times)
		compared := ""
		if us, ok := of.by(ours).median(wall); ok {
			compared = ratio.text(m / us)
		}
		rows = append(rows, []string{
			t, secs.text(m), secs.text(slices.Min(times)) + " - " + secs.text(slices.Max(times)), compared,
			text(cpu), text(peak), text(added), text(moved), requestsText(mine.requests()), text(serverCPU),
		})
	}
	for col := len(rows[0]) - 1; col > 0; col-- {
		if !slices.ContainsFunc(rows[1:], func(r []string) bool { return r[col] != "" }) {
			for i := range rows {
				rows[i] = slices.Delete(rows[i], col, col+1)
			}
		}
	}
	return rows
}

// toolOrder has snapctl first, and the peers as they are listed.
func toolOrder(name string) int {
	order := []string{ours, onlyRead, byProfile, local, yardstick, ext4.name, native.name}
	for _, t := range peers() {
		order = append(order, t.Name())
	}
	for _, m := range mountPeers() { // those that are no tools
		order = append(order, m.name)
	}
	order = append(order, overlay.name, saveUpperTar, saveUpper, saveWhole)
	return slices.Index(order, name)
}

func figureTable(figs []figure) [][]string {
	rows := [][]string{{"figure", "measured", "made of", "must reach", "aim", "verdict"}}
	for _, f := range figs {
		row := []string{f.Name, "", f.Beside, f.Unit.text(f.Must), "", string(f.Verdict)}
		if f.Measured {
			row[1] = f.Unit.text(f.Value)
		}
		if f.Aim > 0 {
			row[4] = f.Unit.text(f.Aim)
		}
		rows = append(rows, row)
	}
	return rows
}

// A printer remembers its first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) f(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

func (p *printer) table(rows [][]string) {
	if p.err != nil {
		return
	}
	t := tabwriter.NewWriter(p.w, 0, 0, 3, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(t, "  "+strings.Join(r, "\t"))
	}
	p.err = t.Flush()
}

// secondsText has three digits.
func secondsText(s float64) string {
	switch {
	case s < 0.1:
		return fmt.Sprintf("%.1f ms", s*1e3)
	case s < 1:
		return fmt.Sprintf("%.0f ms", s*1e3)
	case s < 10:
		return fmt.Sprintf("%.2f s", s)
	case s < 100:
		return fmt.Sprintf("%.1f s", s)
	}
	return fmt.Sprintf("%.0f s", s)
}

// bytesText has powers of a thousand.
func bytesText(n int64) string {
	v := float64(n)
	for _, u := range []string{"B", "kB", "MB"} {
		if math.Abs(v) < 1000 {
			if u == "B" || math.Abs(v) >= 10 {
				return fmt.Sprintf("%.0f %s", v, u)
			}
			return fmt.Sprintf("%.1f %s", v, u)
		}
		v /= 1000
	}
	return fmt.Sprintf("%.1f GB", v)
}

// requestsText is such as "12 PUT, 3 GET".
func requestsText(r map[string]int) string {
	var parts []string
	for _, k := range []string{"PUT", "LIST", "GET", "HEAD", "DELETE"} {
		if r[k] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", r[k], k))
		}
	}
	return strings.Join(parts, ", ")
}

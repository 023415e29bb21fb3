package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-analyze/charts"
)

// A chart is horizontal bars for one question: snapctl's first, then the
// peers', the best one first.
type chart struct {
	file  string // its name without .svg
	title string
	note  string
	unit  unit
	bars  []bar
}

type bar struct {
	label string
	value float64
	ours  bool
}

// chartsOf are the charts of what was measured; those of suites that were not
// run are left out, and so are those with nobody to compare with.
func chartsOf(r *report) []chart {
	var list []chart
	for _, c := range []chart{wholeChart(r), secondChart(r), startChart(r), forkChart(r)} {
		if n := len(c.bars); n > 0 && c.bars[0].ours && !c.bars[n-1].ours {
			list = append(list, c)
		}
	}
	return list
}

// A sum is a bar whose value is that of some works of some tools, added up. It
// is left out if one of them was not measured.
type sum struct {
	label string
	parts []at
}

func (r *report) chart(file, title string, q quantity, sums []sum) chart {
	c := chart{file: file, title: title, unit: q.unit}
	for _, s := range sums {
		b := bar{label: s.label, ours: strings.HasPrefix(s.label, ours)}
		measured := true
		for _, a := range s.parts {
			m, ok := r.Samples.where(a.has).where(r.ofFirstTree).median(q)
			b.value += m
			measured = measured && ok
		}
		if measured {
			c.bars = append(c.bars, b)
		}
	}
	slices.SortStableFunc(c.bars, func(a, b bar) int {
		switch {
		case a.ours && b.ours:
			return 0 // as they were listed
		case a.ours:
			return -1
		case b.ours:
			return 1
		}
		return cmp.Compare(a.value, b.value)
	})
	return c
}

// ofFirstTree keeps what was measured of the tree, not of others that a suite
// makes for itself.
func (r *report) ofFirstTree(s sample) bool { return len(r.Trees) == 0 || s.Tree == r.Trees[0].Label }

// about says of what tree and on what machine.
func (r *report) about(more ...string) string {
	var parts []string
	if len(r.Trees) > 0 {
		t := r.Trees[0]
		parts = append(parts, fmt.Sprintf("%s: %s files, %s", t.Label, countText(t.Files), bytesText(t.Bytes)))
	}
	parts = append(parts, fmt.Sprintf("%d cores", r.Machine.Cores))
	return strings.Join(append(parts, more...), "; ")
}

// countText groups digits.
func countText(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func wholeChart(r *report) chart {
	var sums []sum
	for _, t := range append([]string{ours}, toolNames()...) {
		sums = append(sums, sum{t, []at{{"local", workCreate, t}}})
	}
	c := r.chart("create", "A whole snapshot takes", wall, sums)
	c.note = r.about()
	return c
}

func secondChart(r *report) chart {
	sums := []sum{{ours, []at{{"local", workSecond, ours}}}}
	for _, t := range peers() {
		work := workSecond
		if t.Whole() { // what it has to store again
			work = workCreate
		}
		sums = append(sums, sum{t.Name(), []at{{"local", work, t.Name()}}})
	}
	c := r.chart("second-version", "A second version adds", added, sums)
	c.note = r.about()
	return c
}

func startChart(r *report) chart {
	work, program := workFromNode, "node done"
	if !slices.ContainsFunc(r.Samples, func(s sample) bool { return s.Work == workFromNode }) {
		work, program = workFromSome, "600 files read"
	}
	sums := []sum{{ours, []at{{suiteNameMount, work, ours}}}, {ours + ", the second time", []at{{suiteNameMount, work, byProfile}}}}
	for _, t := range toolNames() {
		sums = append(sums, sum{t, []at{{suiteNameMount, work, t}}})
	}
	c := r.chart("start", "From nothing over S3 to "+program, wall, sums)
	bandwidth := r.Options.Bandwidth
	if bandwidth == 0 {
		bandwidth = fromNothingBandwidth
	}
	c.note = r.about(fmt.Sprintf("%.0f ms, %d MB/s a connection", r.Options.RTTSeconds*1e3, bandwidth))
	return c
}

func forkChart(r *report) chart {
	of := func(work, tool string) at { return at{suiteNameFork, work, tool} }
	sums := []sum{
		{ours, []at{of(workFork, ours), of(workSaveLine, ours)}},
		{restic{}.Name(), []at{of(workForkFirst, restic{}.Name()), of(workSaveLine, restic{}.Name())}},
	}
	for tool, label := range map[string]string{saveWhole: "overlay, new image", saveUpper: "overlay, image of upper*", saveUpperTar: "overlay, tar of upper*"} {
		sums = append(sums, sum{label, []at{of(workFork, overlay.name), of(workSaveLine, tool)}})
	}
	slices.SortFunc(sums[1:], func(a, b sum) int { return cmp.Compare(a.label, b.label) })
	c := r.chart("fork", "A fork, and a changed line saved", wall, sums)
	c.note = r.about("* no snapshot without its base")
	return c
}

// toolNames are the peers in the order of the tables.
func toolNames() []string {
	var names []string
	for _, t := range peers() {
		names = append(names, t.Name())
	}
	return names
}

// The colours have contrast on a background of their own, so that a chart can
// be read on a light and on a dark page.
var (
	chartBack  = charts.ColorFromHex("#f6f8fa")
	chartText  = charts.ColorFromHex("#1f2328")
	chartNote  = charts.ColorFromHex("#59636e")
	chartOurs  = charts.ColorFromHex("#0b7285")
	chartPeers = charts.ColorFromHex("#a3adb8")
)

const (
	chartWidth  = 480
	chartMargin = 16
	chartHead   = 62 // of the title and the note
	barSpace    = 28 // from one bar to the next
	// narrowest is the part of the longest bar that every bar has at least, so
	// that it can be seen.
	narrowest = 0.008
)

// svg draws the chart. The same chart is the same bytes.
func (c chart) svg() ([]byte, error) {
	colors := make([]charts.Color, len(c.bars))
	for i, b := range c.bars {
		colors[i] = b.color(chartPeers)
	}
	theme := charts.MakeTheme(charts.ThemeOption{BackgroundColor: chartBack, TextColor: chartText, SeriesColors: colors})
	height := chartHead + barSpace*len(c.bars) + chartMargin
	p := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: chartWidth, Height: height, Theme: theme})
	p.FilledRect(0, 0, chartWidth, height, chartBack, chartBack, 0)
	p.Text(c.title, chartMargin, 30, 0, charts.FontStyle{FontSize: 12, FontColor: chartText})
	p.Text(c.note, chartMargin, 48, 0, charts.FontStyle{FontSize: 8, FontColor: chartNote})

	// Names begin where the title does: who reads it may have another font, of
	// another width, in which they would not end in a line.
	names := 0
	for i, b := range c.bars {
		style := charts.FontStyle{FontSize: 9, FontColor: b.color(chartText)}
		p.Text(b.label, chartMargin, chartHead+barSpace*i+barSpace/2+4, 0, style)
		names = max(names, p.MeasureText(b.label, 0, style).Width())
	}
	bars := p.Child(charts.PainterBoxOption(charts.NewBox(chartMargin+names*9/8+8, chartHead, chartWidth-chartMargin, height-chartMargin)))
	if err := bars.BarChart(c.options(theme)); err != nil {
		return nil, fmt.Errorf("chart %s: %w", c.file, err)
	}
	b, err := p.Bytes()
	if err != nil {
		return nil, fmt.Errorf("chart %s: %w", c.file, err)
	}
	// Without a size of its own a page makes it as wide as the text.
	size := fmt.Sprintf(`<svg width="%d" height="%d" `, chartWidth, height)
	return append(bytes.Replace(bytes.TrimSpace(b), []byte("<svg "), []byte(size), 1), '\n'), nil
}

// color is snapctl's, or what the others have.
func (b bar) color(others charts.Color) charts.Color {
	if b.ours {
		return chartOurs
	}
	return others
}

// options are of the bars, with the values beside them and no axes: nothing is
// read off those.
func (c chart) options(theme charts.ColorPalette) charts.BarChartOption {
	largest := 0.0
	for _, b := range c.bars {
		largest = max(largest, b.value)
	}
	// A series for each bar, with one value, so that each has its own colour and
	// label. Stacked, they have a row each.
	values := make([][]float64, len(c.bars))
	for i, b := range c.bars {
		values[i] = slices.Repeat([]float64{charts.GetNullValue()}, len(c.bars))
		values[i][len(c.bars)-1-i] = max(b.value, largest*narrowest) // the last row is the uppermost
	}
	opt := charts.NewBarChartOptionWithData(values)
	opt.Horizontal = true
	opt.StackSeries = charts.Ptr(true)
	opt.BarSize = 0.7
	opt.Theme = theme
	opt.Padding = charts.NewBox(0, 0, 0, 0)
	opt.Legend.Show = charts.Ptr(false)
	opt.CategoryAxis.Show = charts.Ptr(false)
	opt.CategoryAxis.Labels = make([]string, len(c.bars))
	opt.ValueAxis[0].Show = charts.Ptr(false)
	opt.ValueAxis[0].Min = charts.Ptr(0.0)
	opt.ValueAxis[0].Max = charts.Ptr(max(largest, 1e-9) * 1.25) // the values have room
	for i := range opt.SeriesList {
		opt.SeriesList[i].Label = charts.SeriesLabel{Show: charts.Ptr(true), LabelFormatter: func(i int, _ string, _ float64) (string, *charts.LabelStyle) {
			b := c.bars[i]
			return c.unit.text(b.value), &charts.LabelStyle{FontStyle: charts.FontStyle{FontSize: 9, FontColor: b.color(chartText)}}
		}}
	}
	return opt
}

// writeCharts writes the charts of a report to a folder, and says which.
func (r *report) writeCharts(dir string, says io.Writer) error {
	list := chartsOf(r)
	if len(list) == 0 {
		return errors.New("nothing to make a chart of: that wants suite local, mount or fork, and a peer")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, c := range list {
		b, err := c.svg()
		if err != nil {
			return err
		}
		file := filepath.Join(dir, c.file+".svg")
		if err := os.WriteFile(file, b, 0o644); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(says, file); err != nil {
			return err
		}
	}
	return nil
}

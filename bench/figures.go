package main

import (
	"fmt"
	"math"
	"slices"
)

// A figure is something that snapctl is held to.
type figure struct {
	Name string `json:"figure"`
	// Value is what is held to the limits: a ratio, seconds, bytes or round
	// trips. It is meaningless without Measured.
	Value    float64 `json:"value"`
	Unit     unit    `json:"unit"`
	Measured bool    `json:"measured"`
	Beside   string  `json:"beside,omitempty"` // what it was made of
	Must     float64 `json:"must"`
	Aim      float64 `json:"aim,omitempty"` // 0 for none
	Verdict  verdict `json:"verdict"`
}

// A unit is how a value is written.
type unit string

const (
	ratio unit = "ratio"
	secs  unit = "seconds"
	size  unit = "bytes"
	trips unit = "round trips"
)

func (u unit) text(v float64) string {
	switch u {
	case secs:
		return secondsText(v)
	case size:
		return bytesText(int64(v))
	case trips:
		return fmt.Sprintf("%.0f trips", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// A verdict is a word for a figure.
type verdict string

const (
	reachedAim  verdict = "aim reached"
	reachedMust verdict = "reached"
	missed      verdict = "MISSED"
	unmeasured  verdict = "not measured"
)

// judge gives a figure its verdict.
func (f *figure) judge() {
	switch {
	case !f.Measured:
		f.Verdict = unmeasured
	case f.Value > f.Must:
		f.Verdict = missed
	case f.Aim > 0 && f.Value <= f.Aim:
		f.Verdict = reachedAim
	default:
		f.Verdict = reachedMust
	}
}

// linear is how much longer a file may take in the largest tree of suite scale
// than in the smallest one, for the time to be called linear.
const linear = 1.25

const megabyte = 1e6

// figures are what snapctl is held to by the suites that have samples, with
// what those say of each.
func figures(all samples, rttSeconds float64) []figure {
	of := func(suites ...string) bool {
		return slices.ContainsFunc(all, func(s sample) bool { return slices.Contains(suites, s.Suite) })
	}
	var figs []figure
	if of("local", "s3", "scale") {
		figs = vaultFigures(all, rttSeconds)
	}
	if of(suiteNameMount) {
		figs = append(figs, mountFigures(all, rttSeconds)...)
	}
	if of(suiteNameFork) {
		figs = append(figs, forkFigures(all, rttSeconds)...)
	}
	for i := range figs {
		figs[i].judge()
	}
	return figs
}

// vaultFigures are about making, listing and restoring snapshots.
func vaultFigures(all samples, rttSeconds float64) []figure {
	var (
		create  = at{"local", workCreate, ours}
		again   = at{"local", workAgain, ours}
		second  = at{"local", workSecond, ours}
		restore = at{"local", workRestore, ours}

		farCreate  = at{"s3", workCreate, ours}
		farRestore = at{"s3", workRestore, ours}
	)
	return slices.Concat(
		[]figure{
			all.against("whole create : tar+zstd", wall, create, create.by("tar+zstd"), 1, 0.9),
			all.against("bytes stored : squashfs-zstd", stored, create, create.by("squashfs-zstd"), 1, 0.9),
			all.within("create again", wall, again, 0.5, 0),
			all.against("create again : find -printf", wall, again, again.by(yardstick), 1.6, 1.2),
			all.against("second version adds : restic", added, second, second.by("restic"), 1, 0),
			all.against("second version : whole create", wall, second, create, 0.5, 0),
			all.against("restore : unsquashfs of zstd", wall, restore, restore.by("squashfs-zstd"), 1, 0.8),
			all.within("peak memory of create", peak, create, 300*megabyte, 150*megabyte),
			all.within("peak memory of restore", peak, restore, 300*megabyte, 150*megabyte),
			all.against("create over S3 : local", wall, farCreate, farCreate.by(local), 1.5, 0),
			all.against("restore over S3 : local", wall, farRestore, farRestore.by(local), 2, 0),
		},
		scaleFigures(all),
		[]figure{
			all.within("list, second time", wall, at{"local", workListAgain, ours}, 0.050, 0),
			listTrips(all, rttSeconds),
			all.within("start-up", wall, at{"local", workStart, ours}, 0.030, 0),
		})
}

// at is a tool doing a work.
type at struct{ suite, work, tool string }

func (a at) by(tool string) at { return at{a.suite, a.work, tool} }

func (a at) has(s sample) bool { return a == at{s.Suite, s.Work, s.Tool} }

// within holds a median to limits.
func (s samples) within(name string, q quantity, a at, must, aim float64) figure {
	f := figure{Name: name, Unit: q.unit, Must: must, Aim: aim}
	f.Value, f.Measured = s.where(a.has).median(q)
	return f
}

// against holds a median, divided by another, to limits.
func (s samples) against(name string, q quantity, a, b at, must, aim float64) figure {
	f := figure{Name: name, Unit: ratio, Must: must, Aim: aim}
	va, okA := s.where(a.has).median(q)
	vb, okB := s.where(b.has).median(q)
	if okA && okB && vb > 0 {
		f.Measured, f.Value = true, va/vb
		f.Beside = q.unit.text(va) + " : " + q.unit.text(vb)
	}
	return f
}

// scaleFigures compare the largest tree of suite scale with the smallest.
func scaleFigures(all samples) []figure {
	all = all.where(func(s sample) bool { return s.Suite == "scale" })
	trees := all.distinct(func(s sample) string { return s.Tree })
	slices.SortFunc(trees, func(a, b string) int { return filesOf(a) - filesOf(b) })
	var figs []figure
	for _, work := range []string{workCreate, workRestore} {
		memory := figure{Name: "memory of " + work + ", most files : fewest", Unit: ratio, Must: 2}
		time := figure{Name: "time a file of " + work + ", most : fewest", Unit: ratio, Must: linear}
		if len(trees) > 1 {
			few, many := trees[0], trees[len(trees)-1]
			// grown divides a tool's median for the largest tree by that for the
			// smallest.
			grown := func(tool string, q quantity) (times float64, ok bool, text string) {
				m, okM := all.where(group{"scale", many, work}.has).by(tool).median(q)
				f, okF := all.where(group{"scale", few, work}.has).by(tool).median(q)
				if !okM || !okF || f == 0 {
					return 0, false, ""
				}
				return m / f, true, q.unit.text(m) + " : " + q.unit.text(f)
			}
			more := float64(filesOf(many)) / float64(filesOf(few))
			memory.Value, memory.Measured, memory.Beside = grown(ours, peak)
			time.Value, time.Measured, time.Beside = grown(ours, wall)
			if time.Measured {
				time.Value /= more
				if tar, ok, _ := grown("tar+zstd", wall); ok { // what the kernel makes of it
					time.Beside += "; tar " + ratio.text(tar/more)
				}
			}
		}
		figs = append(figs, memory, time)
	}
	return figs
}

// filesOf is the number in the label of a tree of suite scale.
func filesOf(label string) int {
	var n int
	fmt.Sscanf(label, "%d files", &n)
	return n
}

// listTrips is how many times a list over S3 waits for an answer. It cannot
// wait more often than it asks; where it asks for several things at once, what
// it takes longer than a local list says how often it waits.
func listTrips(all samples, rttSeconds float64) figure {
	f := figure{Name: "list over S3, second time", Unit: trips, Must: 2}
	lists := all.where(at{"s3", workListAgain, ours}.has)
	far, ok := lists.median(wall)
	if !ok {
		return f
	}
	f.Measured = true
	f.Value = float64(total(lists.requests()))
	f.Beside = fmt.Sprintf("%.0f requests, %s", f.Value, wall.unit.text(far))
	near, ok := all.where(at{"local", workListAgain, ours}.has).median(wall)
	if ok && rttSeconds > 0 {
		f.Beside += " - " + wall.unit.text(near)
		f.Value = min(f.Value, math.Round((far-near)/rttSeconds))
	}
	return f
}

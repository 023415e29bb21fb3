package main

import (
	"fmt"
	"testing"
)

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		f    figure
		want verdict
	}{
		{figure{Must: 1, Aim: 0.9, Value: 0}, unmeasured},
		{figure{Must: 1, Aim: 0.9, Value: 0.9, Measured: true}, reachedAim},
		{figure{Must: 1, Aim: 0.9, Value: 0.91, Measured: true}, reachedMust},
		{figure{Must: 1, Aim: 0.9, Value: 1, Measured: true}, reachedMust},
		{figure{Must: 1, Aim: 0.9, Value: 1.01, Measured: true}, missed},
		{figure{Must: 1, Value: 0.1, Measured: true}, reachedMust}, // no aim to reach
	} {
		c.f.judge()
		if c.f.Verdict != c.want {
			t.Errorf("%+v: want %q", c.f, c.want)
		}
	}
}

// run makes three samples whose median has the seconds.
func run3(suite, work, tool string, seconds float64) samples {
	s := sample{Suite: suite, Work: work, Tool: tool, Seconds: seconds}
	low, high := s, s
	low.Seconds, high.Seconds = seconds/2, seconds*10
	return samples{high, s, low}
}

func figureNamed(t *testing.T, figs []figure, name string) figure {
	t.Helper()
	for _, f := range figs {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("no figure %q", name)
	return figure{}
}

func TestFiguresCompareMedians(t *testing.T) {
	all := run3("local", workCreate, ours, 1.9)
	all = append(all, run3("local", workCreate, "tar+zstd", 2)...)
	all = append(all, run3("s3", workCreate, ours, 9)...) // another suite's does not count
	all = append(all, run3("local", workAgain, ours, 0.42)...)
	all = append(all, run3("local", workAgain, yardstick, 0.3)...)
	all = append(all, run3("local", workListAgain, ours, 0.020)...)
	all = append(all, withRequests(run3("s3", workListAgain, ours, 0.085), 40)...)
	figs := figures(all, 0.030)
	for _, c := range []struct {
		name    string
		value   string
		verdict verdict
	}{
		{"whole create : tar+zstd", "0.95", reachedMust},
		{"create again", "420 ms", reachedMust},
		{"create again : find -printf", "1.40", reachedMust},
		{"list, second time", "20.0 ms", reachedMust},
		{"list over S3, second time", "2 trips", reachedMust},
		{"restore : unsquashfs of zstd", "0.00", unmeasured},
	} {
		f := figureNamed(t, figs, c.name)
		if got := f.Unit.text(f.Value); got != c.value || f.Verdict != c.verdict {
			t.Errorf("%s: %s, %s; want %s, %s", c.name, got, f.Verdict, c.value, c.verdict)
		}
	}
}

func withRequests(s samples, gets int) samples {
	for i := range s {
		s[i].Requests = map[string]int{"LIST": 1, "GET": gets}
	}
	return s
}

// A slow server is no reason to count more waits than requests.
func TestListTripsAreAtMostRequests(t *testing.T) {
	all := withRequests(run3("s3", workListAgain, ours, 5), 1)
	for _, all := range []samples{all, append(all, run3("local", workListAgain, ours, 0.020)...)} {
		if f := listTrips(all, 0.030); !f.Measured || f.Value != 2 {
			t.Errorf("%+v, want 2 round trips", f)
		}
	}
	if f := listTrips(nil, 0.030); f.Measured {
		t.Errorf("measured without samples: %+v", f)
	}
}

func TestScaleFigures(t *testing.T) {
	var all samples
	add := func(files int, seconds float64, peak int64) {
		all = append(all, sample{
			Suite: "scale", Tree: fmt.Sprintf("%d files", files), Work: workCreate, Tool: ours,
			Seconds: seconds, PeakBytes: peak,
		})
	}
	add(1_000_000, 30, 260e6) // measured first: the order is by size
	add(100_000, 2, 100e6)
	all = append(all, sample{Suite: "scale", Tree: "100000 files", Work: workCreate, Tool: "tar+zstd", Seconds: 99, PeakBytes: 1})
	figs := figures(all, 0.03)
	if f := figureNamed(t, figs, "memory of create, most files : fewest"); f.Value != 2.6 || f.Verdict != missed {
		t.Errorf("memory: %+v", f)
	}
	if f := figureNamed(t, figs, "time a file of create, most : fewest"); f.Value != 1.5 || f.Verdict != missed {
		t.Errorf("time: %+v", f)
	}
	if f := figureNamed(t, figs, "memory of restore, most files : fewest"); f.Verdict != unmeasured || f.Value != 0 || f.Beside != "" {
		t.Errorf("restore was not measured: %+v", f)
	}
}

package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/snapctl/snapctl/remote/remotetest"
)

func needForks(t *testing.T) {
	t.Helper()
	needMounts(t)
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	if _, err := remotetest.Tool(t.Context(), "versitygw"); errors.Is(err, remotetest.ErrNoTool) {
		t.Skip(err)
	}
}

func TestSmokeOfForks(t *testing.T) {
	needForks(t)
	rep, tables, err := smoke(t, realSnapctl(t), "-suite", "fork", "-peers", overlay.name+",cp")
	if err != nil {
		t.Fatal(err)
	}
	leavesNothing(t, "/dev/shm/bench-test-")
	for _, w := range append([]string{workStart}, forkWorks...) {
		if !strings.Contains(tables, "fork, "+w) {
			t.Errorf("no table says %q", w)
		}
		testForkSample(t, rep, w)
	}
	one, many := rep.Samples.where(at{suiteNameFork, workForksOne, ours}.has), rep.Samples.where(at{suiteNameFork, workForksMany, ours}.has)
	if one[0].Moved < 1e5 || many[0].Moved < one[0].Moved || one[0].PeakBytes < 5e6 {
		t.Errorf("one fork: %+v; many: %+v", one[0], many[0])
	}
	for _, f := range rep.Figures {
		if !f.Measured {
			t.Errorf("%+v", f)
		}
	}
	if _, missing := pick(forkPeers(), []string{overlay.name}); len(missing) == 0 {
		for _, tool := range []string{saveWhole, saveUpper, saveUpperTar} {
			if x := rep.Samples.where(at{suiteNameFork, workSaveLine, tool}.has); len(x) == 0 || x[0].Added == 0 {
				t.Errorf("%s saved nothing", tool)
			}
		}
	}
	if len(rep.Failures) > 0 {
		t.Errorf("failures %v", rep.Failures)
	}
}

// testForkSample checks what was measured of one of the suite's works.
func testForkSample(t *testing.T, rep report, work string) {
	t.Helper()
	x := rep.Samples.where(at{suiteNameFork, work, ours}.has)
	if len(x) == 0 {
		t.Errorf("no %q", work)
		return
	}
	far := work == workForkFar || work == workSaveFar || work == workFarFirst
	if far != (x[0].Requests["PUT"] > 0) {
		t.Errorf("%s: requests %v", work, x[0].Requests)
	}
	if saves := strings.HasPrefix(work, "save "); saves && !far && (x[0].Added < 100 || x[0].Added > rep.Trees[0].Bytes/4) {
		t.Errorf("%s: adds %d bytes", work, x[0].Added)
	}
}

func TestInterruptedForksEnd(t *testing.T) {
	needForks(t)
	program := realSnapctl(t)
	work := inMemory(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// Two forks and their server are there then.
	stderr := writerFunc(func(p []byte) (int, error) {
		if bytes.Contains(p, []byte("round 1   "+ours)) && bytes.Contains(p, []byte(workForksOne)) {
			cancel()
		}
		return len(p), nil
	})
	err := run(ctx, []string{"-smoke", "-suite", "fork", "-work", work, "-snapctl", program, "-peers", "none"}, &bytes.Buffer{}, stderr)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	leavesNothing(t, work)
	if left, _ := os.ReadDir(work); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A fork must be the tree, and what is saved of it must have the changes.
func TestWrongForkIsNoticed(t *testing.T) {
	needForks(t)
	const fork = `cp -a "$repo/$5/tree/." "$6"`
	for name, c := range map[string]struct{ fork, diff, want string }{
		"too few":    {fork + `; rm "$6/node_modules/.bin/pkg-1"`, ``, "the fork has"},
		"not saved":  {fork, `echo "[]"`, "has 1 changes, of which 0 were saved"},
		"half saved": {fork, `echo "[{}]"`, "changes, of which 1 were saved"},
	} {
		t.Run(name, func(t *testing.T) {
			program := fake(t, "")
			script, err := os.ReadFile(program)
			if err != nil {
				t.Fatal(err)
			}
			s := strings.Replace(string(script), "list) for", `fork) `+c.fork+`; echo "{\"mode\":\"overlay\"}";;
unfork) rm -rf "$2"; mkdir "$2";;
mounts) echo "[{\"pid\":1,\"registered\":true,\"lower\":true}]";;
diff) `+c.diff+`;;
list) for`, 1)
			if err := os.WriteFile(program, []byte(s), 0o755); err != nil {
				t.Fatal(err)
			}
			rep, _, err := smoke(t, program, "-suite", "fork", "-peers", "none")
			if err == nil || len(rep.Failures) != 1 || !strings.Contains(rep.Failures[0].Error, c.want) {
				t.Errorf("error %v, failures %+v; want %q", err, rep.Failures, c.want)
			}
		})
	}
}

func TestForksThatAreCopiesAreNoFailure(t *testing.T) {
	needForks(t)
	program := fake(t, "")
	script, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	s := strings.Replace(string(script), "list) for", `fork) echo "{\"mode\":\"restore\"}";;
unfork) ;;
list) for`, 1)
	if err := os.WriteFile(program, []byte(s), 0o755); err != nil {
		t.Fatal(err)
	}
	rep, _, err := smoke(t, program, "-suite", "fork", "-peers", "none")
	if err != nil || !slices.ContainsFunc(rep.Notes, func(n string) bool { return strings.Contains(n, "snapctl doctor") }) {
		t.Errorf("error %v, notes %q", err, rep.Notes)
	}
	if len(rep.Samples) > 0 {
		t.Errorf("measured: %v", rep.Samples)
	}
}

func TestChanges(t *testing.T) {
	dir := writeTree(t, treeSpec{Files: 600, Mean: 900})
	tr, err := newTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{runner: testRunner(t)}
	lists, moved, err := b.changesIn(tr)
	if err != nil {
		t.Fatal(err)
	}
	if moved < packageFiles || moved > 10*packageFiles {
		t.Errorf("a folder of %d entries is moved", moved)
	}
	before := manifestOf(t, dir)
	for _, c := range slices.Concat(lists...) {
		said, err := c.apply(t.Context(), dir, 3)
		if err != nil {
			t.Fatal(err)
		}
		now := manifestOf(t, dir)
		differ := 0
		for path, what := range now {
			if before[path] != what {
				differ++
			}
		}
		for path := range before {
			if _, there := now[path]; !there {
				differ++
			}
		}
		// The manifest has no folders, which are changed too by a move.
		if folders := 0; c.work == workSaveMove {
			filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() && strings.Contains(path, "-moved-3") {
					folders++
				}
				return err
			})
			differ += 2 * folders
		}
		if differ != said {
			t.Errorf("%s: %d entries differ, said %d", c.work, differ, said)
		}
		before = now
	}
}

func TestForkFigures(t *testing.T) {
	var all samples
	add := func(work string, seconds float64, more sample) {
		more.Suite, more.Work, more.Tool, more.Seconds = suiteNameFork, work, ours, seconds
		all = append(all, more)
	}
	add(workStart, 0.008, sample{})
	add(workFork, 0.017, sample{})
	add(workSaveLine, 0.059, sample{Added: 151e3})
	add(workSaveFar, 0.199, sample{Requests: map[string]int{"PUT": 3, "GET": 2}})
	add(workForksOne, 1, sample{Moved: 100})
	add(workForksMany, 1, sample{Moved: 106})
	figs := figures(all, 0.030)
	for _, c := range []struct {
		name, value, beside string
		verdict             verdict
	}{
		{"fork of what is mounted, less start-up", "9.0 ms", "17.0 ms - 8.0 ms", reachedMust},
		{"save one line, less start-up", "51.0 ms", "59.0 ms - 8.0 ms", missed},
		{"save one line more, less start-up", "0.0 ms", "", unmeasured},
		{"save one line, adds", "151 kB", "", missed},
		{"save one line over S3", "199 ms", "5 requests", reachedMust},
		{"fetched for many forks : for one", "1.06", "106 B : 100 B", missed},
		{"diff of one line", "0.0 ms", "", unmeasured},
	} {
		f := figureNamed(t, figs, c.name)
		if got := f.Unit.text(f.Value); got != c.value || f.Beside != c.beside || f.Verdict != c.verdict {
			t.Errorf("%s: %s (%s), %s; want %s (%s), %s", c.name, got, f.Beside, f.Verdict, c.value, c.beside, c.verdict)
		}
	}
	if len(figs) != 7 {
		t.Errorf("limits of suites that were not run: %+v", figs)
	}
}

package main

import (
	"maps"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// workloadTest makes a workload as a smoke run does.
func workloadTest(t *testing.T, w workload) (before, after map[string]string) {
	t.Helper()
	for _, p := range w.programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip(err)
		}
	}
	b := &bench{o: &options{smoke: true, tiny: 600}, runner: testRunner(t), log: t.Output(), started: time.Now()}
	b.runner.env = append(b.runner.env, "HOME="+t.TempDir())
	dir := filepath.Join(t.TempDir(), "workload")
	trees, err := b.makeWorkload(t.Context(), w, dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, tr := range trees {
		if most := w.bytes(b.o); tr.Bytes > most || tr.Bytes < most/20 {
			t.Errorf("%s has %d bytes, where %d are said to be needed", tr.Label, tr.Bytes, most)
		}
	}
	return manifestOf(t, trees[0].Path), manifestOf(t, trees[1].Path)
}

// contents is what a manifest has without times, and of a git repository without
// its index and reflogs, which have some too.
func contents(m map[string]string) map[string]string {
	c := map[string]string{}
	for path, what := range m {
		if path == ".git/index" || strings.HasPrefix(path, ".git/logs/") {
			continue
		}
		_, c[path], _ = strings.Cut(what, " ")
	}
	return c
}

func TestWorkloads(t *testing.T) {
	for _, w := range workloads() {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			before, after := workloadTest(t, w)
			b, a := contents(before), contents(after)
			if maps.Equal(a, b) {
				t.Error("after is before")
			}
			same := 0
			for path, what := range a {
				if b[path] == what {
					same++
				}
			}
			if one := len(b) == 1; one != (same == 0) {
				t.Errorf("%d files, %d of them the same after", len(b), same)
			}
			// Figures of different machines are of one workload.
			b2, a2 := workloadTest(t, w)
			if !maps.Equal(b, contents(b2)) || !maps.Equal(a, contents(a2)) {
				t.Error("another one the second time")
			}
		})
	}
}

func TestDeepIsDeep(t *testing.T) {
	before, _ := workloadTest(t, deepWorkload)
	deepest, longest := 0, 0
	for path := range before {
		deepest, longest = max(deepest, strings.Count(path, "/")), max(longest, len(path))
	}
	if deepest < 30 || deepest > 62 || longest < 600 || longest > 3500 {
		t.Errorf("%d folders deep, paths of up to %d bytes", deepest, longest)
	}
}

func TestSmokeOfWorkloads(t *testing.T) {
	rep, tables, err := smoke(t, fake(t, `cp -a "$repo/$2/tree" "$3"`), "-suite", "workloads", "-peers", "none")
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Trees) != 2*len(workloads()) && len(rep.Notes) == 0 {
		t.Errorf("trees %+v", rep.Trees)
	}
	for _, w := range workloads() {
		if len(w.programs) > 0 {
			if _, err := exec.LookPath(w.programs[0]); err != nil {
				continue
			}
			if rep.Versions[w.programs[0]] == "" {
				t.Errorf("no version of %s", w.programs[0])
			}
		}
		for _, work := range []string{workCreate, workSecond, workRestore} {
			if !strings.Contains(tables, "workloads, "+work+", "+w.name) {
				t.Errorf("no table of %s, %s", work, w.name)
			}
		}
	}
	if len(rep.Figures) > 0 {
		t.Errorf("limits of other suites: %+v", rep.Figures)
	}
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fake writes a program that takes snapctl's arguments and keeps snapshots by
// copying; restore may be made to do wrong.
func fake(t *testing.T, restore string) string {
	t.Helper()
	script := `#!/bin/sh
set -e
repo=
while :; do case $1 in
	--repo) repo=$2; shift 2;;
	--quiet|--json) shift;;
	*) break;;
esac; done
case $repo in *:*) echo "fake keeps nothing in $repo" >&2; exit 2;; esac
case $1 in
version) echo fake 1;;
init) mkdir -p "$repo";;
create) [ "$2" != --json ] || shift
	id=$(mktemp -d "$repo/XXXXXX"); cp -a "$2" "$id/tree"; echo "{\"id\":\"$(basename $id)\"}";;
restore) ` + restore + `;;
list) for d in "$repo"/*; do [ ! -d "$d" ] || echo '{"id":"x"}'; done;;
*) echo "unknown $*" >&2; exit 2;;
esac
`
	file := filepath.Join(t.TempDir(), "fake")
	if err := os.WriteFile(file, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

// smoke runs the benchmark on a fake snapctl and gives its report.
func smoke(t *testing.T, program string, args ...string) (rep report, tables string, err error) {
	t.Helper()
	work, file := t.TempDir(), filepath.Join(t.TempDir(), "new", "out.json")
	if shm, err := os.MkdirTemp("/dev/shm", "bench-test-"); err == nil { // a disk would be waited for
		t.Cleanup(func() { os.RemoveAll(shm) })
		work = shm
	}
	var stdout, stderr bytes.Buffer
	args = append([]string{"-smoke", "-work", work, "-json", file, "-snapctl", program}, args...)
	err = run(t.Context(), args, &stdout, &stderr)
	if left, _ := os.ReadDir(work); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	b, readErr := os.ReadFile(file)
	if readErr != nil {
		t.Fatalf("%v; %v\n%s", err, readErr, &stderr)
	}
	if err := json.Unmarshal(b, &rep); err != nil {
		t.Fatal(err)
	}
	return rep, stdout.String(), err
}

func TestSmokeWithoutPeers(t *testing.T) {
	rep, tables, err := smoke(t, fake(t, `cp -a "$repo/$2/tree" "$3"`), "-suite", "local,scale", "-peers", "none")
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range vaultWorks {
		if len(rep.Samples.by(ours).where(func(s sample) bool { return s.Suite == "local" && s.Work == w })) == 0 {
			t.Errorf("no sample of %q", w)
		}
		if !strings.Contains(tables, "local, "+w) {
			t.Errorf("no table of %q", w)
		}
	}
	for name, want := range map[string]verdict{
		"create again":                          "", // whatever it is, it was measured
		"peak memory of restore":                reachedAim,
		"memory of create, most files : fewest": reachedMust,
		"whole create : tar+zstd":               unmeasured,
	} {
		f := figureNamed(t, rep.Figures, name)
		if want == "" && f.Verdict == unmeasured || want != "" && f.Verdict != want {
			t.Errorf("%s: %+v", name, f)
		}
	}
	if rep.Machine.CPU == "" && rep.Machine.Cores == 0 || rep.Machine.Memory == 0 || rep.Versions[ours] != "fake 1" {
		t.Errorf("machine %+v, versions %v", rep.Machine, rep.Versions)
	}
	if s := rep.Samples.by(ours).where(at{"local", workCreate, ours}.has)[0]; s.Added != rep.Trees[0].Bytes {
		t.Errorf("a copy of %d bytes stored %d", rep.Trees[0].Bytes, s.Added)
	}
}

func TestWrongRestoreIsNoticed(t *testing.T) {
	for name, restore := range map[string]string{
		"nothing":      `mkdir "$3"`,
		"empty file":   `cp -a "$repo/$2/tree" "$3"; f=$(find "$3" -name LICENSE | head -1); : >"$f"`,
		"missing link": `cp -a "$repo/$2/tree" "$3"; rm "$3/node_modules/.bin/pkg-1"`,
		"exit code":    `cp -a "$repo/$2/tree" "$3"; exit 3`,
	} {
		t.Run(name, func(t *testing.T) {
			rep, tables, err := smoke(t, fake(t, restore), "-suite", "local", "-peers", "none")
			if err == nil || len(rep.Failures) != 1 || !strings.Contains(tables, "FAILED in suite local: snapctl: restore") {
				t.Errorf("error %v, failures %+v", err, rep.Failures)
			}
			if f := figureNamed(t, rep.Figures, "peak memory of restore"); f.Verdict != unmeasured {
				t.Errorf("a failed restore counts: %+v", f)
			}
		})
	}
}

func TestInterruptedRunTellsWhatItMeasured(t *testing.T) {
	work := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var stdout bytes.Buffer
	// The first line about a restore comes when it is done.
	stderr := writerFunc(func(p []byte) (int, error) {
		if bytes.Contains(p, []byte(workRestore)) {
			cancel()
		}
		return len(p), nil
	})
	program := fake(t, `cp -a "$repo/$2/tree" "$3"`)
	err := run(ctx, []string{"-smoke", "-work", work, "-snapctl", program, "-peers", "none"}, &stdout, stderr)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if s := stdout.String(); !strings.Contains(s, "local, restore") || !strings.Contains(s, "stopped early") {
		t.Errorf("tables:\n%s", s)
	}
	if left, _ := os.ReadDir(work); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestFlags(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"-suite nonsense", `no suite "nonsense": there are local, s3, scale, fork, mount, workloads`},
		{"-workloads deep,nonsense", `no workload "nonsense": there are deep, insert, tiny, binaries, sqlite, git`},
		{"-forks 0", "-forks and -tiny must be at least 1"},
		{"-scale 10,x", `"x" is no number`},
		{"-runs 0", "at least 1"},
		{"-bandwidth -1", "at least 0"},
		{"a b c", "two trees"},
		{"-work /nowhere/at/all", "/nowhere/at/all"},
		{"/nowhere/tree", "/nowhere/tree"},
	} {
		err := run(t.Context(), strings.Fields(c.args), os.Stdout, &bytes.Buffer{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.args, err, c.want)
		}
	}
	if err := run(t.Context(), []string{"-h"}, os.Stdout, &bytes.Buffer{}); err != flag.ErrHelp {
		t.Errorf("-h: %v", err)
	}
}

func TestCountJSON(t *testing.T) {
	for in, want := range map[string]int{
		`[]`: 0, "[{},{}]\n": 2, "": 0, "{}\n{}\n{}\n": 3,
	} {
		if got, err := countJSON([]byte(in)); got != want || err != nil {
			t.Errorf("countJSON(%q) = %d, %v", in, got, err)
		}
	}
	if _, err := countJSON([]byte(`{} {"id"`)); err == nil {
		t.Error("no error for half an object")
	}
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/remote/remotetest"
)

// needMounts skips where the benchmark would leave out its suite too.
func needMounts(t *testing.T) {
	t.Helper()
	if err := cannotMount(); err != nil {
		t.Skip(err)
	}
}

// realSnapctl gives the program, which TestMain has built: that takes longer than a test.
func realSnapctl(t *testing.T) string {
	t.Helper()
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.program
}

// built is set by TestMain.
var built struct {
	program string
	err     error
}

func buildSnapctl(dir string) (string, error) {
	program := filepath.Join(dir, ours)
	ctx, cancel := context.WithTimeout(context.Background(), tooLong)
	defer cancel()
	out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "github.com/snapctl/snapctl/cmd/snapctl").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return program, nil
}

// leavesNothing fails for a mount, loop device or process that is left in a
// folder when the test ends.
func leavesNothing(t *testing.T, in string) {
	t.Helper()
	if mounts, err := mountsBelow(in); err != nil || len(mounts) > 0 {
		t.Errorf("still mounted: %v %v", mounts, err)
	}
	if pids := processesOf(in); len(pids) > 0 {
		t.Errorf("processes still there: %v", pids)
	}
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if image, _ := os.ReadFile(f); strings.HasPrefix(string(image), in+"/") {
			t.Errorf("%s is still %s", f, image)
		}
	}
}

func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "bench-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestSmokeOfMounts(t *testing.T) {
	needMounts(t)
	if _, err := remotetest.Tool(t.Context(), "versitygw"); errors.Is(err, remotetest.ErrNoTool) {
		t.Skip(err)
	}
	rep, tables, err := smoke(t, realSnapctl(t), "-suite", "mount", "-peers", "ext4,squashfs-zstd,squashfuse")
	if err != nil {
		t.Fatal(err)
	}
	leavesNothing(t, "/dev/shm/bench-test-")
	done := rep.Samples.by(ours)
	for _, w := range []string{workMount, workFindWarm, workTarWarm, workSomeWarm, workReadCached, workMountFar, workFromSome} {
		if !slices.ContainsFunc(done, at{suiteNameMount, w, ours}.has) || !strings.Contains(tables, "mount, "+w+", ") {
			t.Errorf("no %q", w)
		}
	}
	for _, w := range []string{workFindCold, workTarCold, workSomeCold, workReadServed} {
		if slices.ContainsFunc(rep.Samples, func(s sample) bool { return s.Work == w }) {
			t.Errorf("%q, and nothing was made cold", w)
		}
	}
	for _, x := range done {
		far := x.Work == workMountFar || x.Work == workFromSome
		if far != (x.Requests["GET"] > 0) || far != (x.Moved > 0) {
			t.Errorf("%s: requests %v, %d bytes moved", x.Work, x.Requests, x.Moved)
		}
		if x.PeakBytes < 5e6 || x.Seconds <= 0 {
			t.Errorf("%s: %d bytes of memory, %v s", x.Work, x.PeakBytes, x.Seconds)
		}
	}
	for _, name := range []string{"mount", "mount over S3", "mount, 2000 files", "mount over S3, 2000 files", "memory of the server, 2000 files"} {
		if f := figureNamed(t, rep.Figures, name); !f.Measured {
			t.Errorf("%+v", f)
		}
	}
	if len(rep.Failures) > 0 {
		t.Errorf("failures %v", rep.Failures)
	}
	if os.Geteuid() == 0 && !slices.ContainsFunc(rep.Samples, func(s sample) bool { return s.Tool == ext4.name || s.Tool == native.name }) {
		t.Error("nothing to compare with")
	}
}

func TestInterruptedMountsEnd(t *testing.T) {
	needMounts(t)
	program := realSnapctl(t)
	for _, word := range []string{workMount + " ", workTarWarm, workSomeWarm} {
		t.Run(word, func(t *testing.T) {
			work := inMemory(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stderr := writerFunc(func(p []byte) (int, error) {
				if bytes.Contains(p, []byte("round 1   "+ours)) && bytes.Contains(p, []byte(word)) {
					cancel()
				}
				return len(p), nil
			})
			err := run(ctx, []string{"-smoke", "-mount", "-work", work, "-snapctl", program, "-peers", "none"}, &bytes.Buffer{}, stderr)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
			leavesNothing(t, work)
			if left, _ := os.ReadDir(work); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// What is mounted must be the tree.
func TestWrongMountIsNoticed(t *testing.T) {
	needMounts(t)
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	for name, show := range map[string]string{
		"fails":    `exit 3`,
		"nothing":  `:`,
		"no entry": `mount -t tmpfs none "$4"`,
		"too few":  `mount -t tmpfs none "$4"; cp -a "$repo/$3/tree/." "$4"; rm "$4/node_modules/.bin/pkg-1"`,
	} {
		t.Run(name, func(t *testing.T) {
			program := fake(t, "")
			script, err := os.ReadFile(program)
			if err != nil {
				t.Fatal(err)
			}
			// The process that it names has ended, as a server does when it is unmounted.
			s := strings.Replace(string(script), "list) for", "mount) "+show+`; echo "{\"pid\":$$}";;`+"\nlist) for", 1)
			if err := os.WriteFile(program, []byte(s), 0o755); err != nil {
				t.Fatal(err)
			}
			rep, _, err := smoke(t, program, "-suite", "mount", "-peers", "none")
			if err == nil || len(rep.Failures) == 0 || rep.Failures[0].Tool != ours {
				t.Errorf("error %v, failures %+v", err, rep.Failures)
			}
			if slices.ContainsFunc(rep.Samples, func(s sample) bool { return s.Work == workTarWarm && s.Tree == rep.Trees[0].Label }) {
				t.Error("it was measured")
			}
			leavesNothing(t, "/dev/shm/bench-test-")
		})
	}
}

func TestUnmountDetachesWhatIsInUse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Skip(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unmount(dir, 100*time.Millisecond); err != nil {
		t.Error(err)
	}
	if mounts, err := mountsBelow(dir); err != nil || len(mounts) > 0 {
		t.Errorf("mounted: %v %v", mounts, err)
	}
	if err := unmount(dir, 100*time.Millisecond); err != nil {
		t.Errorf("nothing is mounted, and: %v", err)
	}
}

func TestServerThatEnds(t *testing.T) {
	r := testRunner(t)
	m, err := r.serve(sh("echo no luck >&2; exit 3"))
	if err != nil {
		t.Fatal(err)
	}
	m.root = filepath.Join(t.TempDir(), "never")
	err = (&mount{mounted: m}).wait(t.Context(), "x", time.Minute)
	if err == nil || !strings.Contains(err.Error(), "no luck") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("error %v", err)
	}
}

func TestProcessFigures(t *testing.T) {
	_, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Skip(err)
	}
	self := os.Getpid()
	for began := time.Now(); processCPU(self) <= 0 && time.Since(began) < tooLong; {
	}
	if cpu, peak := processCPU(self), processPeak(self); cpu <= 0 || peak < 1<<20 {
		t.Errorf("%v of processor time, %d bytes", cpu, peak)
	}
	if cpu, peak := processCPU(0), processPeak(0); cpu != 0 || peak != 0 {
		t.Errorf("the kernel: %v of processor time, %d bytes", cpu, peak)
	}
	if gone(self, 0) {
		t.Error("this process is gone")
	}
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !gone(cmd.Process.Pid, tooLong) { // though nobody waited for it
		t.Error("a process that has ended is not gone")
	}
	cmd.Wait()
}

func TestSomeFilesAreTheSame(t *testing.T) {
	dir := t.TempDir()
	if err := (treeSpec{Files: 200, Mean: 100}).write(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	a, err := someFiles(dir, 50)
	if err != nil || len(a) != 50 {
		t.Fatalf("%d files, %v", len(a), err)
	}
	if b, _ := someFiles(dir, 50); !slices.Equal(a, b) {
		t.Error("other files the second time")
	}
	if slices.IsSorted(a) {
		t.Error("they are in order")
	}
	for _, f := range a {
		if !exists(filepath.Join(dir, f)) {
			t.Errorf("no %s", f)
		}
	}
}

func TestBigFile(t *testing.T) {
	const size = 3<<20 + 123
	file := filepath.Join(t.TempDir(), "big")
	if err := writeBig(t.Context(), file, size); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil || len(b) != size {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if bytes.Count(b[:1<<20], b[:64]) != 1 {
		t.Error("it repeats")
	}
}

func TestMountFigures(t *testing.T) {
	var all samples
	add := func(tree, work, tool string, seconds float64, more sample) {
		more.Suite, more.Tree, more.Work, more.Tool, more.Seconds = suiteNameMount, tree, work, tool, seconds
		all = append(all, more)
	}
	const app, big, many = "app", "one file of 1.1 GB", "1000000 files"
	add(app, workMount, ours, 0.020, sample{})
	add(many, workMount, ours, 0.030, sample{})
	add(app, workMountFar, ours, 0.081, sample{Requests: map[string]int{"GET": 3}})
	add(many, workMountFar, ours, 0.2, sample{Requests: map[string]int{"GET": 3}})
	add(app, workFindCold, ours, 1, sample{})
	add(app, workFindCold, "squashfs-zstd", 2.5, sample{})
	add(app, workFindWarm, ours, 1.04, sample{})
	add(app, workFindWarm, ext4.name, 1, sample{})
	add(app, workTarWarm, ours, 2, sample{PeakBytes: 150e6})
	add(many, workTarWarm, ours, 2, sample{PeakBytes: 251e6})
	add(app, workFromNode, ours, 1.5, sample{Moved: 60, Stored: 100})
	add(app, workFromNode, onlyRead, 3, sample{Moved: 30, Stored: 100})
	add(big, workReadServed, ours, 0.5, sample{Read: 1 << 29})
	figs := figures(all, 0.030)
	for _, c := range []struct {
		name, value, beside string
		verdict             verdict
	}{
		{"mount", "20.0 ms", "", reachedMust},
		{"mount, 1000000 files", "30.0 ms", "", missed},
		{"mount over S3", "81.0 ms", "3 requests, 2 trips", reachedMust},
		{"mount over S3, 1000000 files", "200 ms", "3 requests, 3 trips", missed},
		{"find, cold : squashfs-zstd", "0.40", "1.00 s : 2.50 s", reachedMust},
		{"find, warm : ext4", "1.04", "1.04 s : 1.00 s", reachedMust},
		{"from nothing over S3 to node done", "1.50 s", "", reachedMust},
		{"of what is stored, fetched for node", "0.30", "", reachedMust},
		{"sequential read of 1 GiB, server warm", "1.00 s", "", reachedMust},
		{"memory of the server, whole tree read", "150 MB", "", reachedMust},
		{"memory of the server, 1000000 files", "251 MB", "", missed},
		{"node, cold : ext4", "0.00", "", unmeasured},
	} {
		f := figureNamed(t, figs, c.name)
		if got := f.Unit.text(f.Value); got != c.value || f.Beside != c.beside || f.Verdict != c.verdict {
			t.Errorf("%s: %s (%s), %s; want %s (%s), %s", c.name, got, f.Beside, f.Verdict, c.value, c.beside, c.verdict)
		}
	}
	if slices.ContainsFunc(figs, func(f figure) bool { return f.Name == "create again" }) {
		t.Error("limits of suites that were not run")
	}
	// A machine without ext4 compares with the tree itself.
	all = all.where(func(s sample) bool { return s.Tool != ext4.name })
	add(app, workFindWarm, native.name, 1, sample{})
	if f := figureNamed(t, figures(all, 0.030), "find, warm : native"); f.Verdict != reachedMust {
		t.Errorf("%+v", f)
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A bench is one run of the benchmark: what it runs, where, and what came of
// it.
type bench struct {
	o        *options
	log      io.Writer
	work     string // removed at the end
	runner   *runner
	ours     snapctl
	peers    []tool // those that are installed
	missing  []string
	trees    []tree
	machine  machine
	versions map[string]string
	started  time.Time

	mounts   []*mount // that are there now
	samples  samples
	commands []commandRow
	failures []failure
	notes    []string // what a reader of the tables must know
}

// A tree is a folder to make snapshots of.
type tree struct {
	Label string `json:"label"`
	Path  string `json:"path"`
	content
}

// A failure is a tool that could not do its work.
type failure struct {
	Suite string `json:"suite"`
	Tool  string `json:"tool"`
	Error string `json:"error"`
}

func newBench(ctx context.Context, o *options, log io.Writer) (b *bench, err error) {
	b = &bench{o: o, log: log, started: time.Now(), versions: map[string]string{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	var size int64
	if !o.smoke || len(o.trees) > 0 {
		if size, err = b.findTrees(); err != nil {
			return b, err
		}
	}
	if slices.Contains(o.suites, suiteNameMount) {
		size += bigFile(o.smoke)
	}
	if slices.Contains(o.suites, suiteNameWorkloads) {
		for _, w := range o.chosenWorkloads() {
			if w.name != tinyWorkload.name { // which is left out where there is no room
				size = max(size, w.bytes(o))
			}
		}
	}
	if b.work, err = makeWork(o.work, size); err != nil {
		return b, err
	}
	if err := b.makeRunner(); err != nil {
		return b, err
	}
	b.peers, b.missing = installed(o.peers)
	if len(b.trees) == 0 && o.wantsTree() {
		if err := b.makeTrees(ctx); err != nil {
			return b, err
		}
	}
	program, err := b.program(ctx)
	if err != nil {
		return b, err
	}
	b.ours = snapctl{name: ours, program: program}
	if b.machine, err = thisMachine(ctx, b.runner, b.work); err != nil {
		return b, err
	}
	if busy := float64(b.machine.Cores) / 4; b.machine.Load > busy {
		b.notef("the machine was busy with other work before the run (load %.1f): times are too long, and vary", b.machine.Load)
	}
	for _, t := range b.tools() {
		b.versions[t.Name()] = version(ctx, b.runner, t.Version())
	}
	return b, nil
}

// Close removes all that the run made.
func (b *bench) Close() error {
	if b.work == "" {
		return nil
	}
	return errors.Join(b.unmountAll(), removeAll(b.work))
}

// removeAll removes a folder even if it holds folders that cannot be written.
func removeAll(dir string) error {
	if os.RemoveAll(dir) == nil {
		return nil
	}
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			os.Chmod(path, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// findTrees takes the trees that were given, or those that the workloads'
// make.sh leaves somewhere in memory or among temporary files. It gives the
// size of the largest.
func (b *bench) findTrees() (int64, error) {
	paths := b.o.trees
	if len(paths) == 0 {
		for _, pattern := range []string{"/dev/shm/app-v1", "/dev/shm/*/app-v1", filepath.Join(os.TempDir(), "app-v1"), filepath.Join(os.TempDir(), "*/app-v1")} {
			found, _ := filepath.Glob(filepath.Join(pattern, ".complete"))
			if len(found) == 0 {
				continue
			}
			v1 := filepath.Dir(found[0])
			paths = []string{v1}
			if v2 := filepath.Join(filepath.Dir(v1), "app-v2"); exists(filepath.Join(v2, ".complete")) {
				paths = append(paths, v2)
			}
			break
		}
	}
	var largest int64
	for _, p := range paths {
		abs, err := filepath.Abs(p)
		if err != nil {
			return 0, err
		}
		t, err := newTree(abs)
		if err != nil {
			return 0, err
		}
		b.trees = append(b.trees, t)
		largest = max(largest, t.Bytes+t.Entries*4096)
	}
	return largest, nil
}

func newTree(path string) (tree, error) {
	c, err := contentOf(path)
	return tree{Label: filepath.Base(path), Path: path, content: c}, err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// makeTrees generates two versions of a tree, for a machine that has none.
func (b *bench) makeTrees(ctx context.Context) error {
	spec := treeSpec{Files: 40_000, Mean: 7_000}
	if b.o.smoke {
		spec.Files = 1_500
	}
	for v := range 2 {
		spec.Version = v
		dir := filepath.Join(b.work, "trees", fmt.Sprintf("generated-v%d", v+1))
		t, err := b.generate(ctx, spec, dir)
		if err != nil {
			return err
		}
		b.trees = append(b.trees, t)
	}
	return nil
}

// settling is how long a made tree is left alone: a tool must not trust the
// times of files that changed a moment ago, and would read them again.
const settling = 3 * time.Second

// generate makes a tree, and waits until it is no longer new.
func (b *bench) generate(ctx context.Context, spec treeSpec, dir string) (tree, error) {
	b.logf("generating %d files", spec.Files)
	if err := spec.write(ctx, dir); err != nil {
		return tree{}, err
	}
	if err := b.waitUntilSettled(ctx); err != nil {
		return tree{}, err
	}
	return newTree(dir)
}

func (b *bench) waitUntilSettled(ctx context.Context) error {
	if b.o.smoke {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(settling):
		return nil
	}
}

// makeWork makes the work folder, in memory if there is room for the copies of
// a tree of that many bytes which are there at one time.
func makeWork(dir string, size int64) (string, error) {
	need := 5*size + 1<<30
	if dir == "" {
		dir = os.TempDir()
		if _, free, err := fileSystem("/dev/shm"); err == nil && free > need {
			dir = "/dev/shm"
		}
	}
	_, free, err := fileSystem(dir)
	if err != nil {
		return "", err
	}
	if free < need {
		return "", fmt.Errorf("%s has %s free, and %s may be needed: name another folder with -work", dir, bytesText(free), bytesText(need))
	}
	return os.MkdirTemp(dir, "snapctl-bench-")
}

// makeRunner gives the tools a home of their own, and nothing of the user's
// environment but where programs are.
func (b *bench) makeRunner() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	home, tmp := filepath.Join(b.work, "home"), filepath.Join(b.work, "tmp")
	if err := errors.Join(os.Mkdir(home, 0o755), os.Mkdir(tmp, 0o755)); err != nil {
		return err
	}
	b.runner = &runner{self: self, timeout: b.o.timeout, env: []string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + home,
		"XDG_CACHE_HOME=" + filepath.Join(home, "cache"),
		"XDG_CONFIG_HOME=" + filepath.Join(home, "config"),
		"XDG_DATA_HOME=" + filepath.Join(home, "data"),
		"TMPDIR=" + tmp,
		"LC_ALL=C.UTF-8",
	}}
	return nil
}

// program is the snapctl to measure, which is built into the work folder
// unless it was given.
func (b *bench) program(ctx context.Context) (string, error) {
	if b.o.snapctl != "" {
		return filepath.Abs(b.o.snapctl)
	}
	mod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	b.logf("building snapctl")
	program := filepath.Join(b.work, "bin", ours)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", program, "./cmd/snapctl")
	cmd.Dir = filepath.Dir(strings.TrimSpace(string(mod)))
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build ./cmd/snapctl: %w\n%s", err, out)
	}
	return program, nil
}

func (b *bench) logf(format string, args ...any) {
	fmt.Fprintf(b.log, "%5.0fs  %s\n", time.Since(b.started).Seconds(), fmt.Sprintf(format, args...))
}

func (b *bench) notef(format string, args ...any) {
	b.notes = append(b.notes, fmt.Sprintf(format, args...))
	b.logf(format, args...)
}

// tools are snapctl and the peers.
func (b *bench) tools() []tool { return append([]tool{b.ours}, b.peers...) }

// rounds are how often tools do some work.
type rounds struct {
	suite  string
	warmup int
	runs   int
}

// named is a tool, or something else that takes its turn.
type named interface{ Name() string }

// do has each tool do the work, in turn, so that what slows the machine for a
// while slows all of them. Each round begins with another tool, so that none
// always follows the same one. Warm-up rounds have numbers below 0, and their
// samples are not kept. A tool that fails is left out of later rounds.
func do[T named](ctx context.Context, b *bench, r rounds, tools []T, work func(t T, run int, p place) error) error {
	failed := map[string]bool{}
	for run := -r.warmup; run < r.runs; run++ {
		for i := range tools {
			t := tools[(i+run+r.warmup)%len(tools)]
			if failed[t.Name()] {
				continue
			}
			p, err := newPlace(b.runner, filepath.Join(b.work, "place"))
			if err != nil {
				return err
			}
			err = work(t, run, p)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				failed[t.Name()] = true
				b.fail(r.suite, t.Name(), err)
			}
			if err := removeAll(p.dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// fail notes that a tool could not do its work.
func (b *bench) fail(suite, tool string, err error) {
	b.failures = append(b.failures, failure{suite, tool, err.Error()})
	b.logf("%s: %s failed: %v", suite, tool, err)
}

// keep keeps a sample, unless it is of a warm-up round.
func (b *bench) keep(s sample, u usage) {
	s.Seconds, s.CPUSeconds, s.PeakBytes = u.Wall.Seconds(), u.CPU.Seconds(), u.Peak
	if s.Run >= 0 {
		b.samples = append(b.samples, s)
	}
}

// record keeps a sample and says so.
func (b *bench) record(s sample, u usage) {
	b.keep(s, u)
	round := "warm-up"
	if s.Run >= 0 {
		round = fmt.Sprintf("round %d", s.Run+1)
	}
	b.logf("%-5s  %-8s  %-13s  %-14s %8.3f s  %s", s.Suite, round, s.Tool, s.Work, u.Wall.Seconds(), s.Tree)
}

// settle has the work folder's file system finish what the last work left to
// it, so that the next one does not wait for that.
func (b *bench) settle() {
	if d, err := os.Open(b.work); err == nil {
		unix.Syncfs(int(d.Fd()))
		d.Close()
	}
}

// ownFailures is an error if snapctl failed at anything. Peers may.
func (b *bench) ownFailures() error {
	var errs []error
	for _, f := range b.failures {
		if strings.HasPrefix(f.Tool, ours) {
			errs = append(errs, fmt.Errorf("%s: %s: %s", f.Suite, f.Tool, f.Error))
		}
	}
	return errors.Join(errs...)
}

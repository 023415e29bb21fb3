// Command bench measures snapctl beside what a user would pick instead: tar
// and zstd, squashfs images, restic, kopia, borg, casync, cp; and, for mounts and
// forks, the kernel's file systems.
//
//	go run ./bench [flags] [TREE [TREE2]]
//
// TREE2 is a second version of TREE. README.md in this folder says how each
// figure is made. A run is a bench: suites (suite_*.go) take tools
// (peer_*.go) through the same work in turn, the programs being run and
// measured by run.go; the samples become the tables of report.go and the
// verdicts of figures.go.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "bench: interrupted")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the flags and arguments of a run.
type options struct {
	suites    []string
	peers     []string // nil for every one that is installed
	runs      int
	warmup    int
	work      string
	snapctl   string // "" to build it
	json      string
	chart     string   // folder
	from      []string // reports to make charts of, instead of measuring
	rtt       time.Duration
	bandwidth int // MB/s of each connection, 0 for no limit
	scale     []int
	list      int // snapshots to list
	large     int // files of a further tree of suite mount, 0 for none
	forks     int // how many suite fork makes of one snapshot
	workloads []string
	tiny      int // files of the workload of that name
	timeout   time.Duration
	smoke     bool
	trees     []string
}

// given are the flags that parseFlags takes apart.
type given struct {
	suites, workloads, peers, scale string
	from                            string
	mount                           bool
}

// newFlags is the table of flags.
func newFlags(o *options, g *given, stderr io.Writer) *flag.FlagSet {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintln(stderr, "usage: go run ./bench [flags] [TREE [TREE2]]\n\nTREE2 is a second version of TREE. Flags:")
		fs.PrintDefaults()
	}
	fs.StringVar(&g.suites, "suite", "", fmt.Sprintf("what to run, `names` separated by commas: %s (default: %s)",
		strings.Join(suiteNames(), ", "), strings.Join(defaultSuites, ", ")))
	fs.BoolVar(&g.mount, "mount", false, "short for -suite mount, which wants root and empties the kernel's caches")
	fs.StringVar(&g.workloads, "workloads", "", fmt.Sprintf("short for -suite workloads, with these `names` only: %s", strings.Join(workloadNames(), ", ")))
	fs.IntVar(&o.tiny, "tiny", 1_000_000, "`files` of workload tiny")
	fs.StringVar(&g.peers, "peers", "all", "`names` of the tools to run beside snapctl; all: those installed; none")
	fs.IntVar(&o.runs, "runs", 3, "measured rounds")
	fs.IntVar(&o.warmup, "warmup", 1, "rounds before those, not counted")
	fs.StringVar(&o.work, "work", "", "`folder` to work in (default: a temporary one, in memory where there is room)")
	fs.StringVar(&o.snapctl, "snapctl", "", "measure this `program` (default: built from this checkout)")
	fs.StringVar(&o.json, "json", "", "also write everything measured to this `file`")
	fs.StringVar(&o.chart, "chart", "", "also make charts, SVG files in this `folder`")
	fs.StringVar(&g.from, "from", "", "measure nothing, and make the charts of this `file` that -json wrote; more of them may follow as arguments")
	fs.DurationVar(&o.rtt, "rtt", 30*time.Millisecond, "round trip to the S3 server")
	fs.IntVar(&o.bandwidth, "bandwidth", 0, "`MB/s` of each connection to the S3 server; 0: no limit")
	fs.StringVar(&g.scale, "scale", "100000,1000000", "`numbers` of files of the trees of suite scale")
	fs.IntVar(&o.list, "list", 1000, "snapshots in the repository that is listed")
	fs.IntVar(&o.large, "large", 0, "suite mount: also mount a tree of that many small `files`, such as 1000000; takes minutes")
	fs.IntVar(&o.forks, "forks", 20, "suite fork: how many forks of one snapshot, with a program in each")
	fs.DurationVar(&o.timeout, "timeout", 15*time.Minute, "how long one program may take")
	fs.BoolVar(&o.smoke, "smoke", false, "a small tree, one round of each suite: does everything still run?")
	return fs
}

func parseFlags(args []string, stderr io.Writer) (*options, error) {
	o, g := &options{}, &given{}
	fs := newFlags(o, g, stderr)
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if err := o.chooseSuites(g); err != nil {
		return nil, err
	}
	if g.peers != "all" {
		o.peers = splitList(strings.TrimSuffix(g.peers, "none"))
		if o.peers == nil {
			o.peers = []string{}
		}
	}
	if err := o.parseScale(g.scale); err != nil {
		return nil, err
	}
	if o.smoke {
		o.makeSmall()
	}
	if o.runs < 1 || o.warmup < 0 || o.list < 1 || o.forks < 1 || o.tiny < 1 || o.rtt < 0 || o.bandwidth < 0 || o.large < 0 {
		return nil, errors.New("-runs, -list, -forks and -tiny must be at least 1; -warmup, -rtt, -bandwidth and -large at least 0")
	}
	if g.from != "" {
		if o.chart == "" {
			return nil, errors.New("-from wants -chart too, the folder for the charts")
		}
		o.from = append([]string{g.from}, fs.Args()...)
		return o, nil
	}
	o.trees = fs.Args()
	if len(o.trees) > 2 {
		return nil, errors.New("at most two trees")
	}
	return o, nil
}

// chooseSuites says which suites run, and which workloads of the suite of that name.
func (o *options) chooseSuites(g *given) error {
	o.suites = splitList(g.suites)
	if g.mount && !slices.Contains(o.suites, suiteNameMount) {
		o.suites = append(o.suites, suiteNameMount)
	}
	if o.workloads = splitList(g.workloads); len(o.workloads) == 0 {
		o.workloads = workloadNames()
	} else if !slices.Contains(o.suites, suiteNameWorkloads) {
		o.suites = append(o.suites, suiteNameWorkloads)
	}
	if len(o.suites) == 0 {
		o.suites = defaultSuites
		if o.smoke {
			o.suites = suiteNames()
		}
	}
	if err := known("workload", o.workloads, workloadNames()); err != nil {
		return err
	}
	return known("suite", o.suites, suiteNames())
}

// known refuses a name that is none of all.
func known(what string, names, all []string) error {
	for _, n := range names {
		if !slices.Contains(all, n) {
			return fmt.Errorf("no %s %q: there are %s", what, n, strings.Join(all, ", "))
		}
	}
	return nil
}

func (o *options) parseScale(numbers string) error {
	for _, s := range splitList(numbers) {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return fmt.Errorf("-scale: %q is no number of files", s)
		}
		o.scale = append(o.scale, n)
	}
	return nil
}

// makeSmall has everything run, and nothing for long.
func (o *options) makeSmall() {
	o.runs, o.warmup, o.list = 1, 0, 20
	o.scale = []int{500, 1000}
	o.large, o.forks, o.tiny = 2000, 3, 1000
	o.timeout = 5 * time.Minute
}

func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	// The program starts itself to be a small parent for what is measured, and
	// to be the uploader and downloader of squashfs images.
	if len(args) > 0 && verbs[args[0]] != nil {
		return verbs[args[0]](ctx, args[1:])
	}
	o, err := parseFlags(args, stderr)
	if err != nil {
		return err
	}
	if o.from != nil {
		rep, err := readReports(o.from)
		if err != nil {
			return err
		}
		return rep.writeCharts(o.chart, stdout)
	}
	// Not after an hour, if it cannot be.
	for _, dir := range []string{filepath.Dir(o.json), cmp.Or(o.chart, ".")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	b, err := newBench(ctx, o, stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()

	var stopped error
	for _, s := range allSuites() {
		if !slices.Contains(o.suites, s.name) {
			continue
		}
		if err := s.run(ctx, b); err != nil {
			stopped = fmt.Errorf("suite %s: %w", s.name, err)
			b.notef("stopped early: %v", stopped)
			break
		}
	}
	// What was measured until then is worth having.
	rep := b.report()
	if o.json != "" {
		if err := rep.writeJSON(o.json); err != nil {
			return errors.Join(stopped, err)
		}
	}
	if err := rep.writeTables(stdout); err != nil {
		return errors.Join(stopped, err)
	}
	if o.chart != "" && stopped == nil {
		stopped = rep.writeCharts(o.chart, stderr)
	}
	return errors.Join(stopped, b.ownFailures())
}

// verbs are what the program does when it is started by itself.
var verbs = map[string]func(context.Context, []string) error{
	"run-measured": runMeasured,
	"upload":       upload,
	"download":     download,
}

// A suite is a part of the benchmark that has a name.
type suite struct {
	name  string
	run   func(context.Context, *bench) error
	makes bool // it makes all the trees that it measures
}

// allSuites are the suites in the order in which they run.
func allSuites() []suite {
	return []suite{
		{name: "local", run: suiteLocal},
		{name: "s3", run: suiteS3},
		{name: "scale", run: suiteScale, makes: true},
		{name: suiteNameFork, run: suiteFork},
		{name: suiteNameMount, run: suiteMount},
		{name: suiteNameWorkloads, run: suiteWorkloads, makes: true},
	}
}

// defaultSuites are those that any user can run on any machine, and that do no
// harm to what else runs there.
var defaultSuites = []string{"local", "s3", "scale", suiteNameFork}

func suiteNames() []string {
	var names []string
	for _, s := range allSuites() {
		names = append(names, s.name)
	}
	return names
}

// wantsTree says whether a suite of the run wants a tree to be there.
func (o *options) wantsTree() bool {
	return slices.ContainsFunc(allSuites(), func(s suite) bool { return !s.makes && slices.Contains(o.suites, s.name) })
}

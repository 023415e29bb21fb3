// Command bench measures snapctl beside what a user would pick instead: tar
// and zstd, squashfs images, restic, kopia, borg, casync, cp; and, for mounts, the
// kernel's file systems.
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
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
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
	rtt       time.Duration
	bandwidth int // MB/s of each connection, 0 for no limit
	scale     []int
	list      int // snapshots to list
	large     int // files of a further tree of suite mount, 0 for none
	timeout   time.Duration
	smoke     bool
	trees     []string
}

func parseFlags(args []string, stderr io.Writer) (*options, error) {
	o := &options{}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintln(stderr, "usage: go run ./bench [flags] [TREE [TREE2]]\n\nTREE2 is a second version of TREE. Flags:")
		fs.PrintDefaults()
	}
	suites := fs.String("suite", "", "what to run, `names` separated by commas: local, s3, scale, mount (default: all but mount)")
	mount := fs.Bool("mount", false, "short for -suite mount, which wants root and empties the kernel's caches")
	peers := fs.String("peers", "all", "`names` of the tools to run beside snapctl; all: those installed; none")
	fs.IntVar(&o.runs, "runs", 3, "measured rounds")
	fs.IntVar(&o.warmup, "warmup", 1, "rounds before those, not counted")
	fs.StringVar(&o.work, "work", "", "`folder` to work in (default: a temporary one, in memory where there is room)")
	fs.StringVar(&o.snapctl, "snapctl", "", "measure this `program` (default: built from this checkout)")
	fs.StringVar(&o.json, "json", "", "also write everything measured to this `file`")
	fs.DurationVar(&o.rtt, "rtt", 30*time.Millisecond, "round trip to the S3 server")
	fs.IntVar(&o.bandwidth, "bandwidth", 0, "`MB/s` of each connection to the S3 server; 0: no limit")
	scale := fs.String("scale", "100000,1000000", "`numbers` of files of the trees of suite scale")
	fs.IntVar(&o.list, "list", 1000, "snapshots in the repository that is listed")
	fs.IntVar(&o.large, "large", 0, "suite mount: also mount a tree of that many small `files`, such as 1000000; takes minutes")
	fs.DurationVar(&o.timeout, "timeout", 15*time.Minute, "how long one program may take")
	fs.BoolVar(&o.smoke, "smoke", false, "a small tree, one round of each suite: does everything still run?")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	o.suites = splitList(*suites)
	if *mount && !slices.Contains(o.suites, suiteNameMount) {
		o.suites = append(o.suites, suiteNameMount)
	}
	if len(o.suites) == 0 {
		o.suites = []string{"local", "s3", "scale"}
		if o.smoke {
			o.suites = append(o.suites, suiteNameMount)
		}
	}
	for _, s := range o.suites {
		if suites := allSuites(); suites[s] == nil {
			return nil, fmt.Errorf("no suite %q: there are local, s3, scale and mount", s)
		}
	}
	if *peers != "all" {
		o.peers = splitList(strings.TrimSuffix(*peers, "none"))
		if o.peers == nil {
			o.peers = []string{}
		}
	}
	for _, s := range splitList(*scale) {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("-scale: %q is no number of files", s)
		}
		o.scale = append(o.scale, n)
	}
	if o.smoke {
		o.runs, o.warmup, o.list = 1, 0, 20
		o.scale = []int{500, 1000}
		o.large = 2000
		o.timeout = 5 * time.Minute
	}
	if o.runs < 1 || o.warmup < 0 || o.list < 1 || o.rtt < 0 || o.bandwidth < 0 || o.large < 0 {
		return nil, errors.New("-runs and -list must be at least 1; -warmup, -rtt, -bandwidth and -large at least 0")
	}
	o.trees = fs.Args()
	if len(o.trees) > 2 {
		return nil, errors.New("at most two trees")
	}
	return o, nil
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
	b, err := newBench(ctx, o, stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()

	var stopped error
	for _, name := range o.suites {
		if err := allSuites()[name](ctx, b); err != nil {
			stopped = fmt.Errorf("suite %s: %w", name, err)
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
	return errors.Join(stopped, b.ownFailures())
}

// verbs are what the program does when it is started by itself.
var verbs = map[string]func(context.Context, []string) error{
	"run-measured": runMeasured,
	"upload":       upload,
	"download":     download,
}

// allSuites are the suites by name.
func allSuites() map[string]func(context.Context, *bench) error {
	return map[string]func(context.Context, *bench) error{
		"local":        suiteLocal,
		"s3":           suiteS3,
		"scale":        suiteScale,
		suiteNameMount: suiteMount,
	}
}

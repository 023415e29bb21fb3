package main

import (
	"maps"
	"slices"
)

// A sample is one measured piece of work.
type sample struct {
	Suite string `json:"suite"`
	Tree  string `json:"tree,omitempty"`
	Work  string `json:"work"`
	Tool  string `json:"tool"`
	Run   int    `json:"run"`

	Seconds    float64        `json:"seconds"`
	CPUSeconds float64        `json:"cpuSeconds"`
	PeakBytes  int64          `json:"peakBytes"`
	Stored     int64          `json:"storedBytes,omitempty"` // by everything so far
	Added      int64          `json:"addedBytes,omitempty"`  // by this work
	Requests   map[string]int `json:"requests,omitempty"`    // to the S3 server
	ServerCPU  float64        `json:"serverCPUSeconds,omitempty"`
	Moved      int64          `json:"movedBytes,omitempty"` // from and to the S3 server
	Read       int64          `json:"readBytes,omitempty"`  // by sequential reads
}

// The kinds of work, in the order of the tables.
const (
	workStart     = "start-up"
	workOpen      = "open only"
	workCreate    = "create"
	workAgain     = "create again"
	workSecond    = "second version"
	workRestore   = "restore"
	workListFirst = "list, first time"
	workListAgain = "list, second time"

	// Of mounts.
	workMount      = "mount"
	workMountFar   = "mount over S3"
	workFindCold   = "find, cold"
	workFindWarm   = "find, warm"
	workTarCold    = "tar, cold"
	workTarWarm    = "tar, warm"
	workNodeCold   = "node, cold"
	workNodeWarm   = "node, warm"
	workSomeCold   = "some files, cold"
	workSomeWarm   = "some files, warm"
	workFromNode   = "from nothing over S3 to node done"
	workFromSome   = "from nothing over S3 to some files read"
	workReadServed = "sequential read, server warm"
	workReadCached = "sequential read, page cache warm"

	// Of forks.
	workForkFirst   = "fork, nothing mounted"
	workFork        = "fork, mounted already"
	workSaveFirst   = "save one line, with empty caches"
	workSaveLine    = "save one line"
	workSaveAgain   = "save one line more"
	workSavePackage = "save a new package"
	workSaveMove    = "save a moved folder"
	workDiff        = "diff"
	workForkFar     = "fork over S3, nothing mounted"
	workFarFirst    = "save one line over S3, with empty caches"
	workSaveFar     = "save one line over S3"
	workForksOne    = "one fork and a program in it"
	workForksMany   = "many forks and a program in each"
)

var (
	vaultWorks = []string{workStart, workOpen, workCreate, workAgain, workSecond, workRestore, workListFirst, workListAgain}
	mountWorks = []string{workMount, workFindCold, workFindWarm, workTarCold, workTarWarm, workNodeCold, workNodeWarm, workSomeCold, workSomeWarm,
		workReadServed, workReadCached, workMountFar, workFromNode, workFromSome}
	forkWorks = []string{workForkFirst, workFork, workSaveFirst, workSaveLine, workSaveAgain, workSavePackage, workSaveMove, workDiff, workForkFar, workFarFirst, workSaveFar,
		workForksOne, workForksMany}
	works = slices.Concat(vaultWorks, mountWorks, forkWorks)
)

// samples are all that was measured, in order.
type samples []sample

func (s samples) where(keep func(sample) bool) samples {
	var kept samples
	for _, x := range s {
		if keep(x) {
			kept = append(kept, x)
		}
	}
	return kept
}

// A quantity is a number that samples have.
type quantity struct {
	unit unit
	of   func(sample) float64
}

var (
	wall      = quantity{secs, func(s sample) float64 { return s.Seconds }}
	cpu       = quantity{secs, func(s sample) float64 { return s.CPUSeconds }}
	serverCPU = quantity{secs, func(s sample) float64 { return s.ServerCPU }}
	peak      = quantity{size, func(s sample) float64 { return float64(s.PeakBytes) }}
	stored    = quantity{size, func(s sample) float64 { return float64(s.Stored) }}
	added     = quantity{size, func(s sample) float64 { return float64(s.Added) }}
	moved     = quantity{size, func(s sample) float64 { return float64(s.Moved) }}
	// movedOfStored is what part of what is stored was moved.
	movedOfStored = quantity{ratio, func(s sample) float64 { return float64(s.Moved) / float64(max(1, s.Stored)) }}
	// perGiB is the time that a GiB took to be read.
	perGiB = quantity{secs, func(s sample) float64 { return s.Seconds * (1 << 30) / float64(max(1, s.Read)) }}
)

func (s samples) values(q quantity) []float64 {
	v := make([]float64, len(s))
	for i, x := range s {
		v[i] = q.of(x)
	}
	return v
}

// median is the quantity's; ok is false if there are no samples.
func (s samples) median(q quantity) (m float64, ok bool) { return median(s.values(q)) }

// median is the middle value, or the mean of the two in the middle. ok is
// false if there are none.
func median(v []float64) (m float64, ok bool) {
	if len(v) == 0 {
		return 0, false
	}
	v = slices.Sorted(slices.Values(v))
	half := len(v) / 2
	if len(v)%2 == 1 {
		return v[half], true
	}
	return (v[half-1] + v[half]) / 2, true
}

// distinct lists the values of a key in the order of their first sample.
func (s samples) distinct(key func(sample) string) []string {
	var list []string
	for _, x := range s {
		if k := key(x); !slices.Contains(list, k) {
			list = append(list, k)
		}
	}
	return list
}

// A group is what one table is about.
type group struct{ suite, tree, work string }

func (g group) has(s sample) bool { return g == group{s.Suite, s.Tree, s.Work} }

// groups are the groups of the samples: suites and trees in the order in which
// they were measured, within them works in theirs.
func (s samples) groups() []group {
	var list []group
	for _, suite := range s.distinct(func(x sample) string { return x.Suite }) {
		inSuite := s.where(func(x sample) bool { return x.Suite == suite })
		for _, tree := range inSuite.distinct(func(x sample) string { return x.Tree }) {
			for _, work := range works {
				g := group{suite, tree, work}
				if slices.ContainsFunc(s, g.has) {
					list = append(list, g)
				}
			}
		}
	}
	return list
}

// requests is the median of each kind of request.
func (s samples) requests() map[string]int {
	kinds := map[string]bool{}
	for _, x := range s {
		for k := range x.Requests {
			kinds[k] = true
		}
	}
	if len(kinds) == 0 {
		return nil
	}
	m := map[string]int{}
	for k := range maps.Keys(kinds) {
		n, _ := s.median(quantity{of: func(x sample) float64 { return float64(x.Requests[k]) }})
		m[k] = int(n)
	}
	return m
}

// total adds up requests of all kinds.
func total(requests map[string]int) int {
	sum := 0
	for _, n := range requests {
		sum += n
	}
	return sum
}

package snapshot

import (
	"time"
)

// Changes say what is to be different about snapshots. At least one must be asked for.
type Changes struct {
	Name       *string           // "" takes it away
	SetTags    map[string]string // beside those that there are, or instead
	RemoveTags []string          // that a snapshot does not have one is no error
	// Until is when they expire from now on, sooner or later than they would have; zero
	// leaves that as it is. It takes a pin away. TTL is the same, so much later than it is
	// now by the clock of the repository.
	Until time.Time
	TTL   time.Duration
	// Pin has them never expire, and be kept by Prune.
	Pin bool
	// Unpin takes that back: they still do not expire, but Prune may choose them.
	Unpin bool
}

// A Lifecycle is what a bucket does about old snapshots by itself: a rule for each
// lifetime class, which deletes the manifests of that class when the longest TTL in it
// has passed, even if nothing of ours ever runs again. Only manifests: what no snapshot
// needs any more is found by garbage collection alone.
type Lifecycle struct {
	Rules  []LifecycleRule `json:"rules"`  // of this repository, one for each class
	Others int             `json:"others"` // rules in the bucket that are not ours
}

// A LifecycleRule is the rule of one lifetime class.
type LifecycleRule struct {
	ID     string         `json:"id"`
	Prefix string         `json:"prefix"` // of the objects in the repository
	Days   int            `json:"days"`   // of age at which they are deleted
	State  LifecycleState `json:"state"`
}

// LifecycleState is how the bucket has a rule.
type LifecycleState string

// The states of a rule.
const (
	LifecycleApplied LifecycleState = "applied"
	LifecycleMissing LifecycleState = "missing"
	LifecycleAltered LifecycleState = "altered" // somebody changed it
)

// KeepAll as a number of PruneOptions keeps one of every hour, day, and so on, however
// many there are.
const KeepAll = -1

// PruneOptions say which snapshots are kept. At least one Keep must be set.
//
// The rules are those of restic's forget. They look at the snapshots of a group from
// the newest to the oldest, each rule by itself, and a snapshot stays if any rule keeps
// it. An hour, day, week (from Monday, ISO 8601), month or year is one of Location's
// calendar, and of it the newest snapshot is kept; those without a snapshot do not count.
// A rule that has not kept as many as it may keeps the oldest snapshot of the group too.
//
// What time it is the store's clock says. A snapshot from the future, of a machine whose
// clock was ahead, is kept until its time has come, and until then no rule counts it.
type PruneOptions struct {
	KeepLast    int
	KeepHourly  int
	KeepDaily   int
	KeepWeekly  int
	KeepMonthly int
	KeepYearly  int
	// KeepWithin keeps what was made less than this ago, and the newest of the group in
	// any case.
	KeepWithin time.Duration
	// KeepTags keeps those that have one of the tags.
	KeepTags []Tag

	// Names has only snapshots of these names be looked at; none is all.
	Names []string
	// GroupBy says which snapshots are counted together: those that are alike in all of
	// it. None is GroupName.
	GroupBy []GroupBy
	// Location is what day it is. The default is time.Local.
	Location *time.Location
	DryRun   bool // nothing is removed
}

// A Tag is a key and its value.
type Tag struct{ Key, Value string }

// GroupBy is what the snapshots of a group have in common.
type GroupBy string

// What there is to group by.
const (
	GroupName GroupBy = "name" // those without a name: by directory
	GroupDir  GroupBy = "dir"
	GroupHost GroupBy = "host"
	GroupAll  GroupBy = "all" // one group of everything
)

// A PruneGroup is what Prune decided of snapshots that are counted together.
type PruneGroup struct {
	// What they have in common, "" where that does not matter.
	Name string `json:"name,omitempty"`
	Dir  string `json:"dir,omitempty"`
	Host string `json:"host,omitempty"`

	Snapshots []PruneDecision `json:"snapshots"` // newest first
}

// A PruneDecision is whether a snapshot stays.
type PruneDecision struct {
	Snapshot *Snapshot `json:"snapshot"`
	Keep     bool      `json:"keep"`
	Reasons  []string  `json:"reasons,omitempty"` // to keep it, such as "daily", "pinned", or Future
}

// Future is the only reason to keep a snapshot that was made later than it is now.
const Future = "future"

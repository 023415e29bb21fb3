package engine

import (
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/engine/view"
)

// The words that results are made of; package snapshot documents them.
type (
	Snapshot         = snapshot.Snapshot
	Progress         = snapshot.Progress
	Stats            = snapshot.Stats
	Phase            = snapshot.Phase
	NewKey           = snapshot.NewKey
	KeyInfo          = snapshot.KeyInfo
	ListOptions      = snapshot.ListOptions
	History          = snapshot.History
	InitOptions      = snapshot.InitOptions
	GCOptions        = snapshot.GCOptions
	GCReport         = snapshot.GCReport
	GCPacks          = snapshot.GCPacks
	GCWaiting        = snapshot.GCWaiting
	GCRepacked       = snapshot.GCRepacked
	Changes          = snapshot.Changes
	PruneOptions     = snapshot.PruneOptions
	Tag              = snapshot.Tag
	GroupBy          = snapshot.GroupBy
	PruneGroup       = snapshot.PruneGroup
	PruneDecision    = snapshot.PruneDecision
	Lifecycle        = snapshot.Lifecycle
	LifecycleRule    = snapshot.LifecycleRule
	LifecycleState   = snapshot.LifecycleState
	VerifyOptions    = snapshot.VerifyOptions
	VerifyReport     = snapshot.VerifyReport
	Finding          = snapshot.Finding
	Affected         = snapshot.Affected
	LostRange        = snapshot.LostRange
	RepairOptions    = snapshot.RepairOptions
	RepairReport     = snapshot.RepairReport
	RepairedSnapshot = snapshot.RepairedSnapshot
	Usage            = snapshot.Usage
	ObjectUsage      = snapshot.ObjectUsage
	SnapshotUsage    = snapshot.SnapshotUsage
	CopyOptions      = snapshot.CopyOptions
	CopyResult       = snapshot.CopyResult
	Copied           = snapshot.Copied
)

// The phases of operations.
const (
	PhaseReading    = snapshot.PhaseReading
	PhaseCommitting = snapshot.PhaseCommitting
	PhasePlanning   = snapshot.PhasePlanning
	PhaseWriting    = snapshot.PhaseWriting
	PhaseVerifying  = snapshot.PhaseVerifying
	PhaseChecking   = snapshot.PhaseChecking
	PhaseData       = snapshot.PhaseData
	PhaseCopying    = snapshot.PhaseCopying
	PhaseMarking    = snapshot.PhaseMarking
	PhaseSweeping   = snapshot.PhaseSweeping
)

// What package snapshot says of options and reports.
const (
	DefaultRepack = snapshot.DefaultRepack // of GCOptions.Repack
	KeepAll       = snapshot.KeepAll       // of PruneOptions

	GroupName = snapshot.GroupName // of PruneOptions.GroupBy
	GroupDir  = snapshot.GroupDir
	GroupHost = snapshot.GroupHost
	GroupAll  = snapshot.GroupAll

	Future = snapshot.Future // of PruneDecision

	LifecycleApplied = snapshot.LifecycleApplied // of LifecycleRule
	LifecycleMissing = snapshot.LifecycleMissing
	LifecycleAltered = snapshot.LifecycleAltered
)

// A snapshot as a file system, and how two differ; package view documents them.
type (
	SnapshotFS  = view.FS
	FileInfo    = view.FileInfo
	FileAttr    = view.FileAttr
	Change      = view.Change
	ChangeKind  = view.ChangeKind
	DiffOptions = view.DiffOptions
)

// The kinds of changes.
const (
	Added    = view.Added
	Removed  = view.Removed
	Modified = view.Modified
)

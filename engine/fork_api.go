package engine

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
)

// A ForkMode is how a fork comes to be writable.
type ForkMode string

// Modes of forks, the best first.
const (
	// ForkOverlay is the kernel's overlayfs, for root: to change the metadata of a
	// file, or to move a directory, copies nothing.
	ForkOverlay ForkMode = "overlay"
	// ForkUserOverlay is the kernel's overlayfs, for root of a user namespace. A
	// directory of the snapshot cannot be renamed there (EXDEV), which mv makes up
	// for by copying.
	ForkUserOverlay ForkMode = "userxattr"
	// ForkFuse is the program fuse-overlayfs, for ordinary users.
	ForkFuse ForkMode = "fuse-overlayfs"
	// ForkRestore is no fork but a copy of the whole snapshot, written out: what is
	// left where nothing can be mounted.
	ForkRestore ForkMode = "restore"
)

var forkModes = []ForkMode{ForkOverlay, ForkUserOverlay, ForkFuse, ForkRestore}

// ParseForkMode parses the name of a mode.
func ParseForkMode(s string) (ForkMode, error) {
	if !slices.Contains(forkModes, ForkMode(s)) {
		return "", fmt.Errorf("%w: %q is not the mode of a fork", snapshot.ErrInvalid, s)
	}
	return ForkMode(s), nil
}

// ForkOptions are how a snapshot is forked. nil will do.
type ForkOptions struct {
	// Name is what the fork is called, beside its directory: letters, digits, dots,
	// dashes and underscores. The default is made of the directory's name.
	Name string
	// Upper is a folder that what is changed goes to, in folders upper and work. It
	// is made if there is none; else it must be empty, or kept of a fork of the same
	// snapshot (RemoveForkOptions.Keep), whose changes this fork then begins with.
	// The default is in the state folder.
	Upper string
	// Ephemeral keeps what is changed in memory. It outlives an unmount, but not a
	// restart of the machine.
	Ephemeral bool
	// Mode is one to insist on. By default it is the first that works here.
	Mode ForkMode
	// Force forks over a directory that holds something, which is out of sight
	// while the fork is mounted.
	Force bool

	// Prefetch, Fail and Warn are as for Mount; the first is of use to whoever mounts
	// the snapshot first. Warn is also told of what becomes a copy.
	Prefetch Prefetch
	Fail     func(op, path string, err error)
	Warn     func(error)
	// Progress is told of the copy in ForkRestore.
	Progress snapshot.Progress

	// Serve has another process mount the snapshot at a directory and serve it, with
	// MountOptions.Share and the state folder of this repository. It is called when no
	// process serves it. The default is that this one does: the fork is dead when
	// it ends, until it is resumed.
	Serve func(ctx context.Context, id manifest.ID, dir string, prefetch Prefetch) error
}

// A Fork is a writable directory that begins as a snapshot. What is changed in it
// stays until it is removed: also when it is unmounted, when the process that serves
// the snapshot dies, and when the machine is started again (unless Ephemeral);
// ResumeFork brings it back.
type Fork struct {
	Name       string            `json:"name"`
	Dir        string            `json:"dir"` // absolute and without symbolic links; where it is now, if it was moved
	Snapshot   snapshot.Snapshot `json:"snapshot"`
	Repository string            `json:"repository"` // URL
	Mode       ForkMode          `json:"mode"`
	Upper      string            `json:"upper,omitempty"` // the directory that holds what is changed; "" in ForkRestore
	Ephemeral  bool              `json:"ephemeral,omitempty"`
	Created    time.Time         `json:"created"`

	state string
}

// A ForkState says what has become of a fork.
type ForkState string

// States of forks.
const (
	// ForkMounted: it can be used. A copy (ForkRestore) always is, while it is there.
	ForkMounted ForkState = "mounted"
	// ForkSilent: the server of its snapshot does not answer within a second.
	ForkSilent ForkState = "silent"
	// ForkDead: the server of its snapshot has died. ResumeFork brings it back.
	ForkDead ForkState = "server dead"
	// ForkDetached: it was unmounted. ResumeFork mounts it.
	ForkDetached ForkState = "detached"
	// ForkLost: it was mounted when the machine, or the container, was stopped.
	// ResumeFork mounts it, unless it was ephemeral, or a copy.
	ForkLost ForkState = "lost"
	// ForkCovered: something else is mounted over it, or over a directory above it. It is in
	// use, and can neither be unmounted nor removed before that.
	ForkCovered ForkState = "covered"
	// ForkElsewhere: it is mounted in another mount namespace, such as a container's,
	// or was unmounted while programs had files of it open that still have. ResumeFork
	// waits for neither, and fails.
	ForkElsewhere ForkState = "elsewhere"
)

// A ForkStatus describes a fork.
type ForkStatus struct {
	Fork
	State ForkState `json:"state"`
	// Changed is how many bytes on disk what it changed takes, -1 if that is not
	// known, as of a copy. If there is very much, it is less, and ChangedMore set.
	Changed     int64 `json:"changed"`
	ChangedMore bool  `json:"changedMore,omitempty"`
}

// RemoveForkOptions are how RemoveFork removes. nil will do.
type RemoveForkOptions struct {
	// Keep keeps what the fork changed; RemoveFork says where.
	Keep bool
	// Force removes a fork that somebody uses.
	Force bool
	// Warn is told what could not be undone of a fork that is removed all the same.
	Warn func(error)
}

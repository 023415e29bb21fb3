package engine

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"time"

	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/remote"
)

// MountOptions are how a snapshot is mounted. nil will do.
type MountOptions struct {
	// Force mounts over a directory that holds something, which is out of sight
	// while the mount lasts.
	Force bool
	// AllowOther lets other users look at the mount, as far as the permissions
	// of its files allow. Root's mounts always do.
	AllowOther bool
	// Prefetch is what is fetched before somebody asks for it. It does not matter
	// for a local repository.
	Prefetch Prefetch
	// Share lets other processes of the same user have this one show the snapshot
	// at mount points of theirs too. It should then live until ServerEnded, and no
	// longer: who unmounts the last in another process waits for its end.
	Share bool
	// Memory is how many bytes of decoded contents are kept; the default is
	// 32 MiB, or less where this process may not use so much: see MemoryShare.
	Memory int
	// Fail is told of every request of a reader that failed for want of data:
	// what was asked, of which path ("" if that is not known). It must be safe
	// for parallel use.
	Fail func(op, path string, err error)
	// Warn is told of what does not go as it should but does not stop the mount,
	// at any time while it lasts. It must be safe for parallel use.
	Warn func(error)

	// byOthers fails with errNoServer rather than have this process serve.
	byOthers bool
}

func (o *MountOptions) warn(err error) {
	if o.Warn != nil {
		o.Warn(err)
	}
}

// defaultMemory is the default of MountOptions.Memory where memory is not scarce.
const defaultMemory = 32 << 20

// MountStats is what a mount did so far. The figures of the disk cache are those
// of its repository, with its other mounts and restores in this process.
type MountStats struct {
	Errors    int64 `json:"errors"`    // requests that failed for want of data
	Decoded   int64 `json:"decoded"`   // frames
	Hits      int64 `json:"hits"`      // reads of packs that the disk cache answered
	Misses    int64 `json:"misses"`    // and those that it did not
	Fetched   int64 `json:"fetched"`   // bytes that the disk cache fetched
	CacheUsed int64 `json:"cacheUsed"` // bytes of the disk cache, as far as this process knows

	// Requests is what the repository was asked by this process: see Repository.Requests.
	Requests remote.Requests `json:"requests"`

	// Packs is how many the snapshot lies in, PacksHere how many of them the
	// prefetch found or made complete in the disk cache, and Hydrated how many
	// bytes it has fetched for that.
	Packs     int64 `json:"packs"`
	PacksHere int64 `json:"packsHere"`
	Hydrated  int64 `json:"hydrated"`
}

// A MountState says what has become of a mount.
type MountState string

// States of mounts.
const (
	// MountServing: it can be used.
	MountServing MountState = "serving"
	// MountSilent: there is a server, which does not answer within a second.
	MountSilent MountState = "silent"
	// MountDead: the server is gone, and the mount point is still there.
	MountDead MountState = "dead"
	// MountCovered: something else is mounted over it, or over a directory above it.
	MountCovered MountState = "covered"
	// MountDetached: the mount point is gone, and the server still there: because
	// somebody uses what was mounted, or for another moment.
	MountDetached MountState = "detached"
	// MountElsewhere: it is mounted in another mount namespace, such as a container's.
	MountElsewhere MountState = "elsewhere"
	// MountUnknown: it is not in the registry. Who serves it is not known, and it is
	// not touched: while somebody looks at a mount it cannot be unmounted.
	MountUnknown MountState = "unknown"
	// MountLost: it was mounted when the machine, or the container, was stopped.
	MountLost MountState = "lost"
)

// A MountStatus describes a mount point.
type MountStatus struct {
	Dir        string            `json:"dir"`
	Snapshot   snapshot.Snapshot `json:"snapshot"`             // the id alone if the mount is not in the registry
	Repository string            `json:"repository,omitempty"` // URL
	Since      *time.Time        `json:"since,omitempty"`
	Pid        int               `json:"pid,omitempty"`      // of the server, as that sees itself
	Restarts   int               `json:"restarts,omitempty"` // how often it took over from one that had died
	Keeper     int               `json:"keeper,omitempty"`   // pid of the process that would have it do so again
	Unkept     bool              `json:"unkept,omitempty"`   // there is none: if the server dies the mount does
	State      MountState        `json:"state"`
	Stats      *MountStats       `json:"stats,omitempty"` // of the server, all its mount points together

	// Registered: it is in the registry of that state folder, and not merely in the
	// kernel's table of mounts.
	Registered bool `json:"registered"`
	// Lower: it is there for forks that lie over it, and goes with the last.
	Lower bool `json:"lower,omitempty"`

	// AllowOther and Prefetch are as it was mounted.
	AllowOther bool     `json:"-"`
	Prefetch   Prefetch `json:"-"`
}

// UnmountOptions are how Unmount unmounts. nil will do.
type UnmountOptions struct {
	// Detach frees the path of a mount that is in use; the mount ends when nobody
	// uses it any more.
	Detach bool
}

// ErrServerEnds: the last mount of the snapshot has ended, and its server is about to.
var ErrServerEnds = errors.New("the server is about to end")

// DefaultStateDir is where snapctl keeps what must outlive a process, if nobody
// says otherwise: snapctl under $XDG_STATE_HOME, or ~/.local/state.
func DefaultStateDir() string {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "snapctl")
	}
	home := os.Getenv("HOME")
	if u, err := user.Current(); err == nil && !filepath.IsAbs(home) { // as for a system service
		home = u.HomeDir
	}
	if filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state", "snapctl")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("snapctl-state-%d", os.Getuid()))
}

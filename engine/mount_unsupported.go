//go:build !linux

package engine

import (
	"context"

	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
)

// All that mounts and forks of this package can do on other systems than Linux is to
// say so, which is ErrNeedsLinux. Nothing is registered, so nothing is looked for.

// A Mount is a snapshot as a read-only file system at a directory. There is none here.
type Mount struct {
	Dir      string
	Snapshot snapshot.Snapshot
}

// Mount fails with ErrNeedsLinux.
func (r *Repository) Mount(context.Context, string, string, *MountOptions) (*Mount, error) {
	return nil, snapshot.ErrNeedsLinux
}

// Unmount fails with ErrNeedsLinux.
func (m *Mount) Unmount(bool) error { return snapshot.ErrNeedsLinux }

// Shutdown fails with ErrNeedsLinux.
func (m *Mount) Shutdown() ([]string, error) { return nil, snapshot.ErrNeedsLinux }

// Wait returns at once.
func (m *Mount) Wait() {}

// Ended is closed.
func (m *Mount) Ended() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// ServerEnded is closed.
func (m *Mount) ServerEnded() <-chan struct{} { return m.Ended() }

// Pid is 0.
func (m *Mount) Pid() int { return 0 }

// Stats are zero.
func (m *Mount) Stats() MountStats { return MountStats{} }

// Mounts fails with ErrNeedsLinux.
func Mounts(context.Context, string) ([]*MountStatus, error) { return nil, snapshot.ErrNeedsLinux }

// Unmount fails with ErrNeedsLinux.
func Unmount(context.Context, string, string, *UnmountOptions) error { return snapshot.ErrNeedsLinux }

// Fork fails with ErrNeedsLinux.
func (r *Repository) Fork(context.Context, string, string, *ForkOptions) (*Fork, error) {
	return nil, snapshot.ErrNeedsLinux
}

// ResumeFork fails with ErrNeedsLinux.
func (r *Repository) ResumeFork(context.Context, string, *ForkOptions) (*Fork, error) {
	return nil, snapshot.ErrNeedsLinux
}

// Unmount fails with ErrNeedsLinux.
func (f *Fork) Unmount(context.Context, bool) error { return snapshot.ErrNeedsLinux }

// Remove fails with ErrNeedsLinux.
func (f *Fork) Remove(context.Context, *RemoveForkOptions) (string, error) {
	return "", snapshot.ErrNeedsLinux
}

// RemoveFork fails with ErrNeedsLinux.
func RemoveFork(context.Context, string, string, *RemoveForkOptions) (string, error) {
	return "", snapshot.ErrNeedsLinux
}

// Forks fails with ErrNeedsLinux.
func Forks(context.Context, string) ([]*ForkStatus, error) { return nil, snapshot.ErrNeedsLinux }

// FindFork fails with ErrNeedsLinux.
func FindFork(string, string) (*Fork, error) { return nil, snapshot.ErrNeedsLinux }

// TryFork fails with ErrNeedsLinux.
func TryFork(context.Context, string, ForkMode) error { return snapshot.ErrNeedsLinux }

// servers are those of mounts, in this process: none.
type servers struct{}

// registry is that of all processes: there is none.
type registry struct{ dir string }

func newRegistry(string) (*registry, error) { return nil, nil }

// overlayOf tells whether a fork is mounted at a path, which only a test can say.
func (r *Repository) overlayOf(path string) (*overlayInfo, bool) {
	if r.forkOf != nil {
		return r.forkOf(path)
	}
	return nil, false
}

// askStat has nothing to ask.
func askStat(int) {}

// sameMount is asked of forks alone.
func sameMount(int, string) bool { return false }

// askForProfile would have whoever serves a snapshot save what was read of it.
func (r *Repository) askForProfile(context.Context, manifest.ID) {}

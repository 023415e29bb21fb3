package engine

import "github.com/snapctl/snapctl/engine/internal/local"

// ErrShared: others may write to a directory whose content is trusted.
var ErrShared = local.ErrShared

// CheckPrivate fails with ErrShared if others may write to a directory, to one of those
// names in it, or to a directory above it that is not sticky.
func CheckPrivate(dir string, names ...string) error { return local.CheckPrivate(dir, names...) }

// MemoryShare is how much of the usual memory this process may use, 0 to 1: less where
// its cgroup has little.
func MemoryShare() float64 { return local.MemoryShare() }

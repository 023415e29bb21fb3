//go:build !linux || portable

package engine

// removeAt removes an entry of an open directory and all below it, whatever the modes of
// directories that are ours.
func removeAt(parent int, name string) error { return removeWhole(parent, name) }

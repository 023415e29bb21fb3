//go:build !linux || portable

package fsys

// RemoveAt removes an entry of an open directory and all below it, whatever the modes of
// directories that are ours.
func RemoveAt(parent int, name string) error { return RemoveWhole(parent, name) }

//go:build !linux

package engine

// lockHolder knows nobody: only Linux says who holds a lock.
func lockHolder(int) holder { return holder{} }

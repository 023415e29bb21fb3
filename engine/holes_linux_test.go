//go:build !portable

package engine

// keepsHoles: a snapshot has the holes of files.
const keepsHoles = true

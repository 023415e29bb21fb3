//go:build linux && portable

package engine

// keepsHoles: holes are read as zeros, all of them, and written too.
const keepsHoles = false

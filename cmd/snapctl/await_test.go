//go:build linux

package main

import "time"

// await returns when something is so that another process brings about and that tells
// nobody: the state of a process, a file, a mount. It reports false if that takes tooLong.
func await(so func() bool) bool {
	for began := time.Now(); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > tooLong {
			return false
		}
	}
	return true
}

//go:build !portable

package fsys

import (
	"os"
	"strconv"
	"strings"
)

// Umask reads the process's umask without changing it, which would change it
// for every goroutine; all bits where it cannot be read.
func Umask() uint32 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0o777
	}
	_, rest, ok := strings.Cut(string(status), "\nUmask:")
	if !ok {
		return 0o777
	}
	line, _, _ := strings.Cut(rest, "\n")
	mask, err := strconv.ParseUint(strings.TrimSpace(line), 8, 32)
	if err != nil {
		return 0o777
	}
	return uint32(mask)
}

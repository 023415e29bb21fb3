package fsys

import (
	"time"

	"golang.org/x/sys/unix"
)

// Uptime is a time that goes on while the machine sleeps and is never set, as other
// clocks are.
func Uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // macOS 10.12 has it
	}
	return time.Duration(ts.Nano())
}

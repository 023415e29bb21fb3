package fsys

import (
	"time"

	"golang.org/x/sys/unix"
)

// Uptime is the time since the machine was started, which goes on while it sleeps and
// is never set, as other clocks are.
func Uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // Linux 2.6.39 has it
	}
	return time.Duration(ts.Nano())
}

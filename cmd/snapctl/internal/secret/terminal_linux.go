package secret

import "golang.org/x/sys/unix"

// How a terminal is asked for its modes, and told them.
const (
	getTermios = unix.TCGETS
	setTermios = unix.TCSETS
)

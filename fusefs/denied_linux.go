package fusefs

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// denied are the attributes that the kernel denies to a process which is not root of the
// whole machine. It lists them all the same where FUSE does, and an overlay whose owner may
// not read the value of an attribute, or not set it, copies no file up that has it.
type denied struct{ trusted, security, capability bool }

// deniedHere is what is denied to this process.
func deniedHere() denied {
	fd, err := unix.MemfdCreate("snapctl", unix.MFD_CLOEXEC)
	if err != nil {
		return denied{}
	}
	defer unix.Close(fd)
	// Removing what is not there changes nothing, and takes the same right.
	is := func(name string) bool { return errors.Is(unix.Fremovexattr(fd, name), unix.EPERM) }
	return denied{is("trusted.snapctl-probe"), is("security.snapctl-probe"), is(capability)}
}

// capability is an attribute that root of a user namespace may set, of all of security.
const capability = "security.capability"

// withholds reports whether an attribute of the snapshot does not show in a view. Everybody
// may read those of security; below an overlay they are to be set.
func (d denied) withholds(v View, name string) bool {
	switch {
	case strings.HasPrefix(name, "trusted."):
		return d.trusted
	case v == Plain || !strings.HasPrefix(name, "security."):
		return false
	case name == capability:
		return d.capability
	}
	return d.security
}

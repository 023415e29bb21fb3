package remotetest

import "syscall"

// diesWithUs: the kernel of darwin offers nothing of the kind.
func diesWithUs() *syscall.SysProcAttr { return nil }

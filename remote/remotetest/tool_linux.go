package remotetest

import "syscall"

// diesWithUs has the kernel kill a process when the thread that starts it ends.
func diesWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// lockHolder finds out who holds the lock of an open directory.
func lockHolder(fd int) (h holder) {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return h
	}
	// Such as "1: FLOCK  ADVISORY  WRITE 1234 fd:00:5678 0 EOF", see proc_locks(5).
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)), st.Ino)
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return h
	}
	for line := range strings.Lines(string(locks)) {
		if f := strings.Fields(line); len(f) > 5 && f[1] == "FLOCK" && f[5] == file {
			h.pid, _ = strconv.Atoi(f[4])
		}
	}
	if inheritedLock(os.Getpid(), file) {
		return holder{inherited: true}
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", h.pid))
	if err != nil {
		return holder{} // it has ended, and another one has inherited the lock
	}
	h.name = strings.TrimSpace(string(name))
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return h
	}
	other, err := os.Stat(fmt.Sprintf("/proc/%d/exe", h.pid))
	h.restores = err == nil && os.SameFile(self, other) && !inheritedLock(h.pid, file)
	return h
}

// inheritedLock reports whether a process had the lock of a file when it began: a program
// that took it has become this one. What this one opens, it closes on exec.
func inheritedLock(pid int, file string) bool {
	infos, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	for _, name := range infos {
		b, err := os.ReadFile(name)
		if err != nil || !strings.Contains(string(b), " "+file+" ") {
			continue
		}
		_, flags, _ := strings.Cut(string(b), "flags:")
		flags, _, _ = strings.Cut(flags, "\n")
		n, err := strconv.ParseUint(strings.TrimSpace(flags), 8, 64)
		if err == nil && n&unix.O_CLOEXEC == 0 {
			return true
		}
	}
	return false
}

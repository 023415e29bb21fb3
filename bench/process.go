package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// processStat is the fields of proc_pid_stat(5) from the third on, the state.
func processStat(pid int) []string {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil
	}
	return strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
}

// processCPU is the processor time that a process has used, 0 if there is none.
func processCPU(pid int) time.Duration {
	f := processStat(pid)
	if len(f) < 13 {
		return 0
	}
	var ticks int64
	for _, s := range f[11:13] { // utime and stime
		n, _ := strconv.ParseInt(s, 10, 64)
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100 // USER_HZ is 100 on every Linux
}

// processPeak is the most memory that a process has had resident, 0 if there
// is none.
func processPeak(pid int) int64 {
	var kib int64
	fmt.Sscanf(procField("/proc/"+strconv.Itoa(pid)+"/status", "VmHWM"), "%d kB", &kib)
	return kib << 10
}

// processWritten is how many bytes a process has written, to sockets too.
func processWritten(pid int) int64 {
	n, _ := strconv.ParseInt(procField("/proc/"+strconv.Itoa(pid)+"/io", "wchar"), 10, 64)
	return n
}

// gone waits until a process has ended. One that nobody has waited for has.
func gone(pid int, timeout time.Duration) bool {
	for deadline := time.Now().Add(timeout); ; time.Sleep(2 * time.Millisecond) {
		if f := processStat(pid); len(f) == 0 || f[0] == "Z" || f[0] == "X" {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

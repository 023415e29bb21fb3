package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// A machine is what the figures were measured on.
type machine struct {
	CPU        string `json:"cpu"`
	Cores      int    `json:"cores"`
	Memory     int64  `json:"memoryBytes"`
	Kernel     string `json:"kernel"`
	Arch       string `json:"arch"`
	FileSystem string `json:"fileSystem"` // of the work folder
	Go         string `json:"go"`
	// Load is what else was going on when the run began: the load average of
	// the minute before.
	Load float64 `json:"load"`
	// PeakFloor is the peak memory that a program which needs none is said to
	// have: that of its parent when it is started.
	PeakFloor int64 `json:"peakFloorBytes"`
}

func thisMachine(ctx context.Context, r *runner, work string) (machine, error) {
	m := machine{
		CPU:   procField("/proc/cpuinfo", "model name"),
		Cores: runtime.NumCPU(),
		Arch:  runtime.GOARCH,
		Go:    runtime.Version(),
	}
	m.Memory = memory("MemTotal")
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		fmt.Sscan(string(load), &m.Load)
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return m, err
	}
	m.Kernel = unix.ByteSliceToString(uts.Release[:])
	fs, _, err := fileSystem(work)
	if err != nil {
		return m, err
	}
	m.FileSystem = fs
	u, err := r.run(ctx, command{Args: []string{"true"}})
	m.PeakFloor = u.Peak
	return m, err
}

// procField is the value of the first line "name : value" of a file in /proc.
func procField(file, name string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if k, v, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// memory is a line of /proc/meminfo, in bytes.
func memory(name string) int64 {
	var kib int64
	fmt.Sscanf(procField("/proc/meminfo", name), "%d kB", &kib)
	return kib << 10
}

// fileSystem is the type of the file system under a path, and the bytes free
// on it: of one in memory, no more than there is memory.
func fileSystem(path string) (kind string, free int64, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return "", 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	names := map[int64]string{
		unix.TMPFS_MAGIC:           "tmpfs",
		unix.EXT4_SUPER_MAGIC:      "ext4",
		unix.XFS_SUPER_MAGIC:       "xfs",
		unix.BTRFS_SUPER_MAGIC:     "btrfs",
		unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
	}
	kind, ok := names[int64(s.Type)]
	if !ok {
		kind = fmt.Sprintf("%#x", s.Type)
	}
	free = int64(s.Bavail) * s.Bsize
	if kind == "tmpfs" {
		free = min(free, memory("MemAvailable"))
	}
	return kind, free, nil
}

// version is the first line that a tool prints about itself.
func version(ctx context.Context, r *runner, c command) string {
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Env = r.env
	out, _ := cmd.CombinedOutput() // unsquashfs and mksquashfs exit with 1 after it
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return strings.Trim(line, "* ") // zstd has stars around it
}

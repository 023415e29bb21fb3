package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/moby/sys/mountinfo"
)

// A foreignMount is a mount in another mount namespace, seen through a process that
// is in it.
type foreignMount struct {
	*mountinfo.Info
	pid int
}

// foreignMounts gives the mounts that filter lets pass, of all mount namespaces that
// show in /proc but this process's own. A namespace is missing if no process is in it,
// or none that this user may look at, or if this process is in a container.
func foreignMounts(filter mountinfo.FilterFunc) ([]foreignMount, error) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("looking for mount namespaces: %w", err)
	}
	var all []foreignMount
	seen := map[string]bool{mountNamespace(): true}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		proc := filepath.Join("/proc", p.Name())
		namespace, err := os.Readlink(proc + "/ns/mnt")
		if err != nil || seen[namespace] {
			continue // it has ended, or is another user's
		}
		f, err := os.Open(proc + "/mountinfo")
		if err != nil {
			continue
		}
		mounts, err := mountinfo.GetMountsFromReader(f, filter)
		f.Close()
		if err != nil {
			continue // another process of the namespace may last longer
		}
		seen[namespace] = true
		for _, m := range mounts {
			all = append(all, foreignMount{m, pid})
		}
	}
	return all, nil
}

// process names the process that a mount was seen through.
func (m *foreignMount) process() string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", m.pid))
	if err != nil {
		return fmt.Sprintf("process %d", m.pid)
	}
	return fmt.Sprintf("process %d (%q)", m.pid, string(name[:max(len(name)-1, 0)]))
}

package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
)

// A seenMount is a mount of a mount namespace, seen through a process that is in it.
type seenMount struct {
	*mountinfo.Info
	pid    int
	parent string // optional fields of the mount that it is on, as in mountinfo
}

// elsewherePatience is how long somebody in another mount namespace may have a mount
// before they count: who starts a container, or a sandbox, begins with a copy of all
// mounts there are.
const elsewherePatience = 3 * time.Second

// foreignMounts gives the mounts that are wanted, of all mount namespaces that show in
// /proc but this process's own. A namespace is missing if no process is in it, or none
// that this user may look at, or if this process is in a container.
func foreignMounts(wanted func(*mountinfo.Info) bool) ([]seenMount, error) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("looking for mount namespaces: %w", err)
	}
	var all []seenMount
	seen := map[string]bool{mountNamespace(): true}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		namespace, err := os.Readlink(filepath.Join("/proc", p.Name(), "ns/mnt"))
		if err != nil || seen[namespace] {
			continue // it has ended, or is another user's
		}
		mounts, err := mountsOf(pid, wanted)
		if err != nil {
			continue // another process of the namespace may last longer
		}
		seen[namespace] = true
		all = append(all, mounts...)
	}
	return all, nil
}

// mountsOf gives the mounts that are wanted, of the namespace that a process is in.
func mountsOf(pid int, wanted func(*mountinfo.Info) bool) ([]seenMount, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	optional := map[int]string{}
	mounts, err := mountinfo.GetMountsFromReader(f, func(m *mountinfo.Info) (skip, stop bool) {
		optional[m.ID] = m.Optional
		return !wanted(m), false
	})
	all := make([]seenMount, len(mounts))
	for i, m := range mounts {
		all[i] = seenMount{m, pid, optional[m.Parent]}
	}
	return all, err
}

// goesWith reports whether the kernel unmounts a mount when another is unmounted, of
// another namespace, since what they are on propagates that.
func (m *seenMount) goesWith(other seenMount) bool {
	return slices.ContainsFunc(strings.Fields(other.parent), func(field string) bool {
		group, shared := strings.CutPrefix(field, "shared:")
		return shared && slices.ContainsFunc(strings.Fields(m.parent), func(field string) bool {
			_, of, _ := strings.Cut(field, ":")
			return of == group
		})
	})
}

// process names the process that a mount was seen through.
func (m *seenMount) process() string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", m.pid))
	if err != nil {
		return fmt.Sprintf("process %d", m.pid)
	}
	return fmt.Sprintf("process %d (%s)", m.pid, strings.TrimSpace(string(name)))
}

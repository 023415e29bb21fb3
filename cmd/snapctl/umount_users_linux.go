package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
)

// maxUsers is how many processes are named: more help nobody.
const maxUsers = 5

// usersOf names processes that have a file or directory at or below a path open,
// or run in one. It asks the kernel only for links, and never follows one: what
// is below may wait for a network.
func usersOf(path string) []string {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	var users []string
	for _, proc := range procs {
		what := useOf(proc, path)
		if what == "" {
			continue
		}
		if len(users) == maxUsers {
			return append(users, "others")
		}
		name, err := os.ReadFile(proc + "/comm")
		if err != nil {
			continue
		}
		users = append(users, fmt.Sprintf("%s (process %s, %s)", ui.Printable(strings.TrimSpace(string(name))), filepath.Base(proc), what))
	}
	return users
}

// useOf says how a process uses what is at or below a path.
func useOf(proc, path string) string {
	below := func(link string) bool {
		target, err := os.Readlink(link)
		return err == nil && (target == path || strings.HasPrefix(target, path+"/"))
	}
	switch {
	case below(proc + "/cwd"):
		return "its working directory"
	case below(proc + "/exe"):
		return "its program"
	case below(proc + "/root"):
		return "its root"
	}
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return "" // it is gone, or somebody else's
	}
	for _, fd := range fds {
		if below(filepath.Join(proc, "fd", fd.Name())) {
			return "an open file"
		}
	}
	maps, err := os.ReadFile(proc + "/maps")
	if err == nil && strings.Contains(string(maps), " "+path+"/") {
		return "a mapped file"
	}
	return ""
}

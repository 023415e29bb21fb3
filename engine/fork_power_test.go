//go:build linux

package engine

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mountedModes are the modes of forks in which something is mounted.
var mountedModes = forkModes[:3]

// tryMode skips a test of a mode that cannot be had here.
func tryMode(t testing.TB, state string, mode ForkMode) {
	t.Helper()
	if mode == ForkFuse {
		if _, err := exec.LookPath("fuse-overlayfs"); err != nil {
			t.Skip(err)
		}
	}
	must(t, TryFork(t.Context(), state, mode))
}

// eachMode does something in every mode.
func eachMode(t *testing.T, do func(t *testing.T, f *forked, mode ForkMode)) {
	for _, mode := range mountedModes {
		t.Run(string(mode), func(t *testing.T) {
			f := newForked(t)
			tryMode(t, f.state, mode)
			do(t, f, mode)
		})
	}
}

// TestForkNoPower: in no mode does a setuid program of root's make somebody root, or a
// device file open a device; neither right after the fork nor when it was resumed, and
// wherever what is changed is kept.
func TestForkNoPower(t *testing.T) {
	id, err := os.ReadFile("/usr/bin/id")
	if err != nil {
		t.Skip(err)
	}
	for _, mode := range mountedModes {
		for name, opts := range map[string]ForkOptions{"": {}, " in memory": {Ephemeral: true}, " with a folder of its own": {Upper: "upper"}} {
			t.Run(string(mode)+name, func(t *testing.T) {
				f := newForked(t)
				tryMode(t, f.state, mode)
				src := f.files("more", map[string]string{"id": string(id)})
				must(t, os.Chmod(src+"/id", os.ModeSetuid|0o755))
				must(t, unix.Mknod(src+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
				must(t, os.Chmod(src+"/null", 0o666))
				r := f.open()
				f.id = complete(t, r, src, nil).ID
				openTo(t, f.place, nobody)
				if opts.Upper != "" {
					opts.Upper = f.path(opts.Upper)
				}
				opts.Mode = mode
				one := f.fork(r, "one", &opts)
				checkNoPower(t, one.Dir)
				must(t, one.Unmount(t.Context(), false))
				one, err = r.ResumeFork(t.Context(), "one", nil)
				must(t, err)
				// What is in the upper directory now is no more than what was below.
				must(t, os.Chtimes(one.Dir+"/id", time.Time{}, time.Unix(1, 0)))
				checkNoPower(t, one.Dir)
				f.remove(one)
			})
		}
	}
}

// checkNoPower runs the program id and opens the device null in a fork, as somebody.
func checkNoPower(t *testing.T, dir string) {
	t.Helper()
	if m := infoOf(t, dir); !powerless(m) {
		t.Errorf("%s is mounted with the options %s", m.FSType, m.Options)
	}
	info, err := os.Stat(dir + "/id")
	if err != nil || info.Mode()&os.ModeSetuid == 0 {
		t.Fatalf("the program is not setuid: %v %v", info, err)
	}
	// Not by this process, which may be the one that serves it.
	cmd := exec.Command("/bin/sh", "-c", `exec "$0" -u`, dir+"/id")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: nobody}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "65534" {
		t.Errorf("a setuid program runs as %s %v", out, err)
	}
	if f, err := os.Open(dir + "/null"); !errors.Is(err, unix.EACCES) {
		f.Close()
		t.Errorf("a device can be opened: %v", err)
	}
}

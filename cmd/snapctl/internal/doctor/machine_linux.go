package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/cmd/snapctl/internal/ui"
	"github.com/snapctl/snapctl/engine"
	"github.com/snapctl/snapctl/fusefs"
	"github.com/snapctl/snapctl/remote"
)

// A Check is something that was tried.
type Check struct {
	Name  string `json:"name"`
	State string `json:"state"` // ok, warning or failed
	Text  string `json:"text"`
	Hint  string `json:"hint,omitempty"` // what to do
}

// What State may be.
const (
	OK      = "ok"
	Warning = "warning" // something goes less well, or not at all, and the rest does
	Failed  = "failed"  // nothing goes
)

// InNamespace reports whether this process was started to try a user namespace.
func InNamespace(getenv func(string) string) bool { return getenv(namespaceEnv) != "" }

// namespaceEnv says that this process is doctor's, in a user namespace.
const namespaceEnv = "SNAPCTL_DOCTOR_NAMESPACE"

// Patience bounds how long doctor waits for one answer.
const Patience = 10 * time.Second

// A Machine is what is tried.
type Machine struct {
	StateDir, CacheDir string
	Log                *slog.Logger
	// Repository tries the repository. It gives up when its context ends.
	Repository func(context.Context) Check
}

// Checks tries everything, in a place of its own, and removes what killed commands left.
func (m *Machine) Checks(ctx context.Context) []Check {
	checks := []Check{kernelCheck(), userCheck()}
	if err := os.MkdirAll(m.StateDir, 0o700); err != nil {
		m.Log.Info("state folder", "err", err) // which is said below
	}
	swept := sweepCheck(engine.Sweep(ctx, m.StateDir))
	fuse, namespace := m.fuseCheck(), m.namespaceCheck(ctx)
	checks = append(checks, fuse)
	checks = append(checks, m.forkChecks(ctx, fuse.State == OK, namespace.State == OK)...)
	checks = append(checks,
		namespace,
		programCheck(ctx, "fusermount3", fusefs.Helper(), "users other than root mount by means of it: install the package fuse3", "--version"),
		programCheck(ctx, "fuse-overlayfs", lookPath("fuse-overlayfs"), "users other than root fork by means of it: install the package fuse-overlayfs", "--version"),
		memoryCheck(),
		folderCheck("cache folder", m.CacheDir, "--cache-dir or SNAPCTL_CACHE_DIR names another"),
		folderCheck("state folder", m.StateDir, "--state-dir or SNAPCTL_STATE_DIR names another"),
		m.repositoryCheck(ctx), swept)
	checks = append(checks, movedChecks(engine.MovedForks(m.StateDir))...)
	return checks
}

// repositoryCheck is whether the repository answers in time.
func (m *Machine) repositoryCheck(ctx context.Context) Check {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	return m.Repository(ctx)
}

func kernelCheck() Check {
	c := Check{Name: "kernel", State: OK}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Check{c.Name, Warning, err.Error(), ""}
	}
	release := unix.ByteSliceToString(u.Release[:])
	c.Text = "Linux " + release
	var major, minor int
	fmt.Sscanf(release, "%d.%d", &major, &minor)
	newer := func(a, b int) bool { return major > a || major == a && minor >= b }
	switch {
	case !newer(5, 12):
		c.State, c.Hint = Warning, "5.12 or newer lets mounts of a snapshot share one page cache, and forks work"
	case !newer(6, 9):
		c.State, c.Hint = Warning, "6.9 or newer lets a mount outlive the death of its process"
	}
	return c
}

func userCheck() Check {
	c := Check{Name: "user", State: OK, Text: fmt.Sprintf("user %d", os.Geteuid())}
	var data [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	admin := unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
	switch {
	case os.Geteuid() == 0 && admin && inUserNamespace():
		c.Text = "root of a user namespace"
	case os.Geteuid() == 0 && admin:
		c.Text = "root"
	case os.Geteuid() == 0:
		c.State, c.Text = Warning, "root without CAP_SYS_ADMIN, as in most containers"
		c.Hint = "mounts need it, or fusermount3: docker run --cap-add SYS_ADMIN --device /dev/fuse"
	default:
		c.Text = fmt.Sprintf("user %d, not root", os.Geteuid())
	}
	return c
}

// inUserNamespace reports whether root is but root of a user namespace.
func inUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(b)), " ") != "0 0 4294967295"
}

// MtabHint is what to do about fusefs.ErrNoMtab.
const MtabHint = "make it, as root: ln -s /proc/self/mounts /etc/mtab"

func (m *Machine) fuseCheck() Check {
	c := Check{Name: "FUSE", State: OK, Text: "mounts work"}
	err := engine.TryMount(m.StateDir)
	if err == nil {
		return c
	}
	c.State, c.Text = Warning, err.Error()+"; mount does not work, and fork makes copies"
	switch {
	case errors.Is(err, fusefs.ErrNoHelper):
		c.Hint = "install the package fuse3"
	case errors.Is(err, fusefs.ErrNoMtab):
		c.Hint = MtabHint
	case errors.Is(err, os.ErrNotExist):
		c.Hint = "there must be a /dev/fuse: modprobe fuse, or for a container --device /dev/fuse"
	case errors.Is(unix.Access("/dev/fuse", unix.R_OK|unix.W_OK), unix.EACCES):
		c.Hint = "its user must be able to open it, as most systems let all: chmod 666 /dev/fuse"
	default:
		c.Hint = "mounting must be allowed: for a container --cap-add SYS_ADMIN --device /dev/fuse"
	}
	return c
}

// forkChecks tries modes of forks, and says which one fork would choose. fuse and
// namespace say whether mounts work, and whether they and forks do in a user namespace.
func (m *Machine) forkChecks(ctx context.Context, fuse, namespace bool) []Check {
	var checks []Check
	chosen := engine.ForkRestore
	for _, mode := range []engine.ForkMode{engine.ForkFuse, engine.ForkUserOverlay, engine.ForkOverlay} {
		c := Check{Name: "forks, " + string(mode), State: OK, Text: "works"}
		if err := engine.TryFork(ctx, m.StateDir, mode); err != nil {
			c.State, c.Text = Warning, "does not work here: "+err.Error()
		} else if fuse {
			chosen = mode
		}
		checks = append([]Check{c}, checks...)
	}
	c := Check{Name: "forks", State: OK, Text: "mode " + string(chosen)}
	if chosen == engine.ForkRestore {
		c.State, c.Text = Warning, "mode restore: each fork is a whole copy"
		c.Hint = "run as root, or install the packages fuse3 and fuse-overlayfs"
		if namespace {
			c.Hint = "they work in a user namespace: unshare --user --map-root-user --mount snapctl fork ..."
		}
	} else {
		for i := range checks {
			checks[i].State = OK // one is enough
		}
	}
	return append(checks, c)
}

// namespaceCheck tries forks in a user namespace of a process of its own.
func (m *Machine) namespaceCheck(ctx context.Context) Check {
	c := Check{Name: "user namespaces"}
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		return Check{c.Name, Warning, err.Error(), ""}
	}
	cmd := exec.CommandContext(ctx, self, "doctor", "--json", "--state-dir", m.StateDir)
	cmd.Args[0] = os.Args[0] // by which the program may go
	cmd.Env = append(os.Environ(), namespaceEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &c)
	}
	if err != nil {
		return Check{c.Name, Warning, "cannot be made: " + err.Error(), namespaceHint()}
	}
	return c
}

// namespaceHint names the setting that forbids user namespaces.
func namespaceHint() string {
	for _, s := range []struct{ path, no, hint string }{
		{"user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"},
		{"kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"},
		{"kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile that allows userns"},
	} {
		b, err := os.ReadFile("/proc/sys/" + s.path)
		if err == nil && strings.TrimSpace(string(b)) == s.no {
			return s.hint
		}
	}
	return "a container may have to be started with another seccomp profile"
}

// TryNamespace is what the process in the user namespace does.
func TryNamespace(ctx context.Context, stateDir string) Check {
	c := Check{Name: "user namespaces", State: OK, Text: "mounts and forks work in one"}
	err := engine.TryMount(stateDir)
	if err == nil {
		err = engine.TryFork(ctx, stateDir, engine.ForkUserOverlay)
	}
	if err != nil {
		c.State, c.Text = Warning, "there are, but in one: "+err.Error()
		if errors.Is(err, os.ErrPermission) {
			c.Hint = "/dev/fuse must be open to its user: chmod 666 /dev/fuse"
		}
	}
	return c
}

func lookPath(name string) string {
	path, err := exec.LookPath(name)
	if err != nil {
		return ""
	}
	return path
}

func programCheck(ctx context.Context, name, path, hint string, args ...string) Check {
	c := Check{Name: name, State: OK}
	if path == "" {
		c.Text = "not installed"
		if os.Geteuid() != 0 {
			c.State, c.Hint = Warning, hint
		}
		return c
	}
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err != nil {
		return Check{name, Warning, fmt.Sprintf("%s: %v", path, err), hint}
	}
	c.Text = path
	for line := range strings.Lines(string(out)) {
		// fuse-overlayfs tells the version of fusermount3 too, and first.
		if strings.Contains(line, "version") && strings.Contains(line, filepath.Base(path)) {
			c.Text += ", " + strings.TrimSpace(line)
			break
		}
	}
	return c
}

func memoryCheck() Check {
	c := Check{Name: "memory", State: OK}
	var fs unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		c.State, c.Text = Warning, "/dev/shm is no tmpfs"
		c.Hint = "users other than root need one for fork --ephemeral"
		return c
	}
	c.Text = fmt.Sprintf("/dev/shm has room for %s", ui.Size(int64(fs.Bavail)*fs.Bsize))
	return c
}

// folderCheck tries to write into a folder, which it makes.
func folderCheck(name, dir, hint string) Check {
	c := Check{Name: name, State: OK}
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = engine.CheckPrivate(dir)
	}
	var f *os.File
	if err == nil {
		// One name, so that a doctor that is killed leaves no more than that.
		f, err = os.OpenFile(filepath.Join(dir, ".doctor"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	}
	if err == nil {
		_, err = f.WriteString("x")
		err = errors.Join(err, f.Close())
		if rerr := os.Remove(f.Name()); !errors.Is(rerr, os.ErrNotExist) { // another doctor
			err = errors.Join(err, rerr)
		}
	}
	if err != nil {
		return Check{name, Failed, err.Error(), hint}
	}
	c.Text = dir
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err == nil {
		c.Text += fmt.Sprintf(" on %s, %s free", fileSystem(dir), ui.Size(int64(fs.Bavail)*fs.Bsize))
	}
	return c
}

// sweepCheck tells what processes that were killed had left.
func sweepCheck(swept []string, err error) Check {
	c := Check{Name: "leftovers", State: OK, Text: "none"}
	if len(swept) > 0 {
		c.Text = "removed " + strings.Join(swept, "; ")
	}
	if err != nil {
		c.State, c.Text = Warning, err.Error()
		c.Hint = "it is tried again by the next fork, unfork, umount, resume and doctor"
	}
	return c
}

// movedChecks tells of directories that stay as a fork needs them, and which are somewhere
// else by now.
func movedChecks(moved []engine.MovedFork, err error) (checks []Check) {
	for _, m := range moved {
		checks = append(checks, Check{"fork " + m.Name, Warning,
			fmt.Sprintf("its directory %s was moved to %s while it was not mounted, and nobody can write to that or remove it", m.Dir, m.Now),
			fmt.Sprintf("snapctl unfork %s undoes that; snapctl fork --resume %s does too, and makes another directory", m.Name, m.Name)})
	}
	if err != nil {
		checks = append(checks, Check{"forks' directories", Warning, err.Error(), ""})
	}
	return checks
}

// fileSystem is the type of the file system that a folder is on.
func fileSystem(dir string) string {
	path, err := filepath.EvalSymlinks(dir)
	if err == nil {
		path, err = remote.Abs(path)
	}
	mounts, merr := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil || merr != nil {
		return "an unknown file system"
	}
	best := &mountinfo.Info{FSType: "an unknown file system"}
	for _, m := range mounts {
		if len(m.Mountpoint) >= len(best.Mountpoint) {
			best = m
		}
	}
	return best.FSType
}

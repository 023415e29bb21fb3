package remotetest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/snapctl/snapctl/remote/disk"
)

// ErrNoTool is returned by Tool and StartServer when a program cannot be
// built: the module cache does not hold its source, and there is no network; or
// it would have taken too long.
var ErrNoTool = errors.New("it cannot be built")

// Prepare builds tools of tools/go.mod, such as "versitygw", for the tests of a package.
// TestMain calls it before m.Run, where the clock of -timeout begins: building one on a
// busy machine, with an empty build cache, can take longer than all tests. Of one that
// cannot be built, or not in half of -timeout (the go command ends a test binary a minute
// after that, however it spent its time), Tool then says so.
//
// Several packages are tested at once, with one build cache: the first one builds.
func Prepare(names ...string) {
	if !flag.Parsed() {
		flag.Parse()
	}
	patience := 30 * time.Minute
	if f := flag.Lookup("test.timeout"); f != nil {
		if t, ok := f.Value.(flag.Getter).Get().(time.Duration); ok && t > 0 {
			patience = t / 2
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	slow := time.AfterFunc(10*time.Second, func() {
		fmt.Fprintf(os.Stderr, "building what tests need: %s\n", strings.Join(names, ", "))
	})
	defer slow.Stop()
	for _, name := range names {
		if os.Getenv(preparedEnv(name)) != "" {
			continue // this is a process that a test has started
		}
		path, err := build(ctx, name)
		if err != nil {
			path = preparedError + err.Error()
		}
		// For the processes that tests start, too.
		os.Setenv(preparedEnv(name), path)
	}
}

// preparedEnv is the environment variable that says where a tool is that Prepare has
// built or, after preparedError, why it is not.
func preparedEnv(name string) string { return "SNAPCTL_TEST_TOOL_" + strings.ToUpper(name) }

const preparedError = "error: "

// Tool gives the path of a tool of tools/go.mod, such as "versitygw", in the
// go command's build cache. In a test it must have been prepared, see [Prepare]; else it
// is built if need be, which may take half a minute. The working directory must then lie in
// the module.
//
// Running the program itself, rather than `go tool`, makes it a child of ours
// that can be ended by its id.
func Tool(ctx context.Context, name string) (string, error) {
	prepared := os.Getenv(preparedEnv(name))
	if reason, failed := strings.CutPrefix(prepared, preparedError); failed {
		return "", fmt.Errorf("%w: %s", ErrNoTool, reason)
	}
	switch {
	case prepared != "":
		return prepared, nil
	case testing.Testing():
		return "", fmt.Errorf("%s: TestMain has to call remotetest.Prepare(%[1]q): a test builds nothing", name)
	}
	return build(ctx, name)
}

// build has the go command build a tool, unless it is in its cache, and tells where it is.
func build(ctx context.Context, name string) (string, error) {
	modfile, err := toolsMod()
	if err != nil {
		return "", err
	}
	unlock, err := lock(ctx, filepath.Dir(modfile))
	if err != nil {
		return "", fmt.Errorf("%s: %w: waiting for another process that builds: %w", name, ErrNoTool, err)
	}
	defer unlock()
	cmd := exec.CommandContext(ctx, "go", "tool", "-n", "-modfile="+modfile, name)
	cmd.WaitDelay = time.Second // compilers that it has started may hold its output
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if ctx.Err() != nil {
		err = fmt.Errorf("it took too long; what of it is done is kept, so try again, or: go tool -modfile=%s -n %s: %w", modfile, name, ctx.Err())
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w: %w\n%s", name, ErrNoTool, err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// lock waits for a lock of a directory, so that no two go commands build the same. It is
// none of the files in it: those the go command locks itself.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	for {
		err := disk.Lock(int(f.Fd()))
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err != disk.ErrLocked {
			f.Close()
			return func() {}, nil // no locks here: it is built twice then
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// toolsMod finds tools/go.mod in the working directory or above it.
func toolsMod() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		file := filepath.Join(dir, "tools", "go.mod")
		if _, err := os.Stat(file); err == nil {
			return file, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no tools/go.mod in %s or above it", wd)
		}
	}
}

// startTool starts cmd and closes dead when it has ended. The process dies
// with us even if we are killed (on Linux): the kernel sends the signal when the
// thread that started it ends, so that thread is kept until then.
func startTool(cmd *exec.Cmd, dead chan<- struct{}) error {
	cmd.SysProcAttr = diesWithUs()
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // it is killed, so it always ends with an error
			close(dead)
		}
	}()
	return <-started
}

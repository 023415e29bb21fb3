package remotetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// ErrNoTool is returned by Tool and StartServer when a program cannot be
// built: the module cache does not hold its source, and there is no network.
var ErrNoTool = errors.New("it cannot be built")

// Tool gives the path of a tool of tools/go.mod, such as "versitygw", in the
// go command's build cache. It builds it if need be, which may take half a
// minute. The working directory must lie in the module.
//
// Running the program itself, rather than `go tool`, makes it a child of ours
// that can be ended by its id.
func Tool(ctx context.Context, name string) (string, error) {
	modfile, err := toolsMod()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "tool", "-n", "-modfile="+modfile, name)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %w\n%s", name, ErrNoTool, err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
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

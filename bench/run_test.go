package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/snapctl/snapctl/remote/remotetest"
)

// The test binary stands in for the program when that starts itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && verbs[os.Args[1]] != nil {
		if err := verbs[os.Args[1]](context.Background(), os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	remotetest.Prepare("versitygw", "server")
	dir, err := os.MkdirTemp("", "snapctl-bench-test-")
	if err != nil {
		panic(err)
	}
	built.program, built.err = buildSnapctl(dir)
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func testRunner(t *testing.T) *runner {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &runner{self: self, env: []string{"PATH=" + os.Getenv("PATH")}, timeout: tooLong}
}

func sortedKeys(m map[string]string) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// tooLong is longer than anything takes here, on however slow a machine.
const tooLong = 5 * time.Minute

func sh(script string) command { return command{Args: []string{"sh", "-c", script}} }

func TestRunMeasuresAPipeline(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out")
	u, err := testRunner(t).run(t.Context(), sh("sleep 0.2; echo a; echo b"), command{Args: []string{"sort", "-r", "-o", file}})
	if err != nil {
		t.Fatal(err)
	}
	if u.Wall < 200*time.Millisecond || u.Wall > tooLong || u.Peak == 0 {
		t.Errorf("usage %+v", u)
	}
	if b, _ := os.ReadFile(file); string(b) != "b\na\n" {
		t.Errorf("the pipeline wrote %q", b)
	}
}

func TestRunCountsProcessorTime(t *testing.T) {
	u, err := testRunner(t).run(t.Context(), sh("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"))
	if err != nil || u.CPU < 10*time.Millisecond || u.CPU > 2*u.Wall {
		t.Errorf("usage %+v, %v", u, err)
	}
}

func TestMemoryIsTheProgramsAlone(t *testing.T) {
	ballast := bytes.Repeat([]byte{1}, 200<<20)
	u, err := testRunner(t).run(t.Context(), sh("true"))
	if err != nil || u.Peak > 100<<20 {
		t.Errorf("a shell took %d bytes: that is this test's memory (%v)", u.Peak, err)
	}
	if ballast[len(ballast)-1] != 1 {
		t.Fatal()
	}
}

func TestProgramsSeeNothingOfTheUser(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", "the user's")
	_, out, err := testRunner(t).output(t.Context(), command{Args: []string{"env"}, Env: []string{"MINE=1"}})
	if err != nil {
		t.Fatal(err)
	}
	if s := string(out); strings.Contains(s, "AWS") || !strings.Contains(s, "MINE=1") {
		t.Errorf("environment:\n%s", s)
	}
}

func TestRunFails(t *testing.T) {
	r := testRunner(t)
	_, err := r.run(t.Context(), sh("echo the reason >&2; exit 3"))
	if err == nil || !strings.Contains(err.Error(), "the reason") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("error %v", err)
	}
	_, err = r.run(t.Context(), sh("exit 4"), sh("cat >/dev/null"))
	if err == nil || !strings.Contains(err.Error(), "exit status 4") {
		t.Errorf("the first of a pipe failed, and the error is %v", err)
	}
	if _, err := r.run(t.Context(), command{Args: []string{"/no/such/program"}}); err == nil {
		t.Error("no error without a program")
	}
}

func TestTimeoutEndsEverything(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	r := testRunner(t)
	var pid int
	for r.timeout = 300 * time.Millisecond; pid == 0; r.timeout *= 2 { // until it is long enough for a shell to begin
		if r.timeout > tooLong {
			t.Fatal("the shell has not begun")
		}
		// A grandchild, which does not end by itself when its parent does.
		_, err := r.run(t.Context(), sh("sleep 1000 & echo $! >"+pidFile+"; wait"))
		if err == nil || !strings.Contains(err.Error(), "longer than") {
			t.Fatalf("error %v", err)
		}
		b, _ := os.ReadFile(pidFile)
		fmt.Sscan(string(b), &pid)
	}
	for began := time.Now(); time.Since(began) < tooLong; {
		if alive := syscall.Kill(pid, 0) == nil && !zombie(pid); !alive {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("a process outlived its timeout")
}

func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

func TestTail(t *testing.T) {
	w := &tail{max: 5}
	for _, s := range []string{"ab", "cdefgh", "i"} {
		if n, err := w.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	if w.String() != "efghi" {
		t.Errorf("tail %q", w)
	}
}

func TestRemoveAllRemovesWhatCannotBeWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.MkdirAll(filepath.Join(dir, "locked"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "locked", "f"), nil, 0o400); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "locked"), 0o500); err != nil {
		t.Fatal(err)
	}
	if err := removeAll(dir); err != nil || exists(dir) {
		t.Errorf("removeAll: %v", err)
	}
}

func TestPeersThatAreNotInstalled(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	found, missing := installed(nil)
	if len(found) != 0 || len(missing) != len(peers()) {
		t.Errorf("found %v, missing %v", found, missing)
	}
	if _, missing := installed([]string{"tar", "nonsense"}); !slices.Equal(missing, []string{"tar+zstd", "nonsense"}) {
		t.Errorf("missing %v", missing)
	}
	if found, missing := installed([]string{}); len(found)+len(missing) != 0 {
		t.Errorf("asked for none: %v %v", found, missing)
	}
}

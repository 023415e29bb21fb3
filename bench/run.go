package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A command is one program to run. It sees only the runner's environment and
// what Env adds, so nothing of the user's is read or changed.
type command struct {
	Args []string `json:"args"`
	Dir  string   `json:"dir,omitempty"`
	Env  []string `json:"env,omitempty"`
}

// A usage is what some work took.
type usage struct {
	Wall time.Duration `json:"wall"`
	CPU  time.Duration `json:"cpu"`  // user and system, of all its programs
	Peak int64         `json:"peak"` // bytes resident; programs that run at once are added up
}

// then is the usage of two works one after the other.
func (u usage) then(v usage) usage {
	return usage{Wall: u.Wall + v.Wall, CPU: u.CPU + v.CPU, Peak: max(u.Peak, v.Peak)}
}

// A runner runs programs and measures them.
type runner struct {
	self    string   // this program
	env     []string // all that they see
	timeout time.Duration
}

// run runs commands joined by pipes, the last one's output going nowhere.
func (r *runner) run(ctx context.Context, pipeline ...command) (usage, error) {
	u, _, err := r.start(ctx, false, pipeline)
	return u, err
}

// output runs one command and gives what it printed.
func (r *runner) output(ctx context.Context, c command) (usage, []byte, error) {
	return r.start(ctx, true, []command{c})
}

// measured is what the parent and the measuring child tell each other.
type measured struct {
	Pipeline []command `json:"pipeline,omitempty"`
	Keep     bool      `json:"keep,omitempty"` // the output goes to standard output
	Usage    usage     `json:"usage"`
	Error    string    `json:"error,omitempty"`
}

// start has a fresh copy of this program run the pipeline. Linux counts the
// memory of the process that forks into the child's ru_maxrss, so this one,
// which may have grown, must not be the parent of what is measured.
func (r *runner) start(ctx context.Context, keep bool, pipeline []command) (usage, []byte, error) {
	what := strings.Join(pipeline[0].Args, " ")
	fail := func(err error) (usage, []byte, error) { return usage{}, nil, fmt.Errorf("%s: %w", what, err) }

	pipeline = slices.Clone(pipeline)
	for i := range pipeline {
		pipeline[i].Env = slices.Concat(r.env, pipeline[i].Env)
	}
	spec, err := json.Marshal(measured{Pipeline: pipeline, Keep: keep})
	if err != nil {
		return fail(err)
	}
	answerR, answerW, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer answerR.Close()
	defer answerW.Close()

	ctx, cancel := context.WithTimeoutCause(ctx, r.timeout, fmt.Errorf("took longer than %v", r.timeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, r.self, "run-measured")
	cmd.Stdin = bytes.NewReader(spec)
	var stdout bytes.Buffer
	stderr := &tail{max: 4 << 10}
	cmd.Stdout, cmd.Stderr = &stdout, stderr
	cmd.ExtraFiles = []*os.File{answerW}
	ownGroup(cmd)
	if err := cmd.Start(); err != nil {
		return fail(err)
	}
	answerW.Close()
	answer, readErr := io.ReadAll(answerR) // ends when the child and all that it started have
	waitErr := cmd.Wait()
	if ctx.Err() != nil {
		return fail(context.Cause(ctx))
	}
	if err := errors.Join(readErr, waitErr); err != nil {
		return fail(fmt.Errorf("%w\n%s", err, stderr))
	}
	var m measured
	if err := json.Unmarshal(answer, &m); err != nil {
		return fail(fmt.Errorf("the measuring process said %q: %w", answer, err))
	}
	if m.Error != "" {
		return fail(fmt.Errorf("%s\n%s", m.Error, stderr))
	}
	return m.Usage, stdout.Bytes(), nil
}

// ownGroup makes cmd end with everything it started, when its context does or
// this program dies. Ctrl-C on the terminal does not reach it.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
}

// runMeasured is the measuring child: it runs the pipeline that it reads from
// standard input and writes a [measured] to descriptor 3.
func runMeasured(ctx context.Context, _ []string) error {
	syscall.CloseOnExec(3)
	answer := os.NewFile(3, "answer")
	var m measured
	if err := json.NewDecoder(os.Stdin).Decode(&m); err != nil {
		return err
	}
	var err error
	if m.Usage, err = measure(ctx, m.Pipeline, m.Keep); err != nil {
		m.Error = err.Error()
	}
	m.Pipeline = nil
	return json.NewEncoder(answer).Encode(m)
}

func measure(ctx context.Context, pipeline []command, keep bool) (usage, error) {
	cmds := make([]*exec.Cmd, len(pipeline))
	var pipes []*os.File
	defer func() {
		for _, p := range pipes {
			p.Close()
		}
	}()
	for i, c := range pipeline {
		cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
		cmd.Dir, cmd.Env = c.Dir, c.Env
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if i > 0 {
			r, w, err := os.Pipe()
			if err != nil {
				return usage{}, err
			}
			pipes = append(pipes, r, w)
			cmds[i-1].Stdout, cmd.Stdin = w, r
		}
		cmds[i] = cmd
	}
	if keep {
		cmds[len(cmds)-1].Stdout = os.Stdout
	}

	started := time.Now()
	for _, cmd := range cmds {
		if err := cmd.Start(); err != nil {
			return usage{}, err // the others end with this process
		}
	}
	for _, p := range pipes {
		p.Close()
	}
	pipes = nil
	var u usage
	var errs []error
	for _, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", cmd.Args[0], err))
		}
		u.CPU += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		u.Peak += cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
	}
	u.Wall = time.Since(started)
	return u, errors.Join(errs...)
}

// tail keeps the last bytes written to it.
type tail struct {
	max int
	b   []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if over := len(t.b) - t.max; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.TrimSpace(string(t.b)) }

//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/snapctl/snapctl/remote/remotetest"
)

func TestMain(m *testing.M) {
	testscript.Main(testsOf{m}, map[string]func(){
		"snapctl":    snapctlForScripts,
		"interrupt":  interrupt,
		"closedpipe": closedPipe,
	})
}

// testsOf are the tests of this package, after what they need is built that takes longer
// than they do.
type testsOf struct{ m *testing.M }

func (t testsOf) Run() int {
	remotetest.Prepare("versitygw")
	dir, err := os.MkdirTemp("", "snapctl-readme-test-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	readmeProgram.dir, readmeProgram.err = dir, buildReadmeProgram(dir)
	return t.m.Run()
}

func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(e *testscript.Env) error {
			e.Defer(func() { noMounts(t, e.WorkDir) })
			e.Setenv("HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("TZ", "UTC")
			e.Setenv("NEWLINE", "a\nb")
			e.Setenv("ESCAPE", "\x1b[2J")
			for _, key := range []string{"SNAPCTL_REPO", "SNAPCTL_CACHE_DIR", "SNAPCTL_STATE_DIR", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"} {
				e.Setenv(key, "")
			}
			return os.Mkdir(filepath.Join(e.WorkDir, "home"), 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":    exits,
			"until":    until,
			"json":     jsonIs,
			"jsonkeys": jsonKeys,
			"save":     save,
			"prefix":   prefix,
			"noise":    noise,
			"corrupt":  corrupt,
			"empty":    empty,
			"killall":  killAll,
			"s3":       s3Server,
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Geteuid() == 0, nil
			case "fuse":
				_, err := os.Stat("/dev/fuse")
				return err == nil, nil
			case "s3":
				_, err := remotetest.Tool(context.Background(), "versitygw")
				return err == nil, nil
			}
			return false, fmt.Errorf("no such condition: %s", cond)
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

// exits CODE COMMAND... runs a command that must end with this exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	checkExit(ts, args[0], ts.Exec(args[1], args[2:]...))
}

// until PATTERN COMMAND... runs a command again and again, until a line of its output
// matches: a server that has little of a busy machine is listed as silent for a while.
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until PATTERN COMMAND...")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	if !await(func() bool {
		ts.Check(ts.Exec(args[1], args[2:]...))
		return pattern.MatchString(ts.ReadFile("stdout"))
	}) {
		ts.Fatalf("%v never said %s", args[1:], args[0])
	}
}

func checkExit(ts *testscript.TestScript, want string, err error) {
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(code) != want {
		ts.Fatalf("exit code is %d, not %s", code, want)
	}
}

// json PATH PATTERN matches what the last command printed. A path such as
// problems.0 leads into it, # is a length, and . is all of it. The pattern must
// match the whole text of a string, or the JSON of anything else. ! json PATH
// says that there is no such thing.
func jsonIs(ts *testscript.TestScript, neg bool, args []string) {
	if neg && len(args) != 1 || !neg && len(args) != 2 {
		ts.Fatalf("usage: json PATH PATTERN, or ! json PATH")
	}
	got, err := jsonAt(ts.ReadFile("stdout"), args[0])
	if neg {
		if err == nil {
			ts.Fatalf("there is a %s: %s", args[0], got)
		}
		return
	}
	ts.Check(err)
	if !regexp.MustCompile(`\A(?s:` + args[1] + `)\z`).MatchString(got) {
		ts.Fatalf("%s is %s, not %s", args[0], got, args[1])
	}
}

func jsonAt(text, path string) (string, error) {
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		return "", err
	}
	for _, step := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' }) {
		switch x := v.(type) {
		case map[string]any:
			var ok bool
			if v, ok = x[step]; !ok {
				return "", fmt.Errorf("no %s in %s", step, path)
			}
		case []any:
			if step == "#" {
				v = len(x)
				continue
			}
			i, err := strconv.Atoi(step)
			if err != nil || i >= len(x) {
				return "", fmt.Errorf("no %s in %s", step, path)
			}
			v = x[i]
		default:
			return "", fmt.Errorf("no %s in %s", step, path)
		}
	}
	if s, ok := v.(string); ok {
		return s, nil
	}
	b, err := json.Marshal(v)
	return string(b), err
}

// jsonkeys KEY... says which keys the printed object has, and no others.
func jsonKeys(ts *testscript.TestScript, neg bool, want []string) {
	var object map[string]any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &object))
	var got []string
	for key := range object {
		got = append(got, key)
	}
	slices.Sort(got)
	slices.Sort(want)
	if neg || !slices.Equal(got, want) {
		ts.Fatalf("keys are %s, not %s", got, want)
	}
}

// save NAME [PATH] puts what the last command printed, or what PATH leads to in
// its JSON, into a variable.
func save(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: save NAME [PATH]")
	}
	text := strings.TrimSuffix(ts.ReadFile("stdout"), "\n")
	if len(args) == 2 {
		var err error
		text, err = jsonAt(text, args[1])
		ts.Check(err)
	}
	ts.Setenv(args[0], text)
}

// prefix STRING N puts the first N characters into PREFIX.
func prefix(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: prefix STRING N")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	ts.Setenv("PREFIX", args[0][:n])
}

// noise FILE SIZE makes a file that does not compress.
func noise(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: noise FILE SIZE")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	data := make([]byte, n)
	rand.NewChaCha8([32]byte{}).Read(data)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o600))
}

// s3 NAME... starts an S3 server, and puts into each variable the URL of a place of
// its own there. The credentials are in the environment from then on.
func s3Server(ts *testscript.TestScript, neg bool, names []string) {
	if neg || len(names) == 0 {
		ts.Fatalf("usage: s3 NAME...")
	}
	s, err := remotetest.StartServer(context.Background(), ts.MkAbs("."))
	ts.Check(err)
	ts.Defer(func() { ts.Check(s.Close()) })
	for _, name := range names {
		ts.Setenv(name, s.URL(strings.ToLower(name)))
	}
	ts.Setenv("AWS_ACCESS_KEY_ID", s.Credentials.AccessKeyID)
	ts.Setenv("AWS_SECRET_ACCESS_KEY", s.Credentials.SecretAccessKey)
}

// corrupt GLOB [OFFSET] turns over a bit at the offset, else in the middle, of
// every file that matches.
func corrupt(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: corrupt GLOB [OFFSET]")
	}
	names, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(names) == 0 {
		ts.Fatalf("nothing matches")
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		ts.Check(err)
		offset := len(data) / 2
		if len(args) == 2 {
			offset, err = strconv.Atoi(args[1])
			ts.Check(err)
		}
		data[offset] ^= 1
		ts.Check(os.Chmod(name, 0o600))
		ts.Check(os.WriteFile(name, data, 0o600))
	}
}

// empty DIR... says that there is nothing in the directories, which may be missing.
func empty(ts *testscript.TestScript, neg bool, args []string) {
	for _, dir := range args {
		entries, err := os.ReadDir(ts.MkAbs(dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			ts.Check(err)
		}
		if neg == (len(entries) == 0) {
			ts.Fatalf("%s holds %v", dir, entries)
		}
	}
}

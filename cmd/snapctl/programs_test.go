//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// The programs that scripts run: TestMain is each of them, by its name.

// snapctlForScripts is main with what a script cannot arrange from outside:
//
//	SNAPCTL_TEST_LATER=48h    this machine's clock is ahead
//	SNAPCTL_TEST_ALL_LATER=48h
//	                          the clock of the repository, a folder, is too
//	SNAPCTL_TEST_PLAIN=1      root may not read what its mode forbids, give files
//	                          away, nor make devices
//	SNAPCTL_TEST_STALL=packs/ puts and reads below this prefix never end, and
//	                          make the file SNAPCTL_TEST_STALLED; they do once
//	                          there is a file SNAPCTL_TEST_UNSTALLED
//	SNAPCTL_TEST_DEAF=1       and do not end either when they are cancelled
//	SNAPCTL_TEST_TERMINAL=1   there is a terminal to ask for passphrases
//
// New passphrases take little time to try, and completion has all the time there is.
func snapctlForScripts() {
	if os.Getenv("SNAPCTL_TEST_PLAIN") != "" && os.Geteuid() == 0 {
		becomePlain()
	}
	e := processEnv()
	e.workFactor = 4
	e.menuPatience = tooLong
	if os.Getenv("SNAPCTL_TEST_TERMINAL") == "" {
		e.terminal = nil
	}
	if s := cmp.Or(os.Getenv("SNAPCTL_TEST_LATER"), os.Getenv("SNAPCTL_TEST_ALL_LATER")); s != "" {
		later, err := time.ParseDuration(s)
		if err != nil {
			panic(err)
		}
		e.now = func() time.Time { return time.Now().Add(later) }
		e.engine.Now = e.now
		if os.Getenv("SNAPCTL_TEST_ALL_LATER") != "" {
			store, err := remote.OpenFile(os.Getenv("SNAPCTL_REPO"))
			if err != nil {
				panic(err)
			}
			e.engine.Store = laterStore{store, e.now}
		}
	}
	if prefix := os.Getenv("SNAPCTL_TEST_STALL"); prefix != "" {
		store, err := remote.Open(context.Background(), os.Getenv("SNAPCTL_REPO"), nil)
		if err != nil {
			panic(err)
		}
		e.engine.Store = remotetest.NewFaulty(store, func(op remote.Op, name string) remotetest.Fault {
			if op == remote.OpList || !strings.HasPrefix(name, prefix) {
				return remotetest.Fault{}
			}
			if _, err := os.Stat(os.Getenv("SNAPCTL_TEST_UNSTALLED")); err == nil {
				return remotetest.Fault{}
			}
			if err := os.WriteFile(os.Getenv("SNAPCTL_TEST_STALLED"), nil, 0o600); err != nil {
				panic(err)
			}
			if os.Getenv("SNAPCTL_TEST_DEAF") != "" {
				select {}
			}
			return remotetest.Fault{Delay: time.Hour}
		})
	}
	os.Exit(run(e, os.Args[1:]))
}

// laterStore is a folder with a clock of its own.
type laterStore struct {
	*remote.File
	now func() time.Time
}

func (s laterStore) Time(context.Context) (time.Time, error) { return s.now(), nil }

// becomePlain starts this program again without capabilities that most users do
// not have.
func becomePlain() {
	os.Unsetenv("SNAPCTL_TEST_PLAIN")
	runtime.LockOSThread() // capabilities are a thread's
	for _, capability := range []uintptr{unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_CHOWN, unix.CAP_MKNOD} {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0); err != nil {
			panic(err)
		}
	}
	self, err := os.Executable()
	if err == nil {
		err = syscall.Exec(self, os.Args, os.Environ())
	}
	panic(err)
}

// tooLong is longer than anything takes that a test waits for, on however slow a machine.
const tooLong = 5 * time.Minute

// interrupt FILE SIGNALS COMMAND... runs a command, waits until it makes the
// file, and sends it the signals, as in INT,INT: of several the last one again and
// again. The command must end. The exit
// code is the command's.
func interrupt() {
	marker, signals := os.Args[1], os.Args[2]
	cmd := exec.Command(os.Args[3], os.Args[4:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// What is ignored here, as SIGHUP is below nohup, the command would ignore too.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGTERM)
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()

	if !await(func() bool { _, err := os.Stat(marker); return err == nil }) {
		fail(cmd, "no "+marker)
	}
	began := time.Now()
	names := strings.Split(signals, ",")
	for i := 0; ; i++ {
		if i < len(names) || len(names) > 1 { // one that came while there was another is lost
			err := cmd.Process.Signal(unix.SignalNum("SIG" + names[min(i, len(names)-1)]))
			if err != nil && !errors.Is(err, os.ErrProcessDone) {
				fail(cmd, err.Error())
			}
		}
		select {
		case <-ended:
			os.Exit(cmd.ProcessState.ExitCode())
		case <-time.After(100 * time.Millisecond): // two of a kind at once are one
		}
		if time.Since(began) > tooLong {
			fail(cmd, "it does not end")
		}
	}
}

func fail(cmd *exec.Cmd, why string) {
	cmd.Process.Kill()
	fmt.Fprintln(os.Stderr, "interrupt:", why)
	os.Exit(99)
}

// closedPipe COMMAND... runs a command whose standard output nobody reads. The
// exit code is the command's.
func closedPipe() {
	r, w, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	r.Close()
	cmd := exec.Command(os.Args[1], os.Args[2:]...)
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		panic(err)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

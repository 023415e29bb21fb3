//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/snapctl/snapctl/remote/remotetest"
)

var long = flag.Bool("long", false, "run the long forms of the tests")

// thrash is many processes on one repository, which are killed and stopped at random.
type thrash struct {
	*testing.T
	dir string
	env []string

	mu        sync.Mutex
	committed map[string]*thrashed // by id
	killed    int
	stopped   int
	runs      map[string]int // that succeeded, by command
}

// thrashed is a snapshot that create has printed the id of.
type thrashed struct {
	id      string
	content string // what treeSum says of its directory
	removed bool   // or about to be
}

// thrashGrace is the shortest that there is, so that much is deleted meanwhile.
const thrashGrace = 10 * time.Second

func newThrash(t *testing.T, repo string, env ...string) *thrash {
	dir, err := os.MkdirTemp("/dev/shm", "snapctl-thrash-")
	if err != nil {
		t.Fatal(err)
	}
	h := &thrash{T: t, dir: dir, committed: map[string]*thrashed{}, runs: map[string]int{}}
	h.env = append(os.Environ(), "HOME="+dir, "SNAPCTL_REPO="+repo, "SNAPCTL_STATE_DIR="+dir+"/state")
	h.env = append(h.env, env...)
	t.Cleanup(func() {
		if out, err := h.command("cache-0", "umount", "--all").CombinedOutput(); err != nil {
			t.Errorf("umount --all: %v\n%s", err, out)
		}
		noMounts(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	h.run("cache-0", "init", "--gc-grace", thrashGrace.String())
	return h
}

func (h *thrash) command(cache string, args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		h.Fatal(err)
	}
	return &exec.Cmd{Path: self, Args: append([]string{"snapctl"}, args...), Dir: h.dir, Env: append(slices.Clone(h.env), "SNAPCTL_CACHE_DIR="+h.dir+"/"+cache)}
}

// run runs a command to its end, which must be a good one.
func (h *thrash) run(cache string, args ...string) string {
	h.Helper()
	var errs bytes.Buffer
	cmd := h.command(cache, args...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		h.Errorf("snapctl %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return string(out)
}

// rough runs a command that may be killed, or stopped for a while.
func (h *thrash) rough(r *rand.Rand, stop time.Duration, cache string, args ...string) (out string, ok bool) {
	cmd := h.command(cache, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		h.Error(err)
		return "", false
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	signal := func(s syscall.Signal) { _ = cmd.Process.Signal(s) }
	wait := func(d time.Duration) (ended bool, err error) {
		select {
		case err := <-done:
			return true, err
		case <-time.After(d):
			return false, nil
		}
	}
	ended, err := wait(time.Duration(r.Int64N(int64(60 * time.Millisecond))))
	killed := false
	if !ended {
		switch r.IntN(4) {
		case 0:
			killed = true
			signal(syscall.SIGKILL)
		case 1:
			signal(syscall.SIGSTOP)
			h.count(&h.stopped)
			time.Sleep(time.Duration(r.Int64N(int64(stop))))
			signal(syscall.SIGCONT)
		}
		err = <-done
	}
	if killed {
		h.count(&h.killed)
	}
	if err == nil {
		h.mu.Lock()
		h.runs[args[0]]++
		h.mu.Unlock()
		return stdout.String(), true
	}
	var exit *exec.ExitError
	if !killed && errors.As(err, &exit) && exit.ExitCode() == 6 {
		h.Errorf("snapctl %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return "", false
}

func (h *thrash) count(n *int) {
	h.mu.Lock()
	*n++
	h.mu.Unlock()
}

// treeSum is a hash of a directory's files.
func treeSum(dir string) (string, error) {
	sum := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		fmt.Fprintf(sum, "%q %x\n", strings.TrimPrefix(path, dir), sha256.Sum256(b))
		return err
	})
	return string(sum.Sum(nil)), err
}

// change writes a file of a tree anew: what is in it may be in others too, or have been.
func (h *thrash) change(r *rand.Rand, tree string) {
	if err := os.MkdirAll(tree, 0o755); err != nil {
		h.Error(err)
	}
	data := make([]byte, 30_000)
	rand.NewChaCha8([32]byte{byte(r.IntN(20))}).Read(data)
	if err := os.WriteFile(fmt.Sprintf("%s/%d", tree, r.IntN(4)), data, 0o644); err != nil {
		h.Error(err)
	}
}

// some gives a snapshot that nobody has begun to remove, and with remove does.
func (h *thrash) some(r *rand.Rand, remove bool) *thrashed {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(h.committed)) {
		if s := h.committed[id]; !s.removed && r.IntN(3) == 0 {
			s.removed = remove
			return s
		}
	}
	return nil
}

func (h *thrash) gone(s *thrashed) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return s.removed
}

// worker does one thing after the other until the context ends.
func (h *thrash) worker(ctx context.Context, i int, stop time.Duration, mounts bool) {
	r := rand.New(rand.NewPCG(uint64(i), uint64(time.Now().UnixNano())))
	cache, tree, out := fmt.Sprintf("cache-%d", i), fmt.Sprintf("%s/tree-%d", h.dir, i), fmt.Sprintf("%s/out-%d", h.dir, i)
	for ctx.Err() == nil && !h.Failed() {
		switch n := r.IntN(12); {
		case n < 5:
			h.change(r, tree)
			sum, err := treeSum(tree)
			if err != nil {
				h.Error(err)
			}
			if id, ok := h.rough(r, stop, cache, "create", "--quiet", tree); ok {
				h.mu.Lock()
				h.committed[strings.TrimSpace(id)] = &thrashed{id: strings.TrimSpace(id), content: sum}
				h.mu.Unlock()
			}
		case n < 7:
			if s := h.some(r, true); s != nil {
				h.rough(r, stop, cache, "rm", s.id)
			}
		case n < 10:
			h.rough(r, stop, cache, "gc")
		case n == 10 && mounts:
			h.mounted(r, out)
		default:
			if s := h.some(r, false); s != nil {
				h.restored(s, cache, out)
			}
		}
	}
}

// restored restores a snapshot, and compares it.
func (h *thrash) restored(s *thrashed, cache, out string) {
	defer os.RemoveAll(out)
	cmd := h.command(cache, "restore", "--quiet", s.id, out)
	msg, err := cmd.CombinedOutput()
	if h.gone(s) {
		return
	}
	sum, serr := treeSum(out)
	if err != nil || serr != nil || sum != s.content {
		h.Errorf("snapshot %s, which was committed: %v, %v\n%s", s.id, err, serr, msg)
	}
}

// mounted mounts a snapshot and reads it, also when it is removed meanwhile.
func (h *thrash) mounted(r *rand.Rand, dir string) {
	s := h.some(r, false)
	if s == nil {
		return
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		h.Error(err)
	}
	defer os.Remove(dir)
	msg, err := h.command("cache-mount", "mount", s.id, dir).CombinedOutput()
	if err != nil {
		if !h.gone(s) {
			h.Errorf("mount of snapshot %s: %v\n%s", s.id, err, msg)
		}
		return
	}
	sum, err := treeSum(dir)
	if !h.gone(s) && (err != nil || sum != s.content) {
		h.Errorf("mounted snapshot %s: %v", s.id, err)
	}
	// A program that is being started by another worker may have a file of it open still.
	await(func() bool {
		msg, err = h.command("cache-mount", "umount", dir).CombinedOutput()
		return err == nil || !bytes.Contains(msg, []byte("in use"))
	})
	if err != nil {
		h.Errorf("umount: %v\n%s", err, msg)
	}
}

// checkAll restores every snapshot that was committed and not removed.
func (h *thrash) checkAll() {
	h.Helper()
	var g sync.WaitGroup
	slots := make(chan struct{}, 4)
	for i, id := range slices.Sorted(maps.Keys(h.committed)) {
		if s := h.committed[id]; !s.removed {
			slots <- struct{}{}
			g.Go(func() {
				h.restored(s, "cache-0", fmt.Sprintf("%s/check-%d", h.dir, i))
				<-slots
			})
		}
	}
	g.Wait()
}

// age makes all objects of a folder older, as if nothing had run meanwhile.
func (h *thrash) age(repo string, by time.Duration) {
	err := filepath.WalkDir(repo, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return os.Chtimes(path, time.Time{}, info.ModTime().Add(-by))
	})
	if err != nil {
		h.Error(err)
	}
}

// round has workers at it for a while.
func (h *thrash) round(d, stop time.Duration, mounts bool) {
	ctx, cancel := context.WithTimeout(h.Context(), d)
	defer cancel()
	var g sync.WaitGroup
	for i := range 5 {
		g.Go(func() { h.worker(ctx, i, stop, mounts) })
	}
	g.Wait()
}

// end reports what there was, and has garbage collected until nothing is left to do.
func (h *thrash) end(pass func()) {
	h.checkAll()
	var report struct {
		Live, Young struct{ Packs int }
		Waiting     []any
	}
	for range 6 {
		pass()
		// One that takes longer than half of the grace ends: on a machine that was paused.
		var out []byte
		var err error
		for range 10 {
			if out, err = h.command("cache-0", "gc", "--json").Output(); err == nil {
				break
			}
		}
		if err != nil {
			h.Fatalf("gc: %v", err)
		}
		if err := json.Unmarshal(out, &report); err != nil {
			h.Fatal(err)
		}
	}
	if report.Young.Packs != 0 || len(report.Waiting) != 0 {
		h.Errorf("what nobody needs is left: %+v", report)
	}
	h.checkAll()
	h.Logf("%d snapshots, %d killed, %d stopped, succeeded %v, %d packs in the end", len(h.committed), h.killed, h.stopped, h.runs, report.Live.Packs)
	if h.killed == 0 || len(h.committed) == 0 {
		h.Error("nothing happened")
	}
}

func canMount() bool {
	_, err := os.Stat("/dev/fuse")
	return err == nil && os.Geteuid() == 0
}

// TestThrash has processes create, restore, mount, remove and collect in one
// repository, killed and stopped at random. No snapshot whose id was printed is ever
// damaged. The repository ages between rounds, in which nothing runs; with -long it
// has the time that it takes, two minutes, and processes are stopped for longer than
// it takes to delete what they count on.
func TestThrash(t *testing.T) {
	dir := t.TempDir()
	h := newThrash(t, dir+"/repo")
	pass := func() { h.age(dir+"/repo", thrashGrace+time.Second) }
	if *long {
		h.round(2*time.Minute, 2*thrashGrace, canMount())
	} else {
		// And on until something happened.
		for i := 0; i < 3 || i < 300 && (h.killed == 0 || len(h.committed) == 0); i++ {
			h.round(800*time.Millisecond, 200*time.Millisecond, canMount())
			pass()
		}
	}
	h.end(pass)
}

// TestThrashS3 is TestThrash with a real S3 server.
func TestThrashS3(t *testing.T) {
	if !*long {
		t.Skip("with -long")
	}
	s := remotetest.StartVersityGW(t)
	h := newThrash(t, "s3://"+s.Bucket+"/thrash?endpoint="+s.Endpoint,
		"AWS_ACCESS_KEY_ID="+s.Credentials.AccessKeyID, "AWS_SECRET_ACCESS_KEY="+s.Credentials.SecretAccessKey, "AWS_REGION=us-east-1")
	h.round(2*time.Minute, 2*thrashGrace, canMount())
	h.end(func() { time.Sleep(thrashGrace + time.Second) })
}

package diskcache_test

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/snapctl/snapctl/remote"
	"github.com/snapctl/snapctl/remote/diskcache"
	"github.com/snapctl/snapctl/remote/remotetest"
)

// Tests with several processes start this test binary again, as
// TestCacheProcess, with what to do in the environment.
const (
	cacheJob  = "SNAPCTL_TEST_CACHE_JOB"
	cacheDir  = "SNAPCTL_TEST_CACHE_DIR"
	cacheRepo = "SNAPCTL_TEST_CACHE_REPO"
	cacheSeed = "SNAPCTL_TEST_CACHE_SEED"
)

const (
	jobPacks = 6
	jobSize  = 3*mib + 4321
	jobLimit = 10 * mib // less than all packs
)

func jobName(i int) string    { return fmt.Sprintf("packs/%d", i) }
func jobContent(i int) []byte { return remotetest.Random(uint64(100+i), jobSize) }

// jobRepo makes the store that the processes share.
func jobRepo(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	s := remotetest.OpenFile(t, dir)
	for i := range jobPacks {
		if err := s.Put(t.Context(), jobName(i), jobContent(i)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestCacheProcess is what the other processes do.
func TestCacheProcess(t *testing.T) {
	job := os.Getenv(cacheJob)
	if job == "" {
		t.Skip("it is part of other tests")
	}
	seed, err := strconv.ParseUint(os.Getenv(cacheSeed), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	store := remotetest.OpenFile(t, os.Getenv(cacheRepo))
	switch job {
	case "read all": // once there is a line to read
		c := openCache(t, os.Getenv(cacheDir), 1<<30, nil)
		// With a round trip, so that they meet.
		s := c.Wrap(remotetest.NewFaulty(store, func(remote.Op, string) remotetest.Fault {
			return remotetest.Fault{Delay: 5 * time.Millisecond}
		}), "repo")
		contents := [jobPacks][]byte{}
		for i := range contents {
			contents[i] = jobContent(i)
		}
		fmt.Println("ready")
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		for i, data := range contents {
			for off := 0; off < jobSize; off += mib {
				read(t, s, jobName(i), data, off, min(1000, jobSize-off))
			}
		}
		c.Close()
		fmt.Println("requests", c.Stats().Requests)
	case "until killed":
		c := openCache(t, os.Getenv(cacheDir), jobLimit, &diskcache.Options{Window: 128 * kib, Piece: mib, OpenFiles: 3})
		s := c.Wrap(store, "repo")
		rnd := rand.New(rand.NewPCG(seed, 0))
		for {
			i := rnd.IntN(jobPacks)
			off := rnd.IntN(jobSize)
			n := 1 + rnd.IntN(min(jobSize-off, mib))
			switch rnd.IntN(8) {
			case 0:
				s.Invalidate(jobName(i), int64(off), int64(n))
			case 1, 2:
				err = s.Prefetch(t.Context(), jobName(i), int64(off), int64(n))
			default:
				err = s.ReadAt(t.Context(), jobName(i), int64(off), make([]byte, n))
			}
			if err != nil {
				fmt.Println("error", err)
				return
			}
			fmt.Println("done")
		}
	}
}

// process is one that does a job.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startJob(t *testing.T, job, dir, repo string, seed uint64) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(exe, "-test.run=^TestCacheProcess$")}
	p.cmd.Env = append(os.Environ(), cacheJob+"="+job, cacheDir+"="+dir, cacheRepo+"="+repo, fmt.Sprintf("%s=%d", cacheSeed, seed))
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
	return p
}

// line gives the next line of the process that begins with the prefix.
func (p *process) line(t *testing.T, prefix string) string {
	t.Helper()
	for p.out.Scan() {
		if rest, ok := strings.CutPrefix(p.out.Text(), prefix); ok {
			return strings.TrimSpace(rest)
		}
		if strings.HasPrefix(p.out.Text(), "error") || strings.Contains(p.out.Text(), "FAIL") {
			t.Error(p.out.Text())
		}
	}
	t.Fatalf("the process has ended without saying %q", prefix)
	return ""
}

// TestCacheProcessesFetchOnce: processes that read the same at the same time
// ask the store for it once.
func TestCacheProcessesFetchOnce(t *testing.T) {
	if !rangeLocks {
		t.Skip("there are no locks of ranges here")
	}
	repo := jobRepo(t)
	const want = jobPacks * 4
	sum := 0
	// Who waits for another for two seconds fetches for itself: if that one is not let run.
	for try := 0; try < 5 && sum != want; try++ {
		dir := t.TempDir()
		var all []*process
		for range 3 {
			all = append(all, startJob(t, "read all", dir, repo, 0))
		}
		for _, p := range all {
			p.line(t, "ready")
		}
		for _, p := range all {
			fmt.Fprintln(p.in)
		}
		sum = 0
		for _, p := range all {
			n, err := strconv.Atoi(p.line(t, "requests"))
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d requests", n)
			sum += n
		}
	}
	if sum != want {
		t.Errorf("%d requests, want %d", sum, want)
	}
}

// TestCacheKilled: processes that fill, evict and invalidate are killed at any
// moment. What they leave is right, block by block: nothing has to be found
// damaged for that.
func TestCacheKilled(t *testing.T) {
	repo, dir := jobRepo(t), t.TempDir()
	rounds := 10
	if testing.Short() {
		rounds = 4
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	here := int64(0)
	for range rounds {
		one := startJob(t, "until killed", dir, repo, rnd.Uint64())
		two := startJob(t, "until killed", dir, repo, rnd.Uint64())
		for range 1 + rnd.IntN(60) {
			one.line(t, "done")
		}
		if err := one.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for range 1 + rnd.IntN(10) {
			two.line(t, "done") // nothing that the other held is in its way
		}
		if err := two.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_, _ = one.cmd.Process.Wait()
		_, _ = two.cmd.Process.Wait()

		c := openCache(t, dir, 1<<30, nil)
		s := c.Wrap(remotetest.OpenFile(t, repo), "repo")
		for i := range jobPacks {
			here += jobSize - s.Missing(jobName(i), 0, jobSize)
		}
		for i := range jobPacks {
			read(t, s, jobName(i), jobContent(i), 0, jobSize)
		}
		c.Close()
		if got := c.Stats(); got.Damaged != 0 || got.Errors != 0 {
			t.Errorf("%+v", got)
		}
		// Begin anew now and then; else only evictions make room for fills.
		if rnd.IntN(2) == 0 {
			if err := os.RemoveAll(filepath.Join(dir, "repo")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if here <= 0 {
		t.Error("they had stored nothing")
	}
}

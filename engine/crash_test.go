//go:build linux

package engine

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/manifest"
)

// kill ends a process after a while, at a moment between its start and about
// when it would end by itself. It reports whether it came in time.
func kill(t testing.TB, cmd *exec.Cmd, after time.Duration) bool {
	t.Helper()
	must(t, cmd.Start())
	timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	err := cmd.Wait()
	if err == nil {
		return false
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("it ended by itself: %v", err)
	}
	return true
}

// TestKilledCreate kills creates at random moments. Earlier snapshots stay whole,
// and the next create succeeds.
func TestKilledCreate(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := manyFiles(p, "src")
	want := map[manifest.ID]tree{}
	want[complete(t, r, src, nil).ID] = scan(t, src)
	must(t, r.Close())

	rnd := rand.New(rand.NewPCG(1, 2))
	j := job{Op: "create", Repo: p.repo, Cache: p.cache, Dir: src}
	took := 200 * time.Millisecond // of a whole one, as measured below
	killed := 0
	// On until one is, for as long as that can take.
	for round := 0; round < times(8, 100) || killed == 0 && round < 1000; round++ {
		// Enough that packs are uploaded and segments are written on the way.
		for i := range 4 {
			writeFile(t, fmt.Sprintf("%s/change-%d", src, i), random(rnd.Uint64(), 4<<20))
		}
		now := scan(t, src)
		for range 2 {
			before := snapshots(t, p)
			if kill(t, j.command(t, nil), time.Duration(rnd.Int64N(int64(took)))) {
				killed++
			}
			// It may have been killed when it was done.
			for id := range snapshots(t, p) {
				if _, ok := before[id]; !ok {
					want[id] = now
				}
			}
		}
		begun := time.Now()
		o := j.do(t, nil)
		took = max(time.Since(begun), took/2)
		if o.Err != "" || o.Incomplete {
			t.Fatalf("round %d: the create after a killed one: %+v", round, o)
		}
		want[o.id(t)] = now
		if round%4 == 3 {
			verifyAll(p, want)
			for id := range want { // the oldest would cost ever more time
				if id != o.id(t) && len(want) > 3 {
					_, err := retain.Remove(t.Context(), p.open("cache-of-remove").repo, id.String())
					must(t, err)
					delete(want, id)
				}
			}
		}
	}
	t.Logf("%d killed", killed)
	if killed == 0 {
		t.Error("none was killed")
	}
	verifyAll(p, want)
	// What was left on the way is known to be nobody's.
	for _, f := range filesBelow(t, p.repo) {
		rel, err := filepath.Rel(p.repo, f)
		must(t, err)
		if !strings.HasPrefix(rel, "tmp/") && strings.Contains(filepath.Base(rel), "tmp") {
			t.Errorf("%s is left", rel)
		}
	}
}

func snapshots(t testing.TB, p *place) map[manifest.ID]bool {
	t.Helper()
	r := p.open("cache-of-list")
	defer r.Close()
	list, err := r.List(t.Context(), nil)
	must(t, err)
	all := map[manifest.ID]bool{}
	for _, s := range list {
		all[s.ID] = true
	}
	return all
}

// TestKilledRestore kills restores at random moments. The target is the old tree
// or the new one, and the next restore removes what was left.
func TestKilledRestore(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := manyFiles(p, "src")
	writeFile(t, src+"/larger", random(1, 30<<20))
	trees := [2]tree{}
	var ids [2]string
	for i := range trees {
		writeFile(t, src+"/which", []byte{byte(i)})
		ids[i] = complete(t, r, src, nil).ID.String()
		trees[i] = scan(t, src)
	}
	must(t, r.Close())

	rnd := rand.New(rand.NewPCG(3, 4))
	work := p.path("work")
	target := work + "/target"
	must(t, os.Mkdir(work, 0o755))
	restore(t, p.open("cache"), ids[0], target, nil)
	is := 0
	took := 200 * time.Millisecond
	killed := 0
	for round := 0; round < times(12, 100) || killed == 0 && round < 1000; round++ {
		next := 1 - is
		j := job{Op: "restore", Repo: p.repo, Cache: p.cache, Dir: target, Ref: ids[next], Restore: RestoreOptions{Delete: true}}
		if kill(t, j.command(t, nil), time.Duration(rnd.Int64N(int64(took)))) {
			killed++
		}
		got := scan(t, target)
		if len(differences(trees[next], got)) == 0 {
			is = next
		} else {
			compare(t, trees[is], got)
		}
		if round%3 == 2 {
			begun := time.Now()
			j.Ref = ids[is]
			if o := j.do(t, nil); o.Err != "" {
				t.Fatalf("round %d: the restore after a killed one: %s", round, o.Err)
			}
			took = max(time.Since(begun), took/2)
			compare(t, trees[is], scan(t, target))
			if left := leftovers(t, work); len(left) > 0 {
				t.Fatalf("round %d: %s is left", round, left)
			}
		}
	}
	t.Logf("%d killed", killed)
	if killed == 0 {
		t.Error("none was killed")
	}
}

// TestKilledRestoreInto: each file is the old one or the new one, and the next
// restore into the directory leaves nothing of what the killed one was making.
func TestKilledRestoreInto(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	src := manyFiles(p, "src")
	old := scan(t, src)
	first := complete(t, r, src, nil).ID.String()
	for i, f := range filesBelow(t, src) {
		if i%2 == 0 {
			writeFile(t, f, random(uint64(i)+50_000, 400))
		}
	}
	writeFile(t, src+"/large", random(2, 20<<20))
	want := scan(t, src)
	second := complete(t, r, src, nil).ID.String()
	must(t, r.Close())

	rnd := rand.New(rand.NewPCG(5, 6))
	target := p.path("target")
	killed := 0
	for round := 0; round < times(4, 40) || killed == 0 && round < 1000; round++ {
		must(t, os.RemoveAll(target))
		restore(t, p.open("cache"), first, target, nil)
		j := job{Op: "restore", Repo: p.repo, Cache: p.cache, Dir: target, Ref: second, Restore: RestoreOptions{Into: true}}
		if kill(t, j.command(t, nil), time.Duration(rnd.Int64N(int64(100*time.Millisecond)))) {
			killed++
		}
		for path, n := range scan(t, target) {
			if n.Sum != "" && n.Sum != old[path].Sum && n.Sum != want[path].Sum && !strings.Contains(path, tempPrefix) {
				t.Fatalf("%q is neither the old nor the new file", path)
			}
		}
		if o := j.do(t, nil); o.Err != "" {
			t.Fatalf("the restore after a killed one: %s", o.Err)
		}
		compare(t, want, scan(t, target))
	}
	t.Logf("%d killed", killed)
	if killed == 0 {
		t.Error("none was killed")
	}
}

// TestManyCreates: processes that share a cache, and others with another one,
// make snapshots at once.
func TestManyCreates(t *testing.T) {
	processes := max(4, times(8, 8))
	p := newPlace(t)
	p.init()
	// Half of it is the same for all.
	shared := random(1, 5<<20)
	type run struct {
		cmd *exec.Cmd
		out strings.Builder
		dir string
	}
	runs := make([]*run, processes+2)
	for i := range runs {
		dir := manyFiles(p, fmt.Sprintf("src-%d", i%processes))
		writeFile(t, dir+"/shared", shared)
		writeFile(t, dir+"/own", random(uint64(100+i%processes), 1<<20))
		cache := p.cache
		if i >= processes {
			cache = p.path("second-cache")
		}
		runs[i] = &run{dir: dir}
		runs[i].cmd = job{Op: "create", Repo: p.repo, Cache: cache, Dir: dir}.command(t, nil)
		runs[i].cmd.Stdout = &runs[i].out
	}
	for _, r := range runs {
		must(t, r.cmd.Start())
	}
	want := map[manifest.ID]tree{}
	var unique, stored int64
	for _, r := range runs {
		must(t, r.cmd.Wait())
		var o outcome
		must(t, json.Unmarshal([]byte(r.out.String()), &o))
		if o.Err != "" || o.Incomplete {
			t.Fatalf("%+v", o)
		}
		want[o.id(t)] = scan(t, r.dir)
	}
	verifyAll(p, want)
	for _, f := range filesBelow(t, p.repo+"/packs") {
		st, err := os.Stat(f)
		must(t, err)
		stored += st.Size()
	}
	// Each can store everything once: nobody knew of the others.
	unique = int64(len(runs)) * (int64(len(shared)) + 5<<20)
	if stored > unique {
		t.Errorf("%d bytes stored, of at most %d", stored, unique)
	}
	// From now on all is known.
	for range 2 {
		o := job{Op: "create", Repo: p.repo, Cache: p.path("third-cache"), Dir: runs[0].dir}.do(t, nil)
		if o.Err != "" || o.NewBytes != 0 {
			t.Errorf("a create of what is there: %+v", o)
		}
	}
}

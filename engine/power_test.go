//go:build linux

package engine

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/snapctl/snapctl/engine/internal/retain"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/engine/view"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sync/errgroup"
)

// A past is what was done to a repository on a powerDisk, and when by its journal.
type past struct {
	journal []diskOp
	repo    string // path on the disk
	made    int    // when Init returned
	all     map[manifest.ID]*pastSnapshot
}

type pastSnapshot struct {
	committed int    // when Create returned
	removal   int    // when Remove was called; -1 for never
	removed   int    // when it returned
	dump      string // what the snapshot holds
}

// tooLate is after every cut.
const tooLate = 1 << 30

// dumpOf gives a hash of all that a snapshot holds, read and checked.
func dumpOf(ctx context.Context, r *Repository, id manifest.ID) (string, error) {
	fsys, err := view.Open(ctx, r.repo, id.String())
	if err != nil {
		return "", err
	}
	h := sha256.New()
	if err := fsys.Dump(h, "."); err != nil {
		return "", err
	}
	return string(h.Sum(nil)), nil
}

// livePast makes a repository, snapshots by two processes at once, removes some,
// and makes more.
func livePast(t testing.TB) *past {
	t.Helper()
	p := newPlace(t)
	disk := newPowerDisk(t)
	ctx := t.Context()
	h := &past{repo: "new/repo", all: map[manifest.ID]*pastSnapshot{}}
	p.repo = disk.dir + "/" + h.repo // folders above it are made too
	r := p.init()
	h.made = disk.now()

	snap := func(r *Repository, src string) (manifest.ID, *pastSnapshot, error) {
		res, err := r.Create(ctx, src, nil)
		if err != nil {
			return manifest.ID{}, nil, err
		}
		s := &pastSnapshot{committed: disk.now(), removal: tooLate, removed: tooLate}
		s.dump, err = dumpOf(ctx, r, res.ID)
		return res.ID, s, err
	}
	for round := range times(3, 6) {
		var g errgroup.Group
		ids, snaps := make([]manifest.ID, 2), make([]*pastSnapshot, 2)
		for i := range ids {
			src := p.files(fmt.Sprintf("src-%d", i), map[string]string{
				fmt.Sprintf("d%d/f", round): string(random(uint64(round*2+i), 3000)), "shared": "the same"})
			repo := p.open(fmt.Sprintf("cache-%d", i))
			g.Go(func() (err error) {
				ids[i], snaps[i], err = snap(repo, src)
				return err
			})
		}
		must(t, g.Wait())
		for i, id := range ids {
			h.all[id] = snaps[i]
		}
		s := h.all[ids[0]]
		s.removal = disk.now()
		_, err := retain.Remove(ctx, r.repo, ids[0].String())
		must(t, err)
		s.removed = disk.now()
		must(t, (&write.Lease{Repo: r.repo, Name: "leases/" + ids[1].String() + "/a", Object: random(9, 200)}).Write(ctx))
	}
	disk.mu.Lock()
	h.journal = slices.Clone(disk.journal)
	disk.mu.Unlock()
	return h
}

// check looks at what a power loss has left of the repository.
func (h *past) check(t testing.TB, n int, img diskImage, more bool) (err error) {
	ctx := t.Context()
	dir, err := os.MkdirTemp("", "power-")
	must(t, err)
	defer os.RemoveAll(dir)
	must(t, os.Mkdir(dir+"/disk", 0o700))
	must(t, img.write(dir+"/disk"))
	url := dir + "/disk/" + h.repo
	r, err := Open(ctx, url, &Options{CacheDir: dir + "/cache"})
	if errors.Is(err, snapshot.ErrNotInitialised) && n < h.made {
		r, err = Init(ctx, url, nil, &Options{CacheDir: dir + "/cache"})
	}
	if err != nil {
		return err
	}
	defer r.Close()
	list, err := r.List(ctx, nil)
	if err != nil {
		return err
	}
	there := map[manifest.ID]bool{}
	for _, s := range list {
		there[s.ID] = true
		got, err := dumpOf(ctx, r, s.ID)
		if err != nil {
			return err
		}
		// One that nobody was told of is whole too.
		if want := h.all[s.ID]; want == nil || got != want.dump {
			return fmt.Errorf("snapshot %v holds something else", s.ID)
		}
	}
	for id, s := range h.all {
		switch {
		case s.committed <= n && n < s.removal && !there[id]:
			return fmt.Errorf("snapshot %v, which was committed, is gone", id)
		case s.removed <= n && there[id]:
			return fmt.Errorf("snapshot %v, which was removed, is back", id)
		}
	}
	if !more {
		return nil
	}
	// And it can be worked with.
	must(t, os.Mkdir(dir+"/src", 0o700))
	writeFile(t, dir+"/src/shared", []byte("the same"))
	writeFile(t, dir+"/src/g", random(77, 500))
	res, err := r.Create(ctx, dir+"/src", nil)
	if err != nil {
		return err
	}
	_, err = dumpOf(ctx, r, res.ID)
	return err
}

// cuts tries power losses in the journal, before every sync and at its end, or with
// -long after every entry, and gives the first that did harm.
func (h *past) cuts(t testing.TB, journal []diskOp) (tried int, err error) {
	rnd := rand.New(rand.NewPCG(1, 2))
	seen := map[string]bool{}
	for n := range len(journal) + 1 {
		if !*long && n < len(journal) && journal[n].kind != diskSync {
			continue
		}
		ways := []lossFate{noneSurvives, allSurvive}
		for range times(5, 10) {
			ways = append(ways, someSurvive(rnd))
		}
		for way, s := range ways {
			img := cut(journal, n, s)
			// Whether something has to be there depends on n, so that counts too.
			key := fmt.Sprint(h.due(n)) + img.key()
			if seen[key] {
				continue
			}
			seen[key] = true
			if err := h.check(t, n, img, tried%16 == 0); err != nil {
				next := "the end"
				if n < len(journal) {
					next = journal[n].String()
				}
				return tried, fmt.Errorf("power loss at %d of %d, before %s, way %d: %w", n, len(journal), next, way, err)
			}
			tried++
		}
	}
	return tried, nil
}

// due counts what has returned by then.
func (h *past) due(n int) (k int) {
	for _, s := range h.all {
		for _, at := range []int{s.committed, s.removal, s.removed} {
			if at <= n {
				k++
			}
		}
	}
	return k
}

// TestPowerLoss cuts the power below a repository in a folder at every sync: what
// was not synced is lost, there in part, or there without what came before it. The
// repository opens, every snapshot that was committed is in it, and every snapshot
// that is in it is whole.
func TestPowerLoss(t *testing.T) {
	h := livePast(t)
	tried, err := h.cuts(t, h.journal)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d entries in the journal, %d images", len(h.journal), tried)
	syncs := 0
	for _, op := range h.journal {
		if op.kind == diskSync {
			syncs++
		}
	}
	if syncs == 0 || tried < syncs { // each one that matters leads to another image
		t.Errorf("only %d images of %d syncs", tried, syncs)
	}
}

// TestPowerLossSeen leaves syncs out of the journal, as if the file store did not
// make them: each kind is missed.
func TestPowerLossSeen(t *testing.T) {
	h := livePast(t)
	parents := map[uint64]bool{}
	for _, op := range h.journal {
		if op.kind == diskLink && op.isDir {
			parents[op.ino] = true
		}
	}
	for what, drop := range map[string]func(op diskOp) bool{
		"of files":       func(op diskOp) bool { return !op.isDir },
		"of directories": func(op diskOp) bool { return op.isDir },
		"of directories that have directories in them": func(op diskOp) bool { return op.isDir && parents[op.ino] },
	} {
		journal := slices.Clone(h.journal)
		for i := range journal {
			if journal[i].kind == diskSync && drop(journal[i]) {
				// It keeps its place, and does nothing.
				journal[i] = diskOp{kind: diskSync}
			}
		}
		if _, err := h.cuts(t, journal); err == nil {
			t.Errorf("without syncs %s nothing is lost: the test is blind", what)
		} else {
			t.Logf("without syncs %s: %v", what, err)
		}
	}
}

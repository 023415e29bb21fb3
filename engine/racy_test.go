//go:build linux

package engine

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// TestFingerprintRacy: a file that changed shortly before the walk, or since, is read again
// the next time: a change in the same tick would not show.
func TestFingerprintRacy(t *testing.T) {
	const started = 1_000_000
	for age, known := range map[int64]bool{-5: false, 0: false, 1: false, racyWindow: false, racyWindow + 1: true, 1000: true} {
		d := fsys.Dirent{Dev: 1, Ino: 2, Ctime: unix.Timespec{Sec: started - age, Nsec: 999_999_999}}
		if got := fingerprint(&d, started); (got != 0) != known || known && got != statPrint(&d) {
			t.Errorf("changed %d seconds before: %x", age, got)
		}
	}
}

// TestRacyFilesAreReadAgain: so the stat cache knows nothing of such files.
func TestRacyFilesAreReadAgain(t *testing.T) {
	p := newPlace(t)
	r := p.init()
	for round := range 20 {
		src := p.files(fmt.Sprint("src", round), map[string]string{"a": "1", "d/b": "2", "d/large": string(random(uint64(round), 3<<20))})
		res := complete(t, r, src, nil)
		after := time.Now().Unix()
		stats := repo.ReadStats(r.repo.Cache, src)
		if stats == nil || stats.Snapshot != res.ID {
			t.Fatal("nothing is known of the directory")
		}
		m, err := r.repo.Manifest(t.Context(), res.ID)
		must(t, err)
		tr, err := m.Tree(r.repo)
		must(t, err)
		young := 0
		for _, path := range []string{"a", "d/b", "d/large"} {
			var st unix.Stat_t
			must(t, unix.Stat(src+"/"+path, &st))
			rank, err := tr.Lookup(context.Background(), manifest.KeyOf(path), new(manifest.Entry))
			must(t, err)
			if st.Ctim.Sec+racyWindow < after {
				continue // this machine is slow: it may have been old enough
			}
			young++
			if print := stats.Print(rank); print != 0 {
				t.Errorf("%q, which has just changed, is known by %x", path, print)
			}
		}
		must(t, os.RemoveAll(src))
		if young > 0 {
			return
		}
	}
	t.Skip("every file is old before it is read: this machine is too slow")
}

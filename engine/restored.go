package engine

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"runtime"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/google/uuid"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/ignore"
	"github.com/snapctl/snapctl/engine/internal/local"
	"github.com/snapctl/snapctl/engine/internal/repo"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// A restoredRecord tells that all of a directory was written by a restore, and what it
// looked like then: so that the next restore may replace it, if nobody has changed
// anything since. It is in the file restored/HASH of the state folder, where HASH is of
// the path.
type restoredRecord struct {
	Version    int         `json:"version"`
	Dir        []byte      `json:"dir"` // without symbolic links
	Repository uuid.UUID   `json:"repository"`
	Snapshot   manifest.ID `json:"snapshot"`
	Include    []string    `json:"include,omitempty"`
	NoOwner    bool        `json:"noOwner,omitempty"`
	Seen       treeMark    `json:"seen"`
}

const (
	restoredVersion = 1
	maxRestored     = 4096 // records; those written longest ago go
)

// A treeMark tells a directory tree from what it was before: how many entries it has, and
// the sum of their marks. There are no device numbers in it, which change when a machine
// or a container is started again.
type treeMark struct {
	Entries int64  `json:"entries"`
	Sum     uint64 `json:"sum"`
}

func (m *treeMark) add(mark uint64) {
	m.Entries++
	m.Sum += mark
}

// entryMark is the mark of an entry. Whatever is changed about it changes its ctime, and
// what comes, goes or is renamed in a directory that of the directory.
func entryMark(d *fsys.Dirent) uint64 {
	var b [48]byte
	for i, v := range []uint64{d.Ino, uint64(d.Mode), uint64(d.Size), uint64(d.Mtime.Nano()), uint64(d.Ctime.Sec), uint64(d.Ctime.Nsec)} {
		binary.LittleEndian.PutUint64(b[8*i:], v)
	}
	return xxhash.Sum64(b[:])
}

// markTree looks at an open directory and all below it. ok is false where that cannot be
// told apart from what it will be, as of what cannot be read. At a mount point lost+found
// does not count.
func markTree(ctx context.Context, root int, mountPoint bool) (m treeMark, ok bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return m, false, err
	}
	d := fsys.DirentOf("", &st)
	m.add(entryMark(&d))
	ok = true
	w := &walker{root: root, dev: d.Dev, exclude: &ignore.Rules{}}
	err = w.walk(ctx, runtime.GOMAXPROCS(0), func(n *dirNode) error {
		if mountPoint && n.path == lostFound {
			return nil
		}
		ok = ok && n.err == nil && len(n.failed) == 0 && n.sockets == 0
		for i := range n.entries {
			if mountPoint && manifest.Join(n.path, n.entries[i].Name) == lostFound {
				continue
			}
			m.add(entryMark(&n.entries[i]))
		}
		return nil
	})
	return m, ok, err
}

// noteRestored remembers what a restore left at the target.
func (r *Repository) noteRestored(path string, m *manifest.Manifest, opts *RestoreOptions, seen treeMark) {
	if r.repo.State == "" {
		return
	}
	b, err := json.Marshal(restoredRecord{
		Version: restoredVersion, Dir: []byte(path), Repository: r.repo.Cfg.ID, Snapshot: m.ID,
		Include: opts.Include, NoOwner: opts.NoOwner, Seen: seen,
	})
	state := local.Dir{Root: r.repo.State}
	if err == nil {
		err = state.Write(local.Restored, repo.DirKey(path), b)
	}
	if err != nil {
		r.repo.Logger.Info("remembering what was restored", "err", err)
	}
	state.KeepNewest(local.Restored, maxRestored)
}

// restoredAt gives the record of what a restore left at a path, if that is still what is
// there; else nil.
func (r *Repository) restoredAt(ctx context.Context, path string, root int, mountPoint bool) (*restoredRecord, error) {
	if r.repo.State == "" {
		return nil, nil
	}
	rec := &restoredRecord{}
	b := local.Dir{Root: r.repo.State}.Read(local.Restored, repo.DirKey(path))
	if json.Unmarshal(b, rec) != nil || rec.Version != restoredVersion || string(rec.Dir) != path {
		return nil, nil
	}
	seen, ok, err := markTree(ctx, root, mountPoint)
	if err != nil || !ok || seen != rec.Seen {
		return nil, err
	}
	return rec, nil
}

// same reports whether a restore would write what is there already.
func (rec *restoredRecord) same(repo uuid.UUID, m *manifest.Manifest, opts *RestoreOptions) bool {
	return rec != nil && rec.Repository == repo && rec.Snapshot == m.ID && slices.Equal(rec.Include, opts.Include) && rec.NoOwner == opts.NoOwner
}

package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// verifyRun is how many entries a worker reads back at a time.
const verifyRun = 2048

// errDiffers: a file of the target is not the snapshot's.
var errDiffers = errors.New("what was read back is not what was written")

// verify reads every file that was restored back from the target.
func (x *restorer) verify(ctx context.Context) error {
	if !x.opts.Verify || x.dry != nil {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Uint64
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			v := &verifier{restorer: x, dir: openDir{root: x.root}, buf: make([]byte, x.repo.repo.Splitter.MaxChunk())}
			defer v.dir.close()
			for ctx.Err() == nil {
				first := next.Add(verifyRun) - verifyRun
				if first >= x.tree.Len() {
					return nil
				}
				if err := v.run(ctx, first); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

type verifier struct {
	*restorer
	dir openDir
	buf []byte
}

func (v *verifier) run(ctx context.Context, first uint64) error {
	c, err := v.tree.SeekRank(ctx, first)
	if err != nil {
		return err
	}
	var e manifest.Entry
	for c.Rank() < min(first+verifyRun, v.tree.Len()) {
		rank := c.Rank()
		if more, err := c.Next(ctx, &e); !more || err != nil {
			return err
		}
		key := e.Key()
		if src, ok := v.plan.sources[rank]; ok {
			if err := v.tree.At(ctx, src, &e); err != nil {
				return err
			}
		}
		if e.Type != manifest.File || v.plan.sources[rank] == 0 && !v.chosen.Has(&e) || v.plan.skipped[key] {
			continue
		}
		if err := v.file(ctx, key, &e); err != nil {
			return fmt.Errorf("verifying %q: %w", key.Path(), err)
		}
	}
	return nil
}

// file compares the file at key with the entry e.
func (v *verifier) file(ctx context.Context, key manifest.Key, e *manifest.Entry) error {
	parent, err := v.openDir(&v.dir, key.Dir)
	if err != nil {
		return err
	}
	fd, err := openFile(parent, key.Name)
	if errors.Is(err, unix.EACCES) {
		v.problem(fmt.Errorf("verifying %q: %w: its mode keeps its owner from reading it", key.Path(), err))
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return holdsContents(ctx, v.repo.repo.Hasher, v.tree, e, fd, &v.buf)
}

// holdsContents compares an open file with what an entry says of it: errDiffers if
// they are not the same. Zeros are the same as a hole. buf is memory to read into.
func holdsContents(ctx context.Context, hasher *chunk.Hasher, tree *manifest.Tree, e *manifest.Entry, fd int, buf *[]byte) error {
	size, err := unix.Seek(fd, 0, io.SeekEnd)
	if err != nil {
		return err
	}
	if uint64(size) != e.Size {
		return errDiffers
	}
	done := uint64(0)
	err = tree.Extents(ctx, e, func(at uint64, ext *manifest.Extent) error {
		if err := allZero(ctx, fd, done, at, buf); err != nil {
			return err
		}
		done = at + uint64(ext.Length)
		if int(ext.Length) > len(*buf) {
			*buf = make([]byte, ext.Length)
		}
		data := (*buf)[:ext.Length]
		if err := readFull(fd, data, at); err != nil {
			return err
		}
		if hasher.Sum(data) != ext.ID {
			return errDiffers
		}
		return nil
	})
	if err == nil {
		err = allZero(ctx, fd, done, e.Size, buf)
	}
	return err
}

// readFull reads a range of a file: errDiffers where it ends before.
func readFull(fd int, data []byte, at uint64) error {
	for n := 0; n < len(data); {
		m, err := fsys.Pread(fd, data[n:], int64(at)+int64(n))
		if err != nil {
			return err
		}
		if m == 0 {
			return errDiffers
		}
		n += m
	}
	return nil
}

// zeroRead is how much allZero reads at a time, at least: what is in buf may have been
// made for a file of one byte.
const zeroRead = 64 << 10

// allZero compares a range of a file with a hole: errDiffers if it has other bytes than
// zeros. buf is memory to read into.
func allZero(ctx context.Context, fd int, from, to uint64, buf *[]byte) error {
	for from < to {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := fsys.DataFrom(fd, int64(from))
		if errors.Is(err, unix.ENXIO) { // nothing but hole
			return nil
		}
		if err != nil {
			return err
		}
		from = max(from, uint64(data))
		if from >= to {
			return nil
		}
		if len(*buf) < zeroRead {
			*buf = make([]byte, zeroRead)
		}
		part := (*buf)[:min(uint64(len(*buf)), to-from)]
		if err := readFull(fd, part, from); err != nil {
			return err
		}
		for _, b := range part {
			if b != 0 {
				return errDiffers
			}
		}
		from += uint64(len(part))
	}
	return nil
}

// unchanged reports whether the file is in the target already, by size and time,
// and, if everything is to be verified, by contents. It mends what else differs.
func (x *restorer) unchanged(ctx context.Context, dir *openDir, e *manifest.Entry) (bool, error) {
	parent, err := x.openDir(dir, e.Dir)
	if err != nil {
		return false, err
	}
	var st unix.Stat_t
	err = fsys.StatAt(parent, e.Name, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !x.sameNames(e, &st) {
		return false, nil // other names, maybe not ours, have the same inode
	}
	d := fsys.DirentOf(e.Name, &st)
	now := entryOf(e.Dir, &d)
	if now.Type != manifest.File || now.Size != e.Size || now.Mtime != e.Mtime {
		return false, nil
	}
	same := x.sameMeta(e, &st, fsys.XattrsAt(parent, e.Name))
	if !same && fsys.Foreign(&st) {
		return false, nil // it is not ours to change, but to replace
	}
	fd := -1
	if !same || x.opts.Verify {
		fd, err = openFile(parent, e.Name)
		if errors.Is(err, unix.EACCES) {
			return false, nil // it can be replaced all the same
		}
		if err != nil {
			return false, err
		}
		defer unix.Close(fd)
	}
	if x.opts.Verify {
		v := &verifier{restorer: x, dir: openDir{root: x.root}}
		defer v.dir.close()
		if err := v.file(ctx, e.Key(), e); err != nil {
			if errors.Is(err, errDiffers) {
				return false, nil
			}
			return false, err
		}
	}
	if err := x.folding.Put(parent, e.Name, func() error { return nil }); err != nil {
		return false, err
	}
	x.meter.AddFile()
	x.meter.AddBytes(int64(e.Size))
	if same {
		x.changes.Unchanged++
		return true, nil
	}
	x.changes.Adjusted++
	if x.dry != nil {
		return true, mayChange(parent, e.Name, &st)
	}
	return true, x.setMetaFD(fd, fsys.Spot{Dir: parent, Name: e.Name}, e)
}

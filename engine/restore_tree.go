package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/snapctl/snapctl/chunk"
	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/snapshot"
	"github.com/snapctl/snapctl/manifest"
	"golang.org/x/sys/unix"
)

// plan is what is left to do when directories and files without contents are
// there: which chunk of which frame goes where.
type plan struct {
	frames  []planFrame
	frameAt map[planFrame]uint32
	wants   []want
	// parted are the files that are written in more than one piece, by rank.
	parted map[uint64]*partedFile
	// sources are entries whose contents another entry has: hard links whose
	// first name is not restored.
	sources map[uint64]uint64

	dirs  []uint64 // ranks of directories, in tree order
	links []link
	// skipped are entries that could not be made, which links cannot lead to.
	skipped map[manifest.Key]bool
	absent  map[string]bool // those of them that are directories, by path
	files   int64
	bytes   int64
}

type planFrame struct {
	pack  chunk.PackID
	frame chunk.Frame
}

// want is a chunk of a file. There are as many as chunks: it is kept small.
type want struct {
	at     uint64 // where in the file
	rank   uint32 // of the file
	frame  uint32 // in plan.frames
	offset uint32 // in the frame
	length uint32
}

// partedFile counts the pieces of a file that are not written yet.
type partedFile struct{ left int64 }

// link is a hard link to make.
type link struct {
	first, name manifest.Key
	firstRank   uint64
	rank        uint64
}

// linkedName is where a file with several names is made, if not at the first.
type linkedName struct {
	key  manifest.Key
	rank uint64
}

// maxPlanned is for how many files a plan makes room before it has met them: the
// manifest only says that there are so many.
const maxPlanned = 1 << 20

func newPlan(files uint64) *plan {
	return &plan{
		wants:   make([]want, 0, min(files, maxPlanned)),
		frameAt: map[planFrame]uint32{}, parted: map[uint64]*partedFile{},
		sources: map[uint64]uint64{}, skipped: map[manifest.Key]bool{}, absent: map[string]bool{},
	}
}

func (p *plan) want(rank, at uint64, x *manifest.Extent) {
	f := planFrame{x.Pack, x.Frame}
	i, ok := p.frameAt[f]
	if !ok {
		i = uint32(len(p.frames))
		p.frames = append(p.frames, f)
		p.frameAt[f] = i
	}
	p.wants = append(p.wants, want{at, uint32(rank), i, x.Offset, x.Length})
}

// makeTree goes through the whole tree: it makes directories, links, devices and
// empty files, and plans contents.
func (x *restorer) makeTree(ctx context.Context) error {
	c, err := x.tree.Seek(ctx, manifest.Key{})
	if err != nil {
		return err
	}
	dir := &openDir{root: x.root}
	defer dir.close()
	var e manifest.Entry
	linked := map[manifest.Key]linkedName{} // first names that are not restored
	for {
		rank := c.Rank()
		more, err := c.Next(ctx, &e)
		if err != nil {
			return err
		}
		if !more {
			return nil
		}
		if rank%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if x.prints != nil {
			x.prints = append(x.prints, 0)
		}
		if x.marks != nil {
			x.marks = append(x.marks, 0)
		}
		if !x.chosen.Has(&e) {
			continue
		}
		if e.Type != manifest.Dir {
			x.plan.files++
		}
		if !x.below(&e) {
			err = x.makeEntry(ctx, dir, rank, &e, linked)
		}
		if err = x.leave(&e, err); err != nil {
			return fmt.Errorf("%s %q: %w", e.Type, e.Path(), err)
		}
	}
}

func (x *restorer) makeEntry(ctx context.Context, dir *openDir, rank uint64, e *manifest.Entry, linked map[manifest.Key]linkedName) error {
	if ours, err := x.meetsOurs(ctx, dir, e); ours || err != nil {
		return err
	}
	if e.Type == manifest.Link {
		return x.planLink(ctx, dir, rank, e, linked)
	}
	return x.make(ctx, dir, rank, rank, e)
}

// openDir opens a directory of the target. This run has made all that are to be
// there: if there is none, or something else, the snapshot is wrong.
func (x *restorer) openDir(d *openDir, path string) (int, error) {
	fd, err := d.get(path)
	if fsys.IsAny(err, unix.ENOENT, unix.ENOTDIR, unix.ELOOP) {
		err = fmt.Errorf("%w: it is in %q, which is no directory", snapshot.ErrIntegrity, path)
	}
	return fd, err
}

// planLink plans a hard link, or, where the first name is not restored, makes
// the file under this name.
func (x *restorer) planLink(ctx context.Context, dir *openDir, rank uint64, e *manifest.Entry, linked map[manifest.Key]linkedName) error {
	first := e.First
	var f manifest.Entry
	src, err := x.tree.Lookup(ctx, first, &f)
	if err != nil {
		return fmt.Errorf("%w: hard link to nowhere: %w", snapshot.ErrIntegrity, err)
	}
	if f.Type == manifest.Link || f.Type == manifest.Dir {
		return fmt.Errorf("%w: hard link to a %s", snapshot.ErrIntegrity, f.Type)
	}
	if x.plan.skipped[first] {
		x.noFirst(e.Key(), first)
		return nil
	}
	if !x.chosen.Has(&f) {
		if at, ok := linked[first]; ok {
			first, src = at.key, at.rank
		} else {
			f.Dir, f.Name = e.Dir, e.Name
			// The maps keep the keys: the cursor's page would stay with them.
			linked[cloneKey(first)] = linkedName{cloneKey(e.Key()), rank}
			return x.make(ctx, dir, rank, src, &f)
		}
	}
	x.meter.AddFile()
	x.plan.links = append(x.plan.links, link{cloneKey(first), cloneKey(e.Key()), src, rank})
	return nil
}

// noFirst notes a hard link to an entry that was not made.
func (x *restorer) noFirst(name, first manifest.Key) {
	x.skip(&manifest.Entry{Dir: name.Dir, Name: name.Name, Type: manifest.Link})
	x.problem(fmt.Errorf("restoring hard link %q: there is no %q to link to", name.Path(), first.Path()))
}

func cloneKey(k manifest.Key) manifest.Key {
	return manifest.Key{Dir: strings.Clone(k.Dir), Name: strings.Clone(k.Name)}
}

// make makes the entry of that rank, which is no hard link, with the metadata and
// contents of the entry of rank src.
func (x *restorer) make(ctx context.Context, dir *openDir, rank, src uint64, e *manifest.Entry) error {
	if x.unmade(e.Dir) {
		return x.dryMake(rank, e)
	}
	if e.Type == manifest.Dir {
		x.meter.AddFile()
		return x.makeDir(dir, rank, e)
	}
	if e.Type == manifest.File {
		x.plan.bytes += int64(e.Size)
		if src != rank {
			x.plan.sources[rank] = src
		}
		return x.planFile(ctx, dir, rank, e)
	}
	x.meter.AddFile()
	parent, err := x.openDir(dir, e.Dir)
	if err != nil {
		return err
	}
	return x.makeSpecial(ctx, parent, rank, e)
}

func (x *restorer) makeDir(dir *openDir, rank uint64, e *manifest.Entry) error {
	if e.Name != "" {
		parent, err := x.openDir(dir, e.Dir)
		if err != nil {
			return err
		}
		if err := x.folding.Put(parent, e.Name, func() error { return x.sameName(x.makeDirAt(parent, e)) }); err != nil {
			return err
		}
	}
	x.plan.dirs = append(x.plan.dirs, rank)
	if e.Name == "" {
		x.meetRoot(e)
	}
	return nil
}

func (x *restorer) makeDirAt(parent int, e *manifest.Entry) error {
	if x.dry != nil {
		return x.dryDir(parent, e)
	}
	mode := madeDirMode(e)
	err := unix.Mkdirat(parent, e.Name, mode)
	if !errors.Is(err, unix.EEXIST) || x.fresh {
		return err
	}
	var st unix.Stat_t
	if err := fsys.StatAt(parent, e.Name, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		x.meetDir(e, &st, fsys.XattrsAt(parent, e.Name))
		return x.openUp(parent, e.Name, e.Path(), &st)
	}
	if err := unix.Unlinkat(parent, e.Name, 0); err != nil {
		return err
	}
	return unix.Mkdirat(parent, e.Name, mode)
}

// madeDirMode is the mode that a directory is made with. Its own comes at the end:
// we have to write into it.
func madeDirMode(e *manifest.Entry) uint32 { return e.Mode&0o777 | 0o700 }

// planFile plans a file's contents. One that is written in a single piece is
// made then; any other is made here, at its full size.
func (x *restorer) planFile(ctx context.Context, dir *openDir, rank uint64, e *manifest.Entry) error {
	single := e.Spill == nil && len(e.Extents) == 1 && e.Extents[0].Hole == 0 && uint64(e.Extents[0].Length) == e.Size
	if !x.fresh {
		same, err := x.unchanged(ctx, dir, e)
		if same || err != nil {
			return err
		}
	}
	if x.dry != nil {
		parent, err := x.openDir(dir, e.Dir)
		if err != nil {
			return err
		}
		return x.dryPut(ctx, parent, e, e.Size > 0)
	}
	if single {
		x.plan.want(rank, 0, &e.Extents[0])
		return nil
	}
	return x.makeParted(ctx, dir, rank, e)
}

// makeParted makes a file that is written in any number of pieces but one, and plans those.
// Nothing is planned of a file that could not be made.
func (x *restorer) makeParted(ctx context.Context, dir *openDir, rank uint64, e *manifest.Entry) error {
	planned := len(x.plan.wants)
	err := x.tree.Extents(ctx, e, func(at uint64, ext *manifest.Extent) error {
		x.plan.want(rank, at, ext)
		return nil
	})
	if err != nil {
		return err
	}
	pieces := len(x.plan.wants) - planned
	parent, err := x.openDir(dir, e.Dir)
	if err != nil {
		return err
	}
	fd, err := x.createFile(parent, rank, e, pieces > 0)
	if err != nil {
		x.plan.wants = x.plan.wants[:planned]
		return err
	}
	defer unix.Close(fd)
	x.plan.parted[rank] = &partedFile{left: int64(pieces)}
	if err := unix.Ftruncate(fd, int64(e.Size)); err != nil {
		return err
	}
	if pieces > 0 {
		return nil
	}
	delete(x.plan.parted, rank)
	return x.finishFile(fd, parent, rank, e)
}

// makeSpecial makes a symbolic link, FIFO or device.
func (x *restorer) makeSpecial(ctx context.Context, parent int, rank uint64, e *manifest.Entry) error {
	if !x.fresh && x.sameSpecial(parent, e) {
		x.changes.Unchanged++
		return x.folding.Put(parent, e.Name, func() error { return nil })
	}
	if x.dry != nil {
		if isDevice(e) && os.Geteuid() != 0 {
			return x.noDevice(e)
		}
		return x.dryPut(ctx, parent, e, false)
	}
	dir, name, err := x.workplace(parent, rank, e)
	if err != nil {
		return err
	}
	switch e.Type {
	case manifest.Symlink:
		err = unix.Symlinkat(e.Target, dir, name)
	case manifest.Fifo:
		err = fsys.MknodAt(dir, name, unix.S_IFIFO|e.Mode&0o777, manifest.Device{})
	case manifest.CharDevice, manifest.BlockDevice:
		kind := uint32(unix.S_IFCHR)
		if e.Type == manifest.BlockDevice {
			kind = unix.S_IFBLK
		}
		err = fsys.MknodAt(dir, name, kind|e.Mode&0o777, e.Device)
		if errors.Is(err, unix.EPERM) {
			return x.noDevice(e)
		}
	}
	if err != nil {
		return x.sameName(err)
	}
	if err := x.setMeta(dir, name, e); err != nil {
		return err
	}
	if !x.fresh {
		return x.moveInto(name, parent, e.Key())
	}
	return x.note(parent, e.Name, rank)
}

func isDevice(e *manifest.Entry) bool {
	return e.Type == manifest.CharDevice || e.Type == manifest.BlockDevice
}

func (x *restorer) noDevice(e *manifest.Entry) error {
	if x.skip(e) {
		x.problem(fmt.Errorf("restoring %s %q: only root can make one", e.Type, e.Path()))
	}
	return nil
}

// makeLinks makes the hard links.
func (x *restorer) makeLinks(ctx context.Context) error {
	from, to := &openDir{root: x.root}, &openDir{root: x.root}
	defer from.close()
	defer to.close()
	for i, l := range x.plan.links {
		if i%256 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		err := x.makeLink(ctx, from, to, l)
		if err = x.leave(&manifest.Entry{Dir: l.name.Dir, Name: l.name.Name, Type: manifest.Link}, err); err != nil {
			return fmt.Errorf("hard link %q to %q: %w", l.name.Path(), l.first.Path(), err)
		}
	}
	return x.markLinks(ctx, from)
}

// markLinks marks the files that have several names, whose ctime each further one changes.
func (x *restorer) markLinks(ctx context.Context, dir *openDir) error {
	if x.marks == nil {
		return nil
	}
	mark := func(k manifest.Key, rank uint64) error {
		parent, err := x.openDir(dir, k.Dir)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := fsys.StatAt(parent, k.Name, &st); err != nil {
			return err
		}
		d := fsys.DirentOf("", &st)
		x.marks[rank] = entryMark(&d)
		return nil
	}
	for i, l := range x.plan.links {
		if i%256 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if err := errors.Join(mark(l.first, l.firstRank), mark(l.name, l.rank)); err != nil {
			return err
		}
	}
	return nil
}

func (x *restorer) makeLink(ctx context.Context, from, to *openDir, l link) error {
	if x.plan.skipped[l.first] {
		x.noFirst(l.name, l.first)
		return nil
	}
	if x.dry != nil {
		return x.dryLink(ctx, from, to, l)
	}
	src, err := x.openDir(from, l.first.Dir)
	if err != nil {
		return err
	}
	dst, err := x.openDir(to, l.name.Dir)
	if err != nil {
		return err
	}
	if x.fresh {
		return x.sameName(unix.Linkat(src, l.first.Name, dst, l.name.Name, 0))
	}
	var a, b unix.Stat_t
	if err := fsys.StatAt(src, l.first.Name, &a); err != nil {
		return err
	}
	if fsys.StatAt(dst, l.name.Name, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino {
		x.changes.Unchanged++
		return x.folding.Alone(dst, l.name.Name)
	}
	if err := x.beginWork(); err != nil {
		return err
	}
	const temp = "link"
	if err := unix.Linkat(src, l.first.Name, x.work, temp, 0); err != nil {
		return err
	}
	err = x.moveInto(temp, dst, l.name)
	if err != nil {
		_ = unix.Unlinkat(x.work, temp, 0) // the next link takes its name
	}
	return err
}

// workplace is where an entry is made: in its own place in a directory that
// nobody knows of yet; else apart, until it takes its place whole.
func (x *restorer) workplace(parent int, rank uint64, e *manifest.Entry) (dir int, name string, err error) {
	if x.fresh {
		return parent, e.Name, nil
	}
	err = x.beginWork()
	return x.work, strconv.FormatUint(rank, 10), err
}

// moveInto puts a finished file in the place of what has its name.
func (x *restorer) moveInto(temp string, parent int, key manifest.Key) error {
	return x.folding.Put(parent, key.Name, func() error { return x.replace(temp, parent, key) })
}

func (x *restorer) replace(temp string, parent int, key manifest.Key) error {
	name := key.Name
	err := unix.Renameat(x.work, temp, parent, name)
	if errors.Is(err, unix.EISDIR) {
		// A directory gives way when it is empty, or when all else may go.
		err = unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
		if errors.Is(err, unix.ENOTEMPTY) && x.opts.Delete {
			if err = fsys.RemoveAt(parent, name); err == nil {
				x.mu.Lock()
				x.changes.Deleted += x.beneath[key]
				x.mu.Unlock()
			}
		}
		if err == nil {
			err = unix.Renameat(x.work, temp, parent, name)
		}
	}
	if errors.Is(err, unix.EXDEV) {
		return fmt.Errorf("%w: something is mounted in the target", err)
	}
	return err
}

package engine

import (
	"context"

	"github.com/snapctl/snapctl/engine/internal/fsys"
	"github.com/snapctl/snapctl/engine/internal/write"
	"github.com/snapctl/snapctl/manifest"
)

// overlaySequencer turns the walk of a fork's upper directory into batches: what is
// put, and what is removed from the snapshot's tree, in tree order.
type overlaySequencer struct {
	*sequencer
	plan *overlayPlan
}

func newOverlaySequencer(s *sequencer) *overlaySequencer {
	q := &overlaySequencer{sequencer: s, plan: &overlayPlan{tree: s.parent.tree, fuse: s.fork.overlay.Format == upperFuse}}
	if s.parent.info.HardLinks {
		q.plan.links = newLinkPlan()
	}
	return q
}

func (q *overlaySequencer) run(ctx context.Context, workers int) error {
	w := &walker{root: q.fork.root, exclude: q.exclude, upper: &q.fork.overlay.Format}
	if err := q.put(ctx, "", &q.fork.rootDir, nil); err != nil {
		return err
	}
	var nodes []*dirNode // that have to wait until all of them are known
	err := w.walk(ctx, workers+1, func(n *dirNode) error {
		if n.path == "" {
			if n.err != nil {
				return n.err
			}
			n.fork = rootOfFork()
		}
		q.note(n)
		if err := q.plan.resolve(ctx, n); err != nil {
			return err
		}
		q.warnPosing(ctx, q.plan.tree, n.fork.lower, n)
		if q.plan.links == nil {
			return q.emit(ctx, n)
		}
		kept := n.keep()
		nodes = append(nodes, kept)
		if !n.fork.bare {
			q.plan.links.nodes[n.path] = kept
		}
		return nil
	})
	if err == nil && q.plan.links != nil {
		err = q.plan.links.settle(ctx, q.plan.tree)
	}
	for i := 0; i < len(nodes) && err == nil; i++ {
		err = q.emit(ctx, nodes[i])
		nodes[i] = nil
	}
	if err == nil {
		err = q.relink(ctx, nil)
	}
	if err != nil {
		return err
	}
	return q.dispatch(ctx)
}

// emit passes on what becomes of a directory.
func (q *overlaySequencer) emit(ctx context.Context, n *dirNode) error {
	f := n.fork
	if f.dropBelow {
		k := belowKey(n.path)
		if err := q.relink(ctx, &k); err != nil {
			return err
		}
		it := item{op: opRemoveBelow, entry: manifest.Entry{Dir: n.path}}
		if err := q.append(ctx, &it, false); err != nil {
			return err
		}
	}
	for i := range f.acts {
		if err := q.act(ctx, n, &f.acts[i]); err != nil {
			return err
		}
	}
	return nil
}

func (q *overlaySequencer) act(ctx context.Context, n *dirNode, a *overlayAct) error {
	switch {
	case a.put != nil:
		k := manifest.Key{Dir: n.path, Name: a.put.Name}
		if err := q.relink(ctx, &k); err != nil {
			return err
		}
		return q.put(ctx, n.path, a.put, n.fork.lower)
	case a.copy != nil:
		e := a.copy
		if q.plan.links != nil {
			if fixed := q.plan.links.fixed[e.Key()]; fixed != nil {
				e = fixed
			}
		}
		k := e.Key()
		if err := q.relink(ctx, &k); err != nil {
			return err
		}
		return q.append(ctx, &item{entry: *e}, false)
	}
	k := manifest.Key{Dir: n.path, Name: a.remove}
	if err := q.relink(ctx, &k); err != nil {
		return err
	}
	return q.append(ctx, &item{op: opRemove, entry: manifest.Entry{Dir: k.Dir, Name: k.Name}}, false)
}

// relink passes on the entries before a key, or all that are left, that change
// because of what became of other names of their files.
func (q *overlaySequencer) relink(ctx context.Context, k *manifest.Key) error {
	links := q.plan.links
	if links == nil {
		return nil
	}
	for len(links.extra) > 0 && (k == nil || links.extra[0].Compare(*k) < 0) {
		e := links.fixed[links.extra[0]]
		links.extra = links.extra[1:]
		if err := q.append(ctx, &item{entry: *e}, false); err != nil {
			return err
		}
	}
	return nil
}

// put appends an entry of the upper directory to the batch. lower is the snapshot's
// directory that shows where it is.
func (q *overlaySequencer) put(ctx context.Context, dir string, d *fsys.Dirent, lower *lowerDir) error {
	q.out.Meter.AddFile()
	it := item{entry: entryOf(dir, d), stat: *d, lane: write.LaneOf(d.Name), linked: d.Nlink > 1 && !d.IsDir(), lower: lower}
	if first, ok := q.linkTo(it.entry.Key(), d); ok {
		it.entry = manifest.Entry{Dir: dir, Name: d.Name, Type: manifest.Link, First: first}
		return q.append(ctx, &it, false)
	}
	it.print = fingerprint(d, q.started.Unix())
	if q.fork.memo.reuse(ctx, &it) {
		q.out.Meter.AddBytes(int64(it.entry.Size))
		return q.append(ctx, &it, false)
	}
	it.settle = true
	if it.entry.Type != manifest.File {
		return q.append(ctx, &it, false)
	}
	// Without any blocks it is all hole, or its contents are the snapshot's.
	it.bare = d.Alloc == 0 && d.Size > 0 && q.fork.overlay.Format == upperTrusted
	stream := !it.bare && streams(d)
	return q.append(ctx, &it, stream)
}

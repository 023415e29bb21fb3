package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

const suiteNameFork = "fork"

// suiteFork measures writable copies of a snapshot: having one, saving what is
// changed in it, and many of one snapshot.
func suiteFork(ctx context.Context, b *bench) error {
	if err := cannotMount(); err != nil {
		b.notef("suite fork is left out: %v", err)
		return nil
	}
	s, err := b.newForkSuite(ctx)
	if err != nil {
		return err
	}
	for _, phase := range []func(context.Context) error{s.sideBySide, s.far} {
		if err := phase(ctx); err != nil {
			return err
		}
		if len(s.tools) == 0 || slices.ContainsFunc(b.failures, func(f failure) bool { return f.Suite == suiteNameFork && f.Tool == ours }) {
			return nil // the other phase would fail too
		}
	}
	return nil
}

// A forkSuite is what the phases of suite fork share.
type forkSuite struct {
	*bench
	tools   []forker // snapctl, then the peers
	tree    tree
	entry   string     // a name in its root
	changes [][]change // those of a list are made one after the other in one copy
	some    looking    // a program that reads some of the tree
}

func (b *bench) newForkSuite(ctx context.Context) (*forkSuite, error) {
	s := &forkSuite{bench: b, tree: b.trees[0], tools: []forker{b.forkerOf(b.ours)}}
	found, missing := pick(forkPeers(), b.o.peers)
	if b.o.smoke && b.o.peers == nil {
		found = slices.DeleteFunc(found, func(f forker) bool { return slowToStart(f.name) })
	}
	s.tools = append(s.tools, found...)
	for _, f := range found {
		b.versions[f.name] = version(ctx, b.runner, f.version)
	}
	if len(missing) > 0 {
		b.notef("suite fork: left out: %s", strings.Join(missing, ", "))
	}
	var err error
	if s.entry, err = firstName(s.tree.Path); err != nil {
		return nil, err
	}
	var moved int
	if s.changes, moved, err = b.changesIn(s.tree); err != nil {
		return nil, err
	}
	b.notef("suite fork: the folder that is moved has %d entries; many forks are %d", moved, b.o.forks)
	s.some, _, err = b.chooseSome(suiteNameFork, s.tree)
	return s, err
}

// A stocked is a forker with a snapshot of the tree in its vault, called
// snapshotName.
type stocked struct {
	forker
	place place
	vault forkable
}

// stock has the forkers make a snapshot of the tree. A peer that cannot, or
// cannot fork it here, is left out.
func (s *forkSuite) stock(ctx context.Context, tools []forker, open func(forker, place) (forkable, error)) ([]stocked, error) {
	var list []stocked
	for i, t := range tools {
		p, err := newPlace(s.runner, filepath.Join(s.work, "forked", fmt.Sprint(i)))
		if err != nil {
			return nil, err
		}
		s.logf("suite fork: %s stores %s", t.name, s.tree.Label)
		f := stocked{forker: t, place: p}
		if f.vault, err = open(t, p); err == nil {
			_, err = f.vault.Create(ctx, snapshotName, s.tree.Path)
		}
		if err == nil && !t.copies {
			err = s.tryFork(ctx, f)
		}
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err == nil:
			list = append(list, f)
		case errors.Is(err, errOnlyCopies): // by snapctl, without which there is nothing to measure
			s.notef("suite fork is left out: %v", err)
			s.tools = nil
			return nil, nil
		case t.name == ours:
			s.fail(suiteNameFork, t.name, err)
		default:
			s.notef("suite fork: left out: %s: %v", t.name, err)
			if err := removeAll(p.dir); err != nil {
				return nil, err
			}
		}
	}
	return list, nil
}

// tryFork forks once, and compares with the tree what then is there.
func (s *forkSuite) tryFork(ctx context.Context, v stocked) (err error) {
	f, err := s.forkIn(ctx, v.vault, snapshotName, s.entry)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.unfork(v.vault, f)) }()
	return s.checkFork(f)
}

func (s *forkSuite) checkFork(f forked) error {
	got, err := contentOf(f.dir)
	if err == nil && got != s.tree.content {
		err = fmt.Errorf("the fork has %+v, not %+v", got, s.tree.content)
	}
	return err
}

// empty removes what the forkers stored.
func (s *forkSuite) empty() error { return removeAll(filepath.Join(s.work, "forked")) }

// sample is one of this suite's, of the tree.
func (s *forkSuite) sample(work, tool string, run int) sample {
	return sample{Suite: suiteNameFork, Tree: s.tree.Label, Work: work, Tool: tool, Run: run}
}

// sideBySide measures all forkers on local folders.
func (s *forkSuite) sideBySide(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, s.empty()) }()
	list, err := s.stock(ctx, s.tools, func(t forker, p place) (forkable, error) { return t.open(ctx, p) })
	if err != nil {
		return err
	}
	return do(ctx, s.bench, rounds{suiteNameFork, s.o.warmup, s.o.runs}, list, func(v stocked, run int, _ place) error {
		if v.copies {
			return s.copying(ctx, v, run)
		}
		return s.forking(ctx, v, run)
	})
}

// copying makes one copy, in which all changes are made.
func (s *forkSuite) copying(ctx context.Context, v stocked, run int) (err error) {
	s.settle()
	f, err := s.forkIn(ctx, v.vault, snapshotName, s.entry)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.unfork(v.vault, f)) }()
	s.record(s.sample(workForkFirst, v.name, run), f.usage)
	if err := s.checkFork(f); err != nil {
		return err
	}
	for _, how := range v.vault.Savers() {
		if err := s.changing(ctx, v, how, &f, slices.Concat(s.changes...), run); err != nil {
			return err
		}
	}
	return nil
}

// forking measures the first fork of a snapshot, further ones, and saving each
// list of changes in a fork of its own.
func (s *forkSuite) forking(ctx context.Context, v stocked, run int) (err error) {
	for range s.repeats() {
		if v.name == ours { // what of its other figures is starting a program
			u, err := s.runner.run(ctx, s.ours.Version())
			if err != nil {
				return err
			}
			s.keep(sample{Suite: suiteNameFork, Work: workStart, Tool: ours, Run: run}, u)
		}
		if err := v.place.forget(ctx, v.vault); err != nil {
			return err
		}
		if err := s.forkOnce(ctx, v, s.sample(workForkFirst, v.name, run), nil); err != nil {
			return err
		}
	}
	first, err := s.forkIn(ctx, v.vault, snapshotName, s.entry) // keeps the snapshot mounted
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.unfork(v.vault, first)) }()
	for range s.repeats() {
		if err := s.forkOnce(ctx, v, s.sample(workFork, v.name, run), nil); err != nil {
			return err
		}
	}
	if v.name == ours { // the only one that has caches
		line := s.changes[0][0]
		once := change{workSaveFirst, func(ctx context.Context, root string, run int) (int, error) {
			return line.apply(ctx, root, run+1000) // not what is saved later
		}}
		if err := s.changing(ctx, v, v.vault.Savers()[0], &first, []change{once}, run); err != nil {
			return err
		}
	}
	for _, how := range v.vault.Savers() {
		lists := s.changes
		if how.whole {
			lists = [][]change{lists[0][:1]}
		}
		for _, list := range lists {
			f, err := s.forkIn(ctx, v.vault, snapshotName, s.entry)
			if err == nil {
				err = errors.Join(s.changing(ctx, v, how, &f, list, run), s.unfork(v.vault, f))
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// forkOnce measures making a fork, and removes it.
func (s *forkSuite) forkOnce(ctx context.Context, v stocked, x sample, watch func(*sample) func()) error {
	s.settle()
	done := func() {}
	if watch != nil {
		done = watch(&x)
	}
	f, err := s.forkIn(ctx, v.vault, snapshotName, s.entry)
	if err != nil {
		return err
	}
	done()
	s.record(x, f.usage)
	return s.unfork(v.vault, f)
}

// changing makes changes in a copy, and measures saving each.
func (s *forkSuite) changing(ctx context.Context, v stocked, how saver, f *forked, list []change, run int) error {
	for _, c := range list {
		differs, err := c.apply(ctx, f.dir, run)
		if err != nil {
			return fmt.Errorf("before %s: %w", c.work, err)
		}
		x := s.sample(c.work, how.tool, run)
		if x.Stored, err = storedBytes(v.place.store()); err != nil {
			return err
		}
		name := strings.Map(nameRune, fmt.Sprintf("%s-%s-%d", how.tool, c.work, run))
		u, err := s.saveOnce(ctx, how, *f, name, &x, nil)
		if err != nil {
			return err
		}
		now, err := storedBytes(v.place.store())
		if err != nil {
			return err
		}
		x.Added, x.Stored = now-x.Stored, now
		s.record(x, u)
		if forks, ok := v.vault.(*snapctlForks); ok {
			d := s.sample(workDiff, how.tool, run)
			if c.work != workSaveLine {
				d.Run = -1 // only to see that what was changed was saved
			}
			if err := s.diff(ctx, forks, f.last, name, differs, d); err != nil {
				return err
			}
		}
		if how.drop != nil {
			if err := how.drop(name); err != nil {
				return err
			}
		}
		f.last = name
	}
	return nil
}

// saveOnce saves what was changed.
func (s *forkSuite) saveOnce(ctx context.Context, how saver, f forked, name string, x *sample, watch func(*sample) func()) (usage, error) {
	s.settle()
	done := func() {}
	if watch != nil {
		done = watch(x)
	}
	u, err := how.save(ctx, f, name)
	if err != nil {
		return u, fmt.Errorf("%s: %w", x.Work, err)
	}
	done()
	return u, nil
}

// diff compares a saved change with what it was made from. They must differ in
// at least as many entries as were changed.
func (s *forkSuite) diff(ctx context.Context, v *snapctlForks, from, to string, differs int, x sample) error {
	u, n, err := v.Diff(ctx, from, to)
	if err == nil && n < differs {
		err = fmt.Errorf("%s has %d changes, of which %d were saved", to, differs, n)
	}
	if err == nil {
		s.keep(x, u)
	}
	return err
}

// nameRune makes the name of a file of any text.
func nameRune(r rune) rune {
	if r == ' ' || r == ',' || r == '/' {
		return '-'
	}
	return r
}

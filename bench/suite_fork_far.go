package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
)

// far measures forks of a snapshot in a bucket, and many of them.
func (s *forkSuite) far(ctx context.Context) (err error) {
	s3, err := startS3(ctx, s.bench)
	if err != nil {
		return err
	}
	defer s3.Close()
	var tools []forker
	for _, t := range s.tools {
		if t.openS3 != nil {
			tools = append(tools, t)
		}
	}
	const folder = "fork/"
	defer os.RemoveAll(s3.root(bucketName, folder))
	defer func() { err = errors.Join(err, s.empty()) }()
	list, err := s.stock(ctx, tools, func(t forker, p place) (forkable, error) {
		return t.openS3(ctx, p, s3.bucket(s3.far, folder).folder(strings.Map(nameRune, t.name)))
	})
	if err != nil {
		return err
	}
	return do(ctx, s.bench, rounds{suiteNameFork, 0, s.o.runs}, list, func(v stocked, run int, _ place) error {
		for range s.farForks(v) {
			if err := v.place.forget(ctx, v.vault); err != nil {
				return err
			}
			if err := s.forkOnce(ctx, v, s.sample(workForkFar, v.name, run), s3.watch); err != nil {
				return err
			}
		}
		return errors.Join(s.saveFar(ctx, v, run, s3), s.many(ctx, v, run, s3))
	})
}

// farForks is how often a snapshot is forked from afar: once by who fetches all
// of it first.
func (s *forkSuite) farForks(v stocked) int {
	if v.name == ours {
		return s.repeats()
	}
	return 1
}

// saveFar measures saving a changed line to the bucket: with the empty caches of
// who has just forked the snapshot, and after that. A tool without caches does
// the same twice.
func (s *forkSuite) saveFar(ctx context.Context, v stocked, run int, s3 *s3Server) error {
	for i, work := range []string{workFarFirst, workSaveFar} {
		if err := s.saveFarOnce(ctx, v, work, run+i*1000, run, s3); err != nil {
			return err
		}
	}
	return nil
}

func (s *forkSuite) saveFarOnce(ctx context.Context, v stocked, work string, line, run int, s3 *s3Server) (err error) {
	f, err := s.forkIn(ctx, v.vault, snapshotName, s.entry)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.unfork(v.vault, f)) }()
	if _, err := s.changes[0][0].apply(ctx, f.dir, line); err != nil {
		return err
	}
	for _, how := range v.vault.Savers() {
		x := s.sample(work, how.tool, run)
		u, err := s.saveOnce(ctx, how, f, fmt.Sprintf("far-%d", line), &x, s3.watch)
		if err != nil {
			return err
		}
		s.record(x, u)
	}
	return nil
}

// many measures a fork and a program in it, and then many forks and the program
// in each of them. What the program reads was read before, in a fork that came
// before these, and is part of what was moved by one fork as of what was by
// many.
func (s *forkSuite) many(ctx context.Context, v stocked, run int, s3 *s3Server) (err error) {
	if err := v.place.forget(ctx, v.vault); err != nil {
		return err
	}
	before := s3.moved()
	var forks []forked
	defer func() {
		for _, f := range forks {
			err = errors.Join(err, s.unfork(v.vault, f))
		}
	}()
	// fork makes so many forks in a row, and runs the program in each.
	fork := func(n int) (usage, error) {
		var u usage
		for range n {
			f, err := s.forkIn(ctx, v.vault, snapshotName, s.entry)
			if err != nil {
				return u, err
			}
			forks = append(forks, f)
			u = u.then(f.usage)
		}
		for _, f := range forks[len(forks)-n:] {
			ran, err := s.inside(ctx, f.dir, f.pid, s.some.pipeline)
			if err != nil {
				return u, err
			}
			u = u.then(ran)
		}
		return u, nil
	}
	if _, err := fork(1); err != nil {
		return err
	}
	for _, n := range []struct {
		work  string
		forks int
	}{{workForksOne, 1}, {workForksMany, s.o.forks}} {
		u, err := fork(n.forks)
		if err != nil {
			return err
		}
		u.Peak = processPeak(forks[0].pid) // the server's alone, so far
		x := s.sample(n.work, v.name, run)
		if x.Moved, err = s.movedFor(ctx, v, before, s3); err != nil {
			return err
		}
		s.record(x, u)
	}
	return nil
}

// movedFor is what was fetched for forks: what snapctl's server says, or for
// others what the proxy moved since then.
func (s *forkSuite) movedFor(ctx context.Context, v stocked, before int64, s3 *s3Server) (int64, error) {
	if forks, ok := v.vault.(*snapctlForks); ok {
		served, err := forks.served(ctx)
		return served.Stats.Fetched, err
	}
	return s3.moved() - before, nil
}

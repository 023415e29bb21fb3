package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// fromNothingBandwidth is that of each connection, in MB/s, unless another is
// given.
const fromNothingBandwidth = 100

// far measures mounting over S3, and how soon a program has run that needs
// some of what is there.
func (s *mountSuite) far(ctx context.Context) error {
	s3, err := startS3(ctx, s.bench)
	if err != nil {
		return err
	}
	defer s3.Close()
	limited := s3.far
	if s.o.bandwidth == 0 {
		if limited, err = s3.distance(ctx, "limited", s.o.rtt, fromNothingBandwidth); err != nil {
			return err
		}
	}
	t := s.bench.trees[0]
	const folder = "tree/"
	defer os.RemoveAll(s3.root(bucketName, folder))
	list, err := s.fill(ctx, s.farMounters(s3.bucket(limited, folder)), t)
	if err != nil {
		return err
	}
	defer s.empty()
	if len(list) > 0 && list[0].name == ours {
		if list, err = s.prefetching(ctx, list); err != nil {
			return err
		}
		if err := s.mountFar(ctx, list[0], s3, folder); err != nil {
			return err
		}
	}
	return do(ctx, s.bench, rounds{suiteNameMount, 0, s.o.runs}, list, func(f filled, run int, _ place) error {
		if f.slow && run > 0 {
			return nil
		}
		if f.name == ours || f.name == onlyRead {
			// As if nobody had mounted it before.
			if err := os.RemoveAll(s3.root(bucketName, folder, ours, "hot")); err != nil {
				return err
			}
		}
		stored, err := storedBytes(s3.root(bucketName, folder, strings.Fields(f.name)[0]))
		if err != nil {
			return err
		}
		return s.fromNothing(ctx, f, sample{Run: run, Stored: stored}, s3.watch)
	})
}

// farMounters are those that can keep their vaults in a bucket. Each has a
// folder of its own name in it.
func (s *mountSuite) farMounters(in bucket) []mounter {
	var list []mounter
	for _, m := range s.tools {
		var t tool
		for _, known := range append(peers(), s.ours) {
			if known.Name() == m.name {
				t = known
			}
		}
		r, ok := t.(remoteTool)
		if !ok {
			continue
		}
		m.open = func(ctx context.Context, p place) (mountable, error) {
			v, err := r.OpenS3(ctx, p, in.folder(m.name))
			if err != nil {
				return nil, err
			}
			return v.(mountable), nil
		}
		list = append(list, m)
	}
	return list
}

const (
	// onlyRead is snapctl that fetches nothing but what is read.
	onlyRead = ours + " --prefetch none"
	// byProfile is snapctl that fetches what was read from an earlier mount, which
	// must have been.
	byProfile = ours + " --prefetch hot, the second time"
)

// prefetching adds onlyRead and byProfile to a list that begins with snapctl.
func (s *mountSuite) prefetching(ctx context.Context, list []filled) ([]filled, error) {
	_, help, err := s.runner.output(ctx, command{Args: []string{s.ours.program, "mount", "--help"}})
	if err != nil {
		return nil, err
	}
	if !bytes.Contains(help, []byte("--prefetch")) {
		s.notef("suite mount: this snapctl has no mount --prefetch, so nothing is measured with it")
		return list, nil
	}
	var more []filled
	for _, x := range [][2]string{{onlyRead, "none"}, {byProfile, "hot"}} {
		f, v := list[0], *list[0].vault.(*snapctlVault)
		f.name, v.prefetch = x[0], x[1]
		f.vault = &v
		more = append(more, f)
	}
	return slices.Insert(list, 1, more...), nil
}

// mountFar measures snapctl mounting what is far away, with no limit of
// bandwidth unless one is given.
func (s *mountSuite) mountFar(ctx context.Context, f filled, s3 *s3Server, folder string) error {
	v := *f.vault.(*snapctlVault)
	v.repo = s3.bucket(s3.far, folder).folder(f.name).snapctlURL()
	f.vault = &v
	return do(ctx, s.bench, rounds{suiteNameMount, 0, s.o.runs}, []filled{f}, func(f filled, run int, _ place) error {
		for range s.repeats() {
			if err := s.mountOnce(ctx, f, sample{Work: workMountFar, Run: run}, s3.watch); err != nil {
				return err
			}
		}
		return nil
	})
}

// fromNothing measures from the start of mounting, with empty caches, to the
// end of a program.
func (s *mountSuite) fromNothing(ctx context.Context, f filled, x sample, watch func(*sample) func()) (err error) {
	if err := f.place.forget(ctx, f.vault); err != nil {
		return err
	}
	s.settle()
	x.Suite, x.Tree, x.Tool, x.Work = suiteNameMount, f.tree.Label, f.name, workFromNode
	if s.list != "" {
		x.Work = workFromSome
	}
	done := watch(&x)
	started := time.Now() // what is fetched ahead goes on between the two programs
	m, err := s.mountOf(ctx, f)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.unmount(m)) }()
	u, err := s.inside(ctx, m.root, m.pid, s.some.pipeline)
	if err != nil {
		return err
	}
	u.Wall = time.Since(started)
	done()
	u.CPU += m.usage.CPU
	s.record(x, u)
	return nil
}

// large measures mounting a tree of very many files, here and far away, and
// how much memory it takes to read all of it.
func (s *mountSuite) large(ctx context.Context) error {
	if s.o.large == 0 {
		return nil
	}
	need := int64(s.o.large)*8<<10 + 1<<30 // a small file takes a page and an inode
	if _, free, err := fileSystem(s.work); err != nil || free < need {
		s.notef("suite mount: no tree of %d files, which needs %s where %s are free", s.o.large, bytesText(need), bytesText(free))
		return err
	}
	dir := filepath.Join(s.work, "large")
	defer removeAll(dir)
	t, err := s.generate(ctx, treeSpec{Files: s.o.large, Mean: scaleMean}, dir)
	if err != nil {
		return err
	}
	t.Label = fmt.Sprintf("%d files", s.o.large)
	list, err := s.fill(ctx, s.tools[:1], t)
	if err != nil || len(list) == 0 {
		return err
	}
	defer s.empty()
	err = do(ctx, s.bench, rounds{suiteNameMount, 0, s.o.runs}, list, func(f filled, run int, _ place) error {
		return errors.Join(s.mounting(ctx, f, run), s.look(ctx, f, run, lookTar))
	})
	if err != nil {
		return err
	}

	s3, err := startS3(ctx, s.bench)
	if err != nil {
		return err
	}
	defer s3.Close()
	const folder = "large/"
	defer os.RemoveAll(s3.root(bucketName, folder))
	list, err = s.fill(ctx, s.farMounters(s3.bucket(s3.direct, folder))[:1], t)
	if err != nil || len(list) == 0 {
		return err
	}
	return s.mountFar(ctx, list[0], s3, folder)
}

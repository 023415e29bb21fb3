package main

import (
	"context"
	"errors"
	"os"
	"strconv"
)

// local is snapctl on a local folder within suite s3: what its figures over
// S3 are compared with, from the same rounds.
const local = ours + "-local"

// suiteS3 measures the tools that keep their vaults in a bucket, at a
// distance. A create starts with empty caches, and so does a restore, which is
// another machine's; 'create again' has the caches of the create.
func suiteS3(ctx context.Context, b *bench) error {
	const suite = "s3"
	s3, err := startS3(ctx, b)
	if err != nil {
		return err
	}
	defer s3.Close()

	tools := []tool{b.ours, snapctl{name: local, program: b.ours.program}}
	for _, t := range b.peers {
		if _, ok := t.(remoteTool); ok {
			tools = append(tools, t)
		}
	}
	n := 0
	err = do(ctx, b, rounds{suite, b.o.warmup, b.o.runs}, tools, func(t tool, run int, p place) error {
		if t.Name() == local {
			v, err := t.Open(ctx, p)
			if err != nil {
				return err
			}
			stored := func() (int64, error) { return storedBytes(p.store()) }
			return visit{bench: b, suite: suite, trees: b.trees[:1], tool: t, run: run, place: p, vault: v, stored: stored, cold: true}.do(ctx)
		}
		n++
		prefix := strconv.Itoa(n)
		defer os.RemoveAll(s3.root(bucketName, prefix))
		v, err := t.(remoteTool).OpenS3(ctx, p, s3.bucket(s3.far, prefix+"/"))
		if err != nil {
			return err
		}
		stored := func() (int64, error) { return storedBytes(s3.root(bucketName, prefix)) }
		return visit{bench: b, suite: suite, trees: b.trees[:1], tool: t, run: run, place: p, vault: v, stored: stored, watch: s3.watch, cold: true}.do(ctx)
	})
	if err != nil {
		return err
	}

	err = do(ctx, b, rounds{suite, 0, 1}, []tool{b.ours}, func(_ tool, _ int, p place) error {
		near, err := newPlace(b.runner, p.store("seeding"))
		if err != nil {
			return err
		}
		defer os.RemoveAll(s3.root(bucketName, "list"))
		direct, far := s3.bucket(s3.direct, "list/"), s3.bucket(s3.far, "list/")
		seeding := b.ours.vault(near, direct.snapctlURL(), direct.credentials())
		return b.list(ctx, suite, seeding, b.ours.vault(p, far.snapctlURL(), far.credentials()), s3.watch)
	})
	if err != nil {
		return err
	}
	if err := b.countCommands(ctx, s3); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		b.fail(suite, ours, err)
	}
	return nil
}

// watch notes in a sample what a work asked of the servers.
func (s *s3Server) watch(x *sample) func() {
	logged, cpu, moved := s.logged(), s.cpu(), s.moved()
	return func() {
		x.ServerCPU = s.cpu() - cpu
		x.Moved = s.moved() - moved
		var err error
		if x.Requests, err = s.requests(logged); err != nil && !errors.Is(err, os.ErrNotExist) {
			x.Requests = nil
		}
	}
}

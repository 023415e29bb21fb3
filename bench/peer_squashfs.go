package main

import (
	"context"
	"os"
)

// squashfs is an image made by mksquashfs and written out by unsquashfs. Over
// S3 the image is put and fetched whole, which is how Cloudflare's sandboxes
// keep their backups.
type squashfs struct{ compression string }

func (s squashfs) Name() string     { return "squashfs-" + s.compression }
func (squashfs) Programs() []string { return []string{"mksquashfs", "unsquashfs"} }
func (squashfs) Version() command   { return command{Args: []string{"mksquashfs", "-version"}} }
func (squashfs) Whole() bool        { return true }

func (s squashfs) Open(_ context.Context, p place) (vault, error) {
	return squashVault{squashfs: s, place: p}, nil
}

func (s squashfs) OpenS3(_ context.Context, p place, b bucket) (vault, error) {
	return squashS3{squashVault{s, p, true}, b}, nil
}

type squashVault struct {
	squashfs
	place
	remote bool // the image is here only on its way
}

func (v squashVault) image(name string) string {
	if v.remote {
		return v.local(name)
	}
	return v.store(name)
}

func (v squashVault) Create(ctx context.Context, name, tree string) (usage, error) {
	args := []string{"mksquashfs", tree, v.image(name), "-noappend", "-no-progress", "-quiet", "-comp", v.compression}
	if v.compression == "zstd" {
		args = append(args, "-Xcompression-level", "3")
	}
	return v.run(ctx, command{Args: args})
}

func (v squashVault) Restore(ctx context.Context, name, target string) (usage, error) {
	return v.run(ctx, command{Args: []string{"unsquashfs", "-no-progress", "-quiet", "-d", target, v.image(name)}})
}

func (v squashVault) Mount(ctx context.Context, name, dir string) (mounted, error) {
	return v.mountImage(ctx, "squashfs", v.image(name), dir)
}

// squashS3 moves the image in parallel parts by this program's own verbs
// (transfer.go), the image being removed from the machine after it is up.
type squashS3 struct {
	squashVault
	bucket bucket
}

func (v squashS3) transfer(ctx context.Context, verb, name string) (usage, error) {
	return v.run(ctx, command{
		Args: []string{v.self, verb, v.bucket.endpoint, v.bucket.name, v.bucket.prefix + name, v.image(name)},
		Env:  v.bucket.credentials(),
	})
}

func (v squashS3) Create(ctx context.Context, name, tree string) (usage, error) {
	made, err := v.squashVault.Create(ctx, name, tree)
	if err != nil {
		return usage{}, err
	}
	up, err := v.transfer(ctx, "upload", name)
	if err != nil {
		return usage{}, err
	}
	return made.then(up), os.Remove(v.image(name))
}

func (v squashS3) Restore(ctx context.Context, name, target string) (usage, error) {
	down, err := v.transfer(ctx, "download", name)
	if err != nil {
		return usage{}, err
	}
	out, err := v.squashVault.Restore(ctx, name, target)
	if err != nil {
		return usage{}, err
	}
	return down.then(out), os.Remove(v.image(name))
}

func (v squashS3) Mount(ctx context.Context, name, dir string) (mounted, error) {
	down, err := v.transfer(ctx, "download", name)
	if err != nil {
		return mounted{}, err
	}
	m, err := v.squashVault.Mount(ctx, name, dir)
	m.usage = down.then(m.usage)
	return m, err
}

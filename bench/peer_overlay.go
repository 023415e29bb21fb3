package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
)

// overlay is the kernel's overlayfs on the kernel's squashfs: a writable copy
// of an image that costs two mounts at first, and one from then on. Its
// options are those of snapctl's forks.
//
// What was changed lies in the upper folder, and three ways to keep it are
// measured: an image of everything, which any tool can read, and an image or an
// archive of the upper folder alone. Those two hold whiteouts and redirects,
// which only overlayfs on the very same image understands.
var overlay = forker{
	name:     "squashfs+overlay",
	programs: []string{"mksquashfs", "mount", "tar", "zstd"},
	version:  command{Args: []string{"mksquashfs", "-version"}},
	root:     true,
	open: func(_ context.Context, p place) (forkable, error) {
		return newOverlayVault(squashVault{squashfs: overlayImage, place: p}), nil
	},
	openS3: func(_ context.Context, p place, b bucket) (forkable, error) {
		far := squashS3{squashVault{overlayImage, p, true}, b}
		v := newOverlayVault(far.squashVault)
		v.far = &far
		return v, nil
	},
}

var overlayImage = squashfs{compression: "zstd"}

// What the ways to keep a change are called.
const (
	saveWhole    = "squashfs-zstd, whole"
	saveUpper    = "squashfs-zstd, upper"
	saveUpperTar = "tar+zstd, upper"
)

const overlayOptions = "index=off,nfs_export=off,metacopy=on,redirect_dir=on,xino=off"

type overlayVault struct {
	squashVault
	far    *squashS3      // where images go, nil for the store
	lower  string         // where the image is mounted
	copies map[string]int // copies of each image
}

func newOverlayVault(v squashVault) *overlayVault {
	return &overlayVault{squashVault: v, lower: v.local("lower"), copies: map[string]int{}}
}

func (v *overlayVault) Create(ctx context.Context, name, tree string) (usage, error) {
	if v.far != nil {
		return v.far.Create(ctx, name, tree)
	}
	return v.squashVault.Create(ctx, name, tree)
}

// mountLower mounts the image, which is fetched before if it is far away.
func (v *overlayVault) mountLower(ctx context.Context, name string) (usage, error) {
	if err := os.MkdirAll(v.lower, 0o755); err != nil {
		return usage{}, err
	}
	var m mountable = v.squashVault
	if v.far != nil {
		m = v.far
	}
	got, err := m.Mount(ctx, name, v.lower)
	return got.usage, err
}

func (v *overlayVault) Fork(ctx context.Context, name, dir string) (f forked, err error) {
	f = forked{dir: dir, name: name}
	if v.copies[name] == 0 {
		if f.usage, err = v.mountLower(ctx, name); err != nil {
			return f, err
		}
	}
	v.copies[name]++
	layer := v.local("layers", filepath.Base(dir))
	f.upper = filepath.Join(layer, "upper")
	work := filepath.Join(layer, "work")
	if err := errors.Join(os.MkdirAll(f.upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
		return f, err
	}
	u, err := v.run(ctx, command{Args: []string{"mount", "-t", "overlay", "overlay",
		"-o", overlayOptions + ",lowerdir=" + v.lower + ",upperdir=" + f.upper + ",workdir=" + work, dir}})
	f.usage = f.usage.then(u)
	return f, err
}

func (v *overlayVault) Unfork(_ context.Context, f forked) error {
	err := errors.Join(unmount(f.dir, patience), removeAll(v.local("layers", filepath.Base(f.dir))))
	if v.copies[f.name]--; v.copies[f.name] > 0 {
		return err
	}
	delete(v.copies, f.name)
	return errors.Join(err, unmount(v.lower, patience))
}

func (v *overlayVault) Savers() []saver {
	upper := func(ctx context.Context, f forked, name string) (usage, error) { return v.Create(ctx, name, f.upper) }
	if v.far != nil {
		return []saver{{tool: saveUpper, save: upper}}
	}
	drop := func(name string) error { return os.Remove(v.store(name)) }
	return []saver{
		{saveWhole, true, func(ctx context.Context, f forked, name string) (usage, error) { return v.Create(ctx, name, f.dir) }, drop},
		{saveUpper, false, upper, drop},
		{saveUpperTar, false, func(ctx context.Context, f forked, name string) (usage, error) {
			// Without these xattrs a folder that was moved would be an empty one.
			return v.run(ctx,
				command{Args: []string{"tar", "--xattrs", "--xattrs-include=*", "-cf", "-", "-C", f.upper, "."}},
				command{Args: []string{"zstd", "-q", "-1", "-T2", "-o", v.store(name)}})
		}, drop},
	}
}

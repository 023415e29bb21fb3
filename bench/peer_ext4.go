package main

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"
)

// ext4 is the kernel's own file system in an image file, filled by cp and
// mounted to be read only: what there would be without any image.
var ext4 = mounter{
	name:     "ext4",
	programs: []string{"mkfs.ext4", "mount", "cp"},
	version:  command{Args: []string{"mkfs.ext4", "-V"}},
	root:     true,
	open:     func(_ context.Context, p place) (mountable, error) { return ext4Vault{p}, nil },
}

type ext4Vault struct{ place }

func (v ext4Vault) image(name string) string { return v.store(name + ".img") }

func (v ext4Vault) Create(ctx context.Context, name, tree string) (u usage, err error) {
	c, err := contentOf(tree)
	if err != nil {
		return u, err
	}
	f, err := os.Create(v.image(name))
	if err != nil {
		return u, err
	}
	const inode = 256
	// Half a block of each file is lost, and a folder has one to itself.
	need := c.Bytes + c.Entries*(4096+2*inode)
	if err := errors.Join(f.Truncate(need*5/4+256<<20), f.Close()); err != nil {
		return u, err
	}
	made, err := v.run(ctx, command{Args: []string{"mkfs.ext4", "-q", "-F", "-m", "0", "-N", strconv.FormatInt(c.Entries*5/4+1000, 10),
		"-E", "lazy_itable_init=0,lazy_journal_init=0", v.image(name)}})
	if err != nil {
		return u, err
	}
	dir := v.store("mnt")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return u, err
	}
	defer func() { err = errors.Join(err, unmount(dir, patience)) }()
	if _, err := v.run(ctx, command{Args: []string{"mount", "-t", "ext4", "-o", "loop", v.image(name), dir}}); err != nil {
		return u, err
	}
	u, err = v.run(ctx, command{Args: []string{"cp", "-a", tree + "/.", dir}})
	return made.then(u), err
}

func (v ext4Vault) Mount(ctx context.Context, name, dir string) (mounted, error) {
	return v.mountImage(ctx, "ext4", v.image(name), dir)
}

// mountImage has the kernel mount an image, with a loop device that is freed
// when it is unmounted.
func (p place) mountImage(ctx context.Context, kind, image, dir string) (mounted, error) {
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		u, err := p.run(ctx, command{Args: []string{"mount", "-t", kind, "-o", "loop,ro", image, dir}})
		// The device of one that was unmounted a moment ago may not be free yet, and
		// mount would take the same.
		if err == nil || !strings.Contains(err.Error(), "busy") || time.Since(began) > patience || ctx.Err() != nil {
			return mounted{root: dir, usage: u}, err
		}
	}
}

package main

import "context"

// squashfuse shows the same image as the kernel's squashfs without the kernel.
var squashfuse = mounter{
	name:     "squashfuse",
	programs: []string{"mksquashfs", "squashfuse_ll"},
	version:  command{Args: []string{"squashfuse_ll", "-V"}},
	open: func(_ context.Context, p place) (mountable, error) {
		return squashfuseVault{squashVault{squashfs: squashfs{compression: "zstd"}, place: p}}, nil
	},
}

type squashfuseVault struct{ squashVault }

func (v squashfuseVault) Mount(_ context.Context, name, dir string) (mounted, error) {
	m, err := v.serve(command{Args: []string{"squashfuse_ll", "-f", v.image(name), dir}})
	m.root = dir
	return m, err
}

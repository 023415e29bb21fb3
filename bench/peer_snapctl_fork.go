package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// forkerOf makes snapctl a forker. Its state folder lies among the mount
// points, so that what it leaves would be found.
func (b *bench) forkerOf(s snapctl) forker {
	with := func(v *snapctlVault) forkable {
		v.env = append(v.env[:len(v.env):len(v.env)], "SNAPCTL_STATE_DIR="+b.mountPoint("state"))
		// What is fetched ahead would go on beside whatever is measured next, and
		// take a part of its time.
		v.prefetch = "none"
		return &snapctlForks{v}
	}
	return forker{name: s.name, programs: s.Programs(), version: s.Version(),
		open: func(ctx context.Context, p place) (forkable, error) {
			v := s.vault(p, p.store("repo"), nil)
			return with(v), v.init(ctx)
		},
		openS3: func(ctx context.Context, p place, in bucket) (forkable, error) {
			v := s.vault(p, in.snapctlURL(), in.credentials())
			return with(v), v.init(ctx)
		}}
}

// errOnlyCopies says that snapctl cannot make forks here, which is no fault of
// its own.
var errOnlyCopies = errors.New("snapctl can only copy snapshots here: snapctl doctor says why")

// snapctlForks is a vault whose snapshots are forked.
type snapctlForks struct{ *snapctlVault }

func (v *snapctlForks) Fork(ctx context.Context, name, dir string) (forked, error) {
	f := forked{dir: dir, name: name}
	u, out, err := v.output(ctx, v.command("fork", "--json", "--prefetch", v.prefetch, v.ids[name], dir))
	if err != nil {
		return f, err
	}
	f.usage = u
	var made struct {
		Upper, Mode string
	}
	if err := json.Unmarshal(out, &made); err != nil {
		return f, fmt.Errorf("snapctl fork said %q: %w", out, err)
	}
	if made.Mode == "restore" {
		return f, errOnlyCopies
	}
	f.upper = made.Upper
	served, err := v.served(ctx)
	f.pid = served.Pid
	return f, err
}

func (v *snapctlForks) Unfork(ctx context.Context, f forked) error {
	_, err := v.run(ctx, v.command("unfork", f.dir))
	return err
}

func (v *snapctlForks) Savers() []saver {
	return []saver{{tool: v.Name(), save: func(ctx context.Context, f forked, name string) (usage, error) {
		cpu := processCPU(f.pid)
		u, err := v.Create(ctx, name, f.dir)
		u.CPU += processCPU(f.pid) - cpu
		return u, err
	}}}
}

// served is what mounts --json says of the mount that forks lie over.
type served struct {
	Pid        int
	Registered bool // in our state folder
	Lower      bool
	Stats      struct{ Fetched int64 }
}

func (v *snapctlForks) served(ctx context.Context) (served, error) {
	_, out, err := v.output(ctx, v.command("mounts", "--json"))
	if err != nil {
		return served{}, err
	}
	var list []served
	if err := json.Unmarshal(out, &list); err != nil {
		return served{}, fmt.Errorf("snapctl mounts said %q: %w", out, err)
	}
	list = slices.DeleteFunc(list, func(m served) bool { return !m.Registered || !m.Lower })
	if len(list) != 1 || list[0].Pid <= 0 {
		return served{}, fmt.Errorf("snapctl mounts said %q, where one mount for all forks was expected", out)
	}
	return list[0], nil
}

// Diff compares two snapshots, and counts in how many entries they differ.
func (v *snapctlForks) Diff(ctx context.Context, a, b string) (usage, int, error) {
	u, out, err := v.output(ctx, v.command("diff", "--json", v.ids[a], v.ids[b]))
	if err != nil {
		return u, 0, err
	}
	n, err := countJSON(out)
	return u, n, err
}

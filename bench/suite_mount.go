package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

const suiteNameMount = "mount"

// suiteMount measures mounted trees: snapctl's beside the kernel's own file
// systems and what else shows a snapshot as a folder.
func suiteMount(ctx context.Context, b *bench) error {
	if err := cannotMount(); err != nil {
		b.notef("suite mount is left out: %v", err)
		return nil
	}
	s, err := b.newMountSuite(ctx)
	if err != nil {
		return err
	}
	for _, phase := range []func(context.Context) error{s.trees, s.sequential, s.far, s.large} {
		if err := phase(ctx); err != nil {
			return err
		}
		if slices.ContainsFunc(b.failures, func(f failure) bool { return f.Suite == suiteNameMount && strings.HasPrefix(f.Tool, ours) }) {
			return nil // the other phases would fail too
		}
	}
	return nil
}

// A mountSuite is what the phases of suite mount share.
type mountSuite struct {
	*bench
	tools []mounter // snapctl, then the peers
	drop  string    // the file that empties the kernel's caches, "" if we may not
	some  looking   // reads some files of the tree as a program would
	list  string    // file with the paths that some reads, "" for node
}

// dropFile empties caches of the whole machine when it is written to.
const dropFile = "/proc/sys/vm/drop_caches"

func (b *bench) newMountSuite(ctx context.Context) (*mountSuite, error) {
	s := &mountSuite{bench: b, tools: []mounter{mounterOf(b.ours, false)}}
	found, missing := pick(mountPeers(), b.o.peers)
	if b.o.smoke && b.o.peers == nil {
		found = slices.DeleteFunc(found, func(m mounter) bool { return m.slow })
	}
	missing = slices.DeleteFunc(missing, func(why string) bool { // the report has them
		name, _, _ := strings.Cut(why, " ")
		return slices.Contains(b.missing, name)
	})
	s.tools = append(s.tools, found...)
	for _, m := range found {
		b.versions[m.name] = version(ctx, b.runner, m.version)
	}
	if len(missing) > 0 {
		b.notef("suite mount: left out: %s", strings.Join(missing, ", "))
	}
	if b.o.smoke {
		b.notef("suite mount: no figures of cold caches, which a smoke run leaves alone")
	} else if f, err := os.OpenFile(dropFile, os.O_WRONLY, 0); err != nil {
		b.notef("suite mount: no figures of cold caches: %v", err)
	} else {
		f.Close()
		s.drop = dropFile
	}
	var err error
	s.some, s.list, err = b.chooseSome(suiteNameMount, b.trees[0])
	return s, err
}

// dropCaches empties the kernel's caches: "1" the pages of files, "3" also
// what it knows of names and inodes.
func (s *mountSuite) dropCaches(what string) error {
	s.settle()
	if s.drop == "" {
		return nil
	}
	return os.WriteFile(s.drop, []byte(what+"\n"), 0)
}

// A looking is work in a mounted tree, first cold and then warm.
type looking struct {
	cold, warm string
	pipeline   []command
}

var (
	lookFind = looking{workFindCold, workFindWarm, []command{{Args: []string{"find", ".", "-printf", `%s %m\n`}}}}
	// tar reads nothing if it sees that it writes to /dev/null.
	lookTar = looking{workTarCold, workTarWarm, []command{{Args: []string{"tar", "cf", "-", "."}}, {Args: []string{"cat"}}}}
)

// modules are what node is told to require.
var modules = []string{"next", "webpack", "@babel/core", "typescript", "lodash", "express", "firebase/app", "@aws-sdk/client-s3"}

// nodeScript requires modules as a program in the current folder would.
const nodeScript = `const load = require('module').createRequire(process.cwd() + '/x.js')
for (const m of process.argv.slice(2)) load(m)
`

// chooseSome has node load its modules, if it and they are there, and
// otherwise some files be read, whose paths are in the file list.
func (b *bench) chooseSome(suite string, t tree) (some looking, list string, err error) {
	_, err = exec.LookPath("node")
	for _, m := range modules {
		if err == nil {
			_, err = os.Stat(filepath.Join(t.Path, "node_modules", m))
		}
	}
	if err == nil {
		script := filepath.Join(b.work, "load.js")
		some = looking{workNodeCold, workNodeWarm, []command{{Args: append([]string{"node", script}, modules...)}}}
		return some, "", os.WriteFile(script, []byte(nodeScript), 0o644)
	}
	files, err := someFiles(t.Path, 600)
	if err != nil {
		return looking{}, "", err
	}
	b.notef("suite %s: instead of node, some files are read, for it or its modules are not there", suite)
	list = filepath.Join(b.work, "some.txt")
	some = looking{workSomeCold, workSomeWarm, []command{{Args: []string{"xargs", "-d", "\n", "-a", list, "cat"}}}}
	return some, list, os.WriteFile(list, []byte(strings.Join(files, "\n")), 0o644)
}

// A filled is a mounter with a snapshot called snapshotName in its vault.
type filled struct {
	mounter
	place place
	vault mountable
	tree  tree
	entry string // a name in the root
}

const snapshotName = "tree"

// fill has the mounters make a snapshot of a tree. It leaves out those that
// cannot, or cannot mount it: the kernel may not let us, for one.
func (s *mountSuite) fill(ctx context.Context, tools []mounter, t tree) ([]filled, error) {
	entry, err := firstName(t.Path)
	if err != nil {
		return nil, err
	}
	var list []filled
	for _, m := range tools {
		f := filled{mounter: m, tree: t, entry: entry}
		if f.place, err = newPlace(s.runner, filepath.Join(s.work, "mounted", m.name)); err != nil {
			return nil, err
		}
		s.logf("suite mount: %s stores %s", m.name, t.Label)
		if f.vault, err = m.open(ctx, f.place); err == nil {
			_, err = f.vault.Create(ctx, snapshotName, t.Path)
		}
		if err == nil {
			err = s.try(ctx, f)
		}
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err == nil:
			list = append(list, f)
		case m.name == ours:
			s.fail(suiteNameMount, m.name, err)
		default:
			s.notef("suite mount: left out: %s: %v", m.name, err)
			if err := removeAll(f.place.dir); err != nil {
				return nil, err
			}
		}
	}
	return list, nil
}

// firstName is a name in a folder.
func firstName(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) == 0 {
		err = fmt.Errorf("%s is empty", dir)
	}
	if err != nil {
		return "", err
	}
	return entries[0].Name(), nil
}

func (s *mountSuite) mountOf(ctx context.Context, f filled) (*mount, error) {
	return s.mount(ctx, f.vault, snapshotName, f.entry)
}

// try mounts once, which also warms up the programs that do it.
func (s *mountSuite) try(ctx context.Context, f filled) error {
	m, err := s.mountOf(ctx, f)
	if err != nil {
		return err
	}
	return s.unmount(m)
}

// empty removes what the mounters stored.
func (s *mountSuite) empty() error { return removeAll(filepath.Join(s.work, "mounted")) }

// withNative puts the tree itself in place of an ext4 that is wanted but
// cannot be had.
func (s *mountSuite) withNative(ctx context.Context, list []filled, t tree) ([]filled, error) {
	wanted := s.o.peers == nil || slices.Contains(s.o.peers, ext4.name)
	if !wanted || slices.ContainsFunc(list, func(f filled) bool { return f.name == ext4.name }) {
		return list, nil
	}
	s.notef("suite mount: %s, the tree where it lies, on %s, stands in for ext4", native.name, s.machine.FileSystem)
	more, err := s.fill(ctx, []mounter{native}, t)
	return append(list, more...), err
}

// trees measures mounting, and looking at a tree.
func (s *mountSuite) trees(ctx context.Context) error {
	t := s.bench.trees[0]
	list, err := s.fill(ctx, s.tools, t)
	if err == nil {
		list, err = s.withNative(ctx, list, t)
	}
	if err != nil {
		return err
	}
	err = do(ctx, s.bench, rounds{suiteNameMount, 0, s.o.runs}, list, func(f filled, run int, _ place) error {
		if f.slow && run > 0 {
			return nil
		}
		if f.name != native.name {
			if err := s.mounting(ctx, f, run); err != nil {
				return err
			}
		}
		for _, l := range []looking{lookFind, lookTar, s.some} {
			if err := s.look(ctx, f, run, l); err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, s.empty())
}

// mounting measures mounting with empty caches.
func (s *mountSuite) mounting(ctx context.Context, f filled, run int) error {
	for range s.mountTimes(f) {
		if err := s.mountOnce(ctx, f, sample{Work: workMount, Run: run}, nil); err != nil {
			return err
		}
	}
	return nil
}

func (s *mountSuite) mountTimes(f filled) int {
	if f.slow {
		return 1
	}
	return s.repeats()
}

// mountOnce measures one mount with empty caches.
func (s *mountSuite) mountOnce(ctx context.Context, f filled, x sample, watch func(*sample) func()) error {
	if err := f.place.forget(ctx, f.vault); err != nil {
		return err
	}
	s.settle()
	done := func() {}
	if watch != nil {
		done = watch(&x)
	}
	m, err := s.mountOf(ctx, f)
	if err != nil {
		return err
	}
	done()
	x.Suite, x.Tree, x.Tool = suiteNameMount, f.tree.Label, f.name
	s.record(x, m.usage)
	return s.unmount(m)
}

// look mounts a tree afresh, with cold caches, and does some work in it once,
// and then twice more.
func (s *mountSuite) look(ctx context.Context, f filled, run int, l looking) (err error) {
	if err := s.dropCaches("3"); err != nil {
		return err
	}
	m, err := s.mountOf(ctx, f)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.unmount(m)) }()
	times := 3
	if f.slow {
		times = 2
	}
	for i := range times {
		u, err := s.inside(ctx, m.root, m.pid, l.pipeline)
		if err != nil {
			return fmt.Errorf("%s: %w", l.cold, err)
		}
		x := sample{Suite: suiteNameMount, Tree: f.tree.Label, Tool: f.name, Work: l.warm, Run: run}
		if i == 0 {
			x.Work = l.cold
		}
		if i > 0 || s.drop != "" {
			s.record(x, u)
		}
		if i == 0 && l.cold == workTarCold {
			if err := s.check(ctx, m, f.tree); err != nil {
				return err
			}
		}
	}
	return nil
}

// inside runs programs in a mounted tree that a process serves, or with 0 the
// kernel. The server's processor time counts too; the peak memory is only the
// server's, so far.
func (b *bench) inside(ctx context.Context, root string, pid int, pipeline []command) (usage, error) {
	pipeline = slices.Clone(pipeline)
	for i := range pipeline {
		pipeline[i].Dir = root
	}
	cpu := processCPU(pid)
	u, err := b.runner.run(ctx, pipeline...)
	u.CPU += processCPU(pid) - cpu
	u.Peak = processPeak(pid)
	return u, err
}

// check compares what is mounted with the tree.
func (s *mountSuite) check(ctx context.Context, m *mount, t tree) error {
	_, out, err := s.runner.output(ctx, command{Args: []string{"find", ".", "-mindepth", "1", "-printf", `%y %s\n`}, Dir: m.root})
	if err != nil {
		return err
	}
	var got content
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		var kind string
		var size int64
		if _, err := fmt.Sscan(lines.Text(), &kind, &size); err != nil {
			return fmt.Errorf("find said %q: %w", lines.Text(), err)
		}
		got.Entries++
		if kind == "f" {
			got.Files++
			got.Bytes += size
		}
	}
	if lost := "lost+found"; exists(filepath.Join(m.root, lost)) && !exists(filepath.Join(t.Path, lost)) {
		got.Entries-- // ext4 has one
	}
	if got != t.content {
		return fmt.Errorf("mounted %+v, not %+v", got, t.content)
	}
	return nil
}

// bigFile is the size of the file that is read from its beginning to its end.
func bigFile(smoke bool) int64 {
	if smoke {
		return 16 << 20
	}
	return 1 << 30
}

// sequential measures reading one large file, with the kernel's pages dropped
// but the server left alone, and with the pages there.
func (s *mountSuite) sequential(ctx context.Context) error {
	dir := filepath.Join(s.work, "big")
	defer removeAll(dir)
	const name = "file"
	size := bigFile(s.o.smoke)
	s.logf("generating a file of %s", bytesText(size))
	if err := errors.Join(os.Mkdir(dir, 0o755), writeBig(ctx, filepath.Join(dir, name), size)); err != nil {
		return err
	}
	t, err := newTree(dir)
	if err != nil {
		return err
	}
	t.Label = "one file of " + bytesText(size)
	var quick []mounter
	for _, m := range s.tools {
		if !m.slow {
			quick = append(quick, m)
		}
	}
	list, err := s.fill(ctx, quick, t)
	if err == nil {
		list, err = s.withNative(ctx, list, t)
	}
	if err != nil {
		return err
	}
	read := []command{{Args: []string{"dd", "if=" + name, "of=/dev/null", "bs=1M", "status=none"}}}
	err = do(ctx, s.bench, rounds{suiteNameMount, 0, s.o.runs}, list, func(f filled, run int, _ place) (err error) {
		m, err := s.mountOf(ctx, f)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.unmount(m)) }()
		for _, work := range []string{"", workReadServed, workReadCached} {
			if work == workReadServed {
				if err := s.dropCaches("1"); err != nil {
					return err
				}
			}
			u, err := s.inside(ctx, m.root, m.pid, read)
			if err != nil {
				return err
			}
			if work == workReadCached || work == workReadServed && s.drop != "" {
				s.record(sample{Suite: suiteNameMount, Tree: t.Label, Work: work, Tool: f.name, Run: run, Read: size}, u)
			}
		}
		return nil
	})
	return errors.Join(err, s.empty())
}

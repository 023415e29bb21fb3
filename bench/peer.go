package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// A tool is a program that keeps directories: snapctl, or a peer.
type tool interface {
	// Name is what the tables and -peers call it.
	Name() string
	// Programs must all be on the machine.
	Programs() []string
	// Version prints the version; it is also how the start-up is measured.
	Version() command
	// Whole says that each snapshot is a copy of its own: making one again, or
	// of a second version, is the same work as the first.
	Whole() bool
	// Open makes an empty vault in an empty folder.
	Open(ctx context.Context, p place) (vault, error)
}

// A remoteTool can also keep its vault in a bucket.
type remoteTool interface {
	tool
	OpenS3(ctx context.Context, p place, b bucket) (vault, error)
}

// A vault is where a tool keeps snapshots.
type vault interface {
	// Create makes a snapshot of tree, called name.
	Create(ctx context.Context, name, tree string) (usage, error)
	// Restore writes the snapshot of that name to target, which does not exist
	// but whose parent does.
	Restore(ctx context.Context, name, target string) (usage, error)
}

// An opener is a vault of a tool that works on a repository: OpenOnly has it
// open the repository and do next to nothing, which shows what of every other
// figure is key derivation and the like.
type opener interface {
	OpenOnly(ctx context.Context) (usage, error)
}

// A connecter is a vault that another machine must connect to, once, before
// it can restore.
type connecter interface {
	Connect(ctx context.Context) error
}

// A place is where a vault lives and how its programs are run. What is stored
// lies in one folder, whose bytes are counted; caches and the like lie in
// another, which another machine would not have.
type place struct {
	*runner
	dir string
}

func newPlace(r *runner, dir string) (place, error) {
	p := place{r, dir}
	return p, errors.Join(os.MkdirAll(p.store(), 0o755), os.MkdirAll(p.local(), 0o755))
}

func (p place) store(elem ...string) string {
	return filepath.Join(append([]string{p.dir, "store"}, elem...)...)
}

func (p place) local(elem ...string) string {
	return filepath.Join(append([]string{p.dir, "local"}, elem...)...)
}

// forget makes the place like another machine's.
func (p place) forget(ctx context.Context, v any) error {
	if err := errors.Join(os.RemoveAll(p.local()), os.Mkdir(p.local(), 0o755)); err != nil {
		return err
	}
	if c, ok := v.(connecter); ok {
		return c.Connect(ctx)
	}
	return nil
}

// peers are all tools but snapctl, in the order of the tables.
func peers() []tool {
	return []tool{
		tarZstd{},
		squashfs{compression: "zstd"},
		squashfs{compression: "lz4"},
		restic{},
		kopia{},
		borg{},
		casync{},
		cp{},
	}
}

// slowToStart says of which tools every command takes a second or so, whatever it
// does: a smoke run that was not told to run them has them in one suite only.
func slowToStart(name string) bool {
	return slices.Contains([]string{restic{}.Name(), kopia{}.Name(), borg{}.Name()}, name)
}

// installed picks the peers to run: those of the names, or all if names is
// nil, as far as their programs are found. missing names the others.
func installed(names []string) (found []tool, missing []string) {
	for _, t := range peers() {
		if names != nil && !slices.Contains(names, t.Name()) && !slices.Contains(names, t.Programs()[0]) {
			continue
		}
		if slices.ContainsFunc(t.Programs(), func(p string) bool { _, err := exec.LookPath(p); return err != nil }) {
			missing = append(missing, t.Name())
			continue
		}
		found = append(found, t)
	}
	for _, n := range names {
		if !slices.ContainsFunc(peers(), func(t tool) bool { return t.Name() == n || t.Programs()[0] == n }) &&
			!slices.ContainsFunc(mountPeers(), func(m mounter) bool { return m.name == n }) &&
			!slices.ContainsFunc(forkPeers(), func(f forker) bool { return f.name == n }) {
			missing = append(missing, n)
		}
	}
	return found, missing
}

// A needy peer can do its work only where there are some programs, or as root.
type needy interface {
	named
	needs() (programs []string, root bool)
}

// pick picks the peers to run of a suite that mounts: those of the names, or all if
// names is nil, as far as this machine has them and lets us. missing says of the
// others why not.
func pick[T needy](peers []T, names []string) (found []T, missing []string) {
	for _, peer := range peers {
		if names != nil && !slices.Contains(names, peer.Name()) {
			continue
		}
		programs, root := peer.needs()
		if i := slices.IndexFunc(programs, func(p string) bool { _, err := exec.LookPath(p); return err != nil }); i >= 0 {
			missing = append(missing, peer.Name()+" (no "+programs[i]+")")
			continue
		}
		if root && os.Geteuid() != 0 {
			missing = append(missing, peer.Name()+" (only root may mount it)")
			continue
		}
		found = append(found, peer)
	}
	return found, missing
}

// content says what a folder holds, enough to notice a restore that did not
// do its work.
type content struct {
	Entries int64 `json:"entries"` // the folder itself not counted
	Files   int64 `json:"files"`
	Bytes   int64 `json:"bytes"` // of the files, as they say
}

func contentOf(dir string) (content, error) {
	var c content
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		c.Entries++
		if !d.Type().IsRegular() {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		c.Files++
		c.Bytes += info.Size()
		return nil
	})
	return c, err
}
